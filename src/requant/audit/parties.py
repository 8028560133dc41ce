"""Whose a signed statement is: a builder that a list names, or nobody in particular; and the rebuilds that are signed.

Rebuilds stand in `builds/<name>/rebuilds/`, each a bundle of the outcome that `requant rebuild --sign` writes, under
the SHA-256 of its own bytes. They count by their key alone, for there is no name in them.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from requant.audit.audits import confirm_regular, submit, submitted
from requant.audit.builders import Builder
from requant.checkpoint.manifest import Manifest
from requant.digest import sha256
from requant.evidence.outcomes import told
from requant.evidence.signatures import (
    NOBODY_KNOWN,
    SUFFIX,
    SignatureError,
    Signed,
    confirm_subjects,
    read_file,
    verify,
    verify_file,
)
from requant.recipe import Recipe
from requant.verdict import Outcome

FOLDER = "rebuilds"


@dataclass(frozen=True)
class Party:
    """Whose a statement is: the id of the key that signed it, and the name that `builders.toml` gives to it.

    Where there is no such key, `key` is empty, `name` is what the author calls themselves, and `why` says what is
    missing.
    """

    key: str
    name: str
    why: str = ""

    @property
    def label(self) -> str:
        """What a person reads."""
        return f"{self.name} [{self.key[:8]}]" if self.key else f"{self.name} (unverified)"


@dataclass(frozen=True)
class Rebuild:
    """A rebuild of what is recorded, by a builder of the list: what came of it, in which environment, on what."""

    party: Party
    outcome: Outcome
    environment: str
    hardware: Mapping[str, Any]


def party_of(bundle: Path, statement: bytes, known: Mapping[str, Builder], claimed: str) -> Party:
    """Return whose a statement is, by the bundle beside it; where nobody known signed it, whoever is `claimed`.

    A key or an identity that is not known, or has expired, says nothing for the statement, and nothing against it.
    Raises SignatureError where the bundle does not hold, or is of something else.
    """
    if not os.path.lexists(bundle):
        return Party("", claimed, "not signed")
    confirm_regular(bundle)
    try:
        signed = verify_file(bundle, [each.key for each in known.values()], statement=statement)
    except SignatureError as error:
        if error.fault not in NOBODY_KNOWN:
            raise
        return Party("", claimed, error.said)
    try:
        return _named(signed, known)
    except ValueError as error:
        return Party("", claimed, str(error))


def write_rebuild(recipe: Recipe, bundle: bytes) -> Path:
    """Write a signed outcome of a rebuild into the recipe's folder, and return its path."""
    return submit(recipe.beside(FOLDER), bundle, SUFFIX)


def read_rebuilds(
    recipe: Recipe, tiny: str | None, manifest: Manifest, known: Mapping[str, Builder], digest: str
) -> tuple[dict[str, Rebuild], dict[str, str]]:
    """Return the rebuilds of what a manifest records, by file name, and why the others are refused.

    They are sorted by whose they are and what came of them: a file name is a digest, and says nothing. Those of
    another size of the tiny model are another build's. `digest` is that of the recorded recipe. Raises CheckpointError
    for a folder that cannot be read.
    """
    folder = recipe.beside(FOLDER)
    files = {path: record.sha256 for path, record in manifest.files.items()}
    found: dict[str, Rebuild] = {}
    refused: dict[str, str] = {}
    for name in submitted(folder):
        try:
            if rebuild := _rebuild(folder / name, tiny, files, known, digest):
                found[f"{FOLDER}/{name}"] = rebuild
        except SignatureError as error:
            refused[f"{FOLDER}/{name}"] = error.said
        except ValueError as error:
            refused[f"{FOLDER}/{name}"] = str(error)
    return dict(sorted(found.items(), key=lambda each: (each[1].party.label, each[1].outcome, each[0]))), refused


def _rebuild(
    path: Path, tiny: str | None, files: Mapping[str, str], known: Mapping[str, Builder], digest: str
) -> Rebuild | None:
    """Read one; None for one of another size. Raises SignatureError, or ValueError for what is none of this build."""
    confirm_regular(path)
    bundle = read_file(path)
    if path.name != f"{sha256(bundle.as_bytes())}{SUFFIX}":
        raise ValueError("its name is not the SHA-256 of its bytes")
    signed = verify(bundle, [each.key for each in known.values()], str(path))
    outcome = told(signed)
    if outcome is None or outcome.verb != "rebuild":
        raise ValueError("not the outcome of a rebuild")
    if outcome.details.get("tiny") != tiny:
        return None
    confirm_subjects(signed, files, str(path))
    if outcome.against.get("recipe") != digest:
        raise ValueError("another recipe than the recorded one")
    hardware = outcome.details.get("hardware")
    if not isinstance(hardware, dict):
        raise ValueError("not the outcome of a rebuild: it names no hardware class")
    said = Outcome(outcome.outcome)
    if said is Outcome.EQUIVALENT and "bytes" in signed.predicate["passedTests"]:
        said = Outcome.IDENTICAL  # another journal, in another environment say, and the same files from it
    return Rebuild(_named(signed, known), said, outcome.against.get("environment", ""), hardware)


def _named(signed: Signed, known: Mapping[str, Builder]) -> Party:
    builder = known[signed.key.id]
    if builder.expired:
        raise ValueError(f"the key of {builder.name} expired on {builder.until}")
    return Party(signed.key.id, builder.name)
