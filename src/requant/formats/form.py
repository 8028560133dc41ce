"""How packed layers of a checkpoint are stored, whatever their shapes: all alike, but those that have their own way."""

from dataclasses import dataclass, replace

from requant.checkpoint.safetensors import Spec
from requant.formats import FORMATS, Format, awq, gptq
from requant.protocol import Layer


@dataclass(frozen=True)
class Form:
    """A packing format by the name that configurations have for it, bits of a code, inputs that share a scale.

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
        """Return the three tensors of a packed weight [out, in], by suffix."""
        if self.format.layout == "awq":
            return awq.specs(shape, self.group_size)
        return gptq.specs(shape, self.group_size, self.bits)

    def zeros(self, spec: Spec) -> bytes:
        """Return the bytes of the `qzeros` of symmetric codes; defect D10 is another constant in their place."""
        words = gptq.constant((1 << self.bits - 1) - self.format.less, self.bits).astype("<i4")
        return words.tobytes() * (spec.size // words.size)
