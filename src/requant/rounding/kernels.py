"""The inner loops over weights and codes, compiled by numba once per machine and kept in its cache.

Written for LLVM's vectorizer: indices that start at 0, integers where a largest value is sought (positive floats
order as their bits do), and no operation that could be reordered. Each kernel releases the interpreter's lock, so
threads run side by side. Weights are BF16 bits uint16 [rows, columns], words are `qweight` as uint32
[columns/8, rows]; a group is `group` columns of a row; what is known of a group stands in arrays [groups, rows].
"""

from typing import Any

import numpy as np
from numba import njit

SHIFT, NIBBLE, EIGHT = np.uint32(16), np.uint32(15), np.int32(8)
SIGN, MAGNITUDE = np.int32(31), np.int32(0x7FFFFFFF)
LEAST, MOST, NONE, HALF = np.float32(-8), np.float32(7), np.float32(0), np.float32(0.5)
HALF_BITS = np.int32(0x3F000000)
"""0.5, as bits of float32."""
ERROR = 2.0**-18
"""More than five roundings of float32 between 8 and 16 steps, which is farther than any reach."""
MAGIC = np.float32(12582912)
"""1.5 * 2**23: added and taken away, it rounds a small float32 to a whole number, ties to even."""

UNSIGNED = np.uint32(0x7FFFFFFF)
REBIAS = np.uint32(((127 - 15) << 23) - 0xFFF)
"""From float32's exponent to float16's, less what rounds to nearest where 13 places are cut off."""

_OPTIONS: Any = {"nogil": True, "cache": True, "error_model": "numpy"}


@njit(**_OPTIONS)
def extremes(weights, group, low, high):
    """Write each group's least and greatest weight, zero among them, as bits of float32 into int32 [groups, rows].

    NaN counts as beyond infinity.
    """
    columns = weights.shape[1]
    ordered = np.empty(group, np.int32)
    for r in range(weights.shape[0]):
        for g in range(low.shape[0]):
            some = weights[r, g * group : min((g + 1) * group, columns)]
            for i in range(some.shape[0]):
                wide = np.int32(np.uint32(some[i]) << SHIFT)
                ordered[i] = wide ^ ((wide >> SIGN) & MAGNITUDE)
            least = most = np.int32(0)
            for i in range(some.shape[0]):
                least = ordered[i] if ordered[i] < least else least
                most = ordered[i] if ordered[i] > most else most
            low[g, r] = least ^ ((least >> SIGN) & MAGNITUDE)
            high[g, r] = most


