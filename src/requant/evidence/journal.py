"""The journal: what a tuning saw and wrote, one line per block, chained by digest. No times, no host.

The first line is the header. Every line is canonical JSON; `previous` is the SHA-256 of the line before it,
without its line end, so no line can be changed, dropped or added without changing every later one.

Schema 3 says `tiny` where schema 2 said `twin`. Schema 1 had the two streams in `inputs` only, and no `others`.
"""

import math
import os
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Self

from requant.digest import MAX_JOURNAL, canonical_json, read_whole, sha256, strict_json
from requant.errors import CheckpointError
from requant.records import Record, record

SCHEMA = 3
READERS = {1: "0a9db6d", 2: "917aec0"}
"""The last commit of requant that reads each schema before."""
MAX_TEXT = 1024
"""Characters of the longest name: journals come from strangers, and are shown on terminals."""


@dataclass(frozen=True)
class Header:
    """What the tuning was given, by digest: recipe values, environment, base files, calibration tokens."""

    recipe: str
    tiny: str | None
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
    """One tuned block, by digests: what it was given, Python's random state, its tensors and both output streams.

    `inputs` are the streams `full` and `quantized`, and `others`: position embeddings, masks, whatever else there is.
    `loss` is None where the block was rounded, not tuned. `hints` is there where the recipe asks for them.
    """

    block: str
    inputs: Mapping[str, str]
    random_state: str
    loss: Loss | None
    tensors: Mapping[str, str]
    outputs: Mapping[str, str]
    hints: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return what stands in the block's line, but for what chains it."""
        return {key: value for key, value in asdict(self).items() if (key, value) != ("hints", None)}


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
        self._write({"previous": self._previous, **block.as_json()})

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
    chain = _Chain(path)
    for line in lines:
        chain.add(line)
    if chain.header is None:
        raise CheckpointError(f"{path}: has no header")
    if len(chain.blocks) < chain.header.blocks and not growing:
        raise chain.miscounted()
    return Journal(chain.header, tuple(chain.blocks))


class Follower:
    """Reads a journal while another process writes it: each line once, as soon as it has its end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._chain = _Chain(path)
        self._read = 0

    @property
    def header(self) -> Header | None:
        """The header, once it is there."""
        return self._chain.header

    @property
    def blocks(self) -> Sequence[Block]:
        """The blocks that were read by now, in order."""
        return self._chain.blocks

    def read(self) -> bool:
        """Read what has come since; return whether that was a line. Raises CheckpointError as `read_journal` does."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                whole = file.read().rpartition(b"\n")[0]
        except FileNotFoundError:
            return False
        if not whole:
            return False
        for line in whole.split(b"\n"):
            self._chain.add(line)
        self._read += len(whole) + 1
        return True


class _Chain:
    """The lines of a journal, each confirmed as it is added."""

    def __init__(self, path: Path) -> None:
        self.header: Header | None = None
        self.blocks: list[Block] = []
        self._path = path
        self._previous = ""

    def add(self, line: bytes) -> None:
        """Take the next line, without its end; raise CheckpointError, which names it."""
        try:
            value = strict_json(line)
            if canonical_json(value) != line:
                raise ValueError("not in canonical form: keys sorted, no white space")
            if self.header is None:
                self.header = _header(value)
            else:
                self.blocks.append(_block(value, self._previous))
        except ValueError as error:
            number = len(self.blocks) + (1 if self.header is None else 2)
            raise CheckpointError(f"{self._path}: line {number}: {error}") from None
        self._previous = sha256(line)
        if len(self.blocks) > self.header.blocks:
            raise self.miscounted()

    def miscounted(self) -> CheckpointError:
        promised = self.header.blocks if self.header else 0
        return CheckpointError(f"{self._path}: has {len(self.blocks)} blocks, its header promises {promised}")


def _header(value: Any) -> Header:
    schema = value.pop("schema", None) if isinstance(value, dict) else None
    if type(schema) is int and schema in READERS:
        last = f"requant at commit {READERS[schema]} is the last that reads it"
        raise ValueError(f"a journal of schema {schema}, expected {SCHEMA}: {last}")
    if type(schema) is not int or schema != SCHEMA:
        raise ValueError(f"not the header of a journal of schema {SCHEMA}")
    header = _printable(Header, value)
    if not 0 < header.blocks < 10**6:
        raise ValueError(f"blocks: found {reprlib.repr(header.blocks)}, expected a count")
    return header


def _block(value: Any, previous: str) -> Block:
    if not isinstance(value, dict) or value.pop("previous", None) != previous:
        raise ValueError("does not follow from the line before it: a line was changed, dropped or added")
    if "hints" in value and value["hints"] is None:
        raise ValueError("hints: found None, expected a digest, or no such key")
    block = _printable(Block, {"hints": None, **value})
    for loss in (block.loss.initial, block.loss.best) if block.loss else ():
        if not _finite(loss):
            raise ValueError(f"loss: found {reprlib.repr(loss)}, expected a finite number as float.hex writes it")
    return block


def _finite(text: str) -> bool:
    try:
        number = float.fromhex(text)
    except (ValueError, OverflowError):
        return False
    return math.isfinite(number) and number.hex() == text


def _printable(kind: type[Record], value: Any) -> Record:
    """Return a record of a line; raise ValueError where that is none, or has a text that is not to be shown."""
    found = record(kind, value)
    for key, each in value.items():
        for text in _texts(each):
            if not text.isprintable() or len(text) > MAX_TEXT:
                expected = f"at most {MAX_TEXT} printable characters"
                raise ValueError(f"{key}: found {reprlib.repr(text)}, expected {expected}")
    return found


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield key
            yield from _texts(each)
