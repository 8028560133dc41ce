"""How far decoded weights are from the base's, where no formula gives them: what accuses of that, and what does not."""

from collections.abc import Iterator

import numpy as np

from requant.check.findings import FAR, STRANGE, STRAY, Counts, Finding
from requant.check.spans import Span
from requant.check.stored import Stored, begins
from requant.formats.codec import Array, Arrays, Codec, named
from requant.formats.compressed_tensors import GLOBAL, MX, NVFP4, SCALE, Packed, Plain
from requant.formats.floats import E4M3, e8m0, widened
from requant.formats.grid import Grid
from requant.rounding.compressed_tensors import magnitudes
from requant.rounding.squares import sums_of_squares

LEAST = 2.0**-8
"""Of a group's greatest magnitude, what a scale's codes have to reach: a search narrows a range to a fifth at most, and
GPTQ moves weights by some steps."""
STRETCH = 128
"""Inputs whose decoded weights are measured together."""
ALIKE, WIDER, LARGE = 1 / 8, 16.0, 64.0
"""How decoded weights correlate with the base's, at least, and how many times as large their squares are, at most; else
they have nothing to do with the base's. Unrelated ones of 1,024 inputs correlate by 0.03, up or down. No tool leaves a
stretch that errs by so many times the largest stretch of the base, in squares, of those that are read together."""
MOST, OUTPUTS = 1 / 64, 64
"""Of the outputs of a window, how many a calibration may leave unrelated to the base's; and how many outputs, taken
together, have to be related in every stretch of inputs.

Of 856 tiny layers that llm-compressor's GPTQ rounded, to 2 bits and up, by 128 to 4,096 tokens, 382 have stretches that
are farther from the base than zeros, and one has an unrelated output. In no stretch do all outputs together correlate
by less than 0.47, and none has 7 times the squares of the largest one."""


