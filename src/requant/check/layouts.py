"""Layers of which shapes do not tell the layout: what they hold does, read in rows, beside the base's.

Codes of 3, 5, 6 and 7 bits of compressed-tensors have the same shapes as one stream and as whole codes in each word
where rows are short: 40 codes of 3 bits are 4 words. bitsandbytes' int8 says that its numbers lie in tiles, and a byte
of it may be wrong. Read in the wrong layout they are noise.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from requant.check.distance import squares
from requant.check.reader import Reader
from requant.check.spans import Span
from requant.check.stored import Stored, tensors
from requant.check.weights import as_floats, read_weights
from requant.formats.bitsandbytes import TILED, TILES, Int8
from requant.formats.codec import named
from requant.formats.declarations import forms

ROWS = 64
"""Outputs that are decoded, at least where a layer has so many."""


def settled(spans: Sequence[Span], checkpoint: Reader, base: Reader) -> list[Span]:
    """Return spans, of each whose layout shapes do not tell the one that is nearest to the base.

    Those in a layout that is not modelled are marked so.
    """
    return [_settled(span, checkpoint, base) for span in spans]


def _settled(span: Span, checkpoint: Reader, base: Reader) -> Span:
    if isinstance(span.codec, Int8):
        return _in_rows(span, checkpoint, base)
    if span.codec is None or len(some := [*dict.fromkeys(forms(span.codec))]) == 1:
        return span
    rows, dtype = span.last - span.first, span.dtype or base.tensors[span.base].spec.dtype
    shapes = [{suffix: part.spec for suffix, part in each.parts(rows, span.columns, dtype).items()} for each in some]
    own = shapes[some.index(span.codec)]
    alike = [replace(span, codec=each) for each, shape in zip(some, shapes, strict=True) if shape == own]
    if len(alike) == 1:
        return span
    return min(alike, key=lambda each: _share(each, checkpoint, base))


def _in_rows(span: Span, checkpoint: Reader, base: Reader) -> Span:
    """Return a layer of int8 as it is where its numbers lie in rows, whatever it says."""
    place, said = checkpoint.tensors[named(span.name, TILES)], np.empty(1, np.uint8)
    checkpoint.read(place, 0, said.data)
    order = TILED.get(int(said[0]))
    if order is None or _share(span, checkpoint, base) < 1 / 2:
        return span
    told = f"bitsandbytes int8: {TILES} {said[0]}, {order}: numbers in tiles, as up to 0.44"
    return replace(span, codec=None, unmodelled=told)


def _share(span: Span, checkpoint: Reader, base: Reader) -> float:
    """Return by how much the first rows of a layer miss the base's, as a share of these; 1 is what zeros miss."""
    held, rows = Stored.of(span, checkpoint, base), span.last - span.first
    most = base.tensors[span.base].spec.shape[-1] if span.transposed else rows  # experts lie apart
    last = min(most, -(-ROWS // held.codec.align) * held.codec.align)
    weights = as_floats(read_weights(base, span, 0, last))
    with np.errstate(all="ignore"):
        decoded = held.codec.decode(tensors(span, held, checkpoint, 0, last), span.columns)
    both = squares(decoded, weights)
    known = np.isfinite(both[0]) & np.isfinite(both[1])
    missed, whole = (float(np.where(known, each, 1).sum()) for each in both)
    return missed / whole if whole else missed
