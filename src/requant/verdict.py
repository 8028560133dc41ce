"""The outcome of a comparison, as data. It has no truth value: every outcome must be named where it is used."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, NoReturn

Kind = Literal[
    "missing file",
    "extra file",
    "changed file",
    "unreadable file",
    "missing tensor",
    "extra tensor",
    "changed tensor",
]


class Outcome(StrEnum):
    """What a comparison found."""

    IDENTICAL = "identical"
    """Every file has the recorded bytes."""
    EQUIVALENT = "equivalent"
    """Every tensor has the recorded bytes, though not every file."""
    DIFFERENT = "different"
    INCONCLUSIVE = "inconclusive"
    """The two cannot be held against each other: another hardware class, or no reference."""


EXIT_STATUS: Mapping[Outcome, int] = {
    Outcome.IDENTICAL: 0,
    Outcome.EQUIVALENT: 1,
    Outcome.DIFFERENT: 1,
    Outcome.INCONCLUSIVE: 3,
}

COMPANIONS_SHOWN = 6
"""Companions that a person is shown; `--json` names them all."""


@dataclass(frozen=True)
class Difference:
    """One file or tensor that is not as recorded; for a tensor, `file` is where it stands now, or stood."""

    kind: Kind
    name: str
    file: str
    expected: str = ""
    found: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}" + (f" ({self.file})" if self.file != self.name else "")


@dataclass(frozen=True)
class Verdict:
    """An outcome, the differences behind it in order of name, and what must be known to read it.

    `companions` are files and folders beside a checkpoint that no loader opens; they decide nothing.
    """

    outcome: Outcome
    differences: tuple[Difference, ...] = ()
    reasons: tuple[str, ...] = ()
    companions: tuple[str, ...] = ()

    def __bool__(self) -> NoReturn:
        raise TypeError("a verdict has no truth value: compare its outcome")

    @property
    def aside(self) -> str:
        """What a person is told of the companions; empty where there are none."""
        shown = ", ".join(self.companions[:COMPANIONS_SHOWN])
        more = len(self.companions) - COMPANIONS_SHOWN
        return (
            f"beside the checkpoint, and not judged: {shown}{f' and {more} more' if more > 0 else ''}" if shown else ""
        )

    def as_json(self) -> dict[str, Any]:
        """Return the verdict as `--json` prints it."""
        return {**vars(self), "differences": [vars(each) for each in self.differences]}


_UNSEEN = re.compile(
    r"[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Marks and letters that leave no trace, though Unicode counts them as printable (Default_Ignorable_Code_Point)."""


def visible(text: str, keep: str = "") -> str:
    """Return a text that changes no terminal: what cannot be seen, `keep` aside, stands as Python's escapes.

    So nothing moves a cursor or turns letters round, and names that differ in it alone do not look the same.
    """
    if text.isprintable() and not _UNSEEN.search(text):
        return text

    def plain(letter: str) -> bool:
        return letter in keep or (letter.isprintable() and not _UNSEEN.match(letter))

    return "".join(each if plain(each) else each.encode("unicode_escape").decode() for each in text)
