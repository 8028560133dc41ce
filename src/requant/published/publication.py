"""`publish`: a build with its proofs, in one commit on the Hub.

`prepare` writes nothing and says what would go where, and what keeps it from going. `push` sends it by huggingface_hub,
whose protocols leave out what the Hub has whole already, and then asks the Hub what it has: only what it states to be
the very bytes that were verified here counts as published.
"""

import difflib
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from requant.build import RECORDED
from requant.build.workplace import scratch
from requant.checkpoint.files import SUFFIX, is_companion, listing
from requant.checkpoint.manifest import Manifest, read_manifest
from requant.digest import MAX_INDEX, read_whole, sha256, side_limit
from requant.environment.install import cache
from requant.errors import CheckpointError, NotAvailableError, UsageError
from requant.evidence import private
from requant.evidence.signatures import SUFFIX as BUNDLE
from requant.evidence.signatures import SignatureError, read_bundle
from requant.hub import web
from requant.hub.repository import Listing, Stated
from requant.hub.repository import listing as listed
from requant.published.proofs import FOLDER, PAGE, lay_out, other_lock, proofs_of, records_of
from requant.recipe import Recipe, read_recipe
from requant.report.evidence import of_build
from requant.report.judgement import judge
from requant.report.page import page

CARD = "README.md"
XET = re.compile(r"\((\d{3}) .*/xet-write-token/")
"""What hf_xet says of a status where it asked the Hub for leave to send; it has no other form."""
UNSCANNED = ("tokenizer.", "vocab.", "merges.", "tekken.")
"""How the names begin of files that are words of a language, and where some look like keys."""


@dataclass(frozen=True)
class Sent:
    """A file that is to be published: what it holds, and where that stands; small files are held in memory."""

    size: int
    sha256: str
    content: Path | bytes

    @property
    def git(self) -> str:
        """Git's name for the content, which a hub states of what it does not store as LFS."""
        data = self.content if isinstance(self.content, bytes) else self.content.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()

    def is_stated(self, stated: Stated) -> bool:
        """Say whether a hub states these very bytes."""
        same = stated.sha256 == self.sha256 if stated.sha256 else stated.git == self.git
        return stated.bytes == self.size and same


@dataclass(frozen=True)
class Publication:
    """What would go where. `there` is what the repository has, None where there is none, or none to be seen.

    `removed` are files of the repository that would make of the checkpoint another one. `refusals` say what keeps it
    from being published, and `card_diff` how the repository's card differs from what would replace it.
    """

    repository: str
    files: Mapping[str, Sent]
    there: Listing | None
    removed: tuple[str, ...]
    card_diff: tuple[str, ...]
    refusals: tuple[str, ...]

    @property
    def unchanged(self) -> tuple[str, ...]:
        """Files that the repository has already, as it states."""
        stated = self.there.stated if self.there else {}
        return tuple(path for path, each in self.files.items() if path in stated and each.is_stated(stated[path]))

    def as_json(self) -> dict[str, Any]:
        """Return it as `--json` prints it."""
        unchanged = {*self.unchanged}
        return {
            "repository": self.repository,
            "parent": self.there.commit if self.there else None,
            "files": {
                path: {"bytes": each.size, "sha256": each.sha256, "there": path in unchanged}
                for path, each in self.files.items()
            },
            "removed": list(self.removed),
            "refusals": list(self.refusals),
        }


