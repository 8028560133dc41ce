"""Between what a sum of powers of errors lies, whatever `pow` and the order of adding it up a machine has.

n numbers, added in any order, come out within n * 2^-24 / (1 - n * 2^-24) of their sum (Higham, Accuracy and Stability
of Numerical Algorithms, 4.2), where n is how many additions one of them passes, and each power within `POW`. In BF16
and float16 torch rounds the exponent, each power and the sum to the dtype (ATen/native/cpu/PowKernel.cpp,
cuda/PowKernel.cu); rounding keeps the order, and leaves one number of most intervals.
"""

import numpy as np

from requant.formats import floats
from requant.formats.codec import Array
from requant.rounding.powers import CUT, FLUSHED, POW, REST, errors, series, table
from requant.rounding.quotients import PLACES

UNIT = 2.0**-24
"""By what share float32 rounds."""
FARTHEST = 89.0
"""More than the magnitude of any normal float32's logarithm: what an exponent is off by counts so often in a power."""
Levels = tuple[np.float32, np.float32]
E4M3, E2M1, E2M3 = ((np.float32(-most), np.float32(most)) for most in (448, 6, 7.5))
"""The least and the greatest code of floats, which alone are alike."""


def whole_numbers(bits: int) -> Levels:
    """Return the least and the greatest code of integers."""
    return np.float32(-(1 << bits - 1)), np.float32((1 << bits - 1) - 1)


def added(
    weights: Array, dtype: str, scales: Array, zeros: Array, steps: tuple[int, int], norm: float, levels: Levels
) -> tuple[Array, Array]:
    """Return the sum of |q - x|^norm of each group in each range, and how much more it may be, float64 [ranges, n, m].

    Weights are float32 [rows, columns], of which `steps` rows and columns are a group; scales and zero points float32
    [ranges, n, m].
    """
    sums, more = np.zeros(scales.shape), np.zeros(scales.shape)
    used = float(floats.rounded(np.array([norm], np.float32), dtype)[0]) if dtype != "F32" else norm
    how = levels, *table(used, dtype), CUT[dtype], series(used)
    errors(weights, scales, zeros, *steps, PLACES[dtype], *how, sums, more)
    return sums, more


def bounds(
    sums: Array, more: Array, dtype: str, norm: float, count: int, deep: int = 0, parted: float = 0.0
) -> tuple[Array, Array]:
    """Return between what such sums of `count` numbers lie as the tool has them, float64, in the shape of the sums.

    Each number passes `deep` additions at most, or all of them; sums of parts are rounded by the share `parted`.
    """
    passed = min(count, deep) if deep else count
    off, each = passed * UNIT / (1 - passed * UNIT) + parted, REST
    if dtype == "F32":
        each += POW + np.expm1(abs(float(np.float32(norm)) - norm) * FARTHEST)
    with np.errstate(all="ignore"):
        least = sums * (1 - off) * (1 - each) - count * FLUSHED
        greatest = (sums + more) * (1 + off) * (1 + each) + count * FLUSHED
        least, greatest = (
            floats.rounded(each.astype(np.float32), dtype).astype(np.float64)
            for each in (np.maximum(least, 0), greatest)
        )
    known = np.isfinite(sums)
    return np.where(known, least, 0), np.where(known, greatest, np.inf)


def possible(least: Array, greatest: Array, tried: int | None = None) -> Array:
    """Say of each range whether it can be the first of the least, bool [ranges, n, m].

    At least so many were `tried`, or all; one behind these, if it and those before it were.
    """
    tried = len(least) if tried is None else tried
    beyond = np.full((1, *least.shape[1:]), np.inf)
    before = np.minimum.accumulate(np.concatenate([beyond, greatest[:-1]]))
    surely = np.where(np.arange(len(least)).reshape(-1, 1, 1) < tried, greatest, np.inf)
    behind = np.minimum.accumulate(np.concatenate([beyond, surely[:0:-1]]))[::-1]
    return np.asarray((least < before) & (least <= behind))


def taken(values: Array, places: Array) -> Array:
    """Return of each group the value of the range at its place: [n, m] of [ranges, n, m]."""
    return np.asarray(np.take_along_axis(values, places[None], 0)[0])
