"""Rounding to nearest, in each formula that is known to have been published.

`ABSMAX`: `quantize_weight_rtn` of auto_round/utils/missing_tensors.py at 0.12.2 and 2dda035. The scale is
float32 max|w|/7, which the codes are divided by; float16 of it is stored. `FULL`: `quant_tensor_sym` without tuning
(data_type/int.py): float16(-low/8), or -float16(high/8) where high >= -low, and the codes are divided by float16.
`SEARCHED`: `quantize_weight_rtn` at 0.13.0, where `search_scales` tries 181 scales around the full range and keeps
the one of least squared error; codes are divided by it in float32. torch sums that error in an order that depends on
the machine, so of the 181 the stored one must be recognised, and be no worse than the best by more than `TOLERANCE`.
"""

import numpy as np

from requant.rounding.kernels import errors
from requant.rounding.reach import F32, SIGN, SMALLEST, Array, half

ABSMAX, FULL, SEARCHED = "rounded, absmax/7", "rounded, full range", "rounded, full range, searched"
WAYS = (ABSMAX, FULL, SEARCHED)
TOLERANCE = 1e-4


def divisors(way: str, low: Array, high: Array, stored: Array) -> tuple[Array, Array]:
    """Return what codes are divided by, float32, and the scales to be stored, float16 bits, of any one shape.

    `low` <= 0 <= `high` are the ends of each group, `stored` the float16 scales that were found.
    """
    widest = np.maximum(-low, high)
    if way == ABSMAX:
        exact = np.maximum(widest, F32(1e-10)) / F32(7)
        return exact, half(exact)
    if way == FULL:
        bits = half(widest / F32(8))
        negative = (high >= -low) & (bits > 0)
        bits = np.where(negative, SIGN, np.uint16(0)) | np.maximum(bits, SMALLEST)
        return bits.view(np.float16).astype(np.float32), bits
    exact = _searched(np.where(-low > high, low, high), stored.astype(np.float32))
    return exact, half(np.abs(exact)) | np.where(exact < 0, SIGN, np.uint16(0))


def worse(weights: Array, chosen: Array, group: int, low: Array, high: Array) -> Array:
    """Say of each group whether another candidate would have erred less than the `chosen` float32 scale."""
    ratio = np.empty(chosen.shape, np.float32)
    errors(weights, np.ascontiguousarray(chosen), group, np.where(-low > high, low, high), ratio)
    return np.asarray(ratio > 1 + TOLERANCE)


def _searched(widest: Array, stored: Array) -> Array:
    """Return the candidate nearest to what is stored, in the float32 arithmetic of `search_scales`."""
    exact, best = np.full(widest.shape, F32(1e-5)), np.full(widest.shape, F32(np.inf))
    with np.errstate(all="ignore"):
        inverse = np.where(np.abs(widest) >= F32(1e-30), F32(1) / widest, F32(0))
        for step in range(-90, 91):
            factor = F32(-(8 - 0.01 * step)) * inverse
            scale = np.where(np.abs(factor) >= F32(1e-30), F32(1) / factor, F32(0))
            scale = np.where(scale < 0, np.minimum(scale, -F32(1e-5)), np.maximum(scale, F32(1e-5)))
            off = np.abs(scale - stored)
            exact, best = np.where(off < best, scale, exact), np.minimum(off, best)
    return exact
