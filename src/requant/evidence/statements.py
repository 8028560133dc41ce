"""How a checkpoint came about: an in-toto Statement v1 with a SLSA Provenance v1 predicate.

Formats: https://in-toto.io/Statement/v1, https://slsa.dev/spec/v1.0/provenance. Subjects and dependencies are
named by SHA-256 only. Times, memory and host facts stand here and nowhere else.
"""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from requant.digest import MAX_STATEMENT, canonical_json, read_whole, sha256, strict_json
from requant.errors import CheckpointError

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
BUILD_TYPE = "urn:requant:build:2"


@dataclass(frozen=True)
class Provenance:
    """What a build reports of itself; `taints` say what keeps it from being evidence about the base."""

    recipe: str
    tiny: str | None
    environment: str
    lock: str
    hardware: Mapping[str, Any]
    versions: Mapping[str, str]
    taints: tuple[str, ...]
    dependencies: Mapping[str, str]
    journal: str
    log: str
    started: str
    finished: str
    worker: Mapping[str, Any]
    sandbox: Mapping[str, Any]
    requant: str


def statement(subjects: Mapping[str, str], built: Provenance) -> bytes:
    """Return the statement as one line of canonical JSON; `subjects` maps each output file to its SHA-256."""
    worker = _whole(built.worker)
    predicate = {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {"recipe": built.recipe, "tiny": built.tiny},
            "internalParameters": {
                "environment": built.environment,
                "sandbox": built.sandbox,
                "hardware": built.hardware,
                "versions": built.versions,
                "taints": built.taints,
            },
            "resolvedDependencies": [
                _resource(name, digest) for name, digest in sorted({**built.dependencies, "lock": built.lock}.items())
            ],
        },
        "runDetails": {
            "builder": {
                "id": "urn:requant:builder:local:1",
                "version": {"requant": built.requant},
            },
            "metadata": {"startedOn": built.started, "finishedOn": built.finished},
            "byproducts": [
                _resource("journal", built.journal),
                _resource("log", built.log),
                {**_resource("worker", sha256(canonical_json(worker))), "annotations": worker},
            ],
        },
    }
    return in_toto(subjects, "https://slsa.dev/provenance/v1", predicate)


def in_toto(subjects: Mapping[str, str], predicate_type: str, predicate: Mapping[str, Any]) -> bytes:
    """Return an in-toto Statement v1 as one line of canonical JSON: what is said of files, each by SHA-256."""
    value = {
        "_type": STATEMENT_TYPE,
        "subject": [_resource(name, digest) for name, digest in sorted(subjects.items())],
        "predicateType": predicate_type,
        "predicate": _whole(predicate),
    }
    return canonical_json(value) + b"\n"


def hardware_of(path: Path) -> dict[str, Any]:
    """Return the hardware class that a recorded statement states; raise CheckpointError where it states none."""
    hardware = _internal(path, "hardware")
    try:
        canonical_json(hardware)  # which is what a class is told from others by; 1e999 has no such form
        if isinstance(hardware, dict):
            return hardware
    except ValueError:
        pass
    raise CheckpointError(f"{path}: not a statement of a build: its hardware class is {reprlib.repr(hardware)}")


def environment_of(path: Path) -> str:
    """Return the environment's digest that a recorded statement states; raise CheckpointError where it states none."""
    environment = _internal(path, "environment")
    if not isinstance(environment, str):
        raise CheckpointError(f"{path}: not a statement of a build: its environment is {reprlib.repr(environment)}")
    return environment


def base_of(path: Path) -> dict[str, str]:
    """Return the files of the base that a recorded statement states, path to SHA-256.

    Raises CheckpointError where it states none.
    """
    base = {name.removeprefix("base/"): each for name, each in _needed(path).items() if name.startswith("base/")}
    if not base:
        raise CheckpointError(f"{path}: not a statement of a build: no base")
    return base


def lock_of(path: Path) -> str:
    """Return the SHA-256 of the lock that a recorded statement states; raise CheckpointError where it states none."""
    needed = _needed(path)
    if "lock" not in needed:
        raise CheckpointError(f"{path}: not a statement of a build: no lock")
    return needed["lock"]


def _needed(path: Path) -> dict[str, str]:
    try:
        needed = {each["name"]: each["digest"]["sha256"] for each in _definition(path)["resolvedDependencies"]}
        if all(isinstance(each, str) for each in (*needed, *needed.values())):
            return needed
        raise ValueError("digests that are no texts")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a statement of a build: {error!r}") from None


def _internal(path: Path, key: str) -> Any:
    try:
        return _definition(path)["internalParameters"][key]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a statement of a build: {error!r}") from None


def _definition(path: Path) -> Any:
    try:
        return strict_json(read_whole(path, MAX_STATEMENT))["predicate"]["buildDefinition"]
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a statement of a build: {error!r}") from None


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return the keys that two hardware classes do not have in common, sorted."""
    return [key for key in sorted(first.keys() | second.keys()) if first.get(key) != second.get(key)]


def _resource(name: str, digest: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": digest}}


def _whole(value: Any) -> Any:
    """Write fractions as strings: canonical JSON has no portable form for them."""
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, Mapping):
        return {key: _whole(each) for key, each in value.items()}
    return [_whole(each) for each in value] if isinstance(value, list | tuple) else value
