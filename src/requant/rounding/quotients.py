"""The inner loops of rounding to nearest: ends of groups, and codes of weights divided by scales; compiled by numba.

Weights are float32 [rows, columns], scales and zero points float32 [n, m]: of `height` rows and `width` columns each.
`places` is what a quotient is rounded to before it becomes a code: 0 for float32, 1 for BF16, 2 for F16.
"""

import numpy as np
from numba import njit

from requant.formats.codec import Array
from requant.rounding.kernels import _OPTIONS, HALF, MAGIC, MAGNITUDE, NONE, SHIFT, SIGN, UNSIGNED, UPPER

PLACES = {"F32": 0, "BF16": 1, "F16": 2}
SIGN_BIT = np.uint32(0x80000000)
SMALL_HALF, FAR_HALF, INFINITE = np.uint32(0x38800000), np.uint32(0x47800000), np.uint32(0x7F800000)
"""As bits of float32: 2^-14, below which float16 has fewer places, 2^16, and infinity."""
SMALL_E4M3, REBIAS_E4M3 = np.uint32(0x3C800000), np.uint32((120 << 23) - 0x7FFFF)
"""2^-6, below which F8_E4M3 has fewer places; from float32's exponent to its, less what rounds to nearest."""
STEP_E4M3, STEP_BITS = np.float32(16384), np.uint32(0x46800000)
"""2^14, whose last place is the smallest step of F8_E4M3, and its bits."""
GREATEST_E4M3, GREATEST_E2M3 = np.uint32(0x43E00000), np.float32(7.5)
"""448, as bits of float32; of floats of 6 bits."""

# Each loop writes its division out: as a function, though inlined, it costs `integers` a quarter of its time.


