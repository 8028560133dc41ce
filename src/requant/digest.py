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


def canonical_json(value: Any) -> bytes:
    """Return `value` as canonical JSON: sorted keys, no white space, UTF-8.

    For what requant writes (objects with ASCII keys, arrays, strings, integers, booleans and null) this is
    RFC 8785. Numbers with a fraction never occur: they are written as hexadecimal strings.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def strict_json(data: bytes) -> Any:
    """Parse JSON and refuse what readers understand differently: duplicate keys, NaN, bytes that are not UTF-8.

    Raises ValueError, which says what was found.
    """
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} stands twice")
    return value


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a JSON number")
