"""A repository and the proofs of what it holds: its own, and those of a registry, a folder of builds of the reader's.

What a registry records decides, as everywhere; what others have said, in either of them, is laid together. Of the
repository only its list of files and its folder `requant/` are fetched, and nothing of it is believed here; what is
none of what it should be is named, and stops nobody.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from requant.audit import audits, parties
from requant.audit.builders import FILE as BUILDERS
from requant.audit.builders import Builder, read_builders
from requant.audit.confirmed import trusted_of
from requant.checkpoint.files import SUFFIX, folded_case
from requant.errors import CheckpointError, RecipeError, UsageError
from requant.hub import web
from requant.hub.repository import Listing, listing
from requant.hub.stated import MAX_FETCHED, confirm_stated
from requant.progress import Progress, Tell, silent
from requant.published.proofs import FOLDER, OUTCOMES, PAGE, Proofs, lay_out, only, proofs_of, read_proofs
from requant.recipe import Recipe

SAID = (audits.FOLDER, parties.FOLDER, OUTCOMES)
"""Folders of what people have said of a build."""
BUILDS = "builds"


@dataclass(frozen=True)
class Found:
    """A repository at a commit, and the record of what it holds; None where there is none.

    `registry` is the recipe's folder in the registry whose record decides, None where the repository's own does.
    `others` are builds that the registry records of the same recipe, and that consist of other bytes. `held` are the
    files of `requant/`, path in the repository to bytes, and `astray` says of those that were passed over why.
    """

    listing: Listing
    proofs: Proofs | None
    registry: Path | None
    others: tuple[str, ...]
    held: Mapping[str, bytes]
    astray: Mapping[str, str]
    patience: web.Patience

    @property
    def name(self) -> str:
        """The repository at the commit."""
        return f"{self.listing.repository}@{self.listing.commit}"

    @property
    def fetched(self) -> int:
        """Bytes that came for this."""
        return self.listing.bytes + sum(map(len, self.held.values()))


def find(
    repository: str,
    revision: str,
    registry: Path | None,
    work: Path,
    *,
    endpoint: str | None = None,
    tell: Tell = silent,
) -> Found:
    """Fetch the proofs of a repository into `work`, an empty folder, and lay those of a registry beside them.

    Raises NotAvailableError for the network, CheckpointError for proofs that cannot be read.
    """
    patience = web.Patience()
    found = listing(repository, revision, patience, endpoint, stated=True)
    held = _fetched(found, patience, tell)
    theirs, merged = work / "theirs", work / "merged"
    for path, data in held.items():
        try:
            lay_out({path: data}, theirs)
        except OSError as error:
            told = f"{found.repository}@{found.commit}: {path}: no name for a file beside the others: {error.strerror}"
            raise CheckpointError(told) from None
    weights = {path: each.sha256 for path, each in found.stated.items() if path.endswith(SUFFIX)}
    recorded = read_proofs(registry) if registry else []
    match = next((each for each in recorded if each.manifest.weights == weights), None)
    own, astray = None, {}
    try:
        own = only(theirs / "builds", f"{found.repository}@{found.commit}")
        astray = _passed_over(own.recipe) if own else {}
    except (CheckpointError, RecipeError) as error:
        if match is None:
            raise
        astray = {FOLDER: str(error).replace(f"{theirs}/", "")}
    digest = own.recipe.digest if own else None
    others = tuple(
        f"{each.recipe.path.parent}"
        for each in recorded
        if not match and own and (each.recipe.digest, each.tiny) == (digest, own.tiny)
    )
    if match is None:
        return Found(found, own, None, others, held, astray, patience)
    laid = proofs_of(match.recipe, match.tiny, work / "nothing")
    for said in SAID:
        for source in own.recipe.beside(said).glob("*") if own else ():
            if source.is_file():
                laid.setdefault(f"{FOLDER}/builds/{match.recipe.name}/{said}/{source.name}", source)
    lay_out({path: source.read_bytes() for path, source in laid.items()}, merged)
    chosen = only(merged / "builds", str(registry))
    return Found(found, chosen, match.recipe.path.parent, others, held, astray, patience)


def _passed_over(recipe: Recipe) -> dict[str, str]:
    """Remove from a copy of a repository's proofs what is said there in no form that anybody reads, and say why."""
    place = recipe.path.parent
    found = {place / said: "not a folder" for said in SAID if (place / said).is_file()}
    found |= {each: "not a file" for said in SAID for each in (place / said).glob("*") if each.is_dir()}
    if place / audits.FOLDER not in found:
        strays = audits.sorted_out(place / audits.FOLDER)[1]
        for name, error in strays.items():
            path = place / audits.FOLDER / name
            found.setdefault(path, str(error).removeprefix(f"{path}: "))
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return {f"{FOLDER}/builds/{recipe.name}/{path.relative_to(place)}": why for path, why in found.items()}


def is_list(path: str) -> bool:
    """Say whether a file of a repository would be taken for a list of builders, by whatever file system."""
    return path.startswith(f"{FOLDER}/") and folded_case(path).endswith(f"/{BUILDERS}")


def _fetched(found: Listing, patience: web.Patience, tell: Tell) -> dict[str, bytes]:
    paths = [path for path in found.paths if path.startswith(f"{FOLDER}/") and path != PAGE and not is_list(path)]
    if (total := sum(found.stated[path].bytes for path in paths)) > MAX_FETCHED:
        told = f"{found.repository}@{found.commit}: {FOLDER}/ has {total:,} bytes, expected {MAX_FETCHED:,} at most"
        raise CheckpointError(told)
    held = {}
    for number, path in enumerate(paths):
        tell(Progress("proofs", number, len(paths), part=path))
        url, stated = found.address(path), found.stated[path]
        held[path] = web.whole(url, "", patience, stated.bytes)[1] if stated.bytes else b""
        confirm_stated(url, stated, held[path])
    return held


def registry_for(named: Path | None) -> Path | None:
    """Return the registry that is named, or the folder `builds` where this is run; None where there is none.

    Raises UsageError for one that is named and is not there.
    """
    if named and not named.is_dir():
        raise UsageError(f"{named}: no such folder", "A registry is a folder of builds, as this project's builds/.")
    return named or (Path(BUILDS) if Path(BUILDS).is_dir() else None)


def builders_for(
    registry: Path | None, listed: Path | None, trust: Sequence[str]
) -> tuple[Mapping[str, Builder], frozenset[str]]:
    """Return the builders whom the reader knows, and the ids of those trusted blindly; see `confirmed.builders`.

    By a list that is named, or else the registry's: never by one that a repository brings.
    """
    beside = registry / BUILDERS if registry else None
    named = listed or (beside if beside and beside.exists() else None)
    return trusted_of(read_builders(named) if named else {}, trust)
