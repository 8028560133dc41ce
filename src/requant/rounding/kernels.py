"""The inner loops over weights and codes, compiled by numba once per machine and kept in its cache.

Written for LLVM's vectorizer: indices that start at 0, integers where a largest value is sought (positive floats
order as their bits do), and no operation that could be reordered. numba widens sums of int32 to int64, of which
AVX2 makes no floats: so they are int32 again before they become one. Each kernel releases the interpreter's lock, so
threads run side by side. Weights [rows, columns] are bits of BF16, uint16, or of float32, uint32. Codes are uint8
[rows, columns], words those of `qweight` as uint32; a group is `group` columns of a row; what is known of a group
stands in arrays [groups, rows].
"""

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

SHIFT, NIBBLE, UPPER = np.uint32(16), np.uint32(15), np.uint32(0xFFFF0000)
TILE = 64
"""Rows or columns that are transposed at once, so that both sides stay in the cache."""
SIGN, MAGNITUDE = np.int32(31), np.int32(0x7FFFFFFF)
NONE, HALF = np.float32(0), np.float32(0.5)
HALF_BITS = np.int32(0x3F000000)
"""0.5, as bits of float32."""
MAGIC = np.float32(12582912)
"""1.5 * 2**23: added and taken away, it rounds a small float32 to a whole number, ties to even."""

UNSIGNED = np.uint32(0x7FFFFFFF)
REBIAS = np.uint32(((127 - 15) << 23) - 0xFFF)
"""From float32's exponent to float16's, less what rounds to nearest where 13 places are cut off."""

_OPTIONS: Any = {"nogil": True, "cache": True, "error_model": "numpy"}


def error(bits: int) -> float:
    """Return more than a distance can err by, in steps: five roundings of float32 between 2^(bits-1) and 2^bits.

    No reach is farther than 2^bits steps.
    """
    return 2.0 ** (bits - 22)


@njit(**_OPTIONS)
def extremes(weights, group, low, high):
    """Write each group's least and greatest weight, zero among them, as bits of float32 into int32 [groups, rows].

    Positive floats order as signed integers, negative ones, the least of them last, as unsigned ones. NaN counts as
    beyond infinity.
    """
    columns = weights.shape[1]
    for r in range(weights.shape[0]):
        for g in range(low.shape[0]):
            some = weights[r, g * group : min((g + 1) * group, columns)]
            least, most = some[0], _signed(some[0])
            for i in range(some.shape[0]):
                least = max(least, some[i])
                most = max(most, _signed(some[i]))
            low[g, r] = min(np.int32(_wide(least)), 0)
            high[g, r] = max(np.int32(_wide(most)), 0)


