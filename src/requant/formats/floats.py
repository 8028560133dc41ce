"""Small floats as bits, and floats of 16 bits: E4M3, E2M3 and E2M1 as in OCP's specifications, E8M0 for powers."""

import numpy as np
import numpy.typing as npt

from requant.formats import codec
from requant.formats.codec import Array, widen

_NAMES = {"u2": "BF16", "f2": "F16", "f4": "F32"}


def dtype_of(values: Array) -> str:
    """Return safetensors' name for the dtype of floats as they were read: BF16 is uint16."""
    return _NAMES[values.dtype.str[1:]]


def widened(values: Array) -> npt.NDArray[np.float32]:
    """Return floats as they were read, uint16 (BF16), float16 or float32, as float32, exactly."""
    return widen(np.ascontiguousarray(values), dtype_of(values))


def rounded(values: Array, dtype: str) -> npt.NDArray[np.float32]:
    """Return float32 numbers rounded to what `dtype` can hold, BF16, F16 or F32, ties to even, as float32."""
    with np.errstate(all="ignore"):
        return codec.rounded(values, dtype)


def _e4m3() -> npt.NDArray[np.float32]:
    code = np.arange(128)
    exponent, fraction = code >> 3, (code & 7) / 8
    values = np.where(exponent == 0, np.ldexp(fraction, -6), np.ldexp(1 + fraction, exponent - 7))
    values[127] = np.nan
    return np.concatenate([values, -values]).astype(np.float32)


E4M3 = _e4m3()
"""The 256 values of F8_E4M3, which has no infinities, by code."""
_E2M1 = (0.0, 0.5, 1, 1.5, 2, 3, 4, 6)
E2M1 = np.array([*_E2M1, *(-each for each in _E2M1)], np.float32)
"""The 16 values of a float of 4 bits, by code."""
_E2M3 = (*(code / 8 for code in range(16)), *(code / 4 for code in range(8, 16)), *(code / 2 for code in range(8, 16)))
E2M3 = np.array([*_E2M3, *(-each for each in _E2M3)], np.float32)
"""The 64 values of a float of 6 bits with 3 bits of fraction, by code."""


def e8m0(codes: Array) -> npt.NDArray[np.float32]:
    """Return 2^(code - 127) of codes uint8, as float32; 255 is no number."""
    with np.errstate(all="ignore"):
        values = np.ldexp(np.float32(1), codes.astype(np.int32) - 127)
    return np.where(codes == 255, np.float32(np.nan), values)


def halves(packed: Array) -> npt.NDArray[np.uint8]:
    """Return the codes of 4 bits, uint8 [rows, 2 * n], of bytes uint8 [rows, n], the lower bits first."""
    pairs = np.ascontiguousarray(packed).astype("<u2")  # two codes at once: numpy is slow where it has to skip
    pairs = (pairs | (pairs << np.uint16(4))) & np.uint16(0x0F0F)
    return np.asarray(pairs.view(np.uint8))


def looked_up(table: Array, octets: Array, *, upper_first: bool = False) -> npt.NDArray[np.float32]:
    """Return what the codes of 4 bits in bytes uint8 [rows, n] stand for in a table, float32 [rows, 2 * n].

    Both codes of a byte are looked up at once, the lower bits first, or the upper ones.
    """
    own = np.ascontiguousarray(table, np.float32)
    lower, upper = np.tile(own, 16), np.repeat(own, 16)
    pairs = np.stack([upper, lower] if upper_first else [lower, upper], axis=1).view(np.uint64)[:, 0]
    return np.asarray(pairs[octets].view(np.float32))


def bytes_of(codes: Array) -> npt.NDArray[np.uint8]:
    """Return bytes uint8 [rows, n] of codes of 4 bits uint8 [rows, 2 * n]: the inverse of `halves`."""
    pairs = np.ascontiguousarray(codes).view("<u2")
    return np.asarray((pairs | (pairs >> np.uint16(4))).astype(np.uint8))
