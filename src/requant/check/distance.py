"""How far decoded weights are from the base's, where no formula gives them: what accuses of that, and what does not."""

from collections.abc import Iterator

import numpy as np

from requant.check.findings import Counts, Finding
from requant.check.spans import Span
from requant.check.stored import Stored, begins
from requant.formats.codec import Array, Arrays, named
from requant.formats.compressed_tensors import SCALE, Packed, Plain
from requant.formats.floats import widened
from requant.formats.grid import Grid
from requant.rounding.compressed_tensors import magnitudes
from requant.rounding.squares import sums_of_squares

LEAST = 2.0**-8
"""Of a group's greatest magnitude, what a scale's codes have to reach: a search narrows a range to a fifth at most, and
GPTQ moves weights by some steps."""
STRETCH = 128
"""Inputs whose decoded weights are measured together."""


def squares(decoded: Array, weights: Array) -> tuple[Array, Array]:
    """Return, by stretches of inputs, sums of squares of decoded weights less the base's, and of the base's."""
    missed, whole = np.empty((2, len(weights), -(-weights.shape[1] // STRETCH)), np.float64)
    sums_of_squares(*(np.ascontiguousarray(each, np.float32) for each in (decoded, weights)), STRETCH, missed, whole)
    return missed, whole


def distance(first: int, missed: Array, whole: Array, best: Array) -> Counts:
    """Return what such sums say of rows from `first` on, [rows, stretches]: `best` is what the nearest codes leave."""
    finite, least = (np.where(np.isfinite(each), each, whole) for each in (missed, best))
    floor = np.maximum(least, whole * 2.0**-48)  # nothing is nearer than float32 tells numbers apart
    ratios = np.divide(finite, floor, out=np.zeros_like(finite), where=np.isfinite(finite) & (floor > 0))
    row, stretch = (int(each) for each in np.unravel_index(int(ratios.argmax()), ratios.shape))
    return Counts(
        missed=float(finite.sum()),
        whole=float(whole.sum()),
        best=float(least.sum()),
        worst=(float(np.sqrt(ratios[row, stretch])), first + row, stretch * STRETCH),
    )


def far_from(tensor: str, first: int, missed: Array, whole: Array) -> Iterator[Finding]:
    """Yield a finding where stretches of inputs, [rows, stretches], are farther from the base's than zeros are.

    Of those in which the base has no finite numbers nothing is said.
    """
    if (far := ~(missed <= whole) & np.isfinite(whole)).any():
        row, stretch = (int(each) for each in np.unravel_index(int(far.argmax()), far.shape))
        detail = f"decoded, farther from them than zeros are, in stretches of {STRETCH} inputs"
        yield Finding("not the base's weights", tensor, int(far.sum()), (first + row, stretch * STRETCH), detail)


def lost(span: Span, held: Stored, stored: Arrays, weights: Array, first: int) -> Iterator[Finding]:
    """Yield a finding where scales are so small that their codes reach next to nothing of the base's weights."""
    codec = held.codec
    if not isinstance(codec, Packed | Plain) or codec.grid.height is None or getattr(codec, "ordered", False):
        return
    most, scales = magnitudes(weights, codec.grid), np.abs(widened(stored[SCALE]))
    top = 448.0 if isinstance(codec, Plain) and codec.float else float(1 << codec.bits)
    with np.errstate(all="ignore"):
        bad = (scales.reshape(most.shape) * top < most * LEAST) & np.isfinite(most)
    if count := int(np.count_nonzero(bad)):
        at, part = int(bad.argmax()), held.parts[SCALE]
        place = at + begins(part, span.last - span.first, first)
        index = tuple(int(each) for each in np.unravel_index(place, part.spec.shape))
        told = f"{scales.reshape(-1)[at]:g}, for weights up to {most.reshape(-1)[at]:g}"
        yield Finding("scale out of reach", named(span.name, SCALE), count, index, told)


def beside_finite(held: Stored, weights: Array) -> Array:
    """Say of stretches of inputs, bool [rows, stretches], whether all that their scales are made of is finite."""
    bad = ~np.isfinite(weights)
    if bad.any():
        grid, (rows, columns) = getattr(held.codec, "grid", None), weights.shape
        if isinstance(grid, Grid) and grid.height is not None:
            bad = np.broadcast_to(grid.spread(~np.isfinite(magnitudes(weights, grid)), rows, columns), bad.shape)
        else:
            bad = np.ones_like(bad)
    return ~np.logical_or.reduceat(bad, np.arange(0, weights.shape[1], STRETCH), axis=1)


def infinite(span: Span, weights: Array, first: int) -> Iterator[Finding]:
    """Yield a finding where weights of the base are no finite numbers: what a tool makes of them no formula says."""
    if count := int(np.count_nonzero(bad := ~np.isfinite(weights))):
        row, column = divmod(int(bad.argmax()), weights.shape[1])
        told = f"{weights[row, column]} in the base's {span.base}, for output {first + row} and input {column}"
        more = f", and {count - 1:,} more" if count > 1 else ""
        yield Finding("not modelled", span.name, detail=f"{told}{more}: what becomes of it is not defined")
