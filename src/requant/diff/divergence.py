"""Where two journals part ways: the first line, and the first field of it, that differ.

Each block's line holds what tuning it was given before what came of it, so the field says where to look.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from requant.evidence.journal import Block, Header, Journal

FIELDS = {
    "block": "another block is tuned here",
    "inputs": "it was given other inputs",
    "random_state": "it drew other random numbers",
    "loss": "its inputs agree, its tuning went another way",
    "tensors": "its inputs and losses agree, its tensors do not",
    "outputs": "its tensors agree, its outputs do not",
    "hints": "its outputs agree, the decisions that led to them do not",
}
"""The fields of a block's line, causes before effects, and what a difference there means."""


@dataclass(frozen=True)
class Divergence:
    """A field that differs: in which line, from 1, of which block (none in the header); `name` inside the field."""

    line: int
    block: str
    field: str
    name: str
    expected: str
    found: str

    def __str__(self) -> str:
        place = f"{self.block}: {self.field}" if self.block else f"header: {self.field}"
        named = f" {self.name}" if self.name else ""
        meaning = f": {FIELDS[self.field]}" if self.block else ""
        return f"journal, line {self.line}: {place}{named} is {self.found}, recorded {self.expected}{meaning}"


def divergence(found: Journal, expected: Journal) -> tuple[Divergence, ...]:
    """Return every field of the header that differs, and of the blocks the first; nothing for equal journals."""
    return (*_header(found.header, expected.header), *_first(found.blocks, expected.blocks))


def _header(found: Header, expected: Header) -> list[Divergence]:
    ours, theirs = asdict(found), asdict(expected)
    return [
        Divergence(1, "", field, "", str(theirs[field]), str(ours[field]))
        for field in ours
        if ours[field] != theirs[field]
    ]


def _first(found: tuple[Block, ...], expected: tuple[Block, ...]) -> list[Divergence]:
    for line, (now, then) in enumerate(zip(found, expected, strict=False), 2):
        ours, theirs = asdict(now), asdict(then)
        for field in FIELDS:
            if ours[field] != theirs[field]:
                name, one, other = _inside(ours[field], theirs[field])
                return [Divergence(line, then.block, field, name, other, one)]
    return []


def _inside(found: Any, expected: Any) -> tuple[str, str, str]:
    """Return the first name under which two values differ, and both; without names, the values."""
    if not (isinstance(found, Mapping) and isinstance(expected, Mapping)):
        return "", str(found), str(expected)
    name = min(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
    return name, str(found.get(name, "absent")), str(expected.get(name, "absent"))
