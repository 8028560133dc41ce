"""The inner loops of formats with a table of levels: which one is nearest to a weight times its block's factor.

Compiled by numba, as `kernels.py` says. Values are float32 [blocks, width], factors float32 [blocks].
"""

import numpy as np
from numba import njit

from requant.rounding.kernels import _OPTIONS, MAGIC, MAGNITUDE, NONE


@njit(**_OPTIONS)
def above(values, factors, bounds, found):
    """Write how many of the `bounds` are less than value * factor, uint8 [blocks, width]; NaN is above none."""
    width = values.shape[1]
    scaled, counts = np.empty(width, np.float32), np.empty(width, np.int32)
    for block in range(values.shape[0]):
        some, target, factor = values[block], found[block], factors[block]
        for i in range(width):
            scaled[i] = some[i] * factor
            counts[i] = 0
        for bound in bounds:
            for i in range(width):
                counts[i] += np.int32(1) if scaled[i] > bound else np.int32(0)
        for i in range(width):
            target[i] = np.uint8(counts[i])


@njit(**_OPTIONS)
def reached(values, factors, bounds, found):
    """Write how many of the `bounds` the magnitude of value * factor reaches, and 8 more under a minus sign.

    `bounds` are bits of float32, int32, which order as they do; NaN reaches all. `found` is uint8 [blocks, width].
    """
    width = values.shape[1]
    scaled, counts = np.empty(width, np.float32), np.empty(width, np.int32)
    bits = scaled.view(np.int32)
    for block in range(values.shape[0]):
        some, target, factor = values[block], found[block], factors[block]
        for i in range(width):
            scaled[i] = some[i] * factor
        for i in range(width):
            counts[i] = np.int32(8) if bits[i] < 0 else np.int32(0)
        for bound in bounds:
            for i in range(width):
                counts[i] += np.int32(1) if bits[i] & MAGNITUDE >= bound else np.int32(0)
        for i in range(width):
            target[i] = np.uint8(counts[i])


@njit(**_OPTIONS)
def whole(values, factors, codes):
    """Write value * factor, rounded to a whole number, ties to even, from -128 to 127, int8; 0 for NaN."""
    least, most = np.float32(-128), np.float32(127)
    for block in range(values.shape[0]):
        some, target, factor = values[block], codes[block], factors[block]
        for i in range(some.shape[0]):
            near = some[i] * factor
            near = near if near == near else NONE
            near = near if near > least else least
            near = near if near < most else most
            target[i] = np.int8(np.int32((near + MAGIC) - MAGIC))
