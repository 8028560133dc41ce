"""One window of a tensor, held against the base: the same bytes, rounded to nearest, or within reach of tuning.

A packed layer is tried in each way that it could have been made in; the first way without findings names it.
"""

import threading
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from requant.check.findings import BINS, COPIED, FAITHFUL, HALF, NEAR, TUNED, Counts, Finding, Kind, Measured, accuses
from requant.check.packed import Packed
from requant.check.reader import Place, Source
from requant.check.spans import Span
from requant.checkpoint.safetensors import ITEM_BITS, Spec
from requant.formats import ORDER as INDEX
from requant.formats import PACKED, gptq
from requant.formats.awq import ORDER
from requant.rounding import ways as rounding
from requant.rounding.kernels import along_inputs, along_outputs, distances, error, extremes, shares, unlike
from requant.rounding.reach import (
    SIGN,
    SMALLEST,
    Array,
    Reach,
    codes_within,
    half,
    range_possible,
    scale_possible,
)

ROUNDED: Kind = "not rounded to nearest"
DEAR = (rounding.SEARCHED, rounding.WEIGHTED)
"""Ways that cost much to try."""
CHUNK = 3 << 20
"""Bytes of zero points read at once: whole words of any width of codes."""
STRETCH = 1.25
"""A searched scale is at most so many times the widest: 8/(8 - 0.9) in 0.13.0, 1.21 where it was measured in 0.12.2."""


@dataclass(frozen=True)
class Window:
    """Rows `first` to `last` of a packed piece, or bytes of a copied one; `ways` are those to try."""

    span: Span
    first: int
    last: int
    nbytes: int
    ways: tuple[str, ...]


