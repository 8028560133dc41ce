"""Layers whose scales no formula gives, and whose codes are the nearest to their weights all the same.

That is what AWQ leaves, whatever was calibrated: it chooses scales of channels and ranges of groups, and rounds to
nearest. So each code is held against the base's weight, times the `Factors` of its input and output, and the stored
scale. Where few codes are not the nearest, these are damaged; where many are, another tool made them, and only their
distance from the base is measured.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from requant.check.distance import distance, far_from, squares
from requant.check.findings import (
    CONVERTED,
    COPIED,
    FAITHFUL,
    NEAR,
    ROUNDED,
    SCALED,
    SMOOTHED,
    Finding,
    Measured,
    merge,
)
from requant.check.reader import Reader
from requant.check.recomputed import FEW
from requant.check.spans import Factors, Span, Window
from requant.check.stored import Stored, tensors
from requant.check.weights import as_floats, read_weights
from requant.check.words import read_packed
from requant.checkpoint.safetensors import ITEM_BITS, Spec
from requant.formats.codec import Array, Integers, converted, named, widen
from requant.formats.compressed_tensors import Packed, Plain
from requant.rounding.kernels import nearest


def whole_numbers(window: Window, checkpoint: Reader, base: Reader) -> Integers | None:
    """Return what is stored of some rows as whole numbers; None for a tensor or a format that has none."""
    span = window.span
    if span.packing:
        return read_packed(window, span.packing, checkpoint, base).integers
    if not isinstance(span.codec, Packed | Plain):
        return None
    held = Stored.of(span, checkpoint, base)
    return span.codec.integers(tensors(span, held, checkpoint, window.first, window.last), span.columns)


def examine_nearest(window: Window, factors: Factors, checkpoint: Reader, base: Reader) -> Measured:
    """Hold a window of a layer against the codes that are nearest, or of floats against the base's times factors."""
    span, first, last = window.span, window.first, window.last
    if not span.quantized:
        return _floats(window, factors, checkpoint, base)
    weights = as_floats(read_weights(base, span, first, last - first))
    weights = weights * factors.inputs * factors.outputs[first:last, None]
    if (stored := whole_numbers(window, checkpoint, base)) is not None:
        return _codes(window, factors, stored, weights)
    held = Stored.of(span, checkpoint, base)
    decoded = held.codec.decode(tensors(span, held, checkpoint, first, last), span.columns)
    missed, whole = squares(decoded, weights)
    found = far_from(named(span.name, held.codes), first, decoded, weights, missed, whole)
    return Measured({NEAR: tuple(found)}, replace(distance(first, missed, whole), codes=weights.size))


def _codes(window: Window, factors: Factors, stored: Integers, weights: Array) -> Measured:
    span, first, last = window.span, window.first, window.last
    zeros, scales = (
        np.ascontiguousarray(np.broadcast_to(each, (len(weights), each.shape[1])))
        for each in (stored.zeros, stored.scales)
    )
    away, off = np.empty(weights.shape, np.float32), np.empty(weights.shape, np.uint8)
    loose = factors.loose_inputs, factors.loose_outputs[first:last]
    nearest(weights, stored.codes, zeros, scales, stored.group, stored.top, *loose, factors.unit, away, off)
    codes = f"{span.name}.qweight" if span.packing else _largest(span)
    found: tuple[Finding, ...] = ()
    if count := int(np.count_nonzero(off)):
        row, column = (int(each) for each in np.unravel_index(int(off.argmax()), off.shape))
        told = f"found {stored.codes[row, column]}, {away[row, column]:.2f} steps from the base's weight"
        found = (Finding(ROUNDED, codes, count, (first + row, column), told),)
    decoded = stored.decode()
    missed, whole = squares(decoded, weights)
    farthest = max(0.0, float(np.nan_to_num(away, nan=np.inf).max(initial=0)) - 0.5)
    counts = replace(
        distance(first, missed, whole, squares(stored.nearest(weights), weights)[0]),
        codes=weights.size,
        moved=count,
        farthest=farthest,
    )
    far = far_from(codes, first, decoded, weights, missed, whole)
    return Measured({_way(factors): found, NEAR: tuple(far)}, counts)


def _way(factors: Factors) -> str:
    return SMOOTHED if factors.scaled else FAITHFUL


def _largest(span: Span) -> str:
    return named(span.name, "weight_packed" if isinstance(span.codec, Packed) else "weight")


def _floats(window: Window, factors: Factors, checkpoint: Reader, base: Reader) -> Measured:
    """Hold floats against the base's times factors, rounded some times; those that are the base's own are named.

    AutoAWQ leaves a router as it is, whatever it does to the norm before it.
    """
    span, start, size = window.span, window.first, window.last - window.first
    theirs, ours = checkpoint.tensors[span.name], base.tensors[span.base]
    held, bits = ITEM_BITS[ours.spec.dtype], ITEM_BITS[theirs.spec.dtype]
    data = np.empty(size // (held // 8) * (bits // 8), np.uint8)
    origin = np.empty(size, np.uint8)
    checkpoint.read(theirs, start * bits // held, data.data)
    base.read(ours, Spec(ours.spec.dtype, (span.first, span.columns)).nbytes + start, origin.data)
    found, own = (
        widen(each.view(f"<u{wide // 8}"), dtype)
        for each, wide, dtype in ((data, bits, theirs.spec.dtype), (origin, held, ours.spec.dtype))
    )
    at = start * 8 // held + np.arange(own.size)
    rows, columns = at // span.columns, at % span.columns
    with np.errstate(all="ignore"):
        wanted = (own + span.added) * factors.inputs[columns] * factors.outputs[rows]
        loose = factors.loose_inputs[columns] + factors.loose_outputs[rows]
        off = ~(np.abs(found + span.added - wanted) <= loose * np.abs(wanted) + 2 * factors.unit * span.added)
    apart = found.view(np.uint32) != converted(own, ours.spec.dtype, theirs.spec.dtype).view(np.uint32)
    note = Finding("not modelled", span.name, detail="the base's, and not scaled as what is before it")
    left = (note, *_unlike(span, apart, at, theirs.spec, "not the base's, as others are"))
    scaled = tuple(_unlike(span, off, at, theirs.spec, "not the base's, scaled as what is beside it is"))
    return Measured({SCALED: scaled, COPIED if theirs.spec.dtype == ours.spec.dtype else CONVERTED: left})


def _unlike(span: Span, bad: Array, at: Array, spec: Spec, told: str) -> Iterator[Finding]:
    """Yield a finding about the numbers that are `bad`, of those that lie `at` some places of a tensor."""
    if count := int(np.count_nonzero(bad)):
        index = tuple(int(each) for each in np.unravel_index(int(at[bad.argmax()]), spec.shape))
        yield Finding("not the base's weights", span.name, count, index, told)


def settled(some: Iterable[Measured]) -> tuple[str, tuple[Finding, ...]]:
    """Return how a layer with factors was made, from all its windows, and what is found in it."""
    measured = merge(some)
    way = next((way for way in measured.findings if way != NEAR), NEAR)
    found = measured.findings[way]
    if way == NEAR or sum(each.count for each in found) <= FEW * measured.counts.codes:
        return way, tuple(found)
    return NEAR, tuple(measured.findings[NEAR])
