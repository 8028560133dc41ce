"""The inner loop of a search over ranges: by how much each group errs in each of them; compiled by numba.

A weight is divided by the range's scale, rounded to a code, and multiplied by it again, each step in the weights'
dtype; what it is off by is raised to a power, and summed. The powers are read from a table of the first places of what
is off: in BF16 and float16 these are all of them, so that the table says also how the dtype rounds the power. Of
float32 the rest is a binomial series.
"""

from functools import lru_cache

import numpy as np
from numba import njit

from requant.formats import floats
from requant.formats.codec import Array
from requant.rounding.kernels import _OPTIONS, MAGIC, NONE, UNSIGNED
from requant.rounding.quotients import INFINITE, SMALL_E4M3, STEP_E4M3, _narrow

CUT = {"BF16": 16, "F16": 13, "F32": 16}
"""Bits of float32 behind those by which a table is entered."""
TERMS = 5
"""Of the binomial series; the rest of what is off is less than 2^-7 of it."""
REST = 2.0**-35
"""More than the series leaves out, as a share, for powers up to 8: binomial(8, 6) * 2^-42."""
ULP, FLUSHED = 2.0**-23, 2.0**-125
"""The last place of float32, and twice its least normal number, below which machines may take a number for 0."""
POW = 4 * ULP
"""By what share `pow` of float32 may be off: 4 last places by CUDA's Programming Guide (Mathematical Functions), 1 by
Sleef's documentation, which torch has on CPUs."""
MULTIPLIED = (1.0, 2.0)
"""Powers for which torch does not call `pow`, but multiplies."""
CUBE = 3.0
"""The power for which torch multiplies twice, in BF16 with a rounding between (PowKernel.cpp); either is allowed."""


@lru_cache(maxsize=4)
def table(norm: float, dtype: str) -> tuple[Array, Array]:
    """Return the power of each number that has the first places of a float32, float64, and what else it may round to.

    The power is rounded to the dtype. Where the error of `pow` decides how, it is the lower one and has a minus sign,
    and the second table says how far above it the other one is. Of float32, which is not rounded, the second table has
    the reciprocals of the numbers.
    """
    off = 0 if norm in MULTIPLIED else POW
    bits = np.arange(1 << 31 - CUT[dtype], dtype=np.uint32) << np.uint32(CUT[dtype])
    with np.errstate(all="ignore"):
        values = bits.view(np.float32).astype(np.float64)
        powers = values**norm
        if dtype == "F32":
            return powers, 1 / values
        low, high = (
            floats.rounded((powers * (1 + side * off)).astype(np.float32), dtype).astype(np.float64) for side in (-1, 1)
        )
        if norm == CUBE:
            square = floats.rounded(bits.view(np.float32) ** 2, dtype)
            twice = floats.rounded(square * bits.view(np.float32), dtype).astype(np.float64)
            low, high = np.fmin(low, twice), np.fmax(high, twice)
        return np.where(low != high, -low, low), np.where(low != high, high - low, 0.0)


def series(norm: float) -> Array:
    """Return the coefficients of (1 + r)^norm from r on, float64."""
    made, each = [], 1.0
    for place in range(TERMS):
        each *= (norm - place) / (place + 1)
        made.append(each)
    return np.array(made)


@njit(**_OPTIONS)
def errors(weights, scales, zeros, height, width, places, levels, powers, beside, cut, terms, sums, loose):
    """Add up by how much groups err: float64 [ranges, n, m], zeros at first, where scales and zeros are float32 so.

    `levels` are the least and the greatest code; of floats, the one is the other with a minus sign: 448 for F8_E4M3, 6
    and 7.5 for those of 4 and 6 bits. `loose` is how much more it may be where `pow`
    decides how a power is rounded.
    """
    values, off = np.empty(min(width, weights.shape[1]), np.float32), np.empty(min(width, weights.shape[1]), np.float32)
    bits, apart = values.view(np.uint32), off.view(np.uint32)
    least, most = levels
    floating = least == -most
    shift, exact = np.uint32(cut), places == 0
    first_places = UNSIGNED >> shift << shift
    for r in range(weights.shape[0]):
        for g in range(scales.shape[2]):
            some = weights[r, g * width : min((g + 1) * width, weights.shape[1])]
            count = some.shape[0]
            total, more = 0.0, 0.0
            for k in range(scales.shape[0]):
                scale, zero = scales[k, r // height, g], zeros[k, r // height, g]
                if k and scale == scales[k - 1, r // height, g] and zero == zeros[k - 1, r // height, g]:
                    sums[k, r // height, g] += total  # as much as in the range before
                    loose[k, r // height, g] += more
                    continue
                for i in range(count):
                    values[i] = some[i] / scale
                _narrow(values, bits, count, places)
                if zero != NONE:
                    for i in range(count):
                        values[i] += zero
                    _narrow(values, bits, count, places)
                for i in range(count):
                    near = values[i]
                    near = near if near > least else least
                    values[i] = near if near < most else most
                if floating and most > 8:
                    _e4m3(values, bits, count)
                elif floating:
                    _small(values, count, np.float32(2) if most == 6 else np.float32(8))
                else:
                    for i in range(count):
                        values[i] = (values[i] + MAGIC) - MAGIC
                for i in range(count):
                    values[i] = (values[i] - zero) * scale
                _narrow(values, bits, count, places)
                for i in range(count):
                    off[i] = values[i] - some[i]
                _narrow(off, apart, count, places)
                total, more = 0.0, 0.0
                if exact:
                    for i in range(count):
                        whole = apart[i] & first_places
                        at = whole >> shift
                        values[i] = off[i]
                        bits[i] = whole
                        rest = (np.float64(np.abs(off[i])) - np.float64(values[i])) * beside[at] if at else 0.0
                        power = 0.0
                        for term in range(TERMS - 1, -1, -1):
                            power = (power + terms[term]) * rest
                        total += powers[at] * (1.0 + power)
                else:
                    for i in range(count):
                        at = (apart[i] & UNSIGNED) >> shift
                        power = powers[at]
                        total += np.abs(power)
                        if power < 0.0:
                            more += beside[at]
                sums[k, r // height, g] += total
                loose[k, r // height, g] += more


@njit(inline="always")
def _e4m3(values, bits, count):
    """Round float32 from -448 to 448 to what F8_E4M3 can hold, ties to even, in place."""
    for i in range(count):
        sign, wide = bits[i] & ~UNSIGNED, bits[i] & UNSIGNED
        values[i] = (np.abs(values[i]) + STEP_E4M3) - STEP_E4M3
        small = bits[i]
        near = (wide + np.uint32(0x7FFFF) + ((wide >> np.uint32(20)) & np.uint32(1))) & np.uint32(0xFFF00000)
        near = small if wide < SMALL_E4M3 else near
        bits[i] = (near if wide <= INFINITE else wide) | sign


@njit(inline="always")
def _small(values, count, steps):
    """Round float32 to floats of 4 or 6 bits, which have so many `steps` to 1, ties to even, in place."""
    for i in range(count):
        size = np.abs(values[i])
        each = steps if size < np.float32(2) else steps / np.float32(2)
        each = each if size < np.float32(4) else steps / np.float32(4)
        values[i] = ((values[i] * each + MAGIC) - MAGIC) / each
