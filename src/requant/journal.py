"""The journal: what a tuning saw and wrote, one line per block, chained by digest. No times, no host.

The first line is the header. Every line is canonical JSON; `previous` is the SHA-256 of the line before it,
without its line end, so no line can be changed, dropped or added without changing every later one.
"""

import math
import os
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from typing import IO, Any, Self, TypeVar, get_args, get_type_hints

from requant.digest import MAX_JOURNAL, canonical_json, read_whole, sha256, strict_json
from requant.errors import CheckpointError

SCHEMA = 1
MAX_TEXT = 1024
"""Characters of the longest name: journals come from strangers, and are shown on terminals."""
Record = TypeVar("Record")


@dataclass(frozen=True)
class Header:
    """What the tuning was given, by digest: recipe values, environment, base files, calibration tokens."""

    recipe: str
    twin: str | None
    environment: str
    base: str
    calibration: str
    blocks: int


@dataclass(frozen=True)
class Loss:
    """Mean squared error of a block's output, as hexadecimal floats; iterations count from 0."""

    initial: str
    best: str
    best_iteration: int


@dataclass(frozen=True)
class Block:
    """One tuned block: digests of both input streams, Python's random state, its tensors and both outputs."""

    block: str
    inputs: Mapping[str, str]
    random_state: str
    loss: Loss
    tensors: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class Journal:
    """A whole journal, chain confirmed."""

    header: Header
    blocks: tuple[Block, ...]


class Writer:
    """Writes a journal line by line; each line is on disk before the next block begins."""

    def __init__(self, path: Path, header: Header) -> None:
        self._previous = ""
        self._file: IO[bytes] = path.open("xb")
        self._write({"schema": SCHEMA, **asdict(header)})

    @classmethod
    def reopen(cls, path: Path) -> tuple[Self, Journal]:
        """Go on with a journal that was cut off; what stands behind its last whole line is dropped.

        Raises CheckpointError where it has no whole header, or its chain is broken.
        """
        found = read_journal(path, growing=True)
        whole = read_whole(path, MAX_JOURNAL).rpartition(b"\n")[0]
        writer = cls.__new__(cls)
        writer._previous = sha256(whole.rpartition(b"\n")[2])
        writer._file = path.open("r+b")
        writer._file.truncate(len(whole) + 1)
        writer._file.seek(len(whole) + 1)
        return writer, found

    def append(self, block: Block) -> None:
        """Write one block's line."""
        self._write({"previous": self._previous, **asdict(block)})

    def _write(self, value: Mapping[str, Any]) -> None:
        line = canonical_json(value)
        self._file.write(line + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._previous = sha256(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_journal(path: Path, *, growing: bool = False) -> Journal:
    """Read a journal and confirm its chain; a `growing` one may end in the middle of a line, or lack blocks.

    Raises CheckpointError, which names the line.
    """
    try:
        data = read_whole(path, MAX_JOURNAL)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    lines = data.split(b"\n")
    if lines.pop() and not growing:
        raise CheckpointError(f"{path}: its last line has no end", "The build that wrote it was cut off.")
    header: Header | None = None
    found: list[Block] = []
    previous = ""
    for number, line in enumerate(lines, 1):
        try:
            value = strict_json(line)
            if canonical_json(value) != line:
                raise ValueError("not in canonical form: keys sorted, no white space")
            if header is None:
                header = _header(value)
            else:
                found.append(_block(value, previous))
        except ValueError as error:
            raise CheckpointError(f"{path}: line {number}: {error}") from None
        previous = sha256(line)
    if header is None:
        raise CheckpointError(f"{path}: has no header")
    if len(found) > header.blocks or (len(found) < header.blocks and not growing):
        raise CheckpointError(f"{path}: has {len(found)} blocks, its header promises {header.blocks}")
    return Journal(header, tuple(found))


def _header(value: Any) -> Header:
    schema = value.pop("schema", None) if isinstance(value, dict) else None
    if type(schema) is not int or schema != SCHEMA:
        raise ValueError(f"not the header of a journal of schema {SCHEMA}")
    header = _record(Header, value)
    if not 0 < header.blocks < 10**6:
        raise ValueError(f"blocks: found {reprlib.repr(header.blocks)}, expected a count")
    return header


def _block(value: Any, previous: str) -> Block:
    if not isinstance(value, dict) or value.pop("previous", None) != previous:
        raise ValueError("does not follow from the line before it: a line was changed, dropped or added")
    block = _record(Block, value)
    for loss in (block.loss.initial, block.loss.best):
        if not _finite(loss):
            raise ValueError(f"loss: found {reprlib.repr(loss)}, expected a finite number as float.hex writes it")
    return block


def _finite(text: str) -> bool:
    try:
        number = float.fromhex(text)
    except (ValueError, OverflowError):
        return False
    return math.isfinite(number) and number.hex() == text


def _record(kind: type[Record], value: Any) -> Record:
    """Return a dataclass from an object that has exactly its fields, each of exactly its type."""
    hints = get_type_hints(kind)
    if not isinstance(value, dict):
        raise ValueError(f"found {reprlib.repr(value)}, expected an object with {', '.join(hints)}")
    for key in sorted(value.keys() ^ hints.keys()):
        raise ValueError(f"unknown key {key!r}" if key in value else f"no {key!r}")
    return kind(**{key: _field(key, hint, value[key]) for key, hint in hints.items()})


def _field(key: str, hint: Any, value: Any) -> Any:
    if hint is Loss:
        return _record(Loss, value)
    if hint == Mapping[str, str]:
        fits = isinstance(value, dict) and all(map(isinstance, value.values(), repeat(str)))
        texts = [text for pair in value.items() for text in pair] if fits else []
    else:
        fits = type(value) in (get_args(hint) or (hint,))
        texts = [value] if isinstance(value, str) else []
    if not fits:
        raise ValueError(f"{key}: found {reprlib.repr(value)}, of another type")
    for text in texts:
        if not text.isprintable() or len(text) > MAX_TEXT:
            raise ValueError(f"{key}: found {reprlib.repr(text)}, expected at most {MAX_TEXT} printable characters")
    return value