def squares(decoded: Array, weights: Array) -> tuple[Array, Array]:
    """Return, by stretches of inputs, sums of squares of decoded weights less the base's, and of the base's."""
    missed, whole = np.empty((2, len(weights), -(-weights.shape[1] // STRETCH)), np.float64)
    sums_of_squares(*(np.ascontiguousarray(each, np.float32) for each in (decoded, weights)), STRETCH, missed, whole)
    return missed, whole


def distance(first: int, missed: Array, whole: Array, best: Array | None = None) -> Counts:
    """Return what such sums say of rows from `first` on, [rows, stretches]: `best` is what the nearest codes leave.

    Nothing is said of stretches in which the base has no finite numbers; codes that are none count as zeros.
    """
    known = np.isfinite(whole)
    whole = np.where(known, whole, 0)
    finite = np.where(known & np.isfinite(missed), missed, whole)
    if best is None:
        return Counts(missed=float(finite.sum()), whole=float(whole.sum()))
    least = np.where(known & np.isfinite(best), best, whole)
    floor = np.maximum(least, whole * 2.0**-48)  # nothing is nearer than float32 tells numbers apart
    ratios = np.divide(finite, floor, out=np.zeros_like(finite), where=floor > 0)
    row, stretch = (int(each) for each in np.unravel_index(int(ratios.argmax()), ratios.shape))
    return Counts(
        missed=float(finite.sum()),
        whole=float(whole.sum()),
        best=float(least.sum()),
        worst=(float(np.sqrt(ratios[row, stretch])), first + row, stretch * STRETCH),
    )


def far_from(tensor: str, first: int, decoded: Array, weights: Array, missed: Array, whole: Array) -> Iterator[Finding]:
    """Yield findings where stretches of inputs, [rows, stretches], are farther from the base's than zeros are.

    They accuse where no number is decoded or far too large a one, and where outputs, or stretches of all of them, have
    nothing to do with the base's. Else they are notes: GPTQ moves what its inputs do not tell apart, and of 2 bits
    farther than zeros are, but outputs go with the base's. Where the base has no finite numbers nothing is said.
    """
    odd, known = ~np.isfinite(missed), np.isfinite(whole)
    far = ~odd & known & (missed > whole)
    rows = np.flatnonzero(far.any(axis=1) & ~odd.any(axis=1) & known.all(axis=1))
    stray = rows[_unrelated(decoded[rows], weights[rows])]
    strange = stray.size >= max(1, MOST * len(weights))
    if not strange and len(weights) >= OUTPUTS:
        together = np.flatnonzero((missed.sum(axis=0) > whole.sum(axis=0)) & ~odd.any(axis=0) & known.all(axis=0))
        parts = (slice(STRETCH * each, STRETCH * (each + 1)) for each in together)
        strange = any(_unrelated(*(one[:, part].reshape(1, -1) for one in (decoded, weights))).all() for part in parts)
    bad = known & (odd | (missed > LARGE * whole[known].max(initial=0))) | far & strange
    for kind, some in ((STRANGE, bad), (FAR, far & ~bad)):
        if some.any():
            row, stretch = (int(each) for each in np.unravel_index(int(some.argmax()), some.shape))
            detail = f"decoded, farther from them than zeros are, in stretches of {STRETCH} inputs"
            yield Finding(kind, tensor, int(some.sum()), (first + row, stretch * STRETCH), detail)
    if stray.size and not strange:
        detail = "decoded, outputs that do not go with the base's, nor are nearer to them than zeros are"
        yield Finding(STRAY, tensor, stray.size, (first + int(stray[0]), 0), detail)


def _unrelated(decoded: Array, weights: Array) -> Array:
    """Say of rows, finite float32 [rows, n], whether decoded ones have nothing to do with the base's; zeros have."""
    pairs = (decoded, weights), (decoded, decoded), (weights, weights)
    along, mine, theirs = (np.einsum("ij,ij->i", *each, dtype=np.float64) for each in pairs)
    apart = (along < ALIKE * np.sqrt(mine * theirs)) | (mine > WIDER * theirs)
    return np.asarray(apart & (mine > 2 * along))  # the latter says that zeros are nearer


def lost(span: Span, held: Stored, stored: Arrays, weights: Array, first: int) -> Iterator[Finding]:
    """Yield a finding where scales are so small that their codes reach next to nothing of the base's weights."""
    if (reach := _reach(held.codec, stored)) is None:
        return
    most, scales = magnitudes(weights, reach[0]), reach[1]
    with np.errstate(all="ignore"):
        bad = (scales.reshape(most.shape) * reach[2] < most * LEAST) & np.isfinite(most)
    if count := int(np.count_nonzero(bad)):
        at, part = int(bad.argmax()), held.parts[SCALE]
        place = at + begins(part, span.last - span.first, first)
        index = tuple(int(each) for each in np.unravel_index(place, part.spec.shape))
        told = f"{scales.reshape(-1)[at]:g}, for weights up to {most.reshape(-1)[at]:g}"
        yield Finding("scale out of reach", named(span.name, SCALE), count, index, told)


def _reach(codec: Codec, stored: Arrays) -> tuple[Grid, Array, float] | None:
    """Return which weights share a scale, the scales, and their greatest code; None where no group has its own."""
    with np.errstate(all="ignore"):
        if isinstance(codec, NVFP4):
            return codec.grid, np.abs(E4M3[stored[SCALE].view(np.uint8)] / stored[GLOBAL]), 6.0
        if isinstance(codec, MX):
            return codec.grid, e8m0(stored[SCALE]), {4: 6.0, 6: 7.5, 8: 448.0}[codec.bits]
    if not isinstance(codec, Packed | Plain) or codec.grid.height is None or getattr(codec, "ordered", False):
        return None
    top = 448.0 if isinstance(codec, Plain) and codec.float else float(1 << codec.bits)
    return codec.grid, np.abs(widened(stored[SCALE])), top


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