@njit(**_OPTIONS)
def widest(bits, height, width, found):
    """Write each group's greatest magnitude, as bits of float32, into int32 [n, m], zeros at first.

    `bits` are those of the weights, int32. NaN counts as beyond infinity.
    """
    for r in range(bits.shape[0]):
        for g in range(found.shape[1]):
            some = bits[r, g * width : min((g + 1) * width, bits.shape[1])]
            most = np.int32(0)
            for i in range(some.shape[0]):
                magnitude = some[i] & MAGNITUDE
                most = magnitude if magnitude > most else most
            if most > found[r // height, g]:
                found[r // height, g] = most


def greatest(blocks: Array) -> Array:
    """Return the greatest magnitude of each block of float32 [blocks, width], float32; NaN where there is one."""
    found = np.zeros((len(blocks), 1), np.int32)
    widest(np.ascontiguousarray(blocks, np.float32).view(np.int32), 1, blocks.shape[1], found)
    return found.view(np.float32)[:, 0]


@njit(**_OPTIONS)
def ends(bits, height, width, low, high):
    """Write each group's least and greatest weight, and what was there, as bits of float32 into int32 [n, m].

    `bits` are those of the weights, int32. NaN counts as beyond infinity.
    """
    for r in range(bits.shape[0]):
        for g in range(low.shape[1]):
            some = bits[r, g * width : min((g + 1) * width, bits.shape[1])]
            least, most = low[r // height, g], high[r // height, g]
            least ^= (least >> SIGN) & MAGNITUDE
            most ^= (most >> SIGN) & MAGNITUDE
            for i in range(some.shape[0]):
                ordered = some[i] ^ ((some[i] >> SIGN) & MAGNITUDE)
                least = ordered if ordered < least else least
                most = ordered if ordered > most else most
            low[r // height, g] = least ^ ((least >> SIGN) & MAGNITUDE)
            high[r // height, g] = most ^ ((most >> SIGN) & MAGNITUDE)


def joined(codes: Array) -> Array:
    """Return bytes uint8 [rows, n] of codes of 4 bits uint8 [rows, 2 * n], as `floats.bytes_of` does, but sooner."""
    octets = np.empty((len(codes), codes.shape[1] // 2), np.uint8)
    _join(codes.view(np.uint16), octets)
    return octets


@njit(**_OPTIONS)
def _join(pairs, octets):
    for r in range(pairs.shape[0]):
        some, target = pairs[r], octets[r]
        for i in range(some.shape[0]):
            target[i] = np.uint8(some[i] | (some[i] >> np.uint16(4)))


@njit(**_OPTIONS)
def integers(weights, scales, zeros, height, width, places, least, most, offset, codes):
    """Write round(weight / scale + zero), ties to even, clamped from `least` to `most`, plus `offset`, as uint8."""
    values = np.empty(min(width, weights.shape[1]), np.float32)
    bits = values.view(np.uint32)
    for r in range(weights.shape[0]):
        for g in range(scales.shape[1]):
            first, last = g * width, min((g + 1) * width, weights.shape[1])
            some, target = weights[r, first:last], codes[r, first:last]
            scale, zero = scales[r // height, g], zeros[r // height, g]
            for i in range(some.shape[0]):
                values[i] = some[i] / scale
            _narrow(values, bits, some.shape[0], places)
            if zero != NONE:
                for i in range(some.shape[0]):
                    values[i] += zero
                _narrow(values, bits, some.shape[0], places)
            for i in range(some.shape[0]):
                near = values[i]
                near = near if near > least else least
                near = near if near < most else most
                target[i] = np.uint8(np.int32((near + MAGIC) - MAGIC) + offset)


@njit(**_OPTIONS)
def e4m3(weights, scales, height, width, places, signed, times, codes):
    """Write weight / scale, or weight * scale if `times`, clamped from -448 to 448, as F8_E4M3, ties to even, uint8.

    Unless it is `signed`, a quotient of zero has no sign, as after zero was added to it.
    """
    values = np.empty(min(width, weights.shape[1]), np.float32)
    bits = values.view(np.uint32)
    for r in range(weights.shape[0]):
        for g in range(scales.shape[1]):
            first, last = g * width, min((g + 1) * width, weights.shape[1])
            some, target = weights[r, first:last], codes[r, first:last]
            scale = scales[r // height, g]
            if times:
                for i in range(some.shape[0]):
                    values[i] = some[i] * scale
            else:
                for i in range(some.shape[0]):
                    values[i] = some[i] / scale
            _narrow(values, bits, some.shape[0], places)
            for i in range(some.shape[0]):
                wide = np.uint32(bits[i] & UNSIGNED)
                sign = (bits[i] >> np.uint32(24)) & np.uint32(0x80)
                sign = sign if signed or wide else np.uint32(0)
                near = wide if wide < GREATEST_E4M3 else GREATEST_E4M3
                normal = (near - REBIAS_E4M3 + ((near >> np.uint32(20)) & np.uint32(1))) >> np.uint32(20)
                small = np.float32(wide.view(np.float32) + STEP_E4M3).view(np.uint32) - STEP_BITS
                code = small if wide < SMALL_E4M3 else normal
                code = code if wide <= INFINITE else np.uint32(0x7F)
                target[i] = np.uint8(code | sign)


@njit(**_OPTIONS)
def e2m1(weights, scales, height, width, places, signed, codes):
    """Write weight / scale, clamped from -6 to 6, as floats of 4 bits, ties to even, uint8 from 0 to 15.

    Unless it is `signed`, a quotient of zero has no sign; one that is rounded to zero has.
    """
    values = np.empty(min(width, weights.shape[1]), np.float32)
    bits = values.view(np.uint32)
    for r in range(weights.shape[0]):
        for g in range(scales.shape[1]):
            first, last = g * width, min((g + 1) * width, weights.shape[1])
            some, target = weights[r, first:last], codes[r, first:last]
            scale = scales[r // height, g]
            for i in range(some.shape[0]):
                values[i] = some[i] / scale
            _narrow(values, bits, some.shape[0], places)
            for i in range(some.shape[0]):
                wide = bits[i] & UNSIGNED
                sign = (bits[i] >> np.uint32(28)) & np.uint32(8)
                sign = sign if signed or wide else np.uint32(0)
                code = np.uint32(wide > np.uint32(0x3E800000)) + np.uint32(wide >= np.uint32(0x3F400000))
                code += np.uint32(wide > np.uint32(0x3FA00000)) + np.uint32(wide >= np.uint32(0x3FE00000))
                code += np.uint32(wide > np.uint32(0x40200000)) + np.uint32(wide >= np.uint32(0x40600000))
                code += np.uint32(wide > np.uint32(0x40A00000))
                target[i] = np.uint8(code | sign)


@njit(**_OPTIONS)
def e2m3(weights, scales, height, width, places, signed, codes):
    """Write weight / scale, clamped from -7.5 to 7.5, as floats of 6 bits, ties to even, uint8 from 0 to 63.

    Unless it is `signed`, a quotient of zero has no sign; one that is rounded to zero has.
    """
    values = np.empty(min(width, weights.shape[1]), np.float32)
    bits = values.view(np.uint32)
    for r in range(weights.shape[0]):
        for g in range(scales.shape[1]):
            first, last = g * width, min((g + 1) * width, weights.shape[1])
            some, target = weights[r, first:last], codes[r, first:last]
            scale = scales[r // height, g]
            for i in range(some.shape[0]):
                values[i] = some[i] / scale
            _narrow(values, bits, some.shape[0], places)
            for i in range(some.shape[0]):
                wide = bits[i] & UNSIGNED
                sign = (bits[i] >> np.uint32(26)) & np.uint32(32)
                sign = sign if signed or wide else np.uint32(0)
                size = np.abs(values[i])
                size = size if size < GREATEST_E2M3 else GREATEST_E2M3
                power = np.int32(size >= np.float32(2)) + np.int32(size >= np.float32(4))  # steps of 1/8, 1/4 and 1/2
                code = np.int32((size * np.float32(8 >> power) + MAGIC) - MAGIC) + np.int32(8 * power)
                target[i] = np.uint8(np.uint32(code) | sign) if wide <= INFINITE else np.uint8(32)


@njit(inline="always")
def _narrow(values, bits, count, places):
    """Round float32 to BF16 or F16, ties to even, in place; NaN becomes something that is no number still."""
    if places == 1:
        for i in range(count):
            wide = bits[i] & UNSIGNED
            near = (bits[i] + np.uint32(0x7FFF) + ((bits[i] >> SHIFT) & np.uint32(1))) & UPPER
            bits[i] = near if wide <= INFINITE else np.uint32(0x7FC00000)
    elif places == 2:
        for i in range(count):
            wide = bits[i] & UNSIGNED
            sign = bits[i] & SIGN_BIT
            near = (wide + np.uint32(0xFFF) + ((wide >> np.uint32(13)) & np.uint32(1))) & np.uint32(0xFFFFE000)
            near = near if near < FAR_HALF else INFINITE
            values[i] = (np.abs(values[i]) + HALF) - HALF
            small = bits[i] & UNSIGNED
            near = small if wide < SMALL_HALF else near
            near = near if wide <= INFINITE else np.uint32(0x7FC00000)
            bits[i] = near | sign
