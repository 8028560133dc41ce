"""Proofs beside a published checkpoint: its folder `requant/`, a project of that one build.

It is laid out as every project: `builds/<name>/` with recipe, plan, manifest, journal, statement and what others have
said of it, pins in `builds/`, `lockfiles/` and Dockerfiles. So whoever has it can verify the checkpoint, audit it, and
build it again when all else is gone. Who is known is no part of it: a list of builders is the reader's own.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from requant.audit import audits, parties
from requant.audit.audits import confirm_regular, read_audits, submitted
from requant.build import RECORDED, beside, recorded, stem
from requant.checkpoint.files import is_companion
from requant.checkpoint.manifest import Manifest, read_manifest
from requant.digest import sha256, sha256_file
from requant.environment.identity import dockerfile_path
from requant.errors import CheckpointError, UsageError
from requant.evidence.outcomes import Judged
from requant.evidence.signatures import (
    SUFFIX,
    SignatureError,
    Signs,
    bundle_path,
    parse_statement,
    read_file,
    sign_file,
    verify_file,
    write_signed,
)
from requant.evidence.statements import base_of, lock_of
from requant.hub.pinned import read_pins
from requant.inspect import baseline
from requant.model.rules import SIZES
from requant.recipe import FILE, Recipe, read_recipe

FOLDER = "requant"
PAGE = f"{FOLDER}/report.html"
"""What the proofs say, for whoever would rather look than read; no verb reads it."""
OUTCOMES = "outcomes"
"""Folder of signed outcomes of `verify` and `check`, beside a recipe: each a bundle under the SHA-256 of its bytes."""


@dataclass(frozen=True)
class Proofs:
    """The record of one build: its recipe, the size of the tiny model where it is one, and what it consists of."""

    recipe: Recipe
    tiny: str | None
    manifest: Manifest

    @property
    def files(self) -> dict[str, str]:
        """The checkpoint's files, path to SHA-256."""
        return {path: each.sha256 for path, each in self.manifest.files.items()}


def records_of(recipe: Recipe, tiny: str | None, checkpoint: Path) -> dict[str, Path]:
    """Return the records of a checkpoint by the end of their names: those beside it, or else the recorded ones.

    With them its signed statement, where there is one. Raises UsageError where one is missing.
    """
    place = checkpoint if beside(checkpoint, RECORDED[0]).is_file() else recipe.beside(stem(tiny))
    found = {each: beside(place, each) for each in RECORDED}
    if absent := [path for path in found.values() if not path.is_file()]:
        told = f"{absent[0]}: no such file"
        raise UsageError(told, "What is published is a build with its records, as `requant build` leaves them.")
    bundle = bundle_path(found[RECORDED[2]])
    return found | ({SUFFIX.removeprefix("."): bundle} if bundle.is_file() else {})


def proofs_of(recipe: Recipe, tiny: str | None, checkpoint: Path) -> dict[str, Path]:
    """Return what is published beside a checkpoint, path in the repository to file.

    Of what people submitted, what they said of these files. Raises UsageError where records are missing,
    CheckpointError where one cannot be read.
    """
    records = records_of(recipe, tiny, checkpoint)
    files = {path: each.sha256 for path, each in read_manifest(records[RECORDED[0]]).files.items()}
    project = recipe.path.resolve().parent.parent.parent
    found = [recipe.path.resolve(), *map(recipe.beside, ("plan.json", baseline.FILE))]
    pins = recipe.beside(recipe.base.files)
    found += [pins, pins.with_suffix(".config.json"), recipe.beside(recipe.calibration.files)]
    environments = {recipe.effort(each).environment for each in (True, False)}
    found += [recipe.lockfiles / f"{each}.{end}" for each in environments for end in ("in", "txt", "files")]
    found += [*recipe.lockfiles.glob("build-*"), recipe.lockfiles / "images.toml"]
    found += [dockerfile_path(recipe.lockfiles, each) for each in environments]
    found += [*_said(recipe, files)]
    there = {path.resolve() for path in found if path.is_file()}
    if astray := [path for path in there if not path.is_relative_to(project)]:
        told = f"{astray[0]}: {recipe.path} names it, and it is not in {project}"
        raise UsageError(told, "What is published of a project stands in it: move it there.")
    build = f"{FOLDER}/builds/{recipe.name}"
    made = {f"{FOLDER}/{path.relative_to(project).as_posix()}": path for path in there}
    made |= {f"{build}/{stem(tiny)}.{end}": path for end, path in records.items()}
    for verb in ("verify", "check"):
        path = beside(checkpoint.resolve(), f"{verb}{SUFFIX}")
        if path.is_file() and _subjects(path) == files:
            made[f"{build}/{OUTCOMES}/{sha256(path.read_bytes())}{SUFFIX}"] = path
    return dict(sorted(made.items()))


