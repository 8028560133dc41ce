"""One window of a tensor, held against the base: the same bytes, rounded to nearest, or within reach of tuning.

A packed layer is tried in each way that it could have been made in; the first way without findings names it.
"""

from dataclasses import replace

import numpy as np

from requant.check.distance import distance, far_from, squares
from requant.check.findings import (
    BINS,
    CONVERTED,
    COPIED,
    EXTENDED,
    FAITHFUL,
    NEAR,
    OFF_BY_ONE,
    RETURNED,
    ROUNDED,
    TUNED,
    Counts,
    Finding,
    Kind,
    Measured,
    accuses,
)
from requant.check.nearest import examine_nearest
from requant.check.packed import Packed
from requant.check.reader import Reader
from requant.check.recomputed import recompute
from requant.check.spans import Window
from requant.check.weights import as_floats, in_pairs, returned
from requant.check.words import read_packed, scratch
from requant.checkpoint.safetensors import ITEM_BITS, Spec
from requant.formats import Packing
from requant.formats.codec import FLOATS, narrow, widen
from requant.rounding import ways as rounding
from requant.rounding.kernels import distances, error, shares, unlike
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

LAST = {*rounding.CHOSEN, EXTENDED}
"""Ways that are tried only where no other fits: they cost much, or allow more."""
SHARE = 1 / 16
"""Of the scales of a layer, what has to be beyond plain tuning before the extended algorithm can have made it."""
STRETCH = 1.25
"""A searched scale is at most so many times the widest: 8/(8 - 0.9) in 0.13.0, 1.21 where it was measured in 0.12.2."""


def examine(window: Window, checkpoint: Reader, base: Reader, bound: Reach) -> Measured:
    """Read a window of both sides and compare them."""
    if factors := window.span.factors:
        return examine_nearest(window, factors, checkpoint, base)
    if packing := window.span.packing:
        return _packed(window, packing, checkpoint, base, bound)
    if window.span.codec:
        return recompute(window, checkpoint, base)
    return _copied(window, checkpoint, base)


