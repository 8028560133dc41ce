"""Rounding to nearest, in each formula that is known to have been published: by name, for any width of codes.

For b bits, H = 2^(b-1) and T = 2^b - 1. `ABSMAX`: `quantize_weight_rtn` of auto_round/utils/missing_tensors.py at
0.12.2 and 2dda035. Of symmetric codes the scale is float32 max|w|/(H - 1), of asymmetric ones (max - min)/T with a
zero point of round(-min/scale); codes are divided by it, and float16 of it is stored. `FULL`: `quant_tensor_sym` and
`quant_tensor_asym` (data_type/int.py) without tuning: float16(-low/H), or -float16(high/H) where high >= -low; or
float16((high - low)/T); codes are divided by float16. `NARROW`: `quant_tensor_asym` on BF16 weights whose factors are
one number, as at 0 iterations: the range and its T-th part are BF16. `SEARCHED`: `quantize_weight_rtn` at 0.13.0,
where `search_scales` tries 181 scales around the full range and keeps the one of least squared error; codes are
divided by it in float32. torch sums that error in an order that depends on the machine, so of the 181 the stored one
must be recognised, and be no worse than the best by more than `TOLERANCE`. `WEIGHTED`, `WIDE`: the same search, each
squared error weighted by what was calibrated (`quant_tensor_rtn_sym`, 0.12.2 at 0 iterations): which of the 181 won
nobody can know without the calibration. On BF16 weights, `WEIGHTED`, every operation rounds to BF16. `FARTHER` and
`FARTHER_WIDE` are these two at 2dda035 and 0.16.1 (`quant_tensor_opt_rtn_sym`), which of 2 bits try the same scales,
and of more 201, from 4/7 of that of the full range to 4 times it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from requant.formats import Packing
from requant.rounding.kernels import absmax, errors, full_range
from requant.rounding.reach import F32, SIGN, SMALLEST, Array, half

ABSMAX, FULL, NARROW = "rounded, absmax", "rounded, full range", "rounded, full range in BF16"
SEARCHED, WEIGHTED = "rounded, full range, searched", "rounded, full range, searched by calibrated weights"
WIDE = "rounded, full range, searched by calibrated weights in float32"
FARTHER = "rounded, full range, searched farther by calibrated weights"
FARTHER_WIDE = "rounded, full range, searched farther by calibrated weights in float32"
EXACT, CHOSEN = (ABSMAX, FULL, NARROW), (SEARCHED, WEIGHTED, WIDE, FARTHER, FARTHER_WIDE)
SYMMETRIC, ASYMMETRIC = (ABSMAX, FULL, *CHOSEN), EXACT
TOLERANCE = 1e-4
TOLD_APART = 4
"""Bits of codes up to which float16 tells each of the 181 scales from the others."""
_ZERO = F32(1e-30)
"""What `get_reciprocal` takes for zero."""


def at_no_iterations(search: bool, narrow: bool, *, symmetric: bool) -> tuple[str, ...]:
    """Return the ways in which AutoRound rounds a layer at 0 iterations, in float32 or, if `narrow`, in BF16.

    Of a search two: 0.12.2's, and later ones'.
    """
    if search and symmetric:
        return (WEIGHTED, FARTHER) if narrow else (WIDE, FARTHER_WIDE)
    return (NARROW if narrow and not symmetric else FULL,)


@dataclass(frozen=True)
class Rounded:
    """What a way makes of groups: float32 `divisors` of codes, `scales` as float16 bits, zero points int32.

    All are [groups, rows]. `narrow` says that quotients are rounded to BF16.
    """

    divisors: Array
    scales: Array
    zeros: Array
    narrow: bool = False


def rounded(way: str, low: Array, high: Array, stored: Array, packing: Packing, symmetric: bool) -> Rounded:
    """Return what codes are divided by, and the scales and zero points to be stored, arrays [groups, rows].

    `low` <= 0 <= `high` are the ends of each group, `stored` the float16 scales that were found.
    """
    if not symmetric:
        return _asymmetric(way, low, high, packing)
    middle, bits = np.full(low.shape, packing.middle, np.int32), np.empty(low.shape, np.uint16)
    if way == ABSMAX:
        exact = np.empty(low.shape, np.float32)
        absmax(low, high, F32(1e-10), F32(packing.middle - 1), exact, bits)
        return Rounded(exact, bits, middle)
    if way == FULL:
        full_range(low, high, F32(packing.middle), SMALLEST, bits)
        return Rounded(bits.view(np.float16).astype(np.float32), bits, middle)
    narrow, factors = way in (WEIGHTED, FARTHER), _factors(packing.middle, farther=way in (FARTHER, FARTHER_WIDE))
    exact = _searched(_widest(low, high, stored), stored.astype(np.float32), factors, narrow)
    return Rounded(exact, half(np.abs(exact)) | np.where(exact < 0, SIGN, np.uint16(0)), middle, narrow)


def _asymmetric(way: str, low: Array, high: Array, packing: Packing) -> Rounded:
    top = F32(packing.top)
    if way == ABSMAX:
        divisors = np.maximum(high - low, F32(1e-10)) / top
        bits = half(divisors)
    else:
        step = bfloat16(bfloat16(high - low) / top) if way == NARROW else (high - low) / top
        bits = np.maximum(half(step), SMALLEST)
        divisors = bits.view(np.float16).astype(np.float32)
    with np.errstate(all="ignore"):
        zeros = np.rint(-low / divisors)
    return Rounded(divisors, bits, np.nan_to_num(np.clip(zeros, -1, packing.top + 1)).astype(np.int32))


def worse(weights: Array, chosen: Array, group: int, low: Array, high: Array, middle: int) -> Array:
    """Say of each group whether another candidate would have erred less than the `chosen` float32 scale."""
    ratio = np.empty(chosen.shape, np.float32)
    errors(weights, np.ascontiguousarray(chosen), group, _widest(low, high, chosen), middle, ratio)
    return np.asarray(ratio > 1 + TOLERANCE)


def _widest(low: Array, high: Array, scales: Array) -> Array:
    """Return the weight of greatest magnitude; of two, the one that gives a scale its sign: the first in the group."""
    return np.where(-low > high, low, np.where((high > -low) | (scales < 0), high, low))


def bfloat16(values: Array) -> npt.NDArray[np.float32]:
    """Return float32 numbers rounded to bfloat16, ties to even, as float32."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return np.asarray((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def _factors(middle: int, *, farther: bool) -> list[float]:
    """Return what a search tries in the place of `middle`, by which the widest weight is divided."""
    if not farther or middle == 2:
        return [middle - 0.01 * step for step in range(-90, 91)]
    reach = middle * 0.75
    size = reach / 200 * 2
    return [middle - size * step for step in range(-int(reach / size), int(reach / size) + 1)]


def _searched(widest: Array, stored: Array, factors: list[float], narrow: bool) -> Array:
    """Return the candidate nearest to what is stored, in the arithmetic of `search_scales`: float32, or BF16."""
    each = bfloat16 if narrow else np.asarray
    exact, best = np.full(widest.shape, F32(1e-5)), np.full(widest.shape, F32(np.inf))
    limit = each(np.full(1, 1e-5, np.float32))
    with np.errstate(all="ignore"):
        inverse = np.where(np.abs(widest) >= _ZERO, each(F32(1) / widest), F32(0))
        for divided in factors:
            factor = each(F32(-divided) * inverse)
            scale = np.where(np.abs(factor) >= _ZERO, each(F32(1) / factor), F32(0))
            scale = np.where(scale < 0, np.minimum(scale, -limit), np.maximum(scale, limit))
            off = np.abs(scale - stored)
            exact, best = np.where(off < best, scale, exact), np.minimum(off, best)
    return exact
