"""What is asked of a formula that can be recomputed: from the weights of some rows to what is stored, bit for bit."""

from typing import Protocol

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
