"""Which blocks or steps an audit draws from a public text: nobody could know them before the text was public.

A block's place in the draw is the SHA-256 of the text, a line end and the block's name; the first k are drawn. So
anybody can draw again, and docs/audit.md has the line of shell that does. Every set of k blocks is equally likely,
as far as SHA-256 is random: nothing is taken modulo anything.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from requant.digest import canonical_json, sha256
from requant.errors import UsageError

STEPS_SCHEMA = "requant.challenge/1"
MOST_STEPS = 10_000
"""Steps of a challenge, at most."""
MAX_TEXT = 1000
"""Characters of the longest text that an audit records."""


@dataclass(frozen=True)
class Challenge:
    """The text that blocks were drawn from, and how many were."""

    text: str
    drawn: int


@dataclass(frozen=True)
class Step:
    """One iteration of one block; `index` is the block's place among all of the journal, from 0."""

    block: str
    index: int
    iteration: int


@dataclass(frozen=True)
class StepChallenge:
    """The steps that a text draws from those of a journal, which is named by the SHA-256 of its file."""

    text: str
    journal: str
    iterations: int
    steps: tuple[Step, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the challenge as `--json` prints it."""
        return asdict(self)

    def to_json(self) -> bytes:
        """Return the file of a challenge, in its one form."""
        return canonical_json({"schema": STEPS_SCHEMA, **self.as_json()}) + b"\n"

    def is_drawn(self, journal: str, names: Sequence[str], iterations: int) -> bool:
        """Whether its text draws these steps, of a journal, all its blocks and so many iterations of each."""
        try:
            return self == draw_steps(self.text, journal, names, iterations, len(self.steps))
        except UsageError:
            return False

    @cached_property
    def by_block(self) -> dict[int, tuple[int, ...]]:
        """The iterations that are drawn of each block."""
        found: dict[int, list[int]] = {}
        for each in self.steps:
            found.setdefault(each.index, []).append(each.iteration)
        return {index: tuple(iterations) for index, iterations in found.items()}


def draw(names: Sequence[str], challenge: Challenge) -> tuple[str, ...]:
    """Return the blocks that a challenge draws from `names`, all blocks of a model, in the order of `names`.

    The order of `names` does not change which are drawn. The text is taken as it is, in UTF-8, without a line end.

    Raises UsageError for a text that is empty or cannot be written down, or where there are not so many blocks.
    """
    if not challenge.text or not is_text(challenge.text):
        advice = "Give one that was public only after the checkpoint was: a drand round, a block hash."
        raise UsageError(f"--seed: expected 1 to {MAX_TEXT} printable characters", advice)
    if not 1 <= challenge.drawn <= len(names):
        raise UsageError(f"--sample {challenge.drawn}: there are {len(names)} blocks to draw from")
    placed = sorted(names, key=lambda name: sha256(f"{challenge.text}\n{name}".encode()))
    drawn = {*placed[: challenge.drawn]}
    return tuple(name for name in names if name in drawn)


def draw_steps(text: str, journal: str, names: Sequence[str], iterations: int, count: int) -> StepChallenge:
    """Return the `count` steps whose SHA-256 come first: of the text, the journal, the block's name and the iteration.

    These are joined by line ends. So anybody draws the same, and each set is equally likely.

    Raises UsageError for a text that cannot be written down, or where there are not so many steps.
    """
    if not text or not is_text(text):
        advice = "Give one that was public only after the journal was: a drand round, a block hash."
        raise UsageError(f"--text: expected 1 to {MAX_TEXT} printable characters", advice)
    if not 1 <= count <= min(MOST_STEPS, len(names) * iterations):
        raise UsageError(
            f"--steps {count}: there are {len(names) * iterations:,}, and a challenge has {MOST_STEPS:,} at most"
        )
    every = (Step(name, index, each) for index, name in enumerate(names) for each in range(iterations))
    placed = sorted(every, key=lambda each: sha256(f"{text}\n{journal}\n{each.block}\n{each.iteration}".encode()))
    drawn = sorted(placed[:count], key=lambda each: (each.index, each.iteration))
    return StepChallenge(text, journal, iterations, tuple(drawn))


def is_text(text: str) -> bool:
    """Whether a text can be recorded and printed: no control characters, no half a character, not too long."""
    return text.isprintable() and len(text) <= MAX_TEXT


def odds(blocks: int, drawn: int, bad: int) -> float:
    """Return the probability that at least one of `bad` among `blocks` is among `drawn`: hypergeometric, 0 to 1.

    It holds where the bad blocks were chosen before the text was public. Raises ValueError outside 0 to `blocks`.
    """
    if not (0 <= drawn <= blocks and 0 <= bad <= blocks):
        raise ValueError(f"{drawn} drawn and {bad} bad of {blocks}")
    fewer, more = sorted((drawn, bad))  # either way round it is the same, and with the fewer it is soon done
    total = math.comb(blocks, fewer)
    return (total - math.comb(blocks - more, fewer)) / total
