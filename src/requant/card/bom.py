"""A build's bill of materials: the card's facts in a form that programs read, as CycloneDX and SPDX have it.

Each fact stands once, in the field that the format has for it, or among its free properties under the card's key. Equal
records have equal bills: there is no clock and no random number in them, and a bill's own name is drawn from the rest.
"""

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from requant.card.facts import Facts, Value
from requant.card.records import Recorded, Records
from requant.digest import canonical_json, sha256
from requant.errors import UsageError

OWN_TEXT = "requant's own text"
"""What a tiny model listens to."""


@dataclass(frozen=True)
class Reference:
    """What lies beside a checkpoint and speaks of it: `kind` is manifest, journal, statement or audit."""

    kind: str
    file: str
    sha256: str


def recorded(records: Records) -> Recorded:
    """Return what is recorded of a build; raise UsageError where nothing is: a bill lists files."""
    if records.recorded is None:
        told = f"{records.recipe.path}: no build is recorded, and a bill of materials lists files"
        raise UsageError(told, "Build it first, and name the checkpoint with --build.")
    return records.recorded


def name(records: Records) -> str:
    """Return what a checkpoint is called that nobody has published: its recipe, and the size of the tiny model."""
    return records.recipe.name + (f"-{records.tiny}" if records.tiny else "")


def descent(records: Records) -> str:
    """Return in a sentence what a checkpoint has of its base."""
    if records.tiny:
        return "A tiny model: its configuration is shrunk from the base's, and its weights are not the base's."
    return "The base's weights, quantized."


def references(records: Records) -> Iterator[Reference]:
    """Yield what speaks of the checkpoint: its records, and the audits and rebuilds that coverage counts."""
    build = recorded(records)
    yield Reference("manifest", f"{build.name}.manifest.json", sha256(build.manifest.to_json()))
    yield Reference("journal", f"{build.name}.journal.jsonl", build.journal_sha256)
    yield Reference("statement", f"{build.name}.intoto.jsonl", build.statement_sha256)
    for file, digest in sorted(records.covered.digests.items()) if records.covered else ():
        yield Reference("audit", file, digest)


@dataclass
class Telling:
    """Facts on their way into a bill; `used` are those that it has already: the journal's digest is in a reference."""

    facts: Facts
    used: set[str] = field(default_factory=lambda: {"journal.sha256"})

    def of(self, key: str) -> str:
        """Return a fact as text, and count it as told."""
        self.used.add(key)
        return said(self.facts[key].value)

    def left(self, *prefixes: str) -> dict[str, str]:
        """Return the facts that begin so and have not been told, as texts, and count them as told."""
        found = {
            key: said(fact.value)
            for key, fact in self.facts.items()
            if key.startswith(prefixes) and key not in self.used
        }
        self.used.update(found)
        return found


def said(value: Value) -> str:
    """Return a fact's value as free text of a bill, exact: `true`, `4932970`, `mtp.fc, lm_head`."""
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def serial(value: Any) -> str:
    """Return a UUID (RFC 9562, version 5) that a bill without one has by its content."""
    return f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'urn:requant:bom:{sha256(canonical_json(value))}')}"


def text(value: Any) -> str:
    """Return a bill as its file has it: indented JSON, keys in order, in ASCII."""
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