class _Scratch(threading.local):
    """A thread's own buffers, used again for every window."""

    def __init__(self) -> None:
        self.buffers: dict[str, Array] = {}

    def take(self, name: str, dtype: Any, *shape: int) -> Array:
        """Return an array of undefined content."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if name not in self.buffers or self.buffers[name].size < size:
            self.buffers[name] = np.empty(size, np.uint8)
        taken: Array = self.buffers[name][:size].view(dtype).reshape(shape)
        return taken


_scratch = _Scratch()


def examine(window: Window, checkpoint: Source, base: Source, bound: Reach) -> Measured:
    """Read a window of both sides and compare them."""
    if window.span.group:
        return _packed(window, checkpoint, base, bound)
    return _copied(window, checkpoint, base)


def _copied(window: Window, checkpoint: Source, base: Source) -> Measured:
    span, start, size = window.span, window.first, window.last - window.first
    theirs, ours = _scratch.take("theirs", np.uint8, size), _scratch.take("ours", np.uint8, size)
    place, origin = checkpoint.tensors[span.name], base.tensors[span.base]
    bits = ITEM_BITS[place.spec.dtype]
    checkpoint.read(place, start, theirs.data)
    base.read(origin, Spec(place.spec.dtype, (span.first, span.columns)).nbytes + start, ours.data)
    way = HALF if span.half else COPIED
    if span.half:
        ours = gptq.bfloat16_to_float32(ours.tobytes()).astype("<f2").view(np.uint8)
    wide = np.uint64 if size % 8 == 0 else np.uint8
    if np.array_equal(theirs.view(wide), ours.view(wide)):
        return Measured({way: ()})
    apart: Array = np.bitwise_xor(theirs, ours)
    each = np.unpackbits(apart, bitorder="little").reshape(-1, bits) if bits % 8 else apart.reshape(-1, bits // 8)
    differ = np.flatnonzero(each.any(axis=1))
    index = np.unravel_index(8 * start // bits + int(differ[0]), place.spec.shape) if place.spec.shape else ()
    finding = Finding("not the base's bytes", span.name, len(differ), tuple(int(each) for each in index))
    return Measured({way: (finding,)})


def _packed(window: Window, checkpoint: Source, base: Source, bound: Reach) -> Measured:
    span, first, rows = window.span, window.first, window.last - window.first
    assert span.packing
    bits, columns, groups = span.packing.bits, span.columns, span.packing.groups
    words, points, scale = (f"{span.name}.{suffix}" for suffix in PACKED)
    weights = _scratch.take("weights", np.uint16, rows, columns)
    base.read(base.tensors[span.base], 2 * columns * (span.first + first), weights.reshape(-1).view(np.uint8).data)
    codes, zeros = _scratch.take("codes", np.uint8, rows, columns), np.empty((groups, rows), np.uint8)
    packed = first * bits // 32, rows * bits // 32
    stored = _columns(checkpoint, points, "<u4", *packed)
    if span.packing.layout == "awq":
        along_outputs(_columns(checkpoint, words, "<u4", *packed), ORDER, codes)
        along_outputs(stored, ORDER, zeros.T)
    else:
        along_inputs(_columns(checkpoint, words, "<u4", first, rows), bits, codes)
        along_inputs(np.ascontiguousarray(stored.T), bits, zeros)
    middles = np.add(zeros, span.less, dtype=np.int32)
    scales = _columns(checkpoint, scale, "<f2", first, rows)

    low, high, far, moved = (_scratch.take(name, np.int32, groups, rows) for name in ("low", "high", "far", "moved"))
    extremes(weights, span.group, low, high)
    steps = scales.astype(np.float32)
    distances(weights, codes, middles, span.top, steps, span.group, far, moved)
    seen = Packed(span, first, weights, codes, middles, scales, low.view(np.float32), high.view(np.float32))
    common = seen.zero(np.full(middles.shape, span.packing.middle)) if span.symmetric else []
    findings: dict[str, tuple[Finding, ...]] = {}
    sums: tuple[Array, ...] = ()
    for way in window.ways:
        if way == TUNED:
            findings[way] = (*common, *_reach(seen, far, bound))
        elif way == FAITHFUL:
            findings[way] = (*common, *_faithful(seen, far))
        elif way == NEAR:
            sums = _missed(seen)
            findings[way] = (*common, *_near(seen, *sums))
        elif way not in DEAR or all(any(map(accuses, each)) for each in findings.values()):  # where no other way fits
            findings[way] = (*_zero_points(seen, way, common), *_rounded(seen, way))
    counts = _counts(seen, steps, far, moved, rows * columns)
    if sums:
        missed, whole = (float(each.sum(dtype=np.float64)) for each in sums)
        counts = replace(counts, missed=missed, whole=whole)
    return Measured(findings, counts)


def _zero_points(seen: Packed, way: str, common: list[Finding]) -> list[Finding]:
    """Return what zero points of a symmetric layer are named for.

    The rounding of tensors that AutoRound did not tune stores them as they are, whatever the format is (defect D10).
    """
    assert seen.span.packing
    if common and way == rounding.ABSMAX and seen.span.less:
        other = np.full(seen.zeros.shape, seen.span.packing.middle + seen.span.less)
        return seen.zero(other) or seen.zero(np.full(other.shape, seen.span.packing.middle), "zero points off by one")
    return common


def _reach(seen: Packed, far: Array, bound: Reach) -> list[Finding]:
    packing, bits = seen.span.packing, seen.scales.view(np.uint16)
    assert packing
    if seen.span.symmetric:
        possible = scale_possible(bits, seen.low, seen.high, bound, packing.middle)
    else:
        possible = range_possible(bits, seen.zeros, seen.low, seen.high, bound, packing.top)
    found = seen.scale("scale out of reach", ~possible)
    limit = np.float32(0.5 + bound.offset - error(packing.bits)).view(np.int32)  # from here on, weight by weight
    if far.max(initial=0) <= limit and far.min(initial=0) >= 0:
        return found
    groups, rows = np.nonzero((far > limit) | (far < 0))
    inputs, values, codes = seen.values(groups, rows)
    steps = seen.scales[groups, rows].astype(np.float32)[:, None]
    least, greatest = codes_within(values, steps, bound, *seen.clamped(groups, rows))
    bad = ~((least <= codes) & (codes <= greatest))
    return found + seen.reported("code out of reach", rows, inputs, bad, (codes, least, greatest))


def _rounded(seen: Packed, way: str) -> list[Finding]:
    span, packing = seen.span, seen.span.packing
    assert packing
    some = seen.scales[:1]
    made = rounding.rounded(way, seen.low[:1], seen.high[:1], some, packing, span.symmetric)
    if 2 * np.count_nonzero(differ := made.scales != some.view(np.uint16)) > some.size:
        return seen.scale(ROUNDED, differ, f", {way}")  # made in another way altogether: the rest says no more
    made = rounding.rounded(way, seen.low, seen.high, seen.scales, packing, span.symmetric)
    found = seen.scale(ROUNDED, made.scales != seen.scales.view(np.uint16), f", {way}")
    if not span.symmetric:
        found += seen.zero(made.zeros)
    if way == rounding.SEARCHED:
        worse = rounding.worse(seen.weights, made.divisors, span.group, seen.low, seen.high, packing.middle)
        found += seen.scale(ROUNDED, worse, f", {way}: another candidate errs less")
    wrong = np.empty(made.scales.shape, np.int32)
    # A zero point that is off was named, and its codes are held against the one that they were made with.
    seen = replace(seen, zeros=made.zeros)
    divisors = np.ascontiguousarray(made.divisors)
    unlike(seen.weights, seen.codes, made.zeros, span.top, divisors, made.narrow, span.group, wrong)
    groups, rows = np.nonzero(wrong)
    inputs, values, codes = seen.values(groups, rows)
    with np.errstate(all="ignore"):
        quotients = values / divisors[groups, rows][:, None]
        nearest = np.rint(rounding.bfloat16(quotients) if made.narrow else quotients)
        nearest = np.clip(nearest, *seen.clamped(groups, rows))
    return found + seen.reported(ROUNDED, rows, inputs, nearest != codes, (codes, nearest, nearest))


def _faithful(seen: Packed, far: Array) -> list[Finding]:
    """Say whether codes are the nearest to weight/scale, whatever made the scale: half to `STRETCH` of the widest.

    The scale that codes were divided by may have passed through bfloat16, which errs by 1/256 of a code.
    """
    assert seen.span.packing
    middle = seen.span.packing.middle
    limit = np.float32(0.5 + middle / 256)
    magnitude, widest = seen.scales.view(np.uint16) & ~SIGN, np.maximum(-seen.low, seen.high)
    most, least = (half(widest * np.float32(share / middle)) for share in (STRETCH, 0.5))
    found = seen.scale("scale out of reach", (magnitude > np.maximum(most, SMALLEST)) | (magnitude < least))
    groups, rows = np.nonzero((far > limit.view(np.int32)) | (far < 0))
    inputs, values, codes = seen.values(groups, rows)
    with np.errstate(all="ignore"):
        steps = values / seen.scales[groups, rows].astype(np.float32)[:, None]
        steps = np.clip(steps, *seen.clamped(groups, rows))
    bad = ~(np.abs(steps - codes) <= limit)
    return found + seen.reported(ROUNDED, rows, inputs, bad, (codes, steps, steps))


def _near(seen: Packed, missed: Array, whole: Array) -> list[Finding]:
    """Say whether each group's decoded weights are nearer to the base's than zeros are.

    Tools that move the error of one code into those that follow, as GPTQ does, leave no bound for a single code.
    """
    return seen.scale("not the base's weights", ~(missed <= whole), ": decoded, farther from them than zeros are")


def _missed(seen: Packed) -> tuple[Array, Array]:
    """Return the sums of squares of decoded weights less the base's, and of the base's, float32 [groups, rows]."""
    span = seen.span
    wide = (seen.weights.astype(np.uint32) << np.uint32(16)).view(np.float32)
    starts = np.arange(0, span.columns, span.group)
    places = np.arange(span.columns) // span.group
    decoded = (seen.codes - seen.zeros.T[:, places].astype(np.float32)) * seen.scales.T[:, places].astype(np.float32)
    missed = np.add.reduceat((decoded - wide) ** 2, starts, axis=1).T
    return missed, np.add.reduceat(wide**2, starts, axis=1).T


def symmetric(checkpoint: Source, span: Span) -> bool:
    """Say whether every zero point of a packed layer is in the middle; reads until one is not."""
    assert span.packing
    place = checkpoint.tensors[f"{span.name}.qzeros"]
    middle = np.full((1, 32), span.packing.middle - span.less, np.uint8)
    word = gptq.pack(middle, span.packing.bits).view(np.uint32).reshape(-1)
    size = place.stop - place.start
    for start in range(0, size, CHUNK):
        words = np.empty(min(CHUNK, size - start) // 4, "<u4")
        checkpoint.read(place, start, words.view(np.uint8).data)
        if (words.reshape(-1, len(word)) != word).any():
            return False
    return True


def in_order(checkpoint: Source, span: Span) -> bool:
    """Say whether a layer's inputs are in order: each in the group that its place gives, if any tensor says so."""
    name = f"{span.name}.{INDEX}"
    place = checkpoint.tensors.get(name)
    if place is None:
        return True
    if place.spec != Spec("I32", (span.columns,)):
        return False
    stated = np.empty(span.columns, "<i4")
    checkpoint.read(place, 0, stated.view(np.uint8).data)
    return bool((stated == np.arange(span.columns) // span.group).all())


def _counts(seen: Packed, steps: Array, far: Array, moved: Array, codes: int) -> Counts:
    shrunk, span = np.zeros(BINS + 1, np.int64), seen.span
    assert span.packing
    if span.symmetric:
        widest = np.where(steps < 0, seen.high, -seen.low) / np.float32(span.packing.middle)
    else:
        widest = (seen.high - seen.low) / np.float32(span.top)
    least = shares(steps, widest, shrunk)
    farthest = max(0.0, float(far.max(initial=0).view(np.float32)) - 0.5)
    return Counts(codes, int(moved.sum()), farthest, float(least), tuple(shrunk.tolist()))


def _columns(source: Source, name: str, dtype: str, first: int, count: int) -> Array:
    """Return columns of a two-dimensional tensor, [rows, count]; in one read where they are all of them."""
    place = source.tensors[name]
    rows, columns = place.spec.shape
    item = np.dtype(dtype).itemsize
    into = _scratch.take(name.rpartition(".")[2], dtype, rows, count)
    if count == columns:
        source.read(place, 0, into.reshape(-1).view(np.uint8).data)
        return into
    for row in range(rows):
        source.read(place, (row * columns + first) * item, into[row].view(np.uint8).data)
    return into
