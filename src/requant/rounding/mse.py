"""What llm-compressor's MSE observer makes: of each group, the range by which it errs least, and then min-max.

`_grid_search_mse` (llm-compressor 0.14.0.1, observers/mse_quant.py) tries 20 ranges of each group, the whole one times
1, 0.99, to 0.81, each rounded to the dtype; sums |q - x|^2.4 over the group; and takes a range by which the group errs
less than by all before it. It stops after `patience` ranges by which no group of the layer got better.

Every step up to |q - x| is one that IEEE 754 defines, so it is the same on all machines. `pow` is not, and the sum is
in float32 and an order that depends on the machine. So of each sum an interval is known (`intervals.py`). A range can
have been taken if some numbers of the intervals make it the first of the least.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from requant.formats import floats
from requant.formats.codec import Array, Arrays, narrow
from requant.formats.compressed_tensors import SCALE, ZERO, Packed, Plain
from requant.formats.observers import OLDEST, USUAL, Search
from requant.rounding.compressed_tensors import MinMax, min_max
from requant.rounding.formula import Choice, Formula
from requant.rounding.intervals import E4M3, added, bounds, possible, taken, whole_numbers

CHOSEN, SEARCHED = "compressed-tensors, MSE", "within reach of compressed-tensors' MSE search"
LIFTED = ", least scales of 0.12"
"""What a way ends with if scales of groups of zeros are those of compressed-tensors to 0.12."""
NEARLY = 15 / 16
"""Of the groups of some rows, what has to have a range of the search before the search is made again."""
PACKED_AT_ONCE = 512
"""Weights of a group, at most, that one program of 0.14.0.1's kernels takes whole (`tile_values`, mse_quant.py)."""
AT_ONCE = 1 << 18
"""Ranges of groups, at most: some 20 MB of what is known of them."""
MOST_AT_ONCE = 16 * AT_ONCE
"""The same, where so few rows cannot be cut any further; groups of one or two weights are not searched."""
CLEARLY = {"BF16": 2.0**-5, "F16": 2.0**-5, "F32": 2.0**-9}
"""By what share a group has to err more before that accuses: what a form that is not known can do to two sums.

In BF16, rounding at other places does 2^-9 in each power and in each sum, and an exponent of 2.4 instead of 2.40625
weighs an error 0.9% otherwise against one of a quarter of it: 1.7% in all. In float32, a compiler that divides by a
reciprocal and fuses what is added moves a difference by 9 * 2^-24 of the weight: of 2^7 steps, against a quarter of
one, that is 0.07% of the power, and 0.13% in both sums."""
KINDS = ((False, False), (True, False), (False, True))
"""Whether quotients are wide, and whether scales are clamped: as `MinMax` has them."""
Make = Callable[[Array, str, Arrays], Choice]


