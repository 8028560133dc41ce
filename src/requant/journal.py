"""The journal: what a tuning saw and wrote, one line per block, chained by digest. No times, no host.

The first line is the header. Every line is canonical JSON; `previous` is the SHA-256 of the line before it,
without its line end, so no line can be changed, dropped or added without changing every later one.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Self

from requant.digest import canonical_json, sha256, strict_json
from requant.errors import CheckpointError

SCHEMA = 1


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
        self._file: IO[bytes] = path.open("xb")
        self._previous = ""
        self._write({"schema": SCHEMA, **asdict(header)})

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
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    lines = data.split(b"\n")
    if lines.pop() and not growing:
        raise CheckpointError(f"{path}: its last line has no end", "The build that wrote it was cut off.")
    header: Header | None = None
    found: list[Block] = []
    previous = ""
    for number, line in enumerate(lines, 1):
        try:
            value = strict_json(line)
            if header is None:
                header = _header(value)
            else:
                found.append(_block(value, previous))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: line {number}: {error}") from None
        previous = sha256(line)
    if header is None:
        raise CheckpointError(f"{path}: has no header")
    if len(found) != header.blocks and not growing:
        raise CheckpointError(f"{path}: has {len(found)} blocks, its header promises {header.blocks}")
    return Journal(header, tuple(found))


def _header(value: Any) -> Header:
    if not isinstance(value, dict) or value.pop("schema", None) != SCHEMA:
        raise ValueError(f"not the header of a journal of schema {SCHEMA}")
    header = Header(**value)
    if type(header.blocks) is not int or not 0 < header.blocks < 10**6:
        raise ValueError(f"blocks: found {header.blocks!r}, expected a count")
    return header


def _block(value: Any, previous: str) -> Block:
    if not isinstance(value, dict) or value.pop("previous", None) != previous:
        raise ValueError("does not follow from the line before it: a line was changed, dropped or added")
    loss = Loss(**value.pop("loss"))
    float.fromhex(loss.initial), float.fromhex(loss.best)
    return Block(loss=loss, **value)
