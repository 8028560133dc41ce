"""The GGUF file format, read by its header; no tensor is decoded here.

Format: docs/gguf.md of ggml 0.15.3, versions 2 and 3, little-endian: magic, version, two counts, key-values, tensor
infos, and the data from the next multiple of `general.alignment`. Like ggml's own `gguf_init_from_file`, this reader
demands that tensors follow one another in the order of their infos, each from such a multiple, so that every byte
belongs to the header, to padding or to exactly one tensor.

The reader of the package `gguf` is a witness in tests, not what reads here: it makes an array of every element of
every list (a quarter of a million tokens, and as many merges), trusts the counts that a file states, and fails on
damaged files in whatever way numpy happens to.
"""

import math
import reprlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from requant.checkpoint.safetensors import Spec, Stretch
from requant.errors import CheckpointError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
MAX_HEADER_BYTES = 1 << 26
"""Four times the header of a model of 262,144 tokens with their merges."""
MAX_TENSORS = 65_536
"""A dozen times the tensors of the deepest known model: experts of a layer share one."""
MAX_KEYS = 4096
"""A hundred times as many key-values as files have."""
MAX_NAME = 63
"""Bytes of a tensor's name: `GGML_MAX_NAME` counts the zero at its end."""
MAX_DIMS = 4
MAX_KEPT = 4096
"""Lists of numbers that are longer are left where they are, and so is every list of strings."""


@dataclass(frozen=True, slots=True)
class BlockType:
    """How ggml stores numbers: so many `elements` of a row, one after the other, in so many bytes."""

    name: str
    elements: int = 1
    nbytes: int = 1


TYPES: Mapping[int, BlockType] = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2),
    2: BlockType("Q4_0", 32, 18),
    3: BlockType("Q4_1", 32, 20),
    6: BlockType("Q5_0", 32, 22),
    7: BlockType("Q5_1", 32, 24),
    8: BlockType("Q8_0", 32, 34),
    10: BlockType("Q2_K", 256, 84),
    11: BlockType("Q3_K", 256, 110),
    12: BlockType("Q4_K", 256, 144),
    13: BlockType("Q5_K", 256, 176),
    14: BlockType("Q6_K", 256, 210),
    15: BlockType("Q8_K", 256, 292),
    16: BlockType("IQ2_XXS", 256, 66),
    17: BlockType("IQ2_XS", 256, 74),
    18: BlockType("IQ3_XXS", 256, 98),
    19: BlockType("IQ1_S", 256, 50),
    20: BlockType("IQ4_NL", 32, 18),
    21: BlockType("IQ3_S", 256, 110),
    22: BlockType("IQ2_S", 256, 82),
    23: BlockType("IQ4_XS", 256, 136),
    24: BlockType("I8", 1, 1),
    25: BlockType("I16", 1, 2),
    26: BlockType("I32", 1, 4),
    27: BlockType("I64", 1, 8),
    28: BlockType("F64", 1, 8),
    29: BlockType("IQ1_M", 256, 56),
    30: BlockType("BF16", 1, 2),
    34: BlockType("TQ1_0", 256, 54),
    35: BlockType("TQ2_0", 256, 66),
    39: BlockType("MXFP4", 32, 17),
    40: BlockType("NVFP4", 64, 36),
    41: BlockType("Q1_0", 128, 18),
}
"""By the number that files have: `enum ggml_type` of ggml 0.15.3, and a test asks the package `gguf`.

Q8_1 is left out: it is never stored, and the package errs about its size.
"""
BLOCKS: Mapping[str, BlockType] = {each.name: each for each in TYPES.values()}

