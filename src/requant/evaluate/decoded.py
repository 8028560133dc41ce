"""Rows of a checkpoint's layers as the numbers that they stand for: what formats decode, and floats as they are.

Zero points count as they are stored, whatever kernels make of them that go by `sym` alone.
"""

from collections.abc import Iterator

import numpy as np

from requant.check import WEIGHTS, windows_of
from requant.check.reader import Reader
from requant.check.spans import Span, Window
from requant.check.stored import Stored, tensors
from requant.check.words import read_words, together
from requant.checkpoint.safetensors import ITEM_BITS
from requant.errors import CheckpointError
from requant.formats.codec import FLOATS, Array, Integers, widen


def windows(span: Span, checkpoint: Reader, base: Reader) -> Iterator[Window]:
    """Yield rows of a piece that are decoded together: some 20 MB, or one head."""
    if span.quantized:
        yield from windows_of([span], None, checkpoint, base, False)
        return
    rows = span.last - span.first
    step = rows if span.heads else max(1, WEIGHTS // max(1, span.columns))
    for first in range(0, rows, step):
        yield Window(span, first, min(rows, first + step), 0)


def decode(window: Window, checkpoint: Reader, base: Reader) -> Array:
    """Return a window float32 [rows, columns], in the order of the base.

    Of a copied tensor that has no floats it is the bytes, uint8 [rows, columns * size]. Raises CheckpointError where a
    layer of codes has a number that is not finite.
    """
    span = window.span
    if not span.quantized:
        values = _copied(window, checkpoint)
    else:
        values = _packed(window, checkpoint) if span.packing else _coded(window, checkpoint, base)
        if not np.isfinite(values).all():
            row, column = (int(each) for each in np.argwhere(~np.isfinite(values))[0])
            told = (
                f"{checkpoint.name}: {span.name}: the weight [{window.first + row}, {column}] is {values[row, column]}"
            )
            raise CheckpointError(told, "`requant check` says what is damaged.")
    return _in_halves(values, span) if span.heads else values


def _packed(window: Window, checkpoint: Reader) -> Array:
    span, packing = window.span, window.span.packing
    if packing is None:
        raise TypeError(f"{span.name} is not packed in words")
    codes, zeros, scales = read_words(window, packing, checkpoint)
    order = together(checkpoint, span)
    lying = codes if order is None else np.take(codes, order, axis=1)
    points, steps = (np.ascontiguousarray(each.T, np.float32) for each in (zeros, scales))
    values = Integers(lying, points, steps, span.group, packing.top).decode()
    if order is not None:
        back = np.empty_like(values)
        back[:, order] = values
        return back
    return values


def _coded(window: Window, checkpoint: Reader, base: Reader) -> Array:
    held = Stored.of(window.span, checkpoint, base)
    with np.errstate(all="ignore"):
        return held.codec.decode(tensors(window.span, held, checkpoint, window.first, window.last), window.span.columns)


def _copied(window: Window, checkpoint: Reader) -> Array:
    span, rows = window.span, window.last - window.first
    place = checkpoint.tensors[span.name]
    dtype = place.spec.dtype
    bits = span.columns * ITEM_BITS[dtype]
    data = np.empty(rows * bits // 8, np.uint8)
    checkpoint.read(place, window.first * bits // 8, data.data)
    if dtype not in FLOATS:
        return data.reshape(rows, -1)
    return widen(data.view(f"<u{ITEM_BITS[dtype] // 8}"), dtype).reshape(rows, span.columns)


def _in_halves(rows: Array, span: Span) -> Array:
    """Return whole heads of llama.cpp's rows in the order of the base: what `weights.in_pairs` makes, taken back."""
    halves = rows.reshape(-1, (span.last - span.first) // span.heads // 2, 2, span.columns).swapaxes(1, 2)
    return np.ascontiguousarray(halves).reshape(rows.shape)
