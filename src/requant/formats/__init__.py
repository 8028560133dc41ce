"""Formats: how codes, scales and zero points lie in files, one module each, and what configurations call them.

All of them store a linear layer's weight [out, in] as `qweight`, `qzeros` and `scales`. A weight is
scale * (code - zero point), where `scales` float16 and zero points are per output and group of inputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from requant.checkpoint.safetensors import Spec

PACKED = ("qweight", "qzeros", "scales")
"""What every packed layer is in files, by suffix."""
ORDER = "g_idx"
"""A fourth tensor of GPTQ's, int32 [in]: the group of each input, which is i // group size where they are in order."""
TENSORS = (*PACKED, ORDER)
"""All that a packed layer can be."""
BITS = (4, 8, 2, 3)
"""Widths of codes that exist."""


@dataclass(frozen=True)
class Format:
    """The order of codes in words, and how much less than it is a zero point is stored.

    `method` is the `quant_method` of a configuration; `ordered` says that each layer has a `g_idx`.
    """

    layout: Literal["gptq", "awq"]
    less: int
    method: Literal["auto-round", "gptq", "awq"] = "auto-round"
    ordered: bool = False


GPTQ, GPTQ_V2, AWQ = Format("gptq", 1), Format("gptq", 0), Format("awq", 0)

FORMATS: Mapping[str, Format] = {
    "auto_round:auto_gptq": GPTQ,
    "auto_round:gptq": GPTQ,
    "auto_round:gptqmodel": GPTQ_V2,
    "auto_round": GPTQ_V2,
    "auto_round:auto_awq": AWQ,
    "auto_round:awq": AWQ,
    "auto_gptq": replace(GPTQ, method="gptq", ordered=True),
    "auto_awq": replace(AWQ, method="awq"),
}
"""By AutoRound's name: a `packing_format`, or an export for other tools, whose configurations do not name it.

Source: `dynamic_import_quant_linear_for_packing` of AutoRound 0.12.2, export_to_autoround; export_to_autogptq and
export_to_awq of 0.12.2 and 0.16.1.
"""


@dataclass(frozen=True)
class Packing:
    """How a layer's codes lie, as the shapes of its tensors tell, in groups of inputs."""

    layout: Literal["gptq", "awq"]
    bits: int
    groups: int

    @property
    def top(self) -> int:
        """The greatest code."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The zero point of symmetric codes."""
        return 1 << (self.bits - 1)


def packing_of(specs: Mapping[str, Spec], rows: int, columns: int) -> Packing | None:
    """Return how the tensors of a layer of `rows` outputs and `columns` inputs are packed; None where no way fits.

    For b bits, GPTQ's qweight is [columns * b / 32, rows], AWQ's [columns, rows * b / 32]; qzeros are
    [groups, rows * b / 32] and scales [groups, rows] in both.
    """
    words, zeros, scales = (specs[suffix].shape for suffix in PACKED)
    groups = scales[0] if scales else 0
    dtypes = tuple(specs[suffix].dtype for suffix in PACKED)
    if not (rows and columns and groups) or scales != (groups, rows) or dtypes != ("I32", "I32", "F16"):
        return None
    for bits in BITS:
        if zeros == (groups, rows * bits // 32) and rows * bits % 32 == 0:
            if words == (columns * bits // 32, rows) and columns * bits % 32 == 0:
                return Packing("gptq", bits, groups)
            if words == (columns, rows * bits // 32) and bits == 4:
                return Packing("awq", bits, groups)
    return None
