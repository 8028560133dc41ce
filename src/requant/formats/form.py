"""How packed layers of a checkpoint are stored, whatever their shapes: all alike, but those that have their own way."""

from dataclasses import dataclass, replace

import numpy as np

from requant.checkpoint.safetensors import Spec
from requant.formats import FORMATS, ORDER, Format, awq, gptq
from requant.protocol import Layer


@dataclass(frozen=True)
class Form:
    """A format by AutoRound's name for it, bits of a code, inputs that share a scale.

    A `group_size` of -1 is one group. Zero points of `symmetric` codes are all 2^(bits - 1).
    """

    packing_format: str
    bits: int
    group_size: int
    symmetric: bool

    @property
    def format(self) -> Format:
        """The order of codes in words, and how zero points are stored."""
        return FORMATS[self.packing_format]

    def of(self, layer: Layer) -> "Form":
        """Return how one layer is stored: in its own way, or as all are."""
        own = layer.own
        return replace(self, bits=own.bits, group_size=own.group_size, symmetric=own.symmetric) if own else self

    def specs(self, shape: tuple[int, int]) -> dict[str, Spec]:
        """Return the tensors of a packed weight [out, in], by suffix: three, and where inputs are numbered `g_idx`."""
        if self.format.layout == "awq":
            return awq.specs(shape, self.group_size)
        order = {ORDER: Spec("I32", (shape[1],))} if self.format.ordered else {}
        return gptq.specs(shape, self.group_size, self.bits) | order

    def fixed(self, suffix: str, spec: Spec) -> bytes | None:
        """Return the bytes of a packed tensor that no tuning decides, None where it does."""
        if suffix == ORDER:
            group = spec.size if self.group_size == -1 else self.group_size
            return (np.arange(spec.size) // group).astype("<i4").tobytes()
        return self.zeros(spec) if suffix == "qzeros" and self.symmetric else None

    def zeros(self, spec: Spec) -> bytes:
        """Return the bytes of the `qzeros` of symmetric codes; defect D10 is another constant in their place."""
        words = gptq.constant((1 << self.bits - 1) - self.format.less, self.bits).astype("<i4")
        return words.tobytes() * (spec.size // words.size)
