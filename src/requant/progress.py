"""How far something is, as data: what a verb tells while it works, and `cli` draws."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a stage is; without a `total` nobody knows.

    `note` says what has been done and stays to be read; `part` what is being done just now.
    """

    stage: str
    done: int = 0
    total: int = 0
    note: str = ""
    part: str = ""


Tell = Callable[[Progress], None]
"""Hears of progress."""


def silent(_: Progress) -> None:
    """Hear nothing."""


def counted(tell: Tell, stage: str, total: int) -> Callable[[int], None]:
    """Return what adds up bytes and tells how far a stage is; a total of 0 is not known."""
    done = 0

    def count(read: int) -> None:
        nonlocal done
        done += read
        tell(Progress(stage, done, max(total, done)))

    return count
