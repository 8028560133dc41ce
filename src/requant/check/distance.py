"""How far decoded weights are from the base's, where no formula gives them: what accuses of that, and what does not."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from requant.check.findings import FAR, STRANGE, STRAY, Finding
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
ALIKE, WIDER = 1 / 8, 16.0
"""How an output's decoded weights correlate with the base's, at least, and how many times as large their squares are,
at most. Unrelated ones of 1,024 inputs correlate by 0.03, up or down."""
MOST = 1 / 64
"""Of the outputs of a layer, those that a calibration may leave otherwise. Of 856 tiny layers that llm-compressor's
GPTQ rounded, to 2 bits and up, by 128 to 4,096 tokens, 382 have stretches that are far, and one has one such output, of
weights that NVFP4 has no scale for."""


def squares(decoded: Array, weights: Array) -> tuple[Array, Array]:
    """Return, by stretches of inputs, sums of squares of decoded weights less the base's, and of the base's."""
    missed, whole = np.empty((2, len(weights), -(-weights.shape[1] // STRETCH)), np.float64)
    sums_of_squares(*(np.ascontiguousarray(each, np.float32) for each in (decoded, weights)), STRETCH, missed, whole)
    return missed, whole


def far_from(tensor: str, first: int, decoded: Array, weights: Array, missed: Array, whole: Array) -> Iterator[Finding]:
    """Yield findings where stretches of inputs, [rows, stretches], are farther from the base's than zeros are.

    They accuse where no number is decoded. Else they are notes, also of rows that have nothing to do with the base's:
    `told_apart` says what they are together. Of those in which the base has no finite numbers nothing is said.
    """
    odd, known = ~np.isfinite(missed), np.isfinite(whole)
    far = ~odd & known & (missed > whole)
    for kind, some in ((STRANGE, odd & known), (FAR, far)):
        if some.any():
            row, stretch = (int(each) for each in np.unravel_index(int(some.argmax()), some.shape))
            detail = f"decoded, farther from them than zeros are, in stretches of {STRETCH} inputs"
            yield Finding(kind, tensor, int(some.sum()), (first + row, stretch * STRETCH), detail)
    rows = np.flatnonzero(far.any(axis=1) & ~odd.any(axis=1) & known.all(axis=1))
    one, two = decoded[rows], weights[rows]
    pairs = (one, two), (one, one), (two, two)
    along, mine, theirs = (np.einsum("ij,ij->i", *each, dtype=np.float64) for each in pairs)
    apart = (along < ALIKE * np.sqrt(mine * theirs)) | (mine > WIDER * theirs)
    stray = rows[apart & (mine > 2 * along)]  # the latter says that zeros are nearer
    if stray.size:
        detail = "decoded, outputs that do not go with the base's, nor are nearer to them than zeros are"
        yield Finding(STRAY, tensor, stray.size, (first + int(stray[0]), 0), detail)


def told_apart(near: Iterable[Finding], rows: int) -> tuple[Finding, ...]:
    """Return findings of a layer of which so many rows were read: they accuse if too many rows are not the base's.

    What a calibration rounds is not bounded weight by weight: GPTQ moves what its inputs do not tell apart, and of 2
    bits farther than zeros are. But nearly all outputs still go with the base's.
    """
    near = (*near,)
    if not any(each.kind == STRAY and each.count >= max(1, MOST * rows) for each in near):
        return near
    return (*(replace(each, kind=STRANGE) if each.kind == FAR else each for each in near if each.kind != STRAY),)


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