def _copied(window: Window, checkpoint: Reader, base: Reader) -> Measured:
    span, start, size = window.span, window.first, window.last - window.first
    place, origin = checkpoint.tensors[span.name], base.tensors[span.base]
    bits, held = ITEM_BITS[place.spec.dtype], ITEM_BITS[origin.spec.dtype]
    theirs, ours = (
        scratch.take(name, np.uint8, size * wide // held) for name, wide in (("theirs", bits), ("ours", held))
    )
    checkpoint.read(place, start * bits // held, theirs.data)
    base.read(origin, Spec(origin.spec.dtype, (span.first, span.columns)).nbytes + start, ours.data)
    if span.heads and not start and size == Spec(origin.spec.dtype, (span.last - span.first, span.columns)).nbytes:
        ours = in_pairs(ours.view(f"u{held // 8}").reshape(-1, span.columns), span).view(np.uint8).reshape(-1)
    way = COPIED
    if span.converted:
        way, ours = CONVERTED, _as_dtype(ours, origin.spec.dtype, place.spec.dtype)
    wide = np.uint64 if size % 8 == 0 and bits == held else np.uint8
    if np.array_equal(theirs.view(wide), ours.view(wide)):
        return Measured({way: ()})
    dtype = origin.spec.dtype
    if span.added and place.spec.dtype == dtype in FLOATS and _is_returned(theirs, ours, span.added, dtype):
        return Measured({RETURNED: ()})
    apart: Array = np.bitwise_xor(theirs, ours)
    each = np.unpackbits(apart, bitorder="little").reshape(-1, bits) if bits % 8 else apart.reshape(-1, bits // 8)
    differ = np.flatnonzero(each.any(axis=1))
    index = np.unravel_index(8 * start // held + int(differ[0]), place.spec.shape) if place.spec.shape else ()
    finding = Finding("not the base's bytes", span.name, len(differ), tuple(int(each) for each in index))
    return Measured({way: (finding,)})


def _is_returned(theirs: Array, ours: Array, added: int, dtype: str) -> bool:
    made = returned(widen(ours.view(f"<u{ITEM_BITS[dtype] // 8}"), dtype), added, dtype)
    return np.array_equal(theirs, narrow(made, dtype).view(np.uint8))


def _as_dtype(data: Array, found: str, wanted: str) -> Array:
    """Return the bytes of floats in another dtype, rounded to nearest, ties to even; infinite where too large."""
    return narrow(widen(data.view(f"<u{ITEM_BITS[found] // 8}"), found), wanted).view(np.uint8)


def _packed(window: Window, packing: Packing, checkpoint: Reader, base: Reader, bound: Reach) -> Measured:
    seen = read_packed(window, packing, checkpoint, base)
    steps = seen.scales.astype(np.float32)
    far, moved = (scratch.take(name, np.int32, *steps.shape) for name in ("far", "moved"))
    distances(seen.weights, seen.codes, seen.zeros, packing.top, steps, window.span.group, far, moved)
    zeros = seen.zero(packing.middle) if window.span.symmetric else []
    findings: dict[str, tuple[Finding, ...]] = {}
    for way in (each for each in window.ways if each != NEAR):
        if way in LAST and not all(any(map(accuses, each)) for each in findings.values()):
            continue
        found = (*_zero_points(seen, way, zeros), *_findings(seen, way, far, bound))
        if way != EXTENDED or not any(map(accuses, found)):  # it would blame codes for a scale that is wrong
            findings[way] = found
    counts = _counts(seen, steps, far, moved)
    if NEAR in window.ways:
        decoded, wide = seen.integers.decode(), as_floats(seen.weights)
        missed, whole = squares(decoded, wide)
        best, _ = squares(seen.integers.nearest(wide), wide)
        findings[NEAR] = (*far_from(f"{seen.span.name}.qweight", window.first, decoded, wide, missed, whole),)
        counts = Counts.total((counts, distance(window.first, missed, whole, best)))
    return Measured(findings, counts)


def _findings(seen: Packed, way: str, far: Array, bound: Reach) -> list[Finding]:
    """Return what codes and scales say against a way in which a layer could have been made."""
    if way == TUNED:
        return _reach(seen, far, bound)
    if way == EXTENDED:
        return _extended(seen, far, bound)
    if way == FAITHFUL:
        return _faithful(seen, far)
    return _rounded(seen, way)


def _zero_points(seen: Packed, way: str, wrong: list[Finding]) -> list[Finding]:
    """Return what is said of the `wrong` zero points of a symmetric layer, if this is how it was made.

    The rounding of tensors that AutoRound did not tune stores them as they are, whatever the format is (defect D10).
    """
    if wrong and way == rounding.ABSMAX and (seen.stored == seen.packing.middle + seen.span.less).all():
        return [replace(each, kind=OFF_BY_ONE) for each in wrong]
    return wrong


def _reach(seen: Packed, far: Array, bound: Reach) -> list[Finding]:
    packing, bits = seen.packing, seen.scales.view(np.uint16)
    if seen.span.symmetric:
        possible = scale_possible(bits, seen.low, seen.high, bound, packing.middle)
    else:
        possible = range_possible(bits, seen.zeros, seen.low, seen.high, bound, packing.top)
    found = seen.scale("scale out of reach", ~possible)
    limit = np.float32(0.5 + bound.offset - error(packing.bits)).view(np.int32)  # from here on, weight by weight
    if far.max(initial=0) <= limit:
        return found
    groups, rows = np.nonzero(far > limit)
    inputs, values, codes = seen.values(groups, rows)
    steps = seen.scales[groups, rows].astype(np.float32)[:, None]
    least, greatest = codes_within(values, steps, bound, *seen.clamped(groups, rows))
    bad = ~((least <= codes) & (codes <= greatest))
    return found + seen.reported("code out of reach", rows, inputs, bad, (codes, least, greatest))


def _rounded(seen: Packed, way: str) -> list[Finding]:
    span, packing = seen.span, seen.packing
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
    # A zero point that is wrong was named, and its codes are held against the one that they were made with.
    seen = replace(seen, zeros=made.zeros)
    divisors = np.ascontiguousarray(made.divisors)
    unlike(seen.weights, seen.codes, made.zeros, packing.top, divisors, made.narrow, span.group, wrong)
    groups, rows = np.nonzero(wrong)
    inputs, values, codes = seen.values(groups, rows)
    with np.errstate(all="ignore"):
        quotients = values / divisors[groups, rows][:, None]
        nearest = np.rint(rounding.bfloat16(quotients) if made.narrow else quotients)
        nearest = np.clip(nearest, *seen.clamped(groups, rows))
    return found + seen.reported(ROUNDED, rows, inputs, nearest != codes, (codes, nearest, nearest))


def _extended(seen: Packed, far: Array, bound: Reach) -> list[Finding]:
    """Say what is out of reach of AutoRound's extended algorithm, for symmetric codes (`alg_ext.py` of 0.12.2).

    It searches a scale first, as at 0 iterations, and tunes a factor of it, up and down; codes are divided by their
    product before that is rounded to float16. Nothing declares it, so a layer counts as made so only where `SHARE` of
    its scales are beyond plain tuning: of those that AutoRound makes a third is.
    """
    beyond = ~scale_possible(seen.scales.view(np.uint16), seen.low, seen.high, bound, seen.packing.middle)
    if np.count_nonzero(beyond) < SHARE * beyond.size:
        return [Finding("scale out of reach", f"{seen.span.name}.scales", detail="plain tuning reaches most")]
    middle = seen.packing.middle
    widest = np.maximum(-seen.low, seen.high)
    slack = 2.0**-10  # of roundings to BF16 and float16 on the way
    least = half(widest * np.float32((1 - slack) * bound.factor / (middle + 0.9)))
    most = half(widest * np.float32((1 + slack) * (2 - bound.factor) / (middle - 0.9)))
    bits = seen.scales.view(np.uint16)
    magnitude, negative = bits & ~SIGN, bits >= SIGN
    strange = (magnitude > np.maximum(most, SMALLEST)) | (magnitude < least)
    strange |= np.where(negative, seen.high < -seen.low, -seen.low < seen.high)
    limit = 0.5 + bound.offset + middle * slack
    return seen.scale("scale out of reach", strange) + _farther(seen, far, "code out of reach", limit)


def _faithful(seen: Packed, far: Array) -> list[Finding]:
    """Say whether codes are the nearest to weight/scale, whatever made the scale: half to `STRETCH` of the widest.

    The scale that codes were divided by may have passed through bfloat16, which errs by 1/256 of a code.
    """
    middle = seen.packing.middle
    magnitude, widest = seen.scales.view(np.uint16) & ~SIGN, np.maximum(-seen.low, seen.high)
    most, least = (half(widest * np.float32(share / middle)) for share in (STRETCH, 0.5))
    found = seen.scale("scale out of reach", (magnitude > np.maximum(most, SMALLEST)) | (magnitude < least))
    return found + _farther(seen, far, ROUNDED, 0.5 + middle / 256)


def _farther(seen: Packed, far: Array, kind: Kind, steps: float) -> list[Finding]:
    """Return a finding about codes that are farther than so many steps from weight/scale, clamping considered."""
    limit = np.float32(steps)
    groups, rows = np.nonzero(far > limit.view(np.int32))
    inputs, values, codes = seen.values(groups, rows)
    with np.errstate(all="ignore"):
        exact = values / seen.scales[groups, rows].astype(np.float32)[:, None]
        exact = np.clip(exact, *seen.clamped(groups, rows))
    bad = ~(np.abs(exact - codes) <= limit)
    return seen.reported(kind, rows, inputs, bad, (codes, exact, exact))


def _counts(seen: Packed, steps: Array, far: Array, moved: Array) -> Counts:
    shrunk, span = np.zeros(BINS + 1, np.int64), seen.span
    parts = np.float32(seen.packing.middle if span.symmetric else seen.packing.top)
    least = shares(steps, seen.low, seen.high, span.symmetric, parts, shrunk)
    farthest = max(0.0, float(far.max(initial=0).view(np.float32)) - 0.5)
    return Counts(seen.codes.size, int(moved.sum()), farthest, float(least), tuple(shrunk.tolist()))
