"""What is asked of a formula that can be recomputed: from the weights of some rows to what is stored, bit for bit."""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from requant.formats.codec import Array, Arrays


class Formula(Protocol):
    """A way of rounding, as a tool has it."""

    @property
    def name(self) -> str:
        """What people read: whose it is and what it does, such as `compressed-tensors, min-max`."""

    def encode(self, weights: Array, dtype: str, stored: Arrays) -> Arrays:
        """Return the tensors of some rows, by suffix, as the tool makes them of weights float32 [rows, columns].

        `dtype` is the base's, from which the weights were widened: tools compute in it. What belongs to the layer as a
        whole is taken as `stored`; what does not follow from the weights, such as the scale of an input, is left out.
        """

    def whole(self, widest: float, dtype: str) -> Arrays:
        """Return the tensors of the layer as a whole that follow from its greatest magnitude; mostly none."""


@dataclass(frozen=True)
class Choice:
    """The tensors of some rows, of which a tool chose something for each group by what it measured.

    Of so many `groups` the choice was made again. In `ties` of them another one is as good, as far as machines round
    alike; `worse`, bool [n, m] or nothing, says where the stored one is clearly not the tool's. The greatest range that
    was taken, on which a scale of the layer as a whole depends, is `least` at least and `most` at most.
    """

    tensors: Arrays
    groups: int = 0
    ties: int = 0
    worse: Array = field(default_factory=lambda: np.zeros((0, 0), np.bool_))
    least: float = 0.0
    most: float = 0.0


@runtime_checkable
class Choosing(Formula, Protocol):
    """A formula that knows how surely it does."""

    def choose(self, weights: Array, dtype: str, stored: Arrays) -> Choice:
        """Return what `encode` does, and of how many groups the choice is known."""