Value = bool | int | float | str | tuple[bool | int | float, ...]
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""`struct`'s letters of GGUF's types of numbers."""
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a file: its type's name, its shape in elements, outermost first, and where its bytes lie."""

    type: str
    shape: tuple[int, ...]
    stretch: Stretch

    @property
    def spec(self) -> Spec:
        """What it is among safetensors' dtypes: blocks are U8, as many in a row as it has bytes."""
        block = BLOCKS[self.type]
        if block.elements == 1:
            return Spec(self.type, self.shape)
        return Spec("U8", (*self.shape[:-1], self.shape[-1] // block.elements * block.nbytes))


@dataclass(frozen=True, slots=True)
class Long:
    """A list in the header of a file: the number of its type, how many values it has, and its bytes."""

    kind: int
    count: int
    stretch: Stretch

    def read(self) -> list[str] | list[int | float]:
        """Return the values. Raises CheckpointError where the file is not as it was."""
        with self.stretch.path.open("rb") as file:
            file.seek(self.stretch.start)
            data = file.read(self.stretch.stop - self.stretch.start)
        try:
            if self.kind != _STRING:
                return [*struct.unpack(f"<{self.count}{_NUMBERS[self.kind]}", data)]
            texts, at = [], 0
            for _ in range(self.count):
                (size,) = struct.unpack_from("<Q", data, at)
                texts.append(data[at + 8 : at + 8 + size].decode("utf-8", "surrogateescape"))
                at += 8 + size
        except struct.error as error:
            raise CheckpointError(f"{self.stretch.path}: changed while it was read: {error}") from None
        return texts


@dataclass(frozen=True, slots=True)
class Gguf:
    """A file's key-values, of which long lists stand apart, and its tensors in the order of their bytes."""

    values: Mapping[str, Value]
    lists: Mapping[str, Long]
    tensors: Mapping[str, Tensor]


def read_gguf(path: Path) -> Gguf:
    """Return what the header of a file on disk says. Raises CheckpointError for anything but a complete file."""
    try:
        with path.open("rb") as file:
            return parse_gguf(path, file, path.stat().st_size)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None


def parse_gguf(path: Path, file: BinaryIO, size: int) -> Gguf:
    """Return what is read from the start of a `file` of `size` bytes, in time and memory bounded by its header.

    `path` only names it. Raises CheckpointError as `read_gguf` does; of the data, no byte is read.
    """
    try:
        return _parse(path, _Reader(path, file, min(size, MAX_HEADER_BYTES)), size)
    except ValueError as error:
        told = f"{path}: not a readable GGUF file: {error}"
        raise CheckpointError(told, "Download or build this file again.") from None


class _Reader:
    """Reads a header from its start; what it states is never believed beyond the bytes that are there."""

    def __init__(self, path: Path, file: BinaryIO, limit: int) -> None:
        self.path, self.file, self.limit, self.at = path, file, limit, 0

    def take(self, count: int) -> bytes:
        if count > self.limit - self.at:
            raise ValueError(f"its header asks for {count:,} bytes at byte {self.at:,}, beyond byte {self.limit:,}")
        data = self.file.read(count)
        if len(data) != count:
            raise ValueError(f"it ends within its header, at byte {self.at + len(data):,}")
        self.at += count
        return data

    def number(self, letter: str) -> int:
        return int(struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}")))[0])

    def string(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "strict")

    def value(self) -> Value | Long:
        kind = self.number("I")
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array(self.number("I"), self.number("Q"))
        return self._numbers(kind, 1)[0]

    def _array(self, kind: int, count: int) -> tuple[bool | int | float, ...] | Long:
        start = self.at
        if kind == _STRING:
            if count > (self.limit - self.at) // 8:
                raise ValueError(f"it states a list of {count:,} strings, more than its header can hold")
            length = struct.Struct("<Q").unpack
            for _ in range(count):
                self.take(length(self.take(8))[0])
            return Long(kind, count, Stretch(self.path, start, self.at))
        if count > MAX_KEPT and kind in _NUMBERS:
            self.take(count * struct.calcsize(f"<{_NUMBERS[kind]}"))
            return Long(kind, count, Stretch(self.path, start, self.at))
        return self._numbers(kind, count)

    def _numbers(self, kind: int, count: int) -> tuple[bool | int | float, ...]:
        if kind not in _NUMBERS:
            raise ValueError(f"a value has the unknown type {kind}")
        letter = _NUMBERS[kind]
        return struct.unpack(f"<{count}{letter}", self.take(count * struct.calcsize(f"<{letter}")))


def _parse(path: Path, reader: _Reader, size: int) -> Gguf:
    if (magic := reader.take(4)) != MAGIC:
        raise ValueError(f"it starts with {magic!r}, expected {MAGIC!r}")
    if (version := reader.number("I")) not in VERSIONS:
        large = version != 0 and version % 65536 == 0
        raise ValueError(f"its version is {version}, {'big-endian' if large else 'expected 2 or 3'}")
    tensors, keys = reader.number("Q"), reader.number("Q")
    if tensors > MAX_TENSORS:
        raise ValueError(f"it states {tensors:,} tensors, requant reads {MAX_TENSORS:,} at most")
    if keys > MAX_KEYS:
        raise ValueError(f"it states {keys:,} key-values, requant reads {MAX_KEYS:,} at most")
    values: dict[str, Value | Long] = {}
    for _ in range(keys):
        key = reader.string()
        if not key.isprintable() or key in values:
            raise ValueError(f"{reprlib.repr(key)} is {'there twice' if key in values else 'no key'}")
        values[key] = reader.value()
    alignment = values.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"its alignment is {reprlib.repr(alignment)}, expected a power of two")
    infos = [_info(reader) for _ in range(tensors)]
    start = end = -(-reader.at // alignment) * alignment
    found: dict[str, Tensor] = {}
    for name, block, shape, offset in infos:
        if name in found:
            raise ValueError(f"tensor {name!r} is there twice")
        begin = -(-end // alignment) * alignment
        if offset != begin - start:
            raise ValueError(f"tensor {name!r} starts at byte {offset:,} of the data, expected {begin - start:,}")
        end = begin + math.prod(shape) // block.elements * block.nbytes
        found[name] = Tensor(block.name, shape, Stretch(path, begin, end))
    if tensors and not end <= size <= -(-end // alignment) * alignment:
        raise ValueError(f"its tensors end at byte {end:,}, the file at byte {size:,}")
    lists = {key: value for key, value in values.items() if isinstance(value, Long)}
    return Gguf({key: value for key, value in values.items() if not isinstance(value, Long)}, lists, found)


def _info(reader: _Reader) -> tuple[str, BlockType, tuple[int, ...], int]:
    name = reader.string()
    if not (name and name.isprintable() and len(name.encode()) <= MAX_NAME):
        raise ValueError(f"{reprlib.repr(name)} is no name for a tensor")
    if (dims := reader.number("I")) > MAX_DIMS:
        raise ValueError(f"tensor {name!r} has {dims:,} dimensions, expected {MAX_DIMS} at most")
    shape = tuple(reader.number("Q") for _ in range(dims))[::-1]
    kind, offset = reader.number("I"), reader.number("Q")
    if kind not in TYPES:
        raise ValueError(f"tensor {name!r} has the unknown type {kind}")
    if not 0 < math.prod(shape) < 1 << 63:
        raise ValueError(f"tensor {name!r} has the shape {list(shape)}, expected 1 to 2^63 - 1 elements")
    block = TYPES[kind]
    if (shape[-1] if shape else 1) % block.elements:
        raise ValueError(f"tensor {name!r} has rows of {shape[-1] if shape else 1:,}, no multiple of {block.elements}")
    return name, block, shape, offset
