"""Writes tiny checkpoints byte by byte, from the format's description and not with the code under test."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st

Tensors = Mapping[str, tuple[str, list[int], bytes]]
"""Name to dtype, shape and data."""

on_a_disk = settings(max_examples=50)
"""For properties that write files: how long that takes proves nothing."""

BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E8M0": 8, "BF16": 16, "F16": 16, "I32": 32, "F32": 32}
BITS |= {"I64": 64, "F64": 64, "C64": 64}


def frame(header: bytes, data: bytes = b"") -> bytes:
    """A safetensors file: length, header, data, whatever they are."""
    return len(header).to_bytes(8, "little") + header + data


def header(tensors: Tensors) -> dict[str, Any]:
    """Describe tensors that stand one after the other."""
    described: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape, data) in tensors.items():
        described[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    return described


def shard(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> bytes:
    """A whole safetensors file."""
    first = {} if metadata is None else {"__metadata__": metadata}
    text = json.dumps({**first, **header(tensors)}).encode()
    return frame(text, b"".join(data for _, _, data in tensors.values()))


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files below a folder, in the order given."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


@contextmanager
def on_disk(files: Mapping[str, bytes]) -> Iterator[Path]:
    """A folder of files that anyone may read, for as long as the block lasts."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield write(Path(name), files)


@contextmanager
def nobody() -> Iterator[None]:
    """Give root's power to read everything away, for as long as the block lasts."""
    if os.geteuid():
        yield
        return
    try:
        os.seteuid(65534)
    except OSError as error:
        pytest.skip(f"root cannot become nobody here: {error.strerror}")
    try:
        yield
    finally:
        os.seteuid(0)


SMALL: dict[str, bytes] = {
    "config.json": b'{"a":1}\n',
    "model-00001-of-00002.safetensors": shard(
        {"a": ("F16", [2], b"\x01\x02\x03\x04"), "b": ("U8", [3], b"\x05\x06\x07")}, {"format": "pt"}
    ),
    "model-00002-of-00002.safetensors": shard({"c": ("F16", [2], b"\x08\x09\x0a\x0b")}),
}
"""Two shards and a side file: three tensors, two of them of one dtype and shape."""

names = st.text(st.characters(categories=["L", "M", "N", "P", "S"]), min_size=1, max_size=12).filter(
    lambda name: name != "__metadata__"
)


@st.composite
def tensor(draw: st.DrawFn) -> tuple[str, list[int], bytes]:
    """Any small tensor, empty ones and single numbers among them."""
    dtype = draw(st.sampled_from(sorted(BITS)))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    size = BITS[dtype] // 8
    for each in shape:
        size *= each
    return dtype, shape, draw(st.binary(min_size=size, max_size=size))


tensors = st.dictionaries(names, tensor(), max_size=5)
"""Name to dtype, shape and data of up to five tensors."""


@st.composite
def checkpoints(draw: st.DrawFn) -> dict[str, bytes]:
    """The files of any small checkpoint: up to five tensors over up to three shards, and side files."""
    drawn = draw(tensors)
    places = draw(st.lists(st.integers(0, 2), min_size=len(drawn), max_size=len(drawn)))
    files = draw(st.dictionaries(st.sampled_from(["config.json", "LICENSE", "sub/a", "sub/b"]), st.binary(max_size=9)))
    for place in sorted(set(places)):
        inside = {name: value for (name, value), at in zip(drawn.items(), places, strict=True) if at == place}
        files[("a.safetensors", "b.safetensors", "sub/c.safetensors")[place]] = shard(inside)
    return files
