"""What llm-compressor's MSE observer makes of floats of 4 to 8 bits with shared scales in few bits: NVFP4, MXFP4 to 8.

The ranges are those of `mse.py`. Read in llm-compressor 0.14.0.1 (observers/mse_quant.py, observers/base.py): NVFP4 is
searched with scales in the base's dtype, as if there were neither F8_E4M3 nor a global scale; MX with its powers of
two. Then NVFP4's global scale follows from the greatest of the ranges that were taken, of a layer and of those that
loaders fuse with it, and scales follow from ranges as min-max has them from magnitudes. So several ranges have one
stored scale, and which of them it was shows only where the global scale depends on it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from requant.formats import floats
from requant.formats.codec import Array, Arrays
from requant.formats.compressed_tensors import GLOBAL, MX, NVFP4, SCALE
from requant.formats.observers import OLDEST, Search
from requant.rounding.compressed_tensors import EPSILON, MinMaxMX, MinMaxNVFP4, magnitudes, mx, nvfp4
from requant.rounding.formula import Choice, Formula
from requant.rounding.intervals import E2M1, E2M3, E4M3, added, bounds, possible, taken
from requant.rounding.mse import AT_ONCE, CHOSEN, CLEARLY, MOST_AT_ONCE, NEARLY, SEARCHED, Make


@dataclass(frozen=True)
class SearchedFloats:
    """Min-max of ranges that have the stored scales, whichever they are."""

    plain: MinMaxNVFP4 | MinMaxMX
    search: Search = OLDEST

    @property
    def name(self) -> str:
        """What people read."""
        return f"{SEARCHED}{', -0 kept' if isinstance(self.plain, MinMaxMX) and self.plain.signed else ''}"

    def encode(self, weights: Array, dtype: str, stored: Arrays) -> Arrays:
        """Return the tensors of some rows; of a group whose scale tells no range, those of the whole one."""
        return self._by_rows(self._told, weights, dtype, stored).tensors

    def _told(self, weights: Array, dtype: str, stored: Arrays) -> Choice:
        scales = self.plain.scales(self._ranges(weights, dtype), dtype, stored)
        places = (scales == stored[SCALE].view(np.uint8)).argmax(axis=0)
        return Choice(self.plain.tensors(weights, dtype, taken(scales, places), stored))

    def whole(self, widest: float, dtype: str) -> Arrays:
        """Return the global scale, if there is one, of a layer the greatest of whose ranges is so wide."""
        return self.plain.whole(widest, dtype)

    def _by_rows(self, make: Make, weights: Array, dtype: str, stored: Arrays) -> Choice:
        """Return what is made of some rows, of so many at once that little memory is needed for all ranges of them."""
        weights = np.ascontiguousarray(weights, np.float32)
        if self._each(weights) > MOST_AT_ONCE:
            return Choice(self.plain.encode(weights, dtype, stored))
        made = []
        for first, last in self._rows(weights):
            some = {**stored, SCALE: stored[SCALE][first:last]} if SCALE in stored else stored
            made.append(make(weights[first:last], dtype, some))
        return Choice(
            {suffix: np.concatenate([each.tensors[suffix] for each in made]) for suffix in made[0].tensors},
            sum(each.groups for each in made),
            sum(each.ties for each in made),
            np.concatenate([each.worse for each in made]),
            max(each.least for each in made),
            max(each.most for each in made),
        )

    def _each(self, weights: Array) -> int:
        """Return how many ranges one row has."""
        return self.plain.codec.grid.shape(*weights.shape)[1] * self.search.steps

    def _rows(self, weights: Array) -> Iterator[tuple[int, int]]:
        """Yield the first and the last of so many rows that little memory is needed for all ranges of them."""
        rows, step = len(weights), max(1, AT_ONCE // max(self._each(weights), 1))
        for first in range(0, max(rows, 1), step):
            yield first, min(first + step, rows)

    def _ranges(self, weights: Array, dtype: str) -> Array:
        """Return the greatest magnitude of each range, float32 [ranges, n, m]."""
        shares, most = np.array(self.search.shares).reshape(-1, 1, 1), magnitudes(weights, self.plain.codec.grid)
        return floats.rounded(floats.rounded(most * np.float32(self.search.expand), dtype) * shares, dtype)


@dataclass(frozen=True)
class ChosenFloats(SearchedFloats):
    """Min-max of the range of each group that the search takes; of those that it can take, one that is stored."""

    @property
    def name(self) -> str:
        """What people read."""
        return f"{CHOSEN}{', -0 kept' if isinstance(self.plain, MinMaxMX) and self.plain.signed else ''}"

    def encode(self, weights: Array, dtype: str, stored: Arrays) -> Arrays:
        """Return the tensors of some rows."""
        return self.choose(weights, dtype, stored).tensors

    def choose(self, weights: Array, dtype: str, stored: Arrays) -> Choice:
        """Return the tensors of some rows, and how well the choice of the ranges is known.

        Where no scales are stored, the range is the first of those that may err least.
        """
        return self._by_rows(self._chosen, weights, dtype, stored)

    def greatest(self, weights: Array, dtype: str) -> float:
        """Return the greatest of the ranges that err least, whatever is stored."""
        weights, found = np.ascontiguousarray(weights, np.float32), 0.0
        if self._each(weights) > MOST_AT_ONCE:
            return found
        for first, last in self._rows(weights):
            ranges = self._ranges(weights[first:last], dtype)
            least, _ = self._errors(weights[first:last], dtype, self._steps(ranges, dtype))
            found = max(found, float(taken(ranges, least.argmin(axis=0)).max(initial=0)))
        return found

    def _chosen(self, weights: Array, dtype: str, stored: Arrays) -> Choice:
        ranges = self._ranges(weights, dtype)
        scales = self.plain.scales(ranges, dtype, stored)
        alike, tried = np.ones(scales.shape, np.bool_), len(scales)
        if SCALE in stored:
            alike = scales == stored[SCALE].view(np.uint8)
            known, told = alike.any(axis=0), alike.argmax(axis=0)
            if known.mean() < NEARLY:  # another tool's
                return Choice(self.plain.tensors(weights, dtype, scales[0], stored), worse=~known)
            tried = min(tried, int(told.max(initial=0)) + self.search.patience + 1)
        least, greatest = self._errors(weights, dtype, self._steps(ranges, dtype))
        can = possible(least, greatest, tried)
        good = can & alike
        fits = good.any(axis=0)
        ties = fits & (can & ~alike).any(axis=0)
        places = np.where(fits, good.argmax(axis=0), least.argmin(axis=0))
        tensors = self.plain.tensors(weights, dtype, taken(scales, places), stored)
        if SCALE not in stored:
            return Choice(tensors, fits.size, int(ties.sum()))
        better = np.where(np.arange(len(scales)).reshape(-1, 1, 1) < tried, greatest, np.inf).min(axis=0)
        errs = np.where(alike, least, np.inf).min(axis=0)
        if not known.all():  # by how much the range errs that the form does not try
            held = self._held(stored, dtype).reshape(1, *known.shape)
            errs = np.where(known, errs, self._errors(weights, dtype, held)[0][0])
        worse = ~fits & (errs > better * (1 + CLEARLY[dtype]))
        low = np.where(fits, np.where(good, ranges, np.inf).min(axis=0), 0)  # nothing is known of a group that is odd
        high = np.where(fits, np.where(good, ranges, 0).max(axis=0), ranges[0])
        return Choice(
            tensors,
            fits.size,
            int(ties.sum()),
            worse,
            float(low.max(initial=0)),
            float(high.max(initial=0)),
        )

    def _steps(self, ranges: Array, dtype: str) -> Array:
        """Return what the search divides by, float32 [ranges, n, m]."""
        if isinstance(self.plain, MinMaxMX):
            return floats.rounded(floats.e8m0(self.plain.scales(ranges, dtype, {})), dtype)
        steps = floats.rounded(ranges / np.float32(6), dtype)
        return np.where(steps == 0, np.float32(EPSILON[dtype]), steps)

    def _held(self, stored: Arrays, dtype: str) -> Array:
        """Return what stored scales stand for, in the dtype in which the search has them."""
        raw = stored[SCALE].view(np.uint8)
        with np.errstate(all="ignore"):
            held = floats.e8m0(raw) if isinstance(self.plain, MinMaxMX) else floats.E4M3[raw] / stored[GLOBAL]
        return floats.rounded(held, dtype)

    def _errors(self, weights: Array, dtype: str, steps: Array) -> tuple[Array, Array]:
        """Return by how much each group errs in each range, at least and at most, float64 [ranges, n, m]."""
        codec, norm = self.plain.codec, self.search.norm
        levels = {4: E2M1, 6: E2M3, 8: E4M3}[codec.bits if isinstance(codec, MX) else 4]
        height, width = codec.grid.steps(*weights.shape)
        sums, more = added(weights, dtype, steps, np.zeros_like(steps), (height, width), norm, levels)
        return bounds(sums, more, dtype, norm, width)


def observed(codec: NVFP4 | MX) -> Sequence[Formula]:
    """Return the forms that can have made layers of a codec, the loosest last.

    Scales of so few bits are those of some range in files of many tools, so that only a statement of a search explains
    them. Where it is stated, it comes first: of NVFP4, a scale of the whole range may be that of a narrower one, on
    which the global scale depends.
    """
    plain: Sequence[MinMaxNVFP4 | MinMaxMX] = nvfp4(codec) if isinstance(codec, NVFP4) else mx(codec)
    said = codec.search
    usual = said.strange or (said.grid, said.expand) == (OLDEST.grid, OLDEST.expand)
    loose = [SearchedFloats(each, OLDEST if usual else said) for each in plain]
    if said.strange:
        return [*plain, *loose]
    chosen = [ChosenFloats(each, said) for each in plain]
    return [*chosen, *plain, *loose] if said.stated else [*plain, *chosen]
