import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.checkpoints import SMALL, Tensors, checkpoints, nobody, on_a_disk, on_disk, tensors, write
from tests.conftest import Refuses

from requant.checkpoint.checkpoint import (
    INDEX,
    Checkpoint,
    Held,
    Made,
    Tensor,
    index,
    open_checkpoint,
    shard_names,
    spread,
    write_checkpoint,
)
from requant.checkpoint.files import list_files
from requant.checkpoint.safetensors import Spec
from requant.errors import CheckpointError

SHARD = "model-00001-of-00002.safetensors"


def held(wanted: Tensors) -> dict[str, Tensor]:
    return {name: Tensor(Spec(dtype, tuple(shape)), Held(data)) for name, (dtype, shape, data) in wanted.items()}


def contents(checkpoint: Checkpoint) -> tuple[dict[str, dict[str, tuple[Spec, bytes]]], dict[str, bytes]]:
    """All that a checkpoint holds, read."""
    shards = {
        file: {name: (tensor.spec, tensor.read()) for name, tensor in inside.items()}
        for file, inside in checkpoint.shards.items()
    }
    return shards, {name: checkpoint.file(name) for name in checkpoint.files}


@on_a_disk
@given(files=checkpoints())
def test_what_is_written_is_read_back(files: dict[str, bytes]) -> None:
    with on_disk(files) as folder, on_disk({}) as empty:
        opened = open_checkpoint(folder)
        write_checkpoint(opened, empty / "new")
        again = open_checkpoint(empty / "new")
        assert list_files(empty / "new").keys() == files.keys()
        assert contents(again) == contents(opened)
        assert again.tensors.keys() == opened.tensors.keys()


