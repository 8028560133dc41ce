"""How two tensors of one dtype and shape differ: as values that JSON can hold."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from requant.checkpoint.safetensors import ITEM_BITS, Spec
from requant.formats import BITS, gptq

Array = npt.NDArray[Any]

_SMALL = {"F4": (2, 1), "F6_E2M3": (2, 3), "F6_E3M2": (3, 2), "F8_E4M3": (4, 3), "F8_E5M2": (5, 2)}
_SMALL |= {"F8_E4M3FNUZ": (4, 3), "F8_E5M2FNUZ": (5, 2)}
"""Bits of exponent and mantissa: OCP Microscaling Formats 1.0, OCP FP8 1.0; FNUZ: arXiv 2206.02915."""


@dataclass(frozen=True)
class Steps:
    """Codes that differ, of how many; `histogram` counts second - first, without 0: of 4 bits from -15 to 15.

    `index` is the first differing word's place in `qweight`.
    """

    differ: int
    total: int
    histogram: dict[int, int]
    index: tuple[int, ...]


@dataclass(frozen=True)
class Numbers:
    """Elements that differ, of how many: the largest difference of values, and of places among all numbers (ULP)."""

    differ: int
    total: int
    largest: float
    ulp: int
    index: tuple[int, ...]


def bits_of(qweight: Spec, qzeros: Spec, scales: Spec) -> int:
    """Return the bits of a packed layer's codes, as its other tensors tell; 4 where they tell none that exist.

    For b bits they are [groups, out * b / 32] and [groups, out], in whatever order codes lie.
    """
    if any(len(each.shape) != 2 for each in (qweight, qzeros, scales)) or not scales.shape[1]:
        return gptq.BITS
    bits, rest = divmod(32 * qzeros.shape[1], scales.shape[1])
    whole = bits in BITS and not rest and not qweight.shape[0] % rows_of(bits)
    return bits if whole else gptq.BITS


def rows_of(bits: int) -> int:
    """Return how many rows of words hold whole codes: of 3 bits three."""
    return gptq.several(bits) * bits // 32


def step_counts(first: Array, second: Array, bits: int = gptq.BITS, columns: int = 1) -> tuple[Array, int]:
    """Return by how many steps codes differ, and the first word that does, or -1.

    `first` and `second` are words uint32, rows of `columns`, of codes of `bits`; of 3 bits 32 lie in three rows, all of
    which are needed. The histogram, int64 [2^(bits + 1) - 1], counts second - first from 1 - 2^bits.
    """
    top = (1 << bits) - 1
    if bits == 4:
        from requant.rounding.kernels import steps  # numba, which a pod in the worker's image has not

        apart = np.zeros((8, 2 * top + 1), np.int64)
        found = int(steps(first, second, apart))
        return apart.sum(axis=0), found
    rows = rows_of(bits)
    width = columns if rows > 1 else 1
    one, two = (words.reshape(-1, rows, width).transpose(0, 2, 1).reshape(-1, rows) for words in (first, second))
    differ = (one != two).any(axis=1)
    codes = [gptq.unpack(np.ascontiguousarray(words[differ].T), bits).astype(np.int64) for words in (one, two)]
    histogram = np.bincount((codes[1] - codes[0]).ravel() + top, minlength=2 * top + 1)
    histogram[top] += int(np.count_nonzero(~differ)) * gptq.several(bits)
    where = np.flatnonzero(first != second)
    return histogram, int(where[0]) if len(where) else -1


def elements(data: bytes, dtype: str) -> Array:
    """Return elements as unsigned integers; of fewer than eight bits, the first in the lowest bits of a byte."""
    bits = ITEM_BITS[dtype]
    if bits % 8 == 0:
        return np.frombuffer(data, f"<u{bits // 8}")
    each = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little").reshape(-1, bits)
    whole: Array = np.packbits(each, axis=1, bitorder="little")[:, 0]
    return whole


def numbers(first: Array, second: Array, dtype: str) -> tuple[int, float, int, int]:
    """Return how many elements differ, by how much and by how many ULP at most, and the first one's place, or -1.

    `first` and `second` are what `elements` makes of the bytes in the file.
    """
    where = np.flatnonzero(first != second)
    if not len(where):
        return 0, 0.0, 0, -1
    ours, theirs = first[where], second[where]
    with np.errstate(all="ignore"):
        gaps = np.abs(_decoded(ours, dtype) - _decoded(theirs, dtype))
    largest = float(np.max(gaps, initial=0.0, where=np.isfinite(gaps)))
    ulp = max(abs(int(each)) for each in _extremes(_ordered(theirs, dtype) - _ordered(ours, dtype)))
    return len(where), largest, ulp, int(where[0])


def _extremes(values: Array) -> tuple[Any, Any]:
    return values.min(), values.max()


def _decoded(bits: Array, dtype: str) -> Array:
    if dtype == "BF16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    if dtype in ("F16", "F32", "F64"):
        return bits.view(f"f{bits.itemsize}").astype(np.float64)
    if dtype == "C64":
        return bits.view(np.complex64).astype(np.complex128)
    if dtype.startswith("I"):
        return bits.view(f"i{bits.itemsize}").astype(np.float64)
    if dtype == "F8_E8M0":
        return np.where(bits == 255, np.nan, np.ldexp(1.0, bits.astype(np.int32) - 127))
    return _small(bits, dtype) if dtype in _SMALL else bits.astype(np.float64)


def _small(bits: Array, dtype: str) -> Array:
    exponents, mantissas = _SMALL[dtype]
    sign, unsigned_zero = 1 << (exponents + mantissas), dtype.endswith("FNUZ")
    exponent = (bits.astype(np.int32) >> mantissas) & ((1 << exponents) - 1)
    mantissa = (bits & ((1 << mantissas) - 1)) + np.where(exponent > 0, 1 << mantissas, 0)
    bias = (1 << (exponents - 1)) - 1 + unsigned_zero
    values = np.ldexp(mantissa.astype(np.float64), np.maximum(exponent, 1) - bias - mantissas)
    none = bits == sign if unsigned_zero else (bits & 0x7F) == 0x7F if dtype == "F8_E4M3" else exponent == 31
    return np.where(none, np.nan, np.where(bits & sign, -values, values))


def _ordered(bits: Array, dtype: str) -> Array:
    """Return whole numbers that order as floating-point numbers do, neighbours one apart."""
    if dtype == "C64":  # complex numbers have no order
        return np.zeros(bits.shape)
    if "F" not in dtype or dtype == "F8_E8M0":
        return bits.astype(np.float64) if "F" in dtype else _decoded(bits, dtype)
    wide = bits.astype(np.int64)
    sign = np.int64(1) << (ITEM_BITS[dtype] - 1)
    if bits.itemsize == 8:
        return np.where(wide < 0, np.iinfo(np.int64).min - wide, wide).astype(np.float64)
    return np.where(wide >= sign, sign - wide, wide)
