import json
import os
import re
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.checkpoints import Tensors, frame, header, nobody, on_a_disk, on_disk, shard, tensor, tensors
from tests.conftest import Refuses

from requant.checkpoint.checkpoint import write_file
from requant.checkpoint.safetensors import ITEM_BITS, MAX_HEADER_BYTES, Spec, read_header
from requant.errors import CheckpointError

ENTRY = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}


def read(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Every tensor of a file, as this reader sees it."""
    entries, _ = read_header(path)
    return {name: (spec.dtype, list(spec.shape), b"".join(at.chunks())) for name, (spec, at) in entries.items()}


def read_by_the_library(data: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    library = pytest.importorskip("safetensors")
    return {
        name: (each["dtype"], each["shape"], bytes(each["data"])) for name, each in library.deserialize(bytes(data))
    }


def write(path: Path, wanted: Tensors) -> None:
    write_file(path, {name: (Spec(dtype, tuple(shape)), [data]) for name, (dtype, shape, data) in wanted.items()})


@on_a_disk
@given(wanted=tensors)
def test_what_is_written_is_read_back(wanted: Tensors) -> None:
    with on_disk({}) as folder:
        write(folder / "file", wanted)
        data = (folder / "file").read_bytes()
        assert read(folder / "file") == wanted
        assert read_by_the_library(data) == wanted
        assert read_header(folder / "file")[1] == {"format": "pt"}
        assert len(data) % 8 == sum(len(each) for _, _, each in wanted.values()) % 8  # the data is aligned


@on_a_disk
@given(wanted=tensors, metadata=st.none() | st.dictionaries(st.text(), st.text(), max_size=2))
def test_what_others_write_is_read(wanted: Tensors, metadata: dict[str, str] | None) -> None:
    with on_disk({"file": shard(wanted, metadata)}) as folder:
        assert read(folder / "file") == wanted
        assert read_header(folder / "file")[1] == (metadata or {})


@on_a_disk
@given(wanted=st.dictionaries(st.sampled_from("abc"), tensor(), min_size=1), data=st.data())
def test_a_file_that_is_read_is_read_as_the_library_reads_it(wanted: Tensors, data: st.DataObject) -> None:
    """The library takes more than this reader does, never less and never otherwise."""
    text = bytearray(shard(wanted))
    for _ in range(data.draw(st.integers(0, 2))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(
            st.sampled_from(b'\0"0129:,[]{} FIUab') | st.integers(0, 255)
        )
    with on_disk({"file": bytes(text)}) as folder:
        try:
            found = read(folder / "file")
        except CheckpointError as error:
            assert str(folder / "file") in str(error)
            return
    assert found == read_by_the_library(bytes(text))


def entry(**changes: Any) -> bytes:
    return frame(json.dumps({"a": ENTRY | changes}).encode(), b"..")


def two(first: list[int], second: list[int], data: bytes) -> bytes:
    described = {
        name: {"dtype": "U8", "shape": [at[1] - at[0]], "data_offsets": at}
        for name, at in (("a", first), ("b", second))
    }
    return frame(json.dumps(described).encode(), data)


GOOD = entry()
HOSTILE = {
    "empty": b"",
    "length cut": GOOD[:7],
    "header cut": GOOD[:20],
    "data cut": GOOD[:-1],
    "trailing byte": GOOD + b".",
    "length 2^63": (1 << 63).to_bytes(8, "little") + GOOD[8:],
    "length 2^64-1": b"\xff" * 8 + GOOD[8:],
    "length 100 MB": (10**8).to_bytes(8, "little") + GOOD[8:],
    "length 0": bytes(8),
    "overlap": two([0, 2], [1, 3], b"..."),
    "same bytes twice": two([0, 2], [0, 2], b".."),
    "hole": two([0, 2], [3, 4], b"...."),
    "hole at the start": two([1, 2], [2, 3], b"..."),
    "offsets exchanged": entry(data_offsets=[2, 0]),
    "offsets negative": entry(data_offsets=[-2, 0]),
    "offsets of one number": entry(data_offsets=[2]),
    "offsets of three": entry(data_offsets=[0, 2, 2]),
    "offsets boolean": entry(shape=[1], data_offsets=[False, True]),
    "offsets with a point": entry(data_offsets=[0.0, 2.0]),
    "offsets beyond the file": entry(shape=[1 << 40], data_offsets=[0, 1 << 40]),
    "shape too large": entry(shape=[3]),
    "shape negative": entry(shape=[-1, -2]),
    "shape huge": entry(shape=[1 << 63]),
    "shape of huge product": entry(shape=[(1 << 63) - 1] * 64),
    "shape of many digits": frame(b'{"a":{"dtype":"U8","shape":[' + b"9" * 4300 + b'],"data_offsets":[0,2]}}'),
    "shape of 65 dimensions": entry(shape=[1] * 65),
    "shape boolean": entry(shape=[True, 2]),
    "shape null": entry(shape=None),
    "shape a string": entry(shape="2"),
    "half a byte": entry(dtype="F4", shape=[3]),
    "three quarters of a byte": entry(dtype="F6_E2M3", shape=[1]),
    "dtype unknown": entry(dtype="F17"),
    "dtype a list": entry(dtype=["U8"]),
    "dtype absent": frame(b'{"a":{"shape":[2],"data_offsets":[0,2]}}', b".."),
    "key unknown": entry(stride=[1]),
    "entry a list": frame(b'{"a":[]}'),
    "header a list": frame(b"[]"),
    "header not JSON": frame(b"{"),
    "header not UTF-8": frame(b'{"\xff":{}}'),
    "header with NaN": frame(b'{"a":NaN}'),
    "header with Infinity": frame(b'{"a":-Infinity}'),
    "metadata a list": frame(b'{"__metadata__":[]}'),
    "metadata a number": frame(b'{"__metadata__":{"a":1}}'),
    "name twice": frame(json.dumps({"a": ENTRY})[:-1].encode() + b',"a":{}}', b".."),
    "name empty": frame(json.dumps({"": ENTRY}).encode(), b".."),
    "name a lone surrogate": frame(json.dumps({"\ud800": ENTRY}).encode(), b".."),
    "name that clears the screen": frame(json.dumps({"\x1b[2J": ENTRY}).encode(), b".."),
    "name that writes backwards": frame(json.dumps({"a\u202eb": ENTRY}).encode(), b".."),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused_by_name(tmp_path: Path, data: bytes, refuses: Refuses) -> None:
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(data)
    with refuses(CheckpointError, vary=r"(.)\1{99,}") as caught:
        read_header(path)
    assert len(str(caught.value)) < len(str(path)) + 2000


@pytest.mark.parametrize("depth", [*range(900, 1010, 3), 100_000])
def test_deep_nesting_is_refused(tmp_path: Path, depth: int, refuses: Refuses) -> None:
    path = tmp_path / "deep.safetensors"
    path.write_bytes(frame(b'{"a":{"dtype":"U8","shape":' + b"[" * depth + b"]" * depth + b',"data_offsets":[0,0]}}'))
    with refuses(CheckpointError, shared=True) as caught:
        read_header(path)
    assert len(str(caught.value)) < len(str(path)) + 2000


@pytest.mark.parametrize("length", [MAX_HEADER_BYTES + 1, 1 << 39, (1 << 40) + 1, 1 << 63])
def test_a_claim_is_refused_before_memory_is_taken_for_it(tmp_path: Path, length: int, refuses: Refuses) -> None:
    path = tmp_path / "sparse.safetensors"
    path.write_bytes(length.to_bytes(8, "little"))
    os.truncate(path, 1 << 40)
    tracemalloc.start()
    try:
        with refuses(CheckpointError):
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 18
    finally:
        tracemalloc.stop()


@given(size=st.integers(0, 5), data=st.data())
def test_every_dtype_of_the_library_is_read(size: int, data: st.DataObject) -> None:
    """Asked of the library itself, which names them all where it meets one that it does not know."""
    library = pytest.importorskip("safetensors")
    with pytest.raises(library.SafetensorError, match="unknown variant") as refused:
        library.deserialize(frame(b'{"a":{"dtype":"none","shape":[0],"data_offsets":[0,0]}}'))
    known = set(re.findall("`([A-Z0-9_]+)`", str(refused.value)))
    assert {"F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "C64"} <= known <= ITEM_BITS.keys()
    dtype = data.draw(st.sampled_from(sorted(known)))
    shape = [size, 4]
    content = data.draw(st.binary(min_size=size * ITEM_BITS[dtype] // 2, max_size=size * ITEM_BITS[dtype] // 2))
    text = shard({"a": (dtype, shape, content)})
    assert read_by_the_library(text) == {"a": (dtype, shape, content)}
    with on_disk({"file": text}) as folder:
        assert read(folder / "file") == {"a": (dtype, shape, content)}


BULKY = {
    "objects": b'{"a":[' + b",".join([b"{}"] * 2_000_000) + b"]}",
    "lists": b'{"a":[' + b",".join([b"[]"] * 2_000_000) + b"]}",
    "metadata": b'{"__metadata__":{' + b",".join([b'"":""'] * 1_100_000) + b"}}",
}


@pytest.mark.parametrize("text", BULKY.values(), ids=BULKY)
def test_a_header_that_would_swell_is_refused_before_it_is_parsed(
    tmp_path: Path, text: bytes, refuses: Refuses
) -> None:
    """Parsed, each would take thirty times its length."""
    (tmp_path / "bulky").write_bytes(frame(text))
    tracemalloc.start()
    try:
        with refuses(CheckpointError):
            read_header(tmp_path / "bulky")
        assert tracemalloc.get_traced_memory()[1] < 3 * len(text)
    finally:
        tracemalloc.stop()


def test_a_header_longer_than_is_read_is_no_broken_file(tmp_path: Path, refuses: Refuses) -> None:
    path = tmp_path / "long.safetensors"
    path.write_bytes((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
    os.truncate(path, MAX_HEADER_BYTES + 9)
    with refuses(CheckpointError):
        read_header(path)


def test_a_tensor_may_be_larger_than_memory(tmp_path: Path) -> None:
    path = tmp_path / "sparse.safetensors"
    text = json.dumps({"a": {"dtype": "U8", "shape": [1 << 40], "data_offsets": [0, 1 << 40]}}).encode()
    path.write_bytes(frame(text))
    os.truncate(path, 8 + len(text) + (1 << 40))
    assert next(iter(read_header(path)[0]["a"][1].chunks())) == bytes(1 << 20)


def test_a_hundred_thousand_tensors_are_read_in_seconds(tmp_path: Path) -> None:
    wanted = {f"model.layers.{i}.mlp.weight": ("U8", [1], b".") for i in range(100_000)}
    (tmp_path / "file").write_bytes(shard(wanted))
    started = time.process_time()
    assert read_header(tmp_path / "file")[0].keys() == wanted.keys()
    assert time.process_time() - started < 10


def test_tensors_are_found_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    wanted = {"b": ("U8", [1], b"1"), "a": ("U8", [1], b"2")}
    backwards = dict(reversed(header(wanted).items()))
    (tmp_path / "file").write_bytes(frame(json.dumps(backwards).encode(), b"12"))
    assert list(read(tmp_path / "file").items()) == list(wanted.items())


@pytest.mark.parametrize("left", [0, 1])
def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path, left: int, refuses: Refuses) -> None:
    path = tmp_path / "shrinking.safetensors"
    path.write_bytes(GOOD)
    stretch = read_header(path)[0]["a"][1]
    os.truncate(path, len(GOOD) - 2 + left)
    with refuses(CheckpointError):
        list(stretch.chunks())


def test_a_file_that_goes_away_while_it_is_read_is_named(tmp_path: Path, refuses: Refuses) -> None:
    path = tmp_path / "gone.safetensors"
    path.write_bytes(GOOD)
    stretch = read_header(path)[0]["a"][1]
    path.unlink()
    with refuses(CheckpointError):
        list(stretch.chunks())


def test_what_cannot_be_opened_is_named(tmp_path: Path, refuses: Refuses) -> None:
    with refuses(CheckpointError):
        read_header(tmp_path / "absent.safetensors")
    with refuses(CheckpointError):
        read_header(tmp_path)
    with on_disk({"locked.safetensors": GOOD}) as folder:
        (folder / "locked.safetensors").chmod(0)
        with nobody(), refuses(CheckpointError):
            read_header(folder / "locked.safetensors")


def test_no_file_is_written_over(tmp_path: Path) -> None:
    write(tmp_path / "file", {})
    with pytest.raises(FileExistsError):
        write(tmp_path / "file", {})


@pytest.mark.parametrize("data", [b".", b"..."])
def test_a_tensor_that_comes_with_other_bytes_than_its_shape_is_refused(
    tmp_path: Path, data: bytes, refuses: Refuses
) -> None:
    with refuses(CheckpointError):
        write(tmp_path / "file", {"a": ("U8", [2], data)})


def test_what_a_tensor_is_reads_as_words() -> None:
    assert f"{Spec('BF16', (4, 128))}" == "BF16 [4, 128]"
