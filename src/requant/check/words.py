"""Reading rows of layers in GPTQ's and AWQ's words: codes, scales, zero points, and the order of inputs."""

import threading
from math import prod
from typing import Any

import numpy as np

from requant.check.packed import Packed
from requant.check.reader import Reader
from requant.check.spans import Span, Window
from requant.check.weights import read_weights
from requant.checkpoint.safetensors import Spec
from requant.formats import ORDER as INDEX
from requant.formats import PACKED, Packing, gptq
from requant.formats.awq import ORDER
from requant.rounding.kernels import along_inputs, along_outputs, extremes
from requant.rounding.reach import Array

CHUNK = 3 << 20
"""Bytes of zero points read at once: whole words of any width of codes."""


class Scratch(threading.local):
    """A thread's own buffers, used again for every window."""

    def __init__(self) -> None:
        self.buffers: dict[str, Array] = {}
        self.taken: dict[tuple[Any, ...], Array] = {}

    def take(self, name: str, dtype: Any, *shape: int) -> Array:
        """Return an array of undefined content."""
        if (taken := self.taken.get((name, dtype, shape))) is not None:
            return taken
        size = prod(shape) * np.dtype(dtype).itemsize
        if name not in self.buffers or self.buffers[name].size < size:
            self.buffers[name] = np.empty(size, np.uint8)
            self.taken = {key: each for key, each in self.taken.items() if key[0] != name}
        made: Array = self.buffers[name][:size].view(dtype).reshape(shape)
        self.taken[name, dtype, shape] = made
        return made


scratch = Scratch()


def read_packed(window: Window, packing: Packing, checkpoint: Reader, base: Reader) -> Packed:
    """Read a window of a packed layer, and decode it."""
    span, first, rows = window.span, window.first, window.last - window.first
    weights = read_weights(base, span, first, rows, scratch.take)
    codes, stored, scales = read_words(window, packing, checkpoint)
    if (order := together(checkpoint, span)) is not None:
        weights, codes = (np.take(each, order, axis=1) for each in (weights, codes))
    low, high = (scratch.take(name, np.int32, packing.groups, rows) for name in ("low", "high"))
    extremes(weights, span.group, low, high)
    ends = low.view(np.float32), high.view(np.float32)
    used = np.full_like(stored, packing.middle) if span.symmetric else stored
    return Packed(span, packing, first, weights, codes, used, stored, scales, *ends)


def read_words(window: Window, packing: Packing, checkpoint: Reader) -> tuple[Array, Array, Array]:
    """Read what is stored of a window: codes uint8 [rows, columns], zero points int32, scales float16 [groups, rows].

    Columns are in the order of the file; what is returned lies in the thread's buffers.
    """
    span, first, rows = window.span, window.first, window.last - window.first
    words, points, scale = (f"{span.name}.{suffix}" for suffix in PACKED)
    codes, zeros = scratch.take("codes", np.uint8, rows, span.columns), np.empty((packing.groups, rows), np.uint8)
    packed = first * packing.bits // 32, rows * packing.bits // 32
    stored = _columns(checkpoint, points, "<u4", *packed)
    if packing.layout == "awq":
        along_outputs(_columns(checkpoint, words, "<u4", *packed), ORDER, codes)
        along_outputs(stored, ORDER, zeros.T)
    else:
        along_inputs(_columns(checkpoint, words, "<u4", first, rows), packing.bits, codes)
        along_inputs(np.ascontiguousarray(stored.T), packing.bits, zeros)
    scales = _columns(checkpoint, scale, "<f2", first, rows)
    return codes, np.add(zeros, span.less, dtype=np.int32), scales


def together(checkpoint: Reader, span: Span) -> Array | None:
    """Return the inputs of a layer group by group, int64 [columns]; None where they lie so."""
    groups = _groups(checkpoint, span) if span.shuffled else None
    return None if groups is None else np.argsort(groups, kind="stable")


def symmetric(checkpoint: Reader, span: Span, packing: Packing) -> bool:
    """Say whether every zero point of a packed layer is in the middle; reads until one is not."""
    place = checkpoint.tensors[f"{span.name}.qzeros"]
    word = gptq.constant(packing.middle - span.less, packing.bits).view(np.uint32)
    size = place.stop - place.start
    for start in range(0, size, CHUNK):
        words = np.empty(min(CHUNK, size - start) // 4, "<u4")
        checkpoint.read(place, start, words.view(np.uint8).data)
        if (words.reshape(-1, len(word)) != word).any():
            return False
    return True


def shuffled(checkpoint: Reader, span: Span, moved: bool) -> bool | None:
    """Say whether a layer's groups are of inputs that are not side by side; None where that cannot be told.

    Without a tensor that says so they are side by side, unless the configuration says that inputs were `moved`.
    """
    if f"{span.name}.{INDEX}" not in checkpoint.tensors:
        return None if moved else False
    stated = _groups(checkpoint, span)
    if stated is None or (np.sort(stated) != np.arange(span.columns) // span.group).any():
        return None
    return bool((np.diff(stated) < 0).any())


def _groups(checkpoint: Reader, span: Span) -> Array | None:
    """Return the group of each input, int32 [columns]; None where the tensor is of another shape or dtype."""
    place = checkpoint.tensors[f"{span.name}.{INDEX}"]
    if place.spec != Spec("I32", (span.columns,)):
        return None
    stated = np.empty(span.columns, "<i4")
    checkpoint.read(place, 0, stated.view(np.uint8).data)
    return stated


def _columns(source: Reader, name: str, dtype: str, first: int, count: int) -> Array:
    """Return columns of a two-dimensional tensor, [rows, count]; in one read where they are all of them."""
    place = source.tensors[name]
    rows, columns = place.spec.shape
    item = np.dtype(dtype).itemsize
    into = scratch.take(name.rpartition(".")[2], dtype, rows, count)
    if count == columns:
        source.read(place, 0, into.reshape(-1).view(np.uint8).data)
        return into
    for row in range(rows):
        source.read(place, (row * columns + first) * item, into[row].view(np.uint8).data)
    return into
