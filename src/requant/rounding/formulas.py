"""The formulas by which layers of a codec can have been made."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from requant.formats.codec import Codec
from requant.formats.compressed_tensors import MXFP4, NVFP4, Packed, Plain
from requant.formats.fp8 import Blocks, PerTensor
from requant.formats.modelopt import ModelOptFP8, ModelOptNVFP4
from requant.rounding import compressed_tensors, fp8, modelopt
from requant.rounding.formula import Formula

FORMULAS: Mapping[type[Codec], Callable[[Any], Sequence[Formula]]] = {
    Packed: compressed_tensors.min_max,
    Plain: compressed_tensors.min_max,
    NVFP4: compressed_tensors.nvfp4,
    MXFP4: compressed_tensors.mxfp4,
    Blocks: fp8.blocks,
    PerTensor: fp8.per_tensor,
    ModelOptFP8: modelopt.fp8,
    ModelOptNVFP4: modelopt.nvfp4,
}
"""By the class of the codec: what returns the formulas of one, the likeliest first."""


def formulas(codec: Codec) -> Sequence[Formula]:
    """Return the formulas that are known to have made such layers; none where none can be recomputed."""
    known = FORMULAS.get(type(codec))
    return known(codec) if known else ()
