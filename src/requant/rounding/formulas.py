"""The formulas by which layers of a codec can have been made."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from requant.formats.bitsandbytes import FourBit, Int8
from requant.formats.codec import Codec
from requant.formats.compressed_tensors import MX, NVFP4, Packed, Plain
from requant.formats.fp8 import Blocks, PerTensor
from requant.formats.ggml import Ggml
from requant.formats.mlx import Affine, Float
from requant.formats.modelopt import ModelOptFP8, ModelOptNVFP4
from requant.formats.mxfp4 import GptOssMXFP4
from requant.rounding import bitsandbytes, fp8, ggml, mlx, modelopt, mse, mse_floats, mxfp4
from requant.rounding.formula import Formula

FORMULAS: Mapping[type[Codec], Callable[[Any], Sequence[Formula]]] = {
    Affine: mlx.affine,
    Blocks: fp8.blocks,
    Float: mlx.floats,
    FourBit: bitsandbytes.four_bit,
    Ggml: ggml.formulas,
    GptOssMXFP4: mxfp4.mxfp4,
    Int8: bitsandbytes.int8,
    ModelOptFP8: modelopt.fp8,
    ModelOptNVFP4: modelopt.nvfp4,
    MX: mse_floats.observed,
    NVFP4: mse_floats.observed,
    Packed: mse.observed,
    PerTensor: fp8.per_tensor,
    Plain: mse.observed,
}
"""By the class of the codec: what returns the formulas of one, the likeliest first."""


@lru_cache(64)
def formulas(codec: Codec) -> Sequence[Formula]:
    """Return the formulas that are known to have made such layers; none where none can be recomputed."""
    known = FORMULAS.get(type(codec))
    return known(codec) if known else ()
