"""Which blocks an audit draws from a public text, so that nobody could know them before the text was public.

A block's place in the draw is the SHA-256 of the text, a line end and the block's name; the first k are drawn. So
anybody can draw again, and docs/audit.md has the line of shell that does. Every set of k blocks is equally likely,
as far as SHA-256 is random: nothing is taken modulo anything.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from requant.digest import sha256
from requant.errors import UsageError

MAX_TEXT = 1000
"""Characters of the longest text that an audit records."""


@dataclass(frozen=True)
class Challenge:
    """The text that blocks were drawn from, and how many were."""

    text: str
    drawn: int


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