def prepare(
    repository: str,
    checkpoint: Path,
    recipe: Recipe,
    tiny: str | None,
    card: str,
    *,
    replace: bool = False,
    endpoint: str | None = None,
) -> Publication:
    """Say what would be published of a checkpoint that was verified, with its proofs, a page of them, and its `card`.

    A README.md in the checkpoint's folder goes in place of `card`. With `replace` the repository's own card, and files
    that make of it another checkpoint, may go. Raises UsageError and CheckpointError as `proofs_of` does, and
    NotAvailableError for the network.
    """
    records = records_of(recipe, tiny, checkpoint)
    manifest = read_manifest(records[RECORDED[0]])
    proofs = {path: _whole(place, path) for path, place in proofs_of(recipe, tiny, checkpoint).items()}
    pages, problems = _page(proofs, recipe, tiny)
    proofs |= pages
    files = {**dict(_checkpoint(checkpoint, manifest)), **{path: held(data) for path, data in proofs.items()}}
    if CARD not in files:
        own = listing(checkpoint).companions.get(CARD)
        files[CARD] = held(_whole(own, CARD) if own else card.encode())
    there = _there(repository, endpoint)
    stated = there.stated if there else {}
    theirs = stated.get(CARD)
    diff: tuple[str, ...] = ()
    if there and theirs and not files[CARD].is_stated(theirs):
        diff = tuple(_diff(there, files[CARD]))
    removed = tuple(path for path in stated if path not in files and _astray(path, recipe))
    refusals = [*_told(files), *problems]
    if fault := other_lock(recipe, tiny, records[RECORDED[2]]):
        refusals.append(f"{fault}: whoever audits it would install another environment")
    if diff and not replace:
        refusals.append(f"{CARD}: the repository has another one; --replace puts this one in its place")
    if removed and not replace:
        refusals.append(f"{', '.join(removed)}: in the repository, and not of this checkpoint; --replace removes them")
    return Publication(repository, dict(sorted(files.items())), there, removed, diff, tuple(refusals))


def _checkpoint(folder: Path, manifest: Manifest) -> Iterator[tuple[str, Sent]]:
    """Yield the files that the manifest names: of weights where they stand, of others the bytes that it records."""
    found = listing(folder)
    for path, record in manifest.files.items():
        place = found.files.get(path) or found.companions[path]
        if path.endswith(SUFFIX):
            yield path, Sent(record.bytes, record.sha256, place)
            continue
        small = held(_whole(place, path))
        if small.sha256 != record.sha256:
            raise CheckpointError(f"{place}: has changed since it was verified", "Publish when nothing writes to it.")
        yield path, small


def _page(proofs: Mapping[str, bytes], recipe: Recipe, tiny: str | None) -> tuple[dict[str, bytes], list[str]]:
    """Return the page of what is published, and what is wrong with the records, of which there is no page then.

    It is what `requant report requant/builds/NAME` writes where that was fetched. A page that calls itself good proves
    nothing, so this one has what anybody can make again, to the same bytes: what is recorded, and by nobody's list of
    builders, for a repository brings none.
    """
    with scratch(cache() / "published") as work:
        lay_out(proofs, work)
        found = of_build(read_recipe(work / "builds" / recipe.name), tiny, {})
        problems = [f"{each.what}: {each.said}".replace(f"{work}/", "") for each in found.problems]
        return ({} if problems else {PAGE: page(found, judge(found)).encode()}), problems


def held(data: bytes) -> Sent:
    """Return what is sent of bytes."""
    return Sent(len(data), sha256(data), data)


def _whole(place: Path, path: str) -> bytes:
    try:
        return read_whole(place, max(side_limit(path), 2 * MAX_INDEX))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{place}: {getattr(error, 'strerror', None) or error}") from None


def _there(repository: str, endpoint: str | None) -> Listing | None:
    """Return what the repository has; None where there is none that this token may see."""
    try:
        return listed(repository, "main", web.Patience(), endpoint, stated=True)
    except NotAvailableError as error:
        if web.is_absent(error):
            return None
        raise


def _diff(there: Listing, card: Sent) -> Iterator[str]:
    theirs = web.whole(there.address(CARD), "", web.Patience(), side_limit(CARD))[1].decode(errors="replace")
    ours = card.content.decode(errors="replace") if isinstance(card.content, bytes) else ""
    yield from difflib.unified_diff(
        theirs.splitlines(), ours.splitlines(), "the repository's README.md", "this README.md", lineterm="", n=1
    )


def _astray(path: str, recipe: Recipe) -> bool:
    """Say whether a file of the repository would be one of the checkpoint, or prove another build.

    What others said of the build, `audits/` and the like, is theirs and stays.
    """
    if not path.startswith(f"{FOLDER}/"):
        return not is_companion(path)
    build = f"{FOLDER}/builds/{recipe.name}/"
    others = path.startswith(f"{FOLDER}/builds/") and not path.startswith(build)
    return not is_companion(path) or (others and path.endswith("/recipe.toml")) or path.endswith(f".{RECORDED[0]}")


