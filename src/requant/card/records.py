"""What a card is made from: a recipe with its plan, pins and lock, and what is recorded of a build of it.

The records of a build must be of one build: a journal of another recipe, or a statement of other files, is an error.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.audit.builders import builders_of
from requant.audit.coverage import Coverage, coverage
from requant.build import RECORDED, beside, stem
from requant.build.rebuild import find
from requant.checkpoint.files import SUFFIX
from requant.checkpoint.manifest import Manifest, read_manifest
from requant.digest import MAX_STATEMENT, read_whole, sha256_file, strict_json
from requant.environment.lock import Intent, Lock, read_intent, read_lock
from requant.errors import CheckpointError
from requant.evidence.journal import Journal, read_journal
from requant.hub.pinned import Pins, read_pins
from requant.inspect import Inspection, inspect
from requant.inspect.baseline import Known, expected, read_baseline
from requant.inspect.headers import read_headers
from requant.inspect.loaders import LOADERS, TENSOR_PARALLEL
from requant.model.target import Target, config_of, target_of
from requant.recipe import Recipe
from requant.records import record

if TYPE_CHECKING:  # numba takes half a second to import
    from requant.evaluate.evaluation import Evaluation

EVALUATION = "evaluation.json"
"""What `requant evaluate --out` wrote of a build, beside its other records."""


@dataclass(frozen=True)
class Stated:
    """What a build's statement says that a card repeats.

    `lock` is the SHA-256 of the lock that it was made with, `text` that of what the tuning listened to.
    """

    environment: str
    lock: str
    text: str
    hardware: Mapping[str, Any]
    versions: Mapping[str, str]
    sandbox: Mapping[str, Any]
    taints: tuple[str, ...]
    requant: str
    started: str
    finished: str
    peak_memory_bytes: int
    peak_device_memory_bytes: int
    seconds: str
    """Of the worker, in all, as the statement writes them."""


@dataclass(frozen=True)
class Recorded:
    """One build, by its records: `name` is how their files begin, and the digests are of its files."""

    name: str
    manifest: Manifest
    journal: Journal
    journal_sha256: str
    stated: Stated
    statement_sha256: str


@dataclass(frozen=True)
class Records:
    """Everything that a card's figures come from.

    `recorded` is None where no build is recorded, `inspection` where no checkpoint is at hand, `covered` where the
    build is not the one that stands beside the recipe, `evaluation` where nobody has measured it.
    """

    recipe: Recipe
    tiny: str | None
    target: Target
    config: Mapping[str, Any]
    base: Pins
    text: Pins
    lock: Lock
    intent: Intent
    baseline: tuple[Known, ...]
    recorded: Recorded | None
    covered: Coverage | None
    inspection: Inspection | None
    evaluation: "Evaluation | None"


def read_records(recipe: Recipe, tiny: str | None, build: Path | None = None) -> Records:
    """Read what there is of a recipe, or of its tiny model of a size.

    `build` is a checkpoint with its records beside it, or a folder of records; without it, the recorded build counts.
    Raises UsageError where `build` is neither, CheckpointError where records are absent in part, cannot be read, or
    are not of one build, and what `read_recipe`, `target_of` and `read_lock` raise.
    """
    place = recipe.beside(stem(tiny)) if build is None else find(build, tiny, "--build")
    paths = [beside(place, each) for each in RECORDED]
    there = [path for path in paths if path.exists()]
    if there and (absent := [path for path in paths if path not in there]):
        raise CheckpointError(f"{absent[0]}: no such file", f"It belongs to {there[0]}: a card needs both.")
    environment = recipe.effort(tiny is not None).environment
    base, text = (read_pins(recipe.beside(each.files)) for each in (recipe.base, recipe.calibration))
    known = read_baseline(recipe)
    recorded = read_recorded(recipe, tiny, place, base, text) if there else None
    return Records(
        recipe=recipe,
        tiny=tiny,
        target=target_of(recipe, tiny),
        config=config_of(recipe, tiny),
        base=base,
        text=text,
        lock=read_lock(recipe.lockfiles, environment),
        intent=read_intent(recipe.lockfiles, environment),
        baseline=known,
        recorded=recorded,
        covered=coverage(recipe, tiny, builders_of(recipe)) if there and build is None else None,
        inspection=_inspected(place, known) if build and any(place.glob(f"*{SUFFIX}")) else None,
        evaluation=_evaluated(beside(place, EVALUATION), recorded),
    )


def _inspected(folder: Path, known: tuple[Known, ...]) -> Inspection:
    return inspect(read_headers(folder), LOADERS, TENSOR_PARALLEL, look_at_values=True, known=expected(known))


def _evaluated(path: Path, recorded: Recorded | None) -> "Evaluation | None":
    """Return a build's evaluation, where there is one; raise CheckpointError for that of another checkpoint."""
    if recorded is None or not path.exists():
        return None
    from requant.evaluate.evaluation import read_evaluation

    found = read_evaluation(path)
    if found.digests.checkpoint != recorded.manifest.identity:
        told = f"{path}: is of the checkpoint {found.digests.checkpoint}, recorded is {recorded.manifest.identity}"
        raise CheckpointError(told, "Evaluate the recorded checkpoint, or remove this file.")
    return found