def test_a_checkpoint_is_never_written_over_another(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        write_checkpoint(open_checkpoint(write(tmp_path, SMALL)), tmp_path)


def test_nothing_is_read_until_it_is_asked_for(tmp_path: Path, refuses: Refuses) -> None:
    def unwanted() -> bytes:
        raise AssertionError

    inside = {"a": Tensor(Spec("U8", (1,)), Made(unwanted))}
    assert index({"model.safetensors": inside}).data
    opened = open_checkpoint(write(tmp_path, SMALL))
    (tmp_path / "config.json").unlink()
    os.truncate(tmp_path / SHARD, len(SMALL[SHARD]) - 1)
    assert opened.tensors["a"].read() == b"\x01\x02\x03\x04"
    with refuses(CheckpointError):
        opened.tensors["b"].read()
    with refuses(CheckpointError):
        opened.file("config.json")


def test_a_side_file_that_is_not_there_is_named(tmp_path: Path, refuses: Refuses) -> None:
    with refuses(CheckpointError):
        open_checkpoint(write(tmp_path, SMALL)).file("LICENSE")


@on_a_disk
@given(data=st.binary(max_size=9), start=st.integers(0, 9), stop=st.integers(0, 9))
def test_a_part_is_the_same_in_memory_and_on_disk(data: bytes, start: int, stop: int) -> None:
    start, stop = sorted(min(each, len(data)) for each in (start, stop))
    whole = Tensor(Spec("U8", (len(data),)), Held(data))
    with on_disk({}) as folder:
        write_checkpoint(Checkpoint({"a.safetensors": {"a": whole}}, {}), folder)
        stored = open_checkpoint(folder).tensors["a"]
        for each in (whole, stored):
            assert b"".join(each.part(start, stop).chunks()) == data[start:stop]


@on_a_disk
@given(wanted=tensors, count=st.integers(1, 4))
def test_tensors_are_spread_in_order_and_evenly(wanted: Tensors, count: int) -> None:
    all_of_them = held(wanted)
    try:
        shards = spread(all_of_them, shard_names(count))
    except CheckpointError as error:
        assert "would be empty" in str(error)
        return
    assert list(shards) == shard_names(count)
    assert [item for inside in shards.values() for item in inside.items()] == list(all_of_them.items())
    total = sum(tensor.spec.nbytes for tensor in all_of_them.values())
    largest = max((tensor.spec.nbytes for tensor in all_of_them.values()), default=0)
    for inside in shards.values():
        assert abs(sum(tensor.spec.nbytes for tensor in inside.values()) - total / count) <= largest


def test_one_file_takes_everything() -> None:
    wanted = held({"a": ("U8", [0], b""), "b": ("U8", [1], b"."), "c": ("U8", [0], b"")})
    assert spread(wanted, ["all"]) == {"all": wanted}


@on_a_disk
@given(files=checkpoints())
def test_the_index_names_each_tensor_once_and_all_bytes(files: dict[str, bytes]) -> None:
    with on_disk(files) as folder:
        opened = open_checkpoint(folder)
        value = json.loads(index(opened.shards).data)
        assert value["weight_map"] == {name: file for file in opened.shards for name in opened.shards[file]}
        assert value["metadata"]["total_size"] == sum(len(tensor.read()) for tensor in opened.tensors.values())
        assert list(value["weight_map"]) == sorted(value["weight_map"])


def test_files_are_listed_by_posix_path_in_order_hidden_ones_too(tmp_path: Path) -> None:
    hidden = {".w/model.safetensors": b"", ".cache/config.json": b"", "sub/.hidden": b""}
    folder = write(tmp_path, {"b": b"", "sub/a": b"", "a": b"", INDEX: b"", **hidden})
    assert list(list_files(folder)) == [
        ".cache/config.json",
        ".w/model.safetensors",
        "a",
        "b",
        INDEX,
        "sub/.hidden",
        "sub/a",
    ]
    assert list_files(folder)["sub/a"] == folder / "sub" / "a"


def at_a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


PLANTED: dict[str, Callable[[Path], object]] = {
    "link to a file": lambda path: path.symlink_to("config.json"),
    "link to a folder": lambda path: path.symlink_to(".."),
    "link to nothing": lambda path: path.symlink_to("absent"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "pipe": os.mkfifo,
    "socket": at_a_socket,
}


@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED)
@pytest.mark.parametrize("name", ["model.safetensors", "sub/planted"])
def test_what_is_no_regular_file_is_refused(
    tmp_path: Path, plant: Callable[[Path], object], name: str, refuses: Refuses
) -> None:
    write(tmp_path, {**SMALL, "sub/file": b""})
    plant(tmp_path / name)
    with refuses(CheckpointError, vary=name, shared=True):
        list_files(tmp_path)


@pytest.mark.parametrize("name", [b"\xff", b"a\nb", b"\x1b[2J", "a\u202eb".encode()])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: Path(os.fsdecode(path)).touch()])
def test_a_name_that_does_not_print_is_refused_in_words_that_do(
    tmp_path: Path, name: bytes, make: Callable[[bytes], None], refuses: Refuses
) -> None:
    make(os.fsencode(tmp_path) + b"/" + name)
    with refuses(CheckpointError, vary="'.*'", shared=True) as caught:
        list_files(tmp_path)
    assert str(caught.value).isprintable()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, refuses: Refuses) -> None:
    write(tmp_path, SMALL)
    (tmp_path / "loop").symlink_to("loop")
    for name in ("absent", "config.json", "loop"):
        with refuses(CheckpointError):
            list_files(tmp_path / name)
    with refuses(CheckpointError, vary="x{5000}"):
        list_files(tmp_path / ("x" * 5000))


@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(mode: int, refuses: Refuses) -> None:
    with on_disk({"sub/file": b"", "config.json": b""}) as folder:
        (folder / "sub").chmod(mode)
        with nobody(), refuses(CheckpointError):
            list_files(folder)


def test_a_broken_shard_is_named(tmp_path: Path, refuses: Refuses) -> None:
    write(tmp_path, {**SMALL, SHARD: SMALL[SHARD][:-1]})
    with refuses(CheckpointError):
        open_checkpoint(tmp_path)
