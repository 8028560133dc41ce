"""Rows of a base's weight as kernels take them: BF16 as it lies, and everything else as float32."""

from collections.abc import Callable
from typing import Any

import numpy as np

from requant.check.reader import Reader
from requant.check.spans import Span
from requant.checkpoint.safetensors import ITEM_BITS
from requant.formats.codec import Array, converted, narrow, widen

Take = Callable[..., Array]
"""Gives an array of undefined content for a name, a dtype and a shape."""


def fresh(_: str, dtype: Any, *shape: int) -> Array:
    """Return a new array, whatever its name."""
    return np.empty(shape, dtype)


def read_weights(base: Reader, span: Span, first: int, rows: int, take: Take = fresh) -> Array:
    """Return rows of the base's weight, from a span's row `first` on: bits of BF16, uint16, or of float32, uint32.

    They are [rows, columns]. A span that is `narrowed` has the base's numbers rounded to BF16.
    """
    place = base.tensors[span.base]
    dtype, item = place.spec.dtype, ITEM_BITS[place.spec.dtype] // 8
    kind = f"<u{item}"
    read = take("weights", kind, rows, span.columns)
    if span.transposed:
        outputs = place.spec.shape[-1]
        expert, begin = divmod(span.first + first, outputs)
        columns = take("columns", kind, span.columns, rows)
        for column in range(span.columns):
            start = (expert * span.columns + column) * outputs + begin
            base.read(place, item * start, columns[column].view(np.uint8).data)
        read[:] = columns.T
    else:
        base.read(place, item * span.columns * (span.first + first), read.reshape(-1).view(np.uint8).data)
    if span.heads:
        read = in_pairs(read, span)
    if dtype == "BF16":
        return read
    wide = widen(read, dtype)
    return narrow(wide, "BF16") if span.narrowed else wide.view(np.uint32)


def in_pairs(rows: Array, span: Span) -> Array:
    """Return whole heads of rows in the order of llama.cpp: row j of a head's d beside row j + d/2."""
    pairs = rows.reshape(-1, 2, (span.last - span.first) // span.heads // 2, span.columns).swapaxes(1, 2)
    return np.ascontiguousarray(pairs).reshape(rows.shape)


def returned(values: Array, added: int, dtype: str) -> Array:
    """Return float32 numbers to which a number was added, and taken off again, rounded to a dtype each time."""
    return converted(converted(values + np.float32(added), "F32", dtype) - np.float32(added), "F32", dtype)


def as_floats(weights: Array) -> Array:
    """Return what `read_weights` returns as the float32 numbers that they are."""
    return widen(weights, "BF16" if weights.dtype == np.uint16 else "F32")
