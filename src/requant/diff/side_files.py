"""How two checkpoints differ around their tensors: side files, and how tensors are arranged in files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from requant.checkpoint.files import SUFFIX, list_files
from requant.checkpoint.safetensors import read_header
from requant.digest import count_values, file_chunks, read_whole, side_limit, strict_json
from requant.errors import CheckpointError

DEEP = 50
"""Differences that are listed of one side file."""


def side_files(first: Path, second: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each side file that differs, and in what."""
    one, two = (
        {name: path for name, path in list_files(each).items() if not name.endswith(SUFFIX)} for each in (first, second)
    )
    for name in sorted(one.keys() | two.keys()):
        if name not in one or name not in two:
            yield name, (f"in the {'first' if name in one else 'second'} only",)
        elif differences := _unlike(name, one[name], two[name]):
            yield name, differences


def _unlike(name: str, one: Path, two: Path) -> tuple[str, ...]:
    try:
        if one.stat().st_size == two.stat().st_size and all(
            a == b for a, b in zip(file_chunks(one), file_chunks(two), strict=False)
        ):
            return ()
        if name.endswith(".json"):
            texts = [read_whole(each, side_limit(name)) for each in (one, two)]
            return json_differences(*texts)
    except OSError as error:
        raise CheckpointError(f"{error.filename}: {error.strerror}") from None
    except ValueError:
        pass  # no JSON for all its name: other bytes is all that can be said
    return (f"other bytes: {one.stat().st_size:,} in the first, {two.stat().st_size:,} in the second",)


def json_differences(one: bytes, two: bytes) -> tuple[str, ...]:
    """Return each place where two JSON documents of other bytes differ; raise ValueError where one is no JSON."""
    count_values(one, two)
    found = list(_values("", strict_json(one), strict_json(two)))
    more = (f"and {len(found) - DEEP} more",) if len(found) > DEEP else ()
    return (*found[:DEEP], *more) or ("the same values, written otherwise",)


def _values(path: str, one: Any, two: Any) -> Iterator[str]:
    """Yield each place where two JSON values differ."""
    if isinstance(one, dict) and isinstance(two, dict):
        for key in sorted(one.keys() | two.keys()):
            yield from _values(f"{path}.{key}".removeprefix("."), one.get(key, _ABSENT), two.get(key, _ABSENT))
    elif isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        for number, (a, b) in enumerate(zip(one, two, strict=True)):
            yield from _values(f"{path}[{number}]", a, b)
    elif type(one) is not type(two) or one != two:
        yield f"{path or 'the document'}: {_short(one)} -> {_short(two)}"


_ABSENT = object()


def _short(value: Any) -> str:
    text = "absent" if value is _ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def arrangement(first: Path, second: Path) -> Iterator[str]:
    """Yield what is arranged otherwise: files of tensors, order, metadata, and the form of headers."""
    files = [
        {name: path for name, path in list_files(each).items() if name.endswith(SUFFIX)} for each in (first, second)
    ]
    for name in sorted(files[0].keys() ^ files[1].keys()):
        yield f"{name}: in the {'first' if name in files[0] else 'second'} only"
    for name in sorted(files[0].keys() & files[1].keys()):
        (ours, our_notes), (theirs, their_notes) = (read_header(side[name]) for side in files)
        if ours.keys() != theirs.keys():
            yield f"{name}: holds other tensors"
        elif list(ours) != list(theirs):
            yield f"{name}: its tensors stand in another order"
        elif our_notes != their_notes:
            yield f"{name}: other metadata: {_short(our_notes)} -> {_short(their_notes)}"
        elif {each[0] for each in ours.values()} == {each[0] for each in theirs.values()} and not _same_header(
            *(side[name] for side in files)
        ):
            yield f"{name}: its header is written otherwise"


def _same_header(one: Path, two: Path) -> bool:
    def header(path: Path) -> bytes:
        with path.open("rb") as file:
            start = file.read(8)
            return start + file.read(int.from_bytes(start, "little"))

    return header(one) == header(two)