def _told(files: Mapping[str, Sent]) -> Iterator[str]:
    """Yield what must not be published, file by file."""
    for path, each in files.items():
        last = path.rpartition("/")[2]
        if not isinstance(each.content, bytes) or last.startswith(UNSCANNED):
            continue
        data, record = each.content, path.startswith(f"{FOLDER}/") and last.endswith((".jsonl", BUNDLE))
        if record and last.endswith(BUNDLE):
            try:
                data = read_bundle(data, path).statement  # a signature in base64 can look like anything
            except SignatureError as error:
                yield str(error)
                continue
        try:
            found = private.in_record(data) if record else private.in_text(data)
        except ValueError as error:  # somebody's bundle can hold anything
            yield f"{path}: not a statement: {error}"
            continue
        for text in found:
            yield f"{path}: must not be published: {private.told(text)}"


def push(publication: Publication, *, message: str, private_one: bool = False, endpoint: str | None = None) -> str:
    """Make one commit of a publication, and return it. Whatever came whole before is not sent again.

    Raises UsageError where something keeps it from being published, or a `private_one` is there for everybody;
    NotAvailableError for the network, a refusal, or a repository that somebody else has made or changed meanwhile;
    CheckpointError where the Hub does not state what was sent.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    if publication.refusals:
        raise UsageError("\n".join(publication.refusals), "Nothing was sent.")
    name, there = publication.repository, publication.there
    api = HfApi(endpoint=endpoint, library_name="requant")
    adds = [
        CommitOperationAdd(path, str(each.content) if isinstance(each.content, Path) else each.content)
        for path, each in publication.files.items()
    ]
    try:
        if there is None:
            api.create_repo(name, private=private_one or None)
        elif private_one and not api.model_info(name).private:
            raise UsageError(f"{name}: is there, and not private", "Make it so on its page, or leave --private out.")
        api.preupload_lfs_files(name, adds, free_memory=False)
        for each in adds:
            _confirm_sent(each.path_in_repo, publication.files[each.path_in_repo], each.upload_info.sha256.hex())
        made = api.create_commit(
            name,
            [*adds, *map(CommitOperationDelete, publication.removed)],
            commit_message=message,
            parent_commit=there.commit if there else None,
        )
    except Exception as error:
        raise _refused(name, error) from None
    found = listed(name, made.oid, web.Patience(), endpoint, stated=True)
    for path, sent in publication.files.items():
        if path not in found.stated or not sent.is_stated(found.stated[path]):
            stated = found.stated.get(path)
            told = f"{name}@{made.oid}: {path}: the Hub states {stated}, and {sent.sha256} was sent"
            raise CheckpointError(told, "Do not announce this commit: look at HF_ENDPOINT, and publish again.")
    return str(made.oid)


def _confirm_sent(path: str, sent: Sent, digest: str) -> None:
    """Raise CheckpointError where a file's bytes are no longer those that were verified."""
    if digest != sent.sha256 or (isinstance(sent.content, Path) and sent.content.stat().st_size != sent.size):
        raise CheckpointError(f"{path}: has changed since it was verified", "Nothing was committed. Publish again.")


def _refused(name: str, error: Exception) -> Exception:
    """Return the error to raise for one of the library's: what it says, without what it quotes of a request."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, CheckpointError | UsageError):
        return error
    inner = error.__cause__ if isinstance(error, RuntimeError) else None  # what went wrong with one upload of several
    cause = inner if isinstance(inner, Exception) else error
    kept = "what came whole is kept by the Hub: the same command goes on from there"
    xet = XET.search(str(cause))
    if status := cause.response.status_code if isinstance(cause, HfHubHTTPError) else int(xet[1]) if xet else 0:
        if status == 412:
            return NotAvailableError(f"{name}: somebody changed it meanwhile", "Run it again, and look.")
        if status in (401, 403):
            return NotAvailableError(
                f"{name}: refused, status {status}", "set HF_TOKEN to a token that may write to this repository"
            )
        if status == 404 and xet:
            advice = "with HF_HUB_DISABLE_XET=1 it is sent by git-lfs"
            return NotAvailableError(f"{name}: this server has no Xet, by which hf_xet sends", advice)
        told = f"{name}: status {status}: {getattr(cause, 'server_message', None) or ''}"
        return NotAvailableError(told.removesuffix(": ")[:300], kept)
    if web.is_of_the_network(cause) or isinstance(cause, OSError):
        return NotAvailableError(f"{name}: {web.trouble(cause)}", kept)
    if isinstance(cause, ValueError | RuntimeError):
        told = f"{name}: {type(cause).__name__}: {cause}"[:300]
        return NotAvailableError(told, kept)
    return error