@dataclass(frozen=True)
class Searched(MinMax):
    """Min-max of the ranges that the scales tell, whichever they are."""

    search: Search = OLDEST

    @property
    def _way(self) -> str:
        return f"{SEARCHED}{self._older}"

    @property
    def _older(self) -> str:
        return LIFTED if self.clamped and not self.search.release else ""

    def _shares(self, dtype: str) -> Array:
        """Return the shares that ranges may have, float32: 0.13's compiled form rounds them to the dtype."""
        plain = np.array(self.search.shares)
        rounded = floats.rounded(plain, dtype)
        return np.concatenate([plain, rounded[rounded != plain]])

    def encode(self, weights: Array, dtype: str, stored: Arrays) -> Arrays:
        """Return the tensors of some rows; of a group whose scale tells no range, those of the whole one."""
        return self._by_rows(self._told, weights, dtype, stored).tensors

    def _told(self, weights: Array, dtype: str, stored: Arrays) -> Choice:
        scales, zeros, alike = self._candidates(weights, dtype, stored)
        told = alike.argmax(axis=0)
        return Choice(self._tensors(weights, dtype, *(taken(each, told) for each in (scales, zeros))))

    def _by_rows(self, make: Make, weights: Array, dtype: str, stored: Arrays) -> Choice:
        """Return what is made of some rows, of so many at once that little memory is needed for all ranges of them."""
        weights, codec = np.ascontiguousarray(weights, np.float32), self.codec
        rows, columns = weights.shape
        height, width = codec.grid.steps(rows, columns)
        each = -(-columns // width) * len(self._shares(dtype))
        if codec.align * each > MOST_AT_ONCE:
            return Choice(super().encode(weights, dtype, stored))
        step = max(1, AT_ONCE * height // each // codec.align) * codec.align
        parts, made = codec.parts(rows, columns, dtype), []
        for first in range(0, rows, step):
            some = {
                suffix: parts[suffix].cut(stored[suffix], first, first + step)
                for suffix in (SCALE, ZERO)
                if suffix in stored
            }
            made.append(make(weights[first : first + step], dtype, some))
        tensors = {suffix: np.concatenate([one.tensors[suffix] for one in made]) for suffix in made[0].tensors}
        groups, ties = (sum(counts) for counts in zip(*((m.groups, m.ties) for m in made), strict=True))
        return Choice(tensors, groups, ties, np.concatenate([one.worse for one in made]))

    def _candidates(self, weights: Array, dtype: str, stored: Arrays) -> tuple[Array, Array, Array]:
        """Return scales and zero points of each range, [ranges, n, m], and which of them are the stored ones."""
        scales, zeros = self._ranges(weights, dtype, self.search.expand)(self._shares(dtype).reshape(-1, 1, 1))
        if SCALE not in stored:
            return scales, zeros, np.zeros(scales.shape, np.bool_)
        held, points = (
            each.reshape(scales.shape[1:]) for each in (stored[SCALE], self.codec.zeros(stored, weights.shape[0]))
        )
        return scales, zeros, (narrow(scales, dtype) == held) & (zeros == points)

    def _errors(self, weights: Array, dtype: str, scales: Array, zeros: Array) -> tuple[Array, Array]:
        """Return by how much each group errs in each range, at least and at most, float64 [ranges, n, m]."""
        codec, norm = self.codec, self.search.norm
        steps = codec.grid.steps(*weights.shape)
        levels = E4M3 if isinstance(codec, Plain) and codec.float else whole_numbers(codec.bits)
        sums, more = added(weights, dtype, scales, zeros, steps, norm, levels)
        return bounds(sums, more, dtype, norm, min(steps[0], len(weights)) * min(steps[1], weights.shape[1]))


@dataclass(frozen=True)
class Chosen(Searched):
    """Min-max of the range of each group that the search takes; of those that it can take, the one that is stored."""

    search: Search = USUAL

    @property
    def _way(self) -> str:
        release = f" of llm-compressor {self.search.release}" if self.search.release else ""
        return f"{CHOSEN}{release}{self._older}"

    def _shares(self, dtype: str) -> Array:
        """Return the shares that are tried, float32."""
        del dtype
        return np.array(self.search.shares)

    def encode(self, weights: Array, dtype: str, stored: Arrays) -> Arrays:
        """Return the tensors of some rows."""
        return self.choose(weights, dtype, stored).tensors

    def choose(self, weights: Array, dtype: str, stored: Arrays) -> Choice:
        """Return the tensors of some rows, and how well the choice of the ranges is known.

        Where no scales are stored, the range is the first of those that may err least.
        """
        return self._by_rows(self._chosen, weights, dtype, stored)

    def _chosen(self, weights: Array, dtype: str, stored: Arrays) -> Choice:
        scales, zeros, alike = self._candidates(weights, dtype, stored)
        known, told = alike.any(axis=0), alike.argmax(axis=0)
        tried = len(scales)
        if SCALE in stored:
            if known.mean() < NEARLY:  # another tool's
                return Choice(self._tensors(weights, dtype, scales[0], zeros[0]), worse=np.logical_not(known))
            tried = min(tried, int(told.max()) + self.search.patience + 1)  # and more only if other rows needed it
        least, greatest = self._errors(weights, dtype, scales[:tried], zeros[:tried])
        beyond = np.zeros(known.shape)
        if SCALE in stored and not known.all():  # by how much the range errs that the form does not try
            held = floats.widened(stored[SCALE]).reshape(known.shape)
            points = self.codec.zeros(stored, weights.shape[0]).reshape(known.shape)
            beyond = np.where(known, 0, self._errors(weights, dtype, held[None], points[None])[0][0])
        can = possible(least, greatest)
        fits = (can & alike[:tried]).any(axis=0)
        ties = fits & (can & ~alike[:tried]).any(axis=0)
        surely = np.arange(tried)[:, None, None] <= told + self.search.patience

        def clearly(least: Array, greatest: Array) -> Array:
            better = np.where(surely, greatest, np.inf).min(axis=0)
            return np.asarray(np.where(known, taken(least, told), beyond) > better * (1 + CLEARLY[dtype]))

        worse = ~fits & clearly(least, greatest)
        if worse.any():
            for others in self._on_gpus(weights, dtype, scales[:tried], zeros[:tried]):
                worse &= clearly(*self._errors(weights, dtype, *others))
        places = np.where(fits, told, least.argmin(axis=0))
        tensors = self._tensors(weights, dtype, *(taken(each, places) for each in (scales, zeros)))
        return Choice(tensors, fits.size, int(ties.sum()), worse)

    def _on_gpus(self, weights: Array, dtype: str, scales: Array, zeros: Array) -> Iterator[tuple[Array, Array]]:
        """Yield the scales and zero points by which 0.14.0.1's kernels for GPUs err, where that is otherwise.

        They hold the zero point of the whole range, and round no scales of more than `PACKED_AT_ONCE` weights.
        """
        height, width = self.codec.grid.steps(*weights.shape)
        held = np.broadcast_to(zeros[:1], zeros.shape).copy()
        if height * width > PACKED_AT_ONCE and (dtype != "F32" or not self.codec.symmetric):
            shares = np.array(self.search.shares[: len(scales)]).reshape(-1, 1, 1)
            yield self._ranges(weights, "F32", self.search.expand)(shares)[0], held
        elif not self.codec.symmetric:
            yield scales, held


def observed(codec: Packed | Plain) -> Sequence[Formula]:
    """Return the forms that can have made layers of a codec: min-max, then those of a search, the loosest last.

    Only what is stated can be of a version that rounds quotients otherwise; what releases did of their own is older.
    """
    plain = min_max(codec)
    if not plain or codec.grid.height is None:
        return plain
    said = codec.search
    told = OLDEST if said.strange else said
    if (told.grid, told.expand) == (OLDEST.grid, OLDEST.expand):  # what 0.3.1 tried, whatever is stated
        told = replace(told, steps=max(told.steps, OLDEST.steps))
    told = replace(told, release="")
    forms: list[Formula] = [*plain]
    if not said.strange:
        forms += [Chosen(codec, search=said, wide=wide, clamped=clamped) for wide, clamped in KINDS]
    forms += [Chosen(codec, search=each, clamped=True) for each in said.earlier]
    return [*forms, *(Searched(codec, search=told, wide=wide, clamped=clamped) for wide, clamped in KINDS)]
