"""The safetensors file format, read by header; no tensor is ever decoded here. `checkpoint` writes it.

Format: README of safetensors 0.8.0, section "Format": eight bytes, the header's length, little-endian; that
many bytes of JSON; then the data. This reader is stricter than the format asks: tensors must fill the data
without hole or overlap, so that every byte of the file belongs to the header or to exactly one tensor.
"""

import math
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from requant.digest import file_chunks, strict_json
from requant.errors import CheckpointError

ITEM_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E4M3FNUZ": 8, "F8_E5M2": 8, "F8_E5M2FNUZ": 8}
ITEM_BITS |= {"F8_E8M0": 8, "BF16": 16, "F16": 16, "F32": 32, "C64": 64, "F64": 64, "BOOL": 8, "I8": 8, "U8": 8}
ITEM_BITS |= {"I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64}
"""Every dtype of the format, by bits: `Dtype` in tensor.rs of safetensors 0.8.0, and a test asks the library itself.

Elements of fewer than eight bits lie close together; all of a tensor are a whole number of bytes.
"""
MAX_HEADER_BYTES = 1 << 25
"""A third of the library's limit, 100,000,000, and nearly three times the header of 100,000 tensors."""
MAX_TENSORS = 400_000
"""Tensors of one file: four times a checkpoint of Qwen3.6-35B-A3B with every expert split and packed."""
BRACKETS, QUOTES = 3, 10
"""What each tensor takes of a header: its object and two lists; quotation marks of its name, three keys and dtype."""


@dataclass(frozen=True, slots=True)
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
        """Number of bytes; a part of one counts as a whole one."""
        return -(-self.size * ITEM_BITS[self.dtype] // 8)


@dataclass(frozen=True, slots=True)
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


Header = tuple[dict[str, tuple[Spec, Stretch]], dict[str, str]]
"""A file's tensors, ordered by offset, and its metadata."""


def read_header(path: Path) -> Header:
    """Return what the header of a file on disk says. Raises CheckpointError for anything but a complete file."""
    return parse_header(path, *header_text(path))


def header_text(path: Path) -> tuple[bytes, int]:
    """Return the header of a file on disk as it stands there, and the size of the file."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            return file.read(header_length(path, file.read(8), size)), size
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None


def header_length(path: Path, first: bytes, size: int) -> int:
    """Return the length of a header from the first eight bytes of a file of `size` bytes.

    `path` only names the file in errors. Raises CheckpointError where the file is shorter, or more than is read.
    """
    length = int.from_bytes(first.ljust(8, b"\xff"), "little")
    if length > size - 8:
        raise _unreadable(path, f"its header claims {length:,} bytes, the file has {size:,}")
    if length > MAX_HEADER_BYTES:
        told = f"{path}: its header claims {length:,} bytes, requant reads {MAX_HEADER_BYTES:,} at most"
        raise CheckpointError(told, TOO_LARGE)
    return length


def parse_header(path: Path, text: bytes, size: int) -> Header:
    """Return what the header `text` of a file of `size` bytes says, as `read_header` does."""
    require_plausible(path, text)
    try:
        return _entries(path, strict_json(text), 8 + len(text), size)
    except ValueError as error:
        raise _unreadable(path, error) from None


def require_plausible(path: Path, text: bytes) -> None:
    """Raise CheckpointError for a header of more than `MAX_TENSORS`, or of so many other things, before it is parsed.

    Parsed JSON takes up to thirty times the memory of its text; what is counted here bounds it.
    """
    brackets, quotes = text.count(b"{") + text.count(b"["), text.count(b'"')
    if (count := max(brackets // BRACKETS, quotes // QUOTES)) > MAX_TENSORS:
        told = f"{path}: its header is as long as one of {count:,} tensors, requant reads {MAX_TENSORS:,} at most"
        raise CheckpointError(told, TOO_LARGE)


TOO_LARGE = "No checkpoint that is known has so many tensors in one file: split it, or look at who made it."


def _unreadable(path: Path, fault: object) -> CheckpointError:
    told = f"{path}: not a readable safetensors file: {fault}"
    return CheckpointError(told, "Download or build this file again.")


def _entries(path: Path, header: Any, offset: int, size: int) -> Header:
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its __metadata__ is not an object of strings")
    same: dict[Spec, Spec] = {}  # tens of thousands of tensors have a few dozen shapes
    found = [(*_entry(name, header.pop(name), same), name) for name in list(header)]
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


def _entry(name: str, entry: Any, same: dict[Spec, Spec]) -> tuple[int, int, Spec]:
    if not (name and name.isprintable()):
        raise ValueError(f"{name!r} is no name for a tensor")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} is not described by exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BITS:
        raise ValueError(f"tensor {name!r} has the unknown dtype {reprlib.repr(dtype)}")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        shown = f"the shape {reprlib.repr(shape)} and the offsets {reprlib.repr(offsets)}"
        raise ValueError(f"tensor {name!r} has {shown}: not lists of sizes")
    spec = Spec(dtype, tuple(shape))
    spec = same.setdefault(spec, spec)
    if spec.size * ITEM_BITS[dtype] % 8:
        raise ValueError(f"tensor {name!r} has {spec.size:,} elements of {ITEM_BITS[dtype]} bits: no whole bytes")
    if spec.nbytes != offsets[1] - offsets[0]:
        raise ValueError(f"tensor {name!r} needs {spec.nbytes:,} bytes, its offsets span {offsets[1] - offsets[0]:,}")
    return offsets[0], offsets[1], spec


def _sizes(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) <= 64 and all(type(each) is int and 0 <= each < 2**63 for each in value)
    )