@njit(**_OPTIONS)
def _nibbles(words, eight):
    """Write the eight codes of each word uint32 [n, rows] as the bytes of a uint64 [rows, n].

    Words change places while they are short, and are spread where they lie side by side, which is vectorized.
    """
    turned = np.empty((TILE, TILE), np.uint32)
    for start in range(0, eight.shape[0], TILE):
        rows = min(TILE, eight.shape[0] - start)
        for first in range(0, words.shape[0], TILE):
            count = min(TILE, words.shape[0] - first)
            for w in range(count):
                for r in range(rows):
                    turned[r, w] = words[first + w, start + r]
            for r in range(rows):
                some = eight[start + r, first : first + count]
                for w in range(count):
                    wide = np.uint64(turned[r, w])
                    wide = (wide | (wide << np.uint64(16))) & np.uint64(0x0000FFFF0000FFFF)
                    wide = (wide | (wide << np.uint64(8))) & np.uint64(0x00FF00FF00FF00FF)
                    some[w] = (wide | (wide << np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)


@njit(**_OPTIONS)
def along_inputs(words, bits, codes):
    """Write the codes uint8 [rows, columns] of words uint32 [columns * bits / 32, rows]: one stream of bits per row."""
    rows, columns = codes.shape
    mask, per_word = np.uint32((1 << bits) - 1), 32 // bits
    if bits == 4:
        _nibbles(words, codes.view(np.uint64))
        return
    for start in range(0, rows, TILE):
        stop = min(rows, start + TILE)
        if 32 % bits == 0:
            for w in range(words.shape[0]):
                for r in range(start, stop):
                    word = words[w, r]
                    for k in range(per_word):
                        codes[r, w * per_word + k] = (word >> np.uint32(bits * k)) & mask
        else:
            for c in range(columns):
                w, shift = c * bits // 32, c * bits % 32
                for r in range(start, stop):
                    found = words[w, r] >> np.uint32(shift)
                    if shift + bits > 32:
                        found |= words[w + 1, r] << np.uint32(32 - shift)
                    codes[r, c] = found & mask


@njit(**_OPTIONS)
def along_outputs(words, order, codes):
    """Write the 4-bit codes uint8 [rows, columns] of words uint32 [columns, rows / 8]; row k of 8 is at order[k]."""
    columns = codes.shape[1]
    for start in range(0, columns, TILE):
        for w in range(words.shape[1]):
            for k in range(8):
                shift = np.uint32(4 * order[k])
                for c in range(start, min(columns, start + TILE)):
                    codes[8 * w + k, c] = (words[c, w] >> shift) & NIBBLE


@njit(**_OPTIONS)
def distances(weights, codes, zeros, top, scales, group, far, moved):
    """Measure how far codes are from weights, in steps of `scales`, float32 [groups, rows], signed.

    `codes` uint8 [rows, columns] run from 0 to `top`, and mean 0 at `zeros`, int32 [groups, rows]. Writes, per group,
    into `far` int32 the bits of the largest float32 distance of a code from weight/scale, not counting what clamping
    explains, and into `moved` int32 how many are more than half a step away. It multiplies by the reciprocal, which is
    faster than to divide and errs by less than `error` says.
    """
    columns = weights.shape[1]
    for r in range(weights.shape[0]):
        for g in range(far.shape[0]):
            first, last = g * group, min((g + 1) * group, columns)
            some, found = weights[r, first:last], codes[r, first:last]
            reciprocal = np.float32(1) / scales[g, r]
            zero = np.int32(zeros[g, r])
            least, most = np.float32(-zero), np.float32(top - zero)
            farthest = total = np.int32(0)
            for i in range(some.shape[0]):
                code = np.float32(np.int32(np.int32(found[i]) - zero))
                distance = code - np.uint32(_wide(some[i])).view(np.float32) * reciprocal
                up = distance if code > least else NONE
                down = -distance if code < most else NONE
                away = np.float32(up if up > down else down).view(np.int32)
                farthest = away if away > farthest else farthest
                total += np.int32(1) if away > HALF_BITS else np.int32(0)
            far[g, r], moved[g, r] = farthest, total


@njit(**_OPTIONS)
def unlike(weights, codes, zeros, top, divisors, narrow, group, wrong):
    """Write into `wrong` int32 [groups, rows] how many codes are not round(weight / divisor) + zero, ties to even.

    They are clamped from 0 to `top`. Where it is `narrow`, the quotient is rounded to bfloat16 first.
    """
    columns = weights.shape[1]
    values, bits = _buffers(group)
    quotients = np.empty(group, np.float32)
    near_bits = quotients.view(np.uint32)
    for r in range(weights.shape[0]):
        for g in range(wrong.shape[0]):
            first, last = g * group, min((g + 1) * group, columns)
            count = _load(weights[r, first:last], bits)
            some = codes[r, first:last]
            divisor, zero = divisors[g, r], np.int32(zeros[g, r])
            least, most = np.float32(-zero), np.float32(top - zero)
            for i in range(count):
                quotients[i] = values[i] / divisor
            if narrow:
                for i in range(count):
                    odd = (near_bits[i] >> SHIFT) & np.uint32(1)
                    near_bits[i] = (near_bits[i] + np.uint32(0x7FFF) + odd) & UPPER
            total = np.int32(0)
            for i in range(count):
                near = quotients[i]
                near = near if near > least else least
                near = near if near < most else most
                total += np.int32((near + MAGIC) - MAGIC != np.float32(np.int32(np.int32(some[i]) - zero)))
            wrong[g, r] = total


@njit(**_OPTIONS)
def _buffers(group):
    values = np.empty(group, np.float32)
    return values, values.view(np.uint32)


def _wide(weight: Any) -> Any:
    """Return the bits of a weight as float32: BF16, uint16, is its upper half."""
    raise NotImplementedError


@overload(_wide, inline="always")
def _wide_of(weight):
    """Choose by dtype while it compiles: a shift that is not constant costs a third."""
    if weight in (types.uint16, types.int16):
        return lambda weight: np.uint32(weight) << SHIFT
    return lambda weight: np.uint32(weight)


def _signed(weight: Any) -> Any:
    """Return the bits of a weight as a signed integer of the same width."""
    raise NotImplementedError


@overload(_signed, inline="always")
def _signed_of(weight):
    """Choose by dtype while it compiles: the narrower integers are, the more of them are compared at once."""
    if weight == types.uint16:
        return lambda weight: np.int16(weight)
    return lambda weight: np.int32(weight)


@njit(inline="always")
def _load(some, bits):
    """Fill a buffer with the weights of one group, as bits of float32; return how many."""
    for i in range(some.shape[0]):
        bits[i] = _wide(some[i])
    return some.shape[0]


@njit(**_OPTIONS)
def shares(scales, low, high, symmetric, steps, counts):
    """Count groups by |scale| / (range / steps), into `counts` int64 [bins + 1], the last for more than 1.

    `scales`, `low` and `high` are float32 [groups, rows]. The range is `high` - `low`, or, where it is `symmetric`, the
    end that the scale's sign names. float16's rounding counts as nothing. Returns the least share.
    """
    bins = counts.shape[0] - 1
    least = np.float32(1)
    for g in range(scales.shape[0]):
        for r in range(scales.shape[1]):
            below, above = -low[g, r], high[g, r]
            end = ((above if scales[g, r] < 0 else below) if symmetric else above + below) / steps
            share = np.abs(scales[g, r]) / end if end > 0 else np.float32(1)
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
    for i in range(values.shape[0]):
        result[i] = _half(values[i])
    return result


@njit(**_OPTIONS)
def _half(value):
    """Return a float32 >= 0 as the bits of the nearest float16."""
    wide = np.float32(value).view(np.uint32) & UNSIGNED  # 0 may be a negative one
    lifted = np.float32(np.abs(value) + HALF).view(np.uint32)  # 0.5 has float16's smallest step as its last place
    normal = (wide - REBIAS + ((wide >> np.uint32(13)) & np.uint32(1))) >> np.uint32(13)
    half = lifted - np.uint32(0x3F000000) if wide < np.uint32(0x38800000) else normal
    return np.uint16(half if half < np.uint32(0x7C00) else np.uint32(0x7C00))


@njit(**_OPTIONS)
def absmax(low, high, least, steps, divisors, scales):
    """Write max(-low, high, least) / steps into `divisors` float32, and their float16 bits into `scales` uint16."""
    for g in range(low.shape[0]):
        for r in range(low.shape[1]):
            widest = _widest(low[g, r], high[g, r])
            divisors[g, r] = (least if widest < least else widest) / steps
            scales[g, r] = _half(divisors[g, r])


@njit(**_OPTIONS)
def full_range(low, high, steps, smallest, scales):
    """Write the float16 bits of max(-low, high) / steps, at least `smallest`, negative where `high` is that, uint16."""
    for g in range(low.shape[0]):
        for r in range(low.shape[1]):
            bits = _half(_widest(low[g, r], high[g, r]) / steps)
            sign = np.uint16(0x8000) if high[g, r] >= -low[g, r] and bits > 0 else np.uint16(0)
            scales[g, r] = sign | max(bits, smallest)


@njit(inline="always")
def _widest(low, high):
    """Return the greater one of -low and high; NaN where one of them is."""
    below = -low
    return below if below > high or below != below else high


@njit(**_OPTIONS)
def scales_within(scales, low, high, possible, factor, middle, smallest):
    """Write into `possible`, bool, which scales, float16 bits uint16, come from a range [low, high] that is tuned.

    All are [groups, rows], `low` <= 0 <= `high` float32. Tuning multiplies an end by `factor` float32 to 1; `middle`
    float32 is the zero point, and the bits `smallest` are what a scale is at least. A positive scale comes from the
    low end, where that can be the wider one; a negative from the high end.
    """
    for g in range(scales.shape[0]):
        for r in range(scales.shape[1]):
            below, above = -low[g, r], high[g, r]
            negative, magnitude = scales[g, r] >= np.uint16(0x8000), scales[g, r] & np.uint16(0x7FFF)
            own, across = (above, below * factor) if negative else (below, above * factor)
            most, least = _half(own / middle), _half(max(below, above) * factor / middle)
            wins = own > across or (negative and own == across)
            within = magnitude <= max(most, smallest) and magnitude >= max(least, smallest)
            # What underflows to zero becomes the smallest positive scale, whatever its sign was.
            small = scales[g, r] == smallest and least == 0
            finite = np.isfinite(below) and np.isfinite(above) and magnitude < np.uint16(0x7C00)
            possible[g, r] = finite and (small or (wins and within and not (negative and most == 0)))


@njit(fastmath={"reassoc", "contract"}, **_OPTIONS)
def errors(weights, scales, group, widest, half, ratio):
    """Write by how much each group's error exceeds that of the best of AutoRound 0.13.0's candidates, as a ratio.

    `scales` float32 [groups, rows] were chosen, `widest` float32 [groups, rows] is the weight of greatest magnitude,
    `half` the number of codes below the zero point: 8 of 4 bits. `search_scales` (data_type/int.py) tries
    1/scale = -(half - i/100) / widest for i from -90 to 90. torch's order of summation is not known, so errors are
    compared, not sums reproduced.
    """
    least, most = np.float32(-half), np.float32(half - 1)
    columns = weights.shape[1]
    values = np.empty(group, np.float32)
    bits = values.view(np.uint32)
    for r in range(weights.shape[0]):
        for g in range(ratio.shape[0]):
            some = weights[r, g * group : min((g + 1) * group, columns)]
            _load(some, bits)
            best = own = np.float32(np.inf)
            inverse = np.float32(1) / widest[g, r]
            for candidate in range(182):
                if candidate < 181:
                    factor = np.float32(-(half - 0.01 * (candidate - 90))) * inverse
                    scale = np.float32(1) / factor
                else:
                    scale = scales[g, r]
                    factor = np.float32(1) / scale
                error = NONE
                for i in range(some.shape[0]):
                    near = values[i] * factor
                    near = near if near > least else least
                    near = near if near < most else most
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


@njit(**_OPTIONS)
def affine(weights, group, biases, scales, top, away, codes):
    """Write round((weight - bias) / scale), clamped from 0 to `top`, into codes uint8 [rows, columns].

    `weights` are float32 [rows, columns], `biases` and `scales` float32 [rows, groups]. Ties go to even, or `away` from
    0; NaN is 0.
    """
    steps = np.empty(group, np.float32)
    most = np.float32(top)
    for r in range(weights.shape[0]):
        for g in range(biases.shape[1]):
            first = g * group
            bias, scale = biases[r, g], scales[r, g]
            some = weights[r, first : first + group]
            for i in range(group):
                step = (some[i] - bias) / scale
                step = step if step > NONE else NONE
                steps[i] = step if step < most else most
            if away:
                for i in range(group):
                    down = np.float32(np.int32(steps[i]))
                    steps[i] = down + (np.float32(1) if steps[i] - down >= HALF else NONE)
            else:
                for i in range(group):
                    steps[i] = (steps[i] + MAGIC) - MAGIC
            some_codes = codes[r, first : first + group]
            for i in range(group):
                some_codes[i] = np.uint8(np.int32(steps[i]))


@njit(**_OPTIONS)
def nearest(weights, codes, zeros, scales, group, top, inputs, outputs, unit, away, off):
    """Measure how far codes are from weight / scale + zero point, and say which are not the nearest to it.

    `weights` float32 and `codes` uint8, 0 to `top`, are [rows, columns], `zeros` and `scales` float32 [rows, groups].
    A weight may err by the share `inputs` float32 [columns] and `outputs` float32 [rows] of itself, and a code that is
    not whole yet by the share `unit`. Writes distances in steps into `away` float32 [rows, columns], and into `off`
    uint8 1 where a code is not the nearest. What clamping explains is no distance: a clipped range may end one code
    before 0 and `top`, where both of its ends were rounded.
    """
    columns = weights.shape[1]
    close = HALF + np.float32(unit * (top + 1))
    for r in range(weights.shape[0]):
        for g in range(scales.shape[1]):
            first, last = g * group, min((g + 1) * group, columns)
            scale, zero = scales[r, g], zeros[r, g]
            least, most = np.int32(top), np.int32(0)
            for c in range(first, last):
                code = np.int32(codes[r, c])
                least = code if code < least else least
                most = code if code > most else most
            least = least if least < 2 else np.int32(0)
            most = most if most > top - 2 else np.int32(top)
            for c in range(first, last):
                code, quotient = np.int32(codes[r, c]), weights[r, c] / scale
                distance = np.float32(code) - (quotient + zero)
                if (code <= least and distance > 0) or (code >= most and distance < 0):
                    distance = NONE
                distance = np.abs(distance)
                away[r, c] = distance
                limit = close + (inputs[c] + outputs[r]) * np.abs(quotient)
                off[r, c] = np.uint8(0) if distance <= limit else np.uint8(1)
