"""Whether a check can count as one of a build: it must have been held against that build's base, by its recipe.

Both sides ask: whoever verifies by name, of what is signed, and whoever is about to sign, of the folder that was named.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from requant.build import RECORDED, beside, recorded, words
from requant.checkpoint.files import list_files
from requant.checkpoint.manifest import Manifest, read_manifest
from requant.errors import CheckpointError, RecipeError
from requant.published.proofs import FOLDER, Proofs, base_files, read_proofs
from requant.recipe import Recipe

SHOWN = 3
"""Files that one line names."""


@dataclass(frozen=True)
class _Record:
    """A record of a checkpoint: where it stands, whose build it is, and the files of its base; None: not known."""

    where: Path
    recipe: Recipe
    tiny: bool
    base: Mapping[str, str] | None
    right: str


def base_of(proofs: Proofs) -> Mapping[str, str] | None:
    """Return the files of the base of a build, path to SHA-256; None where no record says which they are."""
    return _base(proofs.recipe, proofs.tiny, recorded(proofs.recipe, proofs.tiny, RECORDED[2]))


def doubts(
    checkpoint: Path, base: Mapping[str, str], recipe: Recipe | None, tiny: bool, registry: Path | None
) -> list[str]:
    """Say why a check against the files of `base`, path to SHA-256, will not count as one of this checkpoint's build.

    Nothing where it will, and where no record of it is known. Those of a registry, or of the recipe's, decide; then the
    one beside the checkpoint; then those in its `requant/`; and of a full build, last, what the recipe pins.
    """
    for found in _records(checkpoint, recipe, tiny, registry):
        told = [_doubt(each, base, recipe, tiny) for each in found]
        if told:
            return [] if "" in told else [*dict.fromkeys(told)]
    return []


def _doubt(record: _Record, base: Mapping[str, str], recipe: Recipe | None, tiny: bool) -> str:
    if recipe is None or (recipe.digest, tiny) != (record.recipe.digest, record.tiny):
        named = f"--recipe {record.recipe.path.parent}{' --tiny' if record.tiny else ''}"
        what = "a build whose recipe is not named" if recipe is None else "a build of another recipe"
        return f"{record.where}: {what}: {named}"
    if record.base is None:
        return ""
    wrong = [f"{path} is another" for path in base.keys() & record.base.keys() if base[path] != record.base[path]]
    wrong += [f"{path} is missing" for path in record.base.keys() - base.keys()]
    wrong += [f"{path} is none of its files" for path in base.keys() - record.base.keys()]
    if not wrong:
        return ""
    some = ", ".join(sorted(wrong)[:SHOWN]) + (f", and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else "")
    return f"{record.where}: a build of another base: {some}; {record.right}"


def _records(checkpoint: Path, recipe: Recipe | None, tiny: bool, registry: Path | None) -> Iterator[list[_Record]]:
    """Yield what records a checkpoint, one source after the other."""
    files = list_files(checkpoint) if checkpoint.is_dir() else {}
    there = {path: place.stat().st_size for path, place in files.items()}

    def is_of_it(manifest: Manifest) -> bool:
        return {path: each.bytes for path, each in manifest.files.items()} == there

    def recorded_in(builds: Path) -> list[_Record]:
        try:
            proofs = [each for each in read_proofs(builds) if is_of_it(each.manifest)]
        except (CheckpointError, RecipeError):  # a stranger's, perhaps: nothing is known by it
            return []
        return [
            _Record(
                each.recipe.path.parent, each.recipe, bool(each.tiny), base_of(each), _right(each.recipe, each.tiny)
            )
            for each in proofs
        ]

    own = recipe.path.parent.parent if recipe else None
    yield [record for builds in dict.fromkeys(filter(None, (registry, own))) for record in recorded_in(builds)]
    manifest = beside(checkpoint.resolve(), RECORDED[0])
    if recipe and manifest.is_file() and is_of_it(read_manifest(manifest)):
        size = "SIZE" if tiny else None
        base = _base(recipe, size, beside(checkpoint.resolve(), RECORDED[2]))
        yield [_Record(manifest, recipe, tiny, base, _right(recipe, size))]
    yield recorded_in(checkpoint / FOLDER / "builds")
    if recipe and not tiny and (pinned := _base(recipe, None, recipe.path)):
        yield [_Record(recipe.path.parent, recipe, False, pinned, _right(recipe, None))]


def _base(recipe: Recipe, tiny: str | None, statement: Path) -> Mapping[str, str] | None:
    try:
        return base_files(recipe, tiny, statement)
    except (CheckpointError, RecipeError):
        return None


def _right(recipe: Recipe, tiny: str | None) -> str:
    """Say where the right base is to be had."""
    if tiny:
        return f"requant tiny {recipe.path.parent}{words(tiny).removeprefix(' --tiny')} --out BASE writes the right one"
    return f"the right one is {recipe.base.repository}@{recipe.base.revision}"
