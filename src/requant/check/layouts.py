"""Layers whose tensors have the same shapes in two layouts: which of them it is, their numbers say.

Codes of 3, 5, 6 and 7 bits of compressed-tensors are such, where rows are short: 40 codes of 3 bits are 4 words as one
stream, and with whole codes in each word. Read in the wrong layout they are noise, so the first rows are decoded in
both, and the base is near to one of them.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from requant.check.reader import Reader
from requant.check.recomputed import Stored, squares, tensors
from requant.check.spans import Span
from requant.check.weights import as_floats, read_weights
from requant.formats.codec import Array
from requant.formats.declarations import forms

ROWS = 64
"""Outputs that are decoded, at least where a layer has so many."""


def settled(spans: Sequence[Span], checkpoint: Reader, base: Reader) -> list[Span]:
    """Return spans, of each whose layout shapes do not tell the one that is nearest to the base."""
    return [_nearest(span, checkpoint, base) if span.codec else span for span in spans]


def _nearest(span: Span, checkpoint: Reader, base: Reader) -> Span:
    if span.codec is None or len(some := forms(span.codec)) == 1:
        return span
    rows, dtype = span.last - span.first, span.dtype or base.tensors[span.base].spec.dtype
    shapes = [{suffix: part.spec for suffix, part in each.parts(rows, span.columns, dtype).items()} for each in some]
    alike = [each for each, shape in zip(some, shapes, strict=True) if shape == shapes[some.index(span.codec)]]
    if len(alike) == 1:
        return span
    most = base.tensors[span.base].spec.shape[-1] if span.transposed else rows  # experts lie apart
    last = min(most, max(-(-ROWS // each.align) * each.align for each in alike))
    weights = as_floats(read_weights(base, span, 0, last))
    tried = [replace(span, codec=each) for each in alike]
    return min(tried, key=lambda each: _missed(each, last, weights, checkpoint, base))


def _missed(span: Span, last: int, weights: Array, checkpoint: Reader, base: Reader) -> float:
    held = Stored.of(span, checkpoint, base)
    with np.errstate(all="ignore"):
        decoded = held.codec.decode(tensors(span, held, checkpoint, 0, last), span.columns)
    missed, whole = squares(decoded, weights)
    return float(np.where(np.isfinite(missed), missed, whole).sum())
