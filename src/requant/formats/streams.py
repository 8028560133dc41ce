"""Codes of 2 to 8 bits in words of 32: each row is one stream of bits, the lowest first, or each word has whole codes.

A stream lets a code begin in one word and end in the next; 32 codes of b bits fill b words. Where words have whole
codes, 32 // b of them, the rest of a word is 0. With 2, 4 and 8 bits these are the same. What a row leaves of its last
word is 0 too.

In a stream eight codes of b bits are b bytes. As numbers of 64 bits they are spread over eight bytes, or put together,
by halves: the upper four codes are moved, then the upper two of four, then the upper one of two.
"""

import math

import numpy as np
import numpy.typing as npt

from requant.formats.codec import Array
from requant.formats.floats import bytes_of, halves


def pack(codes: Array, bits: int) -> npt.NDArray[np.uint32]:
    """Pack codes uint8 [rows, n], 0 to 2^bits - 1, into streams uint32 [rows, ceil(n * bits / 32)]."""
    rows, count = codes.shape
    left = -count % (math.lcm(bits, 32) // bits)
    whole = np.ascontiguousarray(np.pad(codes, ((0, 0), (0, left))) if left else codes)
    if bits == 8:
        return whole.view("<u4")
    if bits == 4:
        return bytes_of(whole).view("<u4")
    eight = whole.view("<u8").reshape(-1)
    for width in (8, 16, 32):
        lower, apart = _lower(width, bits)
        upper = eight & (lower << np.uint64(width))
        upper >>= apart
        eight = eight & lower
        eight |= upper
    octets = eight.view(np.uint8).reshape(-1, 8)
    packed = np.empty((len(octets), bits), np.uint8)
    for each in range(bits):  # numpy takes twice as long for rows of so few bytes
        packed[:, each] = octets[:, each]
    words = packed.reshape(rows, whole.shape[1] * bits // 8).view("<u4")
    return np.ascontiguousarray(words[:, : -(-count * bits // 32)])


def unpack(words: Array, bits: int, count: int) -> npt.NDArray[np.uint8]:
    """Unpack streams of words [rows, ceil(count * bits / 32)], of 4 bytes, into codes uint8 [rows, count]."""
    rows = len(words)
    left = -words.shape[1] % (math.lcm(bits, 32) // 32)
    octets = np.ascontiguousarray(np.pad(words, ((0, 0), (0, left))) if left else words).view(np.uint8)
    if bits == 8:
        return octets[:, :count]
    if bits == 4:
        return halves(octets)[:, :count]
    grouped = octets.reshape(-1, bits)
    wide = np.zeros((len(grouped), 8), np.uint8)
    for each in range(bits):
        wide[:, each] = grouped[:, each]
    eight = wide.view("<u8")
    for width in (32, 16, 8):
        lower, apart = _lower(width, bits)
        upper = eight << apart
        upper &= lower << np.uint64(width)
        eight &= lower
        eight |= upper
    return wide.reshape(rows, octets.shape[1] * 8 // bits)[:, :count]


def _lower(width: int, bits: int) -> tuple[np.uint64, np.uint64]:
    """Return the bits of the codes that stay, of each two parts of `width` bits, and how far others are from them."""
    stay = width // 8 * bits
    return np.uint64(sum(((1 << stay) - 1) << at for at in range(0, 64, 2 * width))), np.uint64(width - stay)


def pack_whole(codes: Array, bits: int) -> npt.NDArray[np.uint32]:
    """Pack codes uint8 [rows, n] into words uint32 [rows, ceil(n / (32 // bits))] of whole codes."""
    each = 32 // bits
    left = -codes.shape[1] % each
    whole = np.pad(codes, ((0, 0), (0, left))) if left else codes
    words = np.zeros((len(codes), whole.shape[1] // each), "<u4")
    for number in range(each):
        words |= whole[:, number::each].astype("<u4") << np.uint32(bits * number)
    return words


def unpack_whole(words: Array, bits: int, count: int) -> npt.NDArray[np.uint8]:
    """Unpack words of whole codes, [rows, ceil(count / (32 // bits))], of 4 bytes, into codes uint8 [rows, count]."""
    each, mask = 32 // bits, np.uint32((1 << bits) - 1)
    wide = np.ascontiguousarray(words).view("<u4")
    codes = np.empty((*wide.shape, each), np.uint8)
    for number in range(each):
        codes[..., number] = (wide >> np.uint32(bits * number)) & mask
    return codes.reshape(len(words), wide.shape[1] * each)[:, :count]
