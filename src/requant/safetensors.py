"""The safetensors file format, read by header; no tensor is ever decoded here. `checkpoint` writes it.

Format: README of safetensors 0.7.0, section "Format": eight bytes, the header's length, little-endian; that
many bytes of JSON; then the data. This reader is stricter than the format asks: tensors must fill the data
without hole or overlap, so that every byte of the file belongs to the header or to exactly one tensor.
"""

import math
import reprlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from requant.digest import file_chunks, strict_json
from requant.errors import CheckpointError

ITEM_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2}
ITEM_BYTES |= {"I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8}
MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library (`MAX_HEADER_SIZE`)."""


@dataclass(frozen=True)
class Spec:
    """What a tensor is, without its values: safetensors dtype name, and shape in elements."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.size * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Stretch:
    """The bytes `start` to `stop` of a file."""

    path: Path
    start: int
    stop: int

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes in bounded pieces; raise CheckpointError where they cannot be read, or are gone."""
        left = self.stop - self.start
        try:
            for chunk in file_chunks(self.path, self.start, self.stop):
                left -= len(chunk)
                yield chunk
        except OSError as error:
            raise CheckpointError(f"{self.path}: {error.strerror}") from None
        if left:
            raise CheckpointError(f"{self.path}: {left} bytes fewer than its header promised a moment ago")


def read_header(path: Path) -> tuple[dict[str, tuple[Spec, Stretch]], dict[str, str]]:
    """Return a file's tensors, ordered by offset, and its metadata.

    Raises CheckpointError for anything that is not a complete safetensors file.
    """
    try:
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))[0]
            size = path.stat().st_size
            if length > min(MAX_HEADER_BYTES, size - 8):
                raise ValueError(f"its header claims {length:,} bytes, the file has {size:,}")
            return parse_header(path, file.read(length), size)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a readable safetensors file: {error}", "Download or build this file again."
        ) from None


def parse_header(path: Path, text: bytes, size: int) -> tuple[dict[str, tuple[Spec, Stretch]], dict[str, str]]:
    """Return what the header `text` of a file of `size` bytes says, as `read_header` does; raises ValueError."""
    return _entries(path, strict_json(text), 8 + len(text), size)


def _entries(path: Path, header: Any, offset: int, size: int) -> tuple[dict[str, tuple[Spec, Stretch]], dict[str, str]]:
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its __metadata__ is not an object of strings")
    found = [(*_entry(name, entry), name) for name, entry in header.items()]
    tensors = {}
    end = 0
    for start, stop, spec, name in sorted(found, key=lambda each: (each[0], each[1], each[3])):
        if start != end:
            raise ValueError(f"tensor {name!r} starts at byte {start:,} of the data, expected {end:,}")
        tensors[name] = (spec, Stretch(path, offset + start, offset + stop))
        end = stop
    if offset + end != size:
        raise ValueError(f"its tensors end at byte {offset + end:,}, the file at byte {size:,}")
    return tensors, metadata


def _entry(name: str, entry: Any) -> tuple[int, int, Spec]:
    if not (name and name.isprintable()):
        raise ValueError(f"{name!r} is no name for a tensor")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} is not described by exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ValueError(f"tensor {name!r} has the unknown dtype {reprlib.repr(dtype)}")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        shown = f"the shape {reprlib.repr(shape)} and the offsets {reprlib.repr(offsets)}"
        raise ValueError(f"tensor {name!r} has {shown}: not lists of sizes")
    spec = Spec(dtype, tuple(shape))
    if spec.nbytes != offsets[1] - offsets[0]:
        raise ValueError(f"tensor {name!r} needs {spec.nbytes:,} bytes, its offsets span {offsets[1] - offsets[0]:,}")
    return offsets[0], offsets[1], spec


def _sizes(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) <= 64 and all(type(each) is int and 0 <= each < 2**63 for each in value)
    )
