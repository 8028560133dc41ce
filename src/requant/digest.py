"""SHA-256 of bytes and of stretches of files, and the one form in which requant writes JSON.

Tensors are hashed as the bytes that stand in the file, found by header offset, never as decoded numbers.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

CHUNK = 1 << 20
"""Bytes read at a time; bounds the memory of every hash."""
MAX_SIDE = 1 << 23
"""Bytes of the largest file that is read whole where none of the limits below is meant: configurations, and the like.

All limits are measured (tests/test_limits.py): whatever stands in the file, it is read within 1 GiB and 10 seconds.
"""
MAX_INDEX = 3 << 23
"""Of an index: one of 100,000 tensors has 11 MB."""
MAX_TOKENIZER = 5 << 23
"""Of a tokenizer's files: Qwen3.6's has 13 MB, Gemma 3's 33 MB."""
MAX_MANIFEST = 5 << 23
"""Of a manifest: one of 100,000 tensors has 22 MB."""
MAX_JOURNAL = 3 << 23
"""Of a journal: one of 40 blocks, each of 771 packed layers, has 13 MB."""
MAX_STATEMENT = 1 << 22
"""Of a statement or an audit: a thousand blocks, all different, take less."""
MAX_TOML = 1 << 14
"""Of a recipe: the reader's time and memory grow with the square of the longest dotted key."""
MAX_VALUES = 2_000_000
"""Of one JSON document, counted by its commas and opening brackets: Python takes up to 240 bytes for each."""
DEEPEST = 100
"""Brackets around a value of a JSON document."""


def sha256(data: bytes) -> str:
    """Return the SHA-256 of `data` as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_chunks(chunks: Iterable[bytes]) -> str:
    """Return the SHA-256 of the concatenation of `chunks`."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def file_chunks(path: Path, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """Yield the bytes `start` to `stop` of a file (to its end without `stop`), at most `CHUNK` at a time."""
    with path.open("rb") as file:
        file.seek(start)
        left = os.fstat(file.fileno()).st_size - start if stop is None else stop - start
        while left > 0 and (chunk := file.read(min(CHUNK, left))):
            left -= len(chunk)
            yield chunk


def sha256_file(path: Path, start: int = 0, stop: int | None = None) -> str:
    """Return the SHA-256 of the bytes `start` to `stop` of a file."""
    return sha256_chunks(file_chunks(path, start, stop))


def read_whole(path: Path, limit: int = MAX_SIDE) -> bytes:
    """Return the bytes of a file; raise ValueError where there are more than `limit`, and read no further."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # a pipe that nobody writes has no bytes
        data = bytearray()
        while len(data) <= limit and (chunk := file.read(CHUNK)):
            data += chunk
    if len(data) > limit:
        raise ValueError(f"larger than {limit:,} bytes, the most that is read of such a file")
    return bytes(data)


def side_limit(name: str) -> int:
    """Return the most bytes that are read of a checkpoint's file of this name, where it is read whole."""
    last = name.rpartition("/")[2]
    if last.endswith(".index.json"):
        return MAX_INDEX
    return MAX_TOKENIZER if last.startswith(("tokenizer.", "vocab.", "merges.", "tekken.")) else MAX_SIDE


def canonical_json(value: Any) -> bytes:
    """Return `value` as canonical JSON: sorted keys, no white space, UTF-8.

    For what requant writes (objects with ASCII keys, arrays, strings, integers, booleans and null) this is
    RFC 8785. Numbers with a fraction occur only where the digest of a recipe is taken, as Python writes them.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def strict_json(data: bytes) -> Any:
    """Parse JSON and refuse what readers understand differently: duplicate keys, NaN, text that is not Unicode.

    And what would take more memory than it is worth: over `MAX_VALUES` values, or nested deeper than `DEEPEST`.
    Raises ValueError, which says what was found.
    """
    count_values(data)
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
        if "\\u" in text:
            canonical_json(value)  # refuses half a surrogate pair, which only an escape can hide in UTF-8
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return shallow(value)


def count_values(*documents: bytes) -> None:
    """Raise ValueError where JSON documents may have more than `MAX_VALUES` values together."""
    if (found := sum(data.count(mark) for data in documents for mark in b",[{")) > MAX_VALUES:
        raise ValueError(f"{found:,} commas and brackets, expected {MAX_VALUES:,} at most")


def shallow(value: Any) -> Any:
    """Return a parsed document; raise ValueError where it is nested deeper than `DEEPEST`."""
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [
            each
            for some in level
            if type(some) in (dict, list)
            for each in (some.values() if type(some) is dict else some)
            if type(each) in (dict, list)
        ]
        if not level:
            return value
    raise ValueError("nested too deeply")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} stands twice")
    return value


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a JSON number")