@njit(**_OPTIONS)
def distances(weights, words, scales, group, far, moved):
    """Measure how far codes are from weights, in steps of `scales`, float32 [groups, rows], signed.

    Writes, per group, into `far` int32 the bits of the largest float32 distance of a code from weight/scale, not
    counting what clamping explains, and into `moved` int32 how many are more than half a step away. It multiplies by
    the reciprocal, which is faster than to divide and errs by less than `ERROR` steps.
    """
    columns = weights.shape[1]
    values, bits, eights, codes = _buffers(group)
    away = np.empty(group, np.float32)
    ordered = away.view(np.int32)
    for r in range(weights.shape[0]):
        for g in range(far.shape[0]):
            count = _load(weights[r, g * group : min((g + 1) * group, columns)], words, r, g * group // 8, bits, eights)
            reciprocal = np.float32(1) / scales[g, r]
            for i in range(count):
                code = np.float32(codes[i])
                distance = code - values[i] * reciprocal
                up = distance if code > LEAST else NONE
                down = -distance if code < MOST else NONE
                away[i] = up if up > down else down
            farthest = total = np.int32(0)
            for i in range(count):
                farthest = ordered[i] if ordered[i] > farthest else farthest
            for i in range(count):
                total += np.int32(1) if ordered[i] > HALF_BITS else np.int32(0)
            far[g, r], moved[g, r] = farthest, total


@njit(**_OPTIONS)
def unlike(weights, words, divisors, group, wrong):
    """Write into `wrong` int32 [groups, rows] how many codes are not round(weight / divisor), ties to even, clamped."""
    columns = weights.shape[1]
    values, bits, eights, codes = _buffers(group)
    for r in range(weights.shape[0]):
        for g in range(wrong.shape[0]):
            count = _load(weights[r, g * group : min((g + 1) * group, columns)], words, r, g * group // 8, bits, eights)
            divisor = divisors[g, r]
            total = np.int32(0)
            for i in range(count):
                near = values[i] / divisor
                near = near if near > LEAST else LEAST
                near = near if near < MOST else MOST
                total += np.int32((near + MAGIC) - MAGIC != np.float32(codes[i]))
            wrong[g, r] = total


@njit(**_OPTIONS)
def _buffers(group):
    values, eights = np.empty(group, np.float32), np.empty((group // 8, 8), np.int32)
    return values, values.view(np.uint32), eights, eights.reshape(group)


@njit(inline="always")
def _load(some, words, row, first, bits, eights):
    """Fill the buffers with weights and codes of one group; return how many."""
    for i in range(some.shape[0]):
        bits[i] = np.uint32(some[i]) << SHIFT
    some_words = words[first : first + some.shape[0] // 8, row]
    for k in range(some_words.shape[0]):
        word = some_words[k]
        for j in range(8):
            eights[k, j] = np.int32((word >> np.uint32(4 * j)) & NIBBLE) - EIGHT
    return some.shape[0]


@njit(**_OPTIONS)
def shares(scales, low, high, counts):
    """Count groups by |scale| / (end of its side / 8), into `counts` int64 [bins + 1], the last for more than 1.

    All are float32 [groups, rows]. float16's rounding counts as nothing. Returns the least share.
    """
    bins = counts.shape[0] - 1
    least = np.float32(1)
    for g in range(scales.shape[0]):
        for r in range(scales.shape[1]):
            scale = scales[g, r]
            end = high[g, r] if scale < 0 else -low[g, r]
            share = np.abs(scale) * np.float32(8) / end if end > 0 else np.float32(1)
            if not share < np.float32(2):
                share = np.float32(2)
            least = share if share < least else least
            place = np.int64(share * np.float32(1 - 2**-11) * np.float32(bins))
            counts[place if place < bins else bins] += 1
    return least


@njit(**_OPTIONS)
def halves(values):
    """Return float32 >= 0, [n], rounded to float16, ties to even, as bits uint16: ten times as fast as numpy does."""
    result = np.empty(values.shape[0], np.uint16)
    bits = values.view(np.uint32)
    lifted = np.abs(values) + HALF  # 0.5 has float16's smallest step as its last place
    small = lifted.view(np.uint32)
    for i in range(values.shape[0]):
        wide = bits[i] & UNSIGNED  # 0 may be a negative one
        normal = (wide - REBIAS + ((wide >> np.uint32(13)) & np.uint32(1))) >> np.uint32(13)
        half = small[i] - np.uint32(0x3F000000) if wide < np.uint32(0x38800000) else normal
        result[i] = np.uint16(half if half < np.uint32(0x7C00) else np.uint32(0x7C00))
    return result


@njit(fastmath={"reassoc", "contract"}, **_OPTIONS)
def errors(weights, scales, group, widest, ratio):
    """Write by how much each group's error exceeds that of the best of AutoRound 0.13.0's candidates, as a ratio.

    `scales` float32 [groups, rows] were chosen, `widest` float32 [groups, rows] is the weight of greatest magnitude.
    `search_scales` (data_type/int.py) tries 1/scale = -(8 - i/100) / widest for i from -90 to 90. torch's order of
    summation is not known, so errors are compared, not sums reproduced.
    """
    columns = weights.shape[1]
    values = np.empty(group, np.float32)
    bits = values.view(np.uint32)
    for r in range(weights.shape[0]):
        for g in range(ratio.shape[0]):
            some = weights[r, g * group : min((g + 1) * group, columns)]
            for i in range(some.shape[0]):
                bits[i] = np.uint32(some[i]) << SHIFT
            best = own = np.float32(np.inf)
            inverse = np.float32(1) / widest[g, r]
            for candidate in range(182):
                if candidate < 181:
                    factor = np.float32(-(8 - 0.01 * (candidate - 90))) * inverse
                    scale = np.float32(1) / factor
                else:
                    scale = scales[g, r]
                    factor = np.float32(1) / scale
                error = NONE
                for i in range(some.shape[0]):
                    near = values[i] * factor
                    near = near if near > LEAST else LEAST
                    near = near if near < MOST else MOST
                    miss = scale * np.float32(np.rint(near)) - values[i]
                    error += miss * miss
                if candidate == 181:
                    own = error
                elif error < best:
                    best = error
            ratio[g, r] = own / best if best > 0 else np.float32(1)


@njit(**_OPTIONS)
def steps(first, second, histogram):
    """Count by how many steps codes differ; return the first word that does, or -1.

    `first` and `second` are words uint32 [n] of eight codes; `histogram` int64 [8, 31] counts second - first from -15,
    apart for each of a word's eight places, so that no count waits for the one before it.
    """
    found, equal = -1, 0
    for i in range(first.shape[0]):
        one, two = first[i], second[i]
        if one == two:
            equal += 1
            continue
        if found < 0:
            found = i
        for j in range(8):
            shift = np.uint32(4 * j)
            histogram[j, 15 + np.int64((two >> shift) & NIBBLE) - np.int64((one >> shift) & NIBBLE)] += 1
    histogram[:, 15] += equal
    return found