def read_recorded(recipe: Recipe, tiny: str | None, place: Path, base: Pins, text: Pins) -> Recorded:
    """Read the records of a build beside a place; raise CheckpointError where they are not of one build of the recipe.

    `base` and `text` are what the recipe pins, which a full build must have been made from.
    """
    pinned = {} if tiny else _pinned(recipe, base, text)  # a tiny model is made of neither
    manifest_path, journal_path, statement_path = (beside(place, each) for each in RECORDED)
    manifest, journal = read_manifest(manifest_path), read_journal(journal_path)
    if (journal.header.recipe, journal.header.tiny) != (recipe.digest, tiny):
        raise CheckpointError(
            f"{journal_path}: is of another recipe than {recipe.path}, or of a tiny model of another size",
            "Name the recipe that was built; after an edit of it, build again.",
        )
    digest = sha256_file(journal_path)
    files = {path: each.sha256 for path, each in manifest.files.items()}
    stated = _stated(statement_path, files, digest, recipe, tiny, pinned)
    return Recorded(place.name, manifest, journal, digest, stated, sha256_file(statement_path))


@dataclass(frozen=True)
class _Digest:
    sha256: str


@dataclass(frozen=True)
class _Resource:
    name: str
    digest: _Digest


@dataclass(frozen=True)
class _External:
    recipe: str
    tiny: str | None


@dataclass(frozen=True)
class _Internal:
    environment: str
    hardware: Mapping[str, Any]
    sandbox: Mapping[str, Any]
    taints: tuple[str, ...]
    versions: Mapping[str, str]


@dataclass(frozen=True)
class _Times:
    startedOn: str  # noqa: N815 (SLSA's name)
    finishedOn: str  # noqa: N815


@dataclass(frozen=True)
class _Spent:
    peak_device_memory_bytes: int
    peak_memory_bytes: int
    seconds: Mapping[str, Any]


def _stated(
    path: Path, files: Mapping[str, str], journal: str, recipe: Recipe, tiny: str | None, pinned: Mapping[str, str]
) -> Stated:
    """Return what a statement says; raise CheckpointError where it is no statement of this very build."""
    try:
        value = strict_json(read_whole(path, MAX_STATEMENT))
        definition, run = value["predicate"]["buildDefinition"], value["predicate"]["runDetails"]
        external = record(_External, definition["externalParameters"])
        internal = record(_Internal, definition["internalParameters"])
        times = record(_Times, run["metadata"])
        subjects = {each.name: each.digest.sha256 for each in _resources(value["subject"])}
        needed = {each.name: each.digest.sha256 for each in _resources(definition["resolvedDependencies"])}
        made = {each.name: each.digest.sha256 for each in _resources(run["byproducts"])}
        annotations = next(each["annotations"] for each in run["byproducts"] if each["name"] == "worker")
        spent = record(_Spent, {key: each for key, each in annotations.items() if key != "absent"})
        seconds, requant = spent.seconds["total"], run["builder"]["version"]["requant"]
        lock, text = needed["lock"], needed["calibration"]
        if not (isinstance(seconds, str) and isinstance(requant, str)):
            raise ValueError("total seconds, and the version of requant: expected texts")
        float(seconds)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except (AttributeError, KeyError, StopIteration, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a statement of a build: {error!r:.300}") from None
    about = {
        "recipe": (external.recipe, external.tiny) == (recipe.digest, tiny),
        "list of files": subjects == files,
        "journal": made.get("journal") == journal,
        "base or text": pinned.items() <= needed.items(),
    }
    if other := [what for what, same in about.items() if not same]:
        advice = "Manifest, journal and statement of one build belong together."
        raise CheckpointError(f"{path}: is of another {' and another '.join(other)}", advice)
    return Stated(
        environment=internal.environment,
        lock=lock,
        text=text,
        hardware=internal.hardware,
        versions=internal.versions,
        sandbox=internal.sandbox,
        taints=internal.taints,
        requant=requant,
        started=times.startedOn,
        finished=times.finishedOn,
        peak_memory_bytes=spent.peak_memory_bytes,
        peak_device_memory_bytes=spent.peak_device_memory_bytes,
        seconds=seconds,
    )


def _pinned(recipe: Recipe, base: Pins, text: Pins) -> dict[str, str]:
    """Return what a full build of a recipe needs, by the names and digests that its statement has."""
    digests = {f"base/{path}": file.sha256 for path, file in base.files.items() if file.sha256}
    if recipe.calibration.file not in text.files:
        raise recipe.refusal(
            "calibration.file", recipe.calibration.file, f"one of those that are pinned: {text.repository}"
        )
    return digests | {"calibration": str(text.files[recipe.calibration.file].sha256)}


def _resources(value: Any) -> list[_Resource]:
    return [record(_Resource, {key: each[key] for key in ("name", "digest")}) for each in value]