def base_files(recipe: Recipe, tiny: str | None, statement: Path) -> dict[str, str]:
    """Return the files of the base of a build, path to SHA-256, as `check` finds them in a folder.

    They are those that the recipe pins; of a tiny model, which nothing pins, those that the build's statement states.
    """
    if tiny:
        found = base_of(statement)
    else:
        pins = read_pins(recipe.beside(recipe.base.files)).files
        found = {path: each.sha256 for path, each in pins.items() if each.sha256}
    return {path: digest for path, digest in found.items() if not is_companion(path)}


def other_lock(recipe: Recipe, tiny: str | None, statement: Path) -> str:
    """Say that a recipe's lock is not the one that a build's statement names; nothing where it is, or none is there.

    Whoever audits by the recipe installs what that lock names. Raises CheckpointError for what is no statement.
    """
    lock = recipe.lockfiles / f"{recipe.effort(tiny is not None).environment}.txt"
    if not lock.is_file() or sha256_file(lock) == lock_of(statement):
        return ""
    return f"{lock.parent.name}/{lock.name}: not the lock that the build's statement names"


def lay_out(proofs: Mapping[str, bytes], folder: Path) -> None:
    """Write proofs, path in the repository to bytes, as the project that they are; raise OSError for odd names."""
    for path, data in proofs.items():
        place = folder / path.removeprefix(f"{FOLDER}/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)


def _said(recipe: Recipe, files: Mapping[str, str]) -> Iterator[Path]:
    """Yield what people submitted beside a recipe, and said of these files."""
    for name, audit in read_audits(recipe).items():
        if audit.files == files:
            path = recipe.beside(audits.FOLDER) / name
            yield from filter(Path.is_file, (path, bundle_path(path)))
    for folder in (parties.FOLDER, OUTCOMES):
        for name in submitted(recipe.beside(folder)):
            path = recipe.beside(folder) / name
            confirm_regular(path)
            if _subjects(path) == files:
                yield path


def _subjects(bundle: Path) -> dict[str, str]:
    """Return what a bundle speaks of, path to SHA-256; nothing where it is none, or of something else."""
    try:
        return parse_statement(read_file(bundle).statement)[1]
    except (SignatureError, ValueError):
        return {}


def read_proofs(builds: Path) -> list[Proofs]:
    """Return the records that stand in a folder of builds, each a recipe and a manifest; none where it is no folder.

    Raises CheckpointError and RecipeError for what cannot be read.
    """
    found = []
    for path in sorted(builds.glob(f"*/{FILE}")):
        recipe = read_recipe(path)
        for size in (None, *SIZES):
            manifest = recorded(recipe, size, RECORDED[0])
            if manifest.is_file():
                found.append(Proofs(recipe, size, read_manifest(manifest)))
    return found


def only(builds: Path, where: str) -> Proofs | None:
    """Return the one build whose proofs a repository has, None where it has none; raise CheckpointError for several."""
    found = read_proofs(builds)
    if len(found) > 1:
        named = ", ".join(f"{each.recipe.name} {stem(each.tiny)}" for each in found)
        raise CheckpointError(f"{where}: has proofs of {len(found)} builds, expected one: {named}")
    return found[0] if found else None


def sign_records(
    recipe: Recipe, tiny: str | None, checkpoint: Path, outcomes: Iterable[Judged], key: Signs
) -> list[Path]:
    """Sign the statement of a build, and what verbs say of it, beside the checkpoint; return what is signed.

    What this key has signed already stays as it is. Raises UsageError where another bundle stands there.
    """
    statement = records_of(recipe, tiny, checkpoint)[RECORDED[2]]
    signed = [sign_file(statement, key)]
    for each in outcomes:
        path = beside(checkpoint.resolve(), f"{each.verb}{SUFFIX}")
        if not path.exists():
            write_signed(path, each.statement(), key)
        verify_file(path, [key.public], statement=each.statement())
        signed.append(path)
    return signed
