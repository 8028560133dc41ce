"""What a layer has in a checkpoint: its tensors by suffix, read by outputs, as its codec says that they lie."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from requant.check.findings import Finding
from requant.check.reader import Reader
from requant.check.spans import Span
from requant.checkpoint.safetensors import ITEM_BITS, Spec
from requant.formats.codec import Array, Codec, Part, named

NUMPY: Mapping[str, str] = {
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "U8"), "u1"),
    "BF16": "<u2",
    "F16": "<f2",
    "F32": "<f4",
    "I8": "i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
    "U16": "<u2",
    "U32": "<u4",
    "U64": "<u8",
}
"""What numpy calls the dtypes of files; bits, where it has none."""


@dataclass(frozen=True)
class Stored:
    """The codec of a layer, the tensors it has by suffix, and the dtype of its base."""

    codec: Codec
    parts: Mapping[str, Part]
    dtype: str

    @classmethod
    def of(cls, span: Span, checkpoint: Reader, base: Reader) -> "Stored":
        """Return what a traced layer has; TypeError for one without a codec."""
        if (codec := span.codec) is None:
            raise TypeError(f"{span.name} has no codec")
        dtype = span.dtype or base.tensors[span.base].spec.dtype
        parts = codec.parts(span.last - span.first, span.columns, dtype)
        for suffix, part in parts.items():
            if not part.sized:
                parts = {
                    **parts,
                    suffix: replace(part, spec=checkpoint.tensors[named(span.name, suffix)].spec, every=0),
                }
        return cls(codec, parts, dtype)

    @property
    def codes(self) -> str:
        """The suffix of the largest tensor."""
        return max(self.parts, key=lambda suffix: self.parts[suffix].spec.nbytes)

    def nbytes(self, rows: int, share: float) -> int:
        """Return how many bytes a share of the layer's rows is, on both sides."""
        both = [part.spec.nbytes for part in self.parts.values()]
        return round(share * (sum(both) + Spec(self.dtype, (rows,)).nbytes))


def tensors(span: Span, held: Stored, checkpoint: Reader, first: int, last: int) -> dict[str, Array]:
    """Read what a layer's tensors have of some outputs."""
    rows = span.last - span.first
    return {
        suffix: read_part(checkpoint, named(span.name, suffix), part, rows, first, last)
        for suffix, part in held.parts.items()
    }


def begins(part: Part, rows: int, first: int) -> int:
    """Return the element of a tensor at which an output's share begins."""
    if not part.every:
        return 0
    return first // part.every * part.share(rows)


def read_part(checkpoint: Reader, name: str, part: Part, rows: int, first: int, last: int) -> Array:
    """Read the share of a tensor that belongs to some outputs of `rows`, as it lies: its first axis cut, or flat."""
    place = checkpoint.tensors[name]
    start = begins(part, rows, first)
    stop = min(place.spec.size, begins(part, rows, last + part.every - 1)) if part.every else place.spec.size
    stop = place.spec.size if last >= rows else stop
    bits = ITEM_BITS[place.spec.dtype]
    data = np.empty((stop - start) * bits // 8, np.uint8)
    checkpoint.read(place, start * bits // 8, data.data)
    values = data.view(NUMPY[place.spec.dtype])
    shape = part.spec.shape
    if not part.every:
        return values.reshape(place.spec.shape)
    lined = shape and (part.lines > 1 or shape[0] == -(-rows // part.every))
    return values.reshape(-1, *(shape[1:] if lined else (part.share(rows),)))


def shown(values: Array, at: int) -> str:
    """Return an element as people read it: floats in digits, all else as it is stored."""
    value = values.reshape(-1)[at]
    return f"{float(value):.9g}" if values.dtype.kind == "f" else f"{int(value):#x}"


def fixed(span: Span, held: Stored, checkpoint: Reader) -> Iterator[Finding]:
    """Yield the tensors that do not say what the shape of the weight gives."""
    rows = span.last - span.first
    for suffix, part in held.parts.items():
        if part.accepts:
            text = read_part(checkpoint, named(span.name, suffix), replace(part, every=0), rows, 0, rows)
            if not part.accepts(text):
                yield Finding("declared otherwise", named(span.name, suffix), detail="it cannot be this weight's")
        if (wanted := part.holds) is None:
            continue
        found = read_part(checkpoint, named(span.name, suffix), replace(part, every=0), rows, 0, rows)
        if found.tobytes() != np.ascontiguousarray(wanted, found.dtype).tobytes():
            apart = found.reshape(-1) != np.ascontiguousarray(wanted, found.dtype).reshape(-1)
            index = tuple(int(each) for each in np.unravel_index(int(apart.argmax()), found.shape))
            detail = f"{shown(found, int(apart.argmax()))}, expected {shown(wanted, int(apart.argmax()))}"
            yield Finding("declared otherwise", named(span.name, suffix), int(np.count_nonzero(apart)), index, detail)
