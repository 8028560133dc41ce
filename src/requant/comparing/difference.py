"""How two tensors of one dtype and shape differ: as values that JSON can hold."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from requant.weights.kernels import steps

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Steps:
    """Codes that differ, of how many; `histogram` counts second - first, -15 to 15, without 0.

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


def step_counts(first: Array, second: Array) -> tuple[Array, int]:
    """Return how many codes differ by -15 to 15 steps, int64 [31], in words uint32, and the first word, or -1."""
    histogram = np.zeros((8, 31), np.int64)
    found = int(steps(first, second, histogram))
    return histogram.sum(axis=0), found


def numbers(first: Array, second: Array, dtype: str) -> tuple[int, float, int, int]:
    """Return how many elements differ, by how much and by how many ULP at most, and the first one's place, or -1.

    `first` and `second` are unsigned integers of the elements' width, as they stand in the file.
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
    if dtype.startswith("I"):
        return bits.view(f"i{bits.itemsize}").astype(np.float64)
    return bits.astype(np.float64)


def _ordered(bits: Array, dtype: str) -> Array:
    """Return whole numbers that order as floating-point numbers do, neighbours one apart."""
    if "F" not in dtype:
        return _decoded(bits, dtype)
    wide = bits.astype(np.int64)
    sign = np.int64(1) << (8 * bits.itemsize - 1)
    if bits.itemsize == 8:
        return np.where(wide < 0, np.iinfo(np.int64).min - wide, wide).astype(np.float64)
    return np.where(wide >= sign, sign - wide, wide)
