"""MXFP4's roundings: a power of two from the greatest magnitude of a group, and the nearest E2M1 number to the rest.

Source: `downcast_to_mxfp_torch` of Triton's triton_kernels (numerics_details/mxfp.py), which transformers calls on BF16
weights. The scale is the greatest magnitude / 6, in float32, rounded up to a power of two, or down to one where the
caller asks for that; numbers are divided by it, and a tie goes away from 0. Processors that convert by one instruction
round ties to even. A base that was itself decoded from such a checkpoint, as gpt-oss's are, is equal to what it decodes
to, whatever made the scales.

ModelOpt (`MXFP4QTensor.quantize` of 0.47.0, for examples/gpt-oss) takes the power by way of a logarithm, lets a tie go
towards 0, and gives every 0 a sign.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from requant.formats.codec import Array, Arrays, converted
from requant.formats.mxfp4 import GROUP, GptOssMXFP4
from requant.rounding.formula import Formula
from requant.rounding.levels import reached
from requant.rounding.quotients import greatest, joined

F32 = np.float32
GREATEST = F32(6)
BOUNDS = np.array((0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5), F32)
"""Between E2M1's magnitudes."""
EVEN = np.where((1, 0, 1, 0, 1, 0, 1), np.nextafter(BOUNDS, F32(9)), BOUNDS)
"""The least magnitude that has each code but 0, where ties go to even ones: every second is the next greater."""
DOWN = np.nextafter(BOUNDS, F32(9))
"""The same, where ties go towards 0."""
FRACTION, EXPONENT = np.uint32(0x007FFFFF), np.uint32(0x7F800000)


def e2m1(values: Array, factors: Array, *, even: bool) -> Array:
    """Return the E2M1 numbers nearest to float32 values [blocks, n] times their block's factor, uint8 codes.

    Ties go to `even` codes or away from 0, NaN to the greatest.
    """
    codes = np.empty(values.shape, np.uint8)
    reached(values, factors, (EVEN if even else BOUNDS).view(np.int32), codes)
    return codes


@dataclass(frozen=True)
class Mxfp4Rounding:
    """By a scale rounded up or down, with ties to even or away from 0."""

    name: str
    up: bool = True
    even: bool = False

    def encode(self, weights: Array, dtype: str, stored: Arrays) -> Arrays:
        """Return both tensors."""
        with np.errstate(all="ignore"):
            grouped = converted(weights, dtype, "BF16").reshape(-1, GROUP)
            bits = (greatest(grouped) / GREATEST).view(np.uint32)
            bits = (bits + FRACTION if self.up else bits) & EXPONENT
            scale = bits.view(F32)
            codes = e2m1(grouped, np.where(scale == 0, F32(0), F32(1) / scale), even=self.even)
        return {
            "_blocks": joined(codes).reshape(-1),
            "_scales": (bits >> np.uint32(23)).astype(np.uint8),
        }

    def whole(self, widest: float, dtype: str) -> Arrays:
        """Return nothing: both tensors follow from rows."""
        return {}


@dataclass(frozen=True)
class Mxfp4ModelOpt:
    """By the logarithm of a group's greatest magnitude; weights are in the base's dtype."""

    name: str = "MXFP4, ModelOpt"

    def encode(self, weights: Array, dtype: str, stored: Arrays) -> Arrays:
        """Return both tensors."""
        del dtype, stored
        with np.errstate(all="ignore"):
            grouped = np.ascontiguousarray(weights, F32).reshape(-1, GROUP)
            powers = np.log2((greatest(grouped) / GREATEST).astype(np.float64)).astype(F32)
            powers = np.nan_to_num(np.ceil(np.maximum(powers, F32(-127))), nan=128, posinf=128).astype(np.int32)
            factors, codes = np.ldexp(F32(1), -powers), np.empty(grouped.shape, np.uint8)
            reached(grouped, factors, DOWN.view(np.int32), codes)
            codes |= np.where(grouped * factors[:, None] == 0, np.uint8(8), np.uint8(0))
        return {"_blocks": joined(codes).reshape(-1), "_scales": (powers + 127).astype(np.uint8)}

    def whole(self, widest: float, dtype: str) -> Arrays:
        """Return nothing: both tensors follow from rows."""
        del widest, dtype
        return {}


@dataclass(frozen=True)
class Mxfp4Decoded:
    """What is stored, where the base is exactly what it decodes to."""

    codec: GptOssMXFP4
    name: str = "MXFP4 of which the base is the decoded form"

    def encode(self, weights: Array, dtype: str, stored: Arrays) -> Arrays:
        """Return what is stored, but other numbers where decoded ones are not the weights, -0 apart from 0."""
        decoded = self.codec.decode(stored, weights.shape[1])
        wrong = (decoded.view(np.uint32) != weights.view(np.uint32)).reshape(-1, 2)
        flipped = np.where(wrong[:, 0], np.uint8(8), 0) | np.where(wrong[:, 1], np.uint8(128), 0)
        return {"_blocks": stored["_blocks"].reshape(-1) ^ flipped.astype(np.uint8), "_scales": stored["_scales"]}

    def whole(self, widest: float, dtype: str) -> Arrays:
        """Return nothing: both tensors follow from rows."""
        return {}


def mxfp4(codec: GptOssMXFP4) -> Sequence[Formula]:
    """Return the forms, the likeliest first."""
    return (
        Mxfp4Decoded(codec),
        Mxfp4Rounding("MXFP4, triton_kernels"),
        Mxfp4Rounding("MXFP4, triton_kernels, ties to even", even=True),
        Mxfp4Rounding("MXFP4, triton_kernels, scales rounded down", up=False),
        Mxfp4ModelOpt(),
    )
