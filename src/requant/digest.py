"""SHA-256 of bytes and of stretches of files, and the one form in which requant writes JSON.

Tensors are hashed as the bytes that stand in the file, found by header offset, never as decoded numbers.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

CHUNK = 1 << 20
"""Bytes read at a time; bounds the memory of every hash."""
MAX_WHOLE = 1 << 28
"""Bytes of the largest file that is read whole: ten times the manifest of a checkpoint of 100,000 tensors."""


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


def read_whole(path: Path) -> bytes:
    """Return the bytes of a file; raise ValueError where there are more than `MAX_WHOLE`, and read no further."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # a pipe that nobody writes has no bytes
        data = b"".join(islice(iter(lambda: file.read(CHUNK), b""), MAX_WHOLE // CHUNK + 1))
    if len(data) > MAX_WHOLE:
        raise ValueError(f"larger than {MAX_WHOLE:,} bytes")
    return data


def canonical_json(value: Any) -> bytes:
    """Return `value` as canonical JSON: sorted keys, no white space, UTF-8.

    For what requant writes (objects with ASCII keys, arrays, strings, integers, booleans and null) this is
    RFC 8785. Numbers with a fraction occur only where the digest of a recipe is taken, as Python writes them.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def strict_json(data: bytes) -> Any:
    """Parse JSON and refuse what readers understand differently: duplicate keys, NaN, text that is not Unicode.

    Raises ValueError, which says what was found.
    """
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
        if "\\u" in text:
            canonical_json(value)  # refuses half a surrogate pair, which only an escape can hide in UTF-8
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} stands twice")
    return value


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a JSON number")
