"""The inner loops of ggml's IQ4: blocks whose codes are places on a curve of sixteen numbers; compiled by numba.

Blocks, and whether a compiler fuses, are as in `blocks.py`.
"""

import numpy as np
from numba import njit

from requant.formats.ggml import NONLINEAR
from requant.rounding.blocks import _OPTIONS, ACROSS, F32, NONE, ONE, STRICT, TINY, _half, _mad, _nearest, _widest

_ABOVE = np.searchsorted(NONLINEAR, np.arange(-127, 113), side="right")
"""Which number of `NONLINEAR` is the next above x, by floor(x) + 127: all of them are whole."""


@njit(**_OPTIONS)
def _place(numbers, x):
    """Return which of `NONLINEAR` is nearest, of two the greater (`best_index_int8`)."""
    if x <= numbers[0]:
        return 0
    if not x < numbers[15]:
        return 15
    high = _ABOVE[np.int64(np.floor(x)) + 127]
    return high - 1 if x - numbers[high - 1] < numbers[high] - x else high


@njit(**_OPTIONS)
def _curve(x, numbers, fused):
    """Return the scale of the best of sixteen for a group of 32, codes of `numbers` (`quantize_row_iq4_nl_impl`)."""
    within = fused > STRICT
    widest, most = _widest(x)
    if widest < TINY:
        return NONE
    scale = best = NONE
    for step in range(-8, 8):
        # The first is the plain one.
        inverse = ONE / (-most / numbers[0]) if step == -8 else (F32(step) + numbers[0]) / most
        sum_qx = sum_q2 = NONE
        for i in range(32):
            q = numbers[_place(numbers, inverse * x[i])]
            wq = x[i] * x[i] * q
            sum_qx = _mad(wq, x[i], sum_qx, within)
            sum_q2 = _mad(wq, q, sum_q2, within)
        if step == -8 or (sum_q2 > 0 and sum_qx * sum_qx > best * sum_q2):
            scale = sum_qx / sum_q2 if sum_q2 > 0 else NONE
            best = scale * sum_qx
    return scale


@njit(**_OPTIONS)
def curves(x, numbers, fused, codes, d):
    """IQ4_NL."""
    for b in range(x.shape[0]):
        scale = _curve(x[b], numbers, fused)
        d[b] = _half(scale)
        inverse = ONE / scale if scale != 0 else NONE
        for i in range(32):
            codes[b, i] = _place(numbers, inverse * x[b, i])


@njit(**_OPTIONS)
def super_curves(x, numbers, fused, codes, scales, d):
    """IQ4_XS; scales are stored 32 higher."""
    found = np.empty(8, F32)
    for b in range(x.shape[0]):
        for g in range(8):
            found[g] = _curve(x[b, 32 * g : 32 * g + 32], numbers, fused)
        scale = -_widest(found)[1] / F32(32)
        d[b] = _half(scale)
        inverse = ONE / scale if scale != 0 else NONE
        for g in range(8):
            near = _nearest(inverse, found[g], fused == ACROSS, -32, 31)
            scales[b, g] = near + 32
            step = scale * F32(near)
            finer = ONE / step if step != 0 else NONE
            for i in range(32 * g, 32 * g + 32):
                codes[b, i] = _place(numbers, finer * x[b, i])
