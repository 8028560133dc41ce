"""The inner loops of formats with a table of levels: which one is nearest to a weight times its block's factor.

Compiled by numba, as `kernels.py` says. Values are float32 [blocks, width], factors float32 [blocks].
"""

import numpy as np
from numba import njit

from requant.rounding.kernels import _OPTIONS, MAGIC, MAGNITUDE, NONE
from requant.rounding.quotients import _narrow


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
def whole(weights, places, reciprocal, widest, codes):
    """Write weights [rows, columns] times 127 / the greatest magnitude of their row as whole numbers, ties to even.

    They are rounded to `places` first, as `quotients.py` has them. Writes these magnitudes into `widest` float32 [rows]
    and, from -128 to 127, or 0 for NaN, `codes` int8. 127 is divided by them, or multiplied by their `reciprocal`.
    """
    least, most = np.float32(-128), np.float32(127)
    values = np.empty(weights.shape[1], np.float32)
    bits = values.view(np.uint32)
    ordered = values.view(np.int32)
    for r in range(weights.shape[0]):
        some, target = weights[r], codes[r]
        for i in range(some.shape[0]):
            values[i] = some[i]
        _narrow(values, bits, some.shape[0], places)
        farthest = np.int32(0)
        for i in range(some.shape[0]):
            magnitude = ordered[i] & MAGNITUDE
            farthest = magnitude if magnitude > farthest else farthest
        widest[r] = np.int32(farthest).view(np.float32)
        factor = np.float32(127) * (np.float32(1) / widest[r]) if reciprocal else np.float32(127) / widest[r]
        for i in range(some.shape[0]):
            near = values[i] * factor
            near = near if near == near else NONE
            near = near if near > least else least
            near = near if near < most else most
            target[i] = np.int8(np.int32((near + MAGIC) - MAGIC))
