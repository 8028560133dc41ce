"""Which range llm-compressor's MSE observer takes for a whole layer, of which all weights share one scale.

The ranges and their errors are those of `mse.py`; the sum is over all weights. That of so many would be known to no
place if it were added in any order. But torch adds by halves, and Triton by chunks: on CPUs in four levels
(ATen/native/cpu/SumKernel.cpp, `multi_row_sum`), on GPUs by threads, warps and blocks (cuda/Reduce.cuh), so that of
2^36 weights none passes more than `DEEP` additions. A CPU with several threads adds up a part in each, and rounds these
sums to the dtype (TensorIteratorReduce.cpp, `two_pass_reduction`): in BF16 that is more than many ranges differ by.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from requant.formats import floats
from requant.formats.codec import Array
from requant.formats.compressed_tensors import SCALE, Packed, Plain
from requant.formats.observers import USUAL, Search
from requant.rounding.compressed_tensors import MinMax
from requant.rounding.intervals import E4M3, added, bounds, possible, whole_numbers
from requant.rounding.mse import CLEARLY

DEEP = 1 << 13
"""Additions that a weight's error passes, at most, with room: 3 * 64 + 2^12 and some on a CPU, fewer on a GPU."""
PARTED = {"BF16": 2.0**-8, "F16": 2.0**-11, "F32": 0.0}
"""By what share the sum of a part is rounded; of float32 that is one of the additions."""


@dataclass(frozen=True)
class OneChoice:
    """Of each range the scale as it is stored, which of them can have been taken, and which clearly were not."""

    scales: Array
    can: Array
    worse: Array

    def told(self, scale: Array) -> Array:
        """Return which ranges have a scale, bool [ranges]."""
        return np.asarray(self.scales == scale.reshape(()))


@dataclass(frozen=True)
class OneScale:
    """The search of such a layer, symmetric."""

    codec: Packed | Plain
    search: Search = USUAL

    def scales(self, widest: float, dtype: str) -> Array:
        """Return the scale of each range, as it is stored, of a layer whose greatest magnitude is so wide."""
        whole = floats.rounded(np.full(1, widest, np.float32) * np.float32(self.search.expand), dtype)
        ranges = floats.rounded(whole * np.array(self.search.shares), dtype)
        return np.concatenate([MinMax(self.codec).whole(float(each), dtype)[SCALE] for each in ranges])

    def choose(self, weights: Iterable[Array], dtype: str, widest: float) -> OneChoice:
        """Return what the search can have taken of weights float32 [rows, columns], which come by windows of rows."""
        scales = self.scales(widest, dtype)
        wide = floats.widened(scales).reshape(-1, 1, 1)
        levels = E4M3 if isinstance(self.codec, Plain) and self.codec.float else whole_numbers(self.codec.bits)
        sums, more, count = np.zeros(wide.shape), np.zeros(wide.shape), 0
        for each in weights:
            some = np.ascontiguousarray(each, np.float32)
            sides = max(some.shape[0], 1), max(some.shape[1], 1)
            parts = added(some, dtype, wide, np.zeros_like(wide), sides, self.search.norm, levels)
            sums, more, count = sums + parts[0], more + parts[1], count + some.size
        least, greatest = bounds(sums, more, dtype, self.search.norm, count, DEEP, PARTED[dtype])
        can, reached, patience = np.zeros(len(scales), np.bool_), np.zeros(len(scales), np.bool_), self.search.patience
        for place in range(len(scales)):  # it stops so many behind the last that was better
            better = not place or bool(least[place] < greatest[:place].min())
            reached[place] = better and (not place or bool(reached[max(0, place - patience) : place].any()))
            tried = min(len(scales), place + patience + 1)
            can[place] = reached[place] and possible(least, greatest, tried)[place, 0, 0]
        best = greatest.min()
        return OneChoice(scales, can, (least > best * (1 + CLEARLY[dtype]))[:, 0, 0])


def one_scale(codec: object) -> OneScale | None:
    """Return the search of a codec whose layers have one scale, if one is modelled."""
    if not isinstance(codec, Packed | Plain) or codec.grid.height is not None or not codec.symmetric:
        return None
    if codec.search.strange:
        return None
    return OneScale(codec, codec.search)
