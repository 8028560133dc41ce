"""The formulas by which layers of a codec can have been made."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from requant.formats.bitsandbytes import FourBit, Int8
from requant.formats.codec import Codec
from requant.formats.mlx import Affine, Float
from requant.formats.mxfp4 import Mxfp4
from requant.rounding import bitsandbytes, mlx, mxfp4
from requant.rounding.formula import Formula

FORMULAS: Mapping[type[Codec], Callable[[Any], Sequence[Formula]]] = {
    Affine: mlx.affine,
    Float: mlx.floats,
    FourBit: bitsandbytes.four_bit,
    Int8: bitsandbytes.int8,
    Mxfp4: mxfp4.mxfp4,
}
"""By the class of the codec: what returns the formulas of one, the likeliest first."""


def formulas(codec: Codec) -> Sequence[Formula]:
    """Return the formulas that are known to have made such layers; none where none can be recomputed."""
    known = FORMULAS.get(type(codec))
    return known(codec) if known else ()
