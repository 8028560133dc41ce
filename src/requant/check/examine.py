"""One window of a tensor, held against the base: the same bytes, rounded to nearest, or within reach of tuning.

A packed layer is tried in each way that it could have been made in; the first way without findings names it.
"""

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from requant.check.findings import BINS, COPIED, FAITHFUL, TUNED, Counts, Finding, Kind, Measured
from requant.check.packed import Packed
from requant.check.reader import Place, Source
from requant.check.spans import Span
from requant.checkpoint.safetensors import ITEM_BITS, Spec
from requant.formats.gptq import PER_WORD, ZERO_WORD
from requant.rounding import ways as rounding
from requant.rounding.kernels import ERROR, distances, extremes, shares, unlike
from requant.rounding.reach import SIGN, SMALLEST, Array, Reach, codes_within, half, scale_possible

ROUNDED: Kind = "not rounded to nearest"
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
    wide = np.uint64 if size % 8 == 0 else np.uint8
    if np.array_equal(theirs.view(wide), ours.view(wide)):
        return Measured({COPIED: ()})
    apart: Array = np.bitwise_xor(theirs, ours)
    each = np.unpackbits(apart, bitorder="little").reshape(-1, bits) if bits % 8 else apart.reshape(-1, bits // 8)
    differ = np.flatnonzero(each.any(axis=1))
    index = np.unravel_index(8 * start // bits + int(differ[0]), place.spec.shape) if place.spec.shape else ()
    finding = Finding("not the base's bytes", span.name, len(differ), tuple(int(each) for each in index))
    return Measured({COPIED: (finding,)})


def _packed(window: Window, checkpoint: Source, base: Source, bound: Reach) -> Measured:
    span, first, rows = window.span, window.first, window.last - window.first
    columns, groups = span.columns, -(-span.columns // span.group)
    tensors = {suffix: checkpoint.tensors[f"{span.name}.{suffix}"] for suffix in ("qweight", "qzeros", "scales")}
    weights = _scratch.take("weights", np.uint16, rows, columns)
    base.read(base.tensors[span.base], 2 * columns * (span.first + first), weights.reshape(-1).view(np.uint8).data)
    words = _columns(checkpoint, tensors["qweight"], "<u4", first, rows)
    scales = _columns(checkpoint, tensors["scales"], "<f2", first, rows)
    zeros = _columns(checkpoint, tensors["qzeros"], "<u4", first // PER_WORD, rows // PER_WORD)

    low, high, far, moved = (_scratch.take(name, np.int32, groups, rows) for name in ("low", "high", "far", "moved"))
    extremes(weights, span.group, low, high)
    steps = scales.astype(np.float32)
    distances(weights, words, steps, span.group, far, moved)
    seen = Packed(span, first, weights, words, scales, low.view(np.float32), high.view(np.float32))
    common = seen.zeros(zeros)
    findings: dict[str, tuple[Finding, ...]] = {}
    for way in window.ways:
        if way == TUNED:
            findings[way] = (*common, *_reach(seen, far, bound))
        elif way == FAITHFUL:
            findings[way] = (*common, *_faithful(seen, far))
        elif way != rounding.SEARCHED or all(findings.values()):  # the dear one, where no other way fits
            findings[way] = (*common, *_rounded(seen, way))
    return Measured(findings, _counts(seen, steps, far, moved, rows * columns))


def _reach(seen: Packed, far: Array, bound: Reach) -> list[Finding]:
    possible = scale_possible(seen.scales.view(np.uint16), seen.low, seen.high, bound)
    found = [] if possible.all() else seen.scale("scale out of reach", ~possible)
    limit = np.float32(0.5 + bound.offset - ERROR).view(np.int32)  # from here on, weight by weight
    if far.max(initial=0) <= limit and far.min(initial=0) >= 0:
        return found
    groups, rows = np.nonzero((far > limit) | (far < 0))
    inputs, values, codes = seen.values(groups, rows)
    least, greatest = codes_within(values, seen.scales[groups, rows].astype(np.float32)[:, None], bound)
    bad = ~((least <= codes) & (codes <= greatest))
    return found + seen.codes("code out of reach", rows, inputs, bad, (codes, least, greatest))


def _rounded(seen: Packed, way: str) -> list[Finding]:
    some = seen.scales[:1]
    _, expected = rounding.divisors(way, seen.low[:1], seen.high[:1], some)
    if 2 * np.count_nonzero(differ := expected != some.view(np.uint16)) > some.size:
        return seen.scale(ROUNDED, differ, f", {way}")  # made in another way altogether: the rest says no more
    divisors, expected = rounding.divisors(way, seen.low, seen.high, seen.scales)
    differ = expected != seen.scales.view(np.uint16)
    found = seen.scale(ROUNDED, differ, f", {way}") if differ.any() else []
    if way == rounding.SEARCHED:
        worse = rounding.worse(seen.weights, divisors, seen.span.group, seen.low, seen.high)
        found += seen.scale(ROUNDED, worse, f", {way}: another candidate errs less") if worse.any() else []
    wrong = np.empty(expected.shape, np.int32)
    unlike(seen.weights, seen.words, np.ascontiguousarray(divisors), seen.span.group, wrong)
    groups, rows = np.nonzero(wrong)
    inputs, values, codes = seen.values(groups, rows)
    with np.errstate(all="ignore"):
        nearest = np.clip(np.rint(values / divisors[groups, rows][:, None]), -8, 7)
    return found + seen.codes(ROUNDED, rows, inputs, nearest != codes, (codes, nearest, nearest))


def _faithful(seen: Packed, far: Array) -> list[Finding]:
    """Say whether codes are the nearest to weight/scale, whatever made the scale: half to `STRETCH` of the widest.

    The scale that codes were divided by may have passed through bfloat16, which errs by 1/256 of up to eight steps.
    """
    limit = np.float32(0.5 + 8 / 256)
    magnitude, widest = seen.scales.view(np.uint16) & ~SIGN, np.maximum(-seen.low, seen.high)
    most, least = (half(widest * np.float32(share / 8)) for share in (STRETCH, 0.5))
    strange = (magnitude > np.maximum(most, SMALLEST)) | (magnitude < least)
    found = seen.scale("scale out of reach", strange) if strange.any() else []
    groups, rows = np.nonzero((far > limit.view(np.int32)) | (far < 0))
    inputs, values, codes = seen.values(groups, rows)
    with np.errstate(all="ignore"):
        steps = np.clip(values / seen.scales[groups, rows].astype(np.float32)[:, None], -8, 7)
    bad = ~(np.abs(steps - codes) <= limit)
    return found + seen.codes(ROUNDED, rows, inputs, bad, (codes, steps, steps))


def symmetric(checkpoint: Source, span: Span) -> bool:
    """Say whether every zero point of a packed layer is in the middle; reads until one is not."""
    place = checkpoint.tensors[f"{span.name}.qzeros"]
    size = place.stop - place.start
    for start in range(0, size, 1 << 20):
        words = np.empty(min(1 << 20, size - start) // 4, "<u4")
        checkpoint.read(place, start, words.view(np.uint8).data)
        if (words != ZERO_WORD).any():
            return False
    return True


def _counts(seen: Packed, steps: Array, far: Array, moved: Array, codes: int) -> Counts:
    shrunk = np.zeros(BINS + 1, np.int64)
    least = shares(steps, seen.low, seen.high, shrunk)
    farthest = max(0.0, float(far.max(initial=0).view(np.float32)) - 0.5)
    return Counts(codes, int(moved.sum()), farthest, float(least), tuple(shrunk.tolist()))


def _columns(source: Source, place: Place, dtype: str, first: int, count: int) -> Array:
    """Return columns of a two-dimensional tensor, [rows, count]; in one read where they are all of them."""
    rows, columns = place.spec.shape
    item = np.dtype(dtype).itemsize
    into = _scratch.take(place.spec.dtype + str(rows > 4096) + dtype + str(item * rows), dtype, rows, count)
    if count == columns:
        source.read(place, 0, into.reshape(-1).view(np.uint8).data)
        return into
    for row in range(rows):
        source.read(place, (row * columns + first) * item, into[row].view(np.uint8).data)
    return into
