"""Headers read fast are headers read right; what strangers wrote ends in an error of our own."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.cases.tiny_models import healthy
from tests.checkpoints import Tensors, frame, on_disk, shard, tensors
from tests.conftest import Refuses

from requant.checkpoint.checkpoint import INDEX, write_checkpoint
from requant.checkpoint.safetensors import MAX_TENSORS, parse_header
from requant.errors import CheckpointError, RequantError
from requant.inspect import inspect
from requant.inspect.headers import Headers, read_headers, specs
from requant.inspect.loaders import LOADERS, TENSOR_PARALLEL

FILE = Path("x.safetensors")


@given(tensors)
@example({"b": ("BF16", [0], b""), "a": ("BF16", [0], b"")})  # both at byte 0: they are sorted by name
def test_the_fast_way_and_the_careful_way_agree(drawn: Tensors) -> None:
    data = shard(drawn, {"format": "pt"})
    text, size = data[8 : 8 + int.from_bytes(data[:8], "little")], len(data)
    slow = {name: spec for name, (spec, _) in parse_header(FILE, text, size)[0].items()}
    fast = specs(FILE, text, size)
    assert fast == slow and list(fast) == list(slow)


def entry(**changed: Any) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]} | changed


HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "truncated length": b"\1\0\0",
    "truncated header": frame(b'{"a":{"dtype"')[:-3],
    "length of 2^63": (2**63).to_bytes(8, "little") + b"{}",
    "length of 2^64-1": b"\xff" * 8,
    "not UTF-8": frame(b'{"\xff\xfe":1}'),
    "UTF-16": frame('{"a":1}'.encode("utf-16")),
    "not an object": frame(b"[]"),
    "nested": frame(b'{"a":' * 5000 + b"1" + b"}" * 5000),
    "overlapping": frame(json.dumps({"a": entry(), "b": entry(data_offsets=[1, 3])}).encode(), b"123"),
    "a hole": frame(json.dumps({"a": entry(), "b": entry(data_offsets=[3, 5])}).encode(), b"12345"),
    "data left over": frame(json.dumps({"a": entry()}).encode(), b"123"),
    "data missing": frame(json.dumps({"a": entry()}).encode(), b"1"),
    "a tensor twice": frame(b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2), b"12"),
    "a key twice": frame(b'{"a":{"dtype":"U8","dtype":"U8","shape":[2],"data_offsets":[0,2]}}', b"12"),
    "wrong dtype": frame(json.dumps({"a": entry(dtype="I4")}).encode(), b"12"),
    "dtype that is none": frame(json.dumps({"a": entry(dtype=["U8"])}).encode(), b"12"),
    "shape true": frame(json.dumps({"a": entry(shape=[True, 2])}).encode(), b"12"),
    "shape with a fraction": frame(json.dumps({"a": entry(shape=[2.0])}).encode(), b"12"),
    "shape below zero": frame(json.dumps({"a": entry(shape=[-1, -2])}).encode(), b"12"),
    "shape beyond 64 bits": frame(json.dumps({"a": entry(shape=[2**64, 0])}).encode(), b""),
    "shape text": frame(json.dumps({"a": entry(shape="2")}).encode(), b"12"),
    "three offsets": frame(json.dumps({"a": entry(data_offsets=[0, 2, 2])}).encode(), b"12"),
    "an extra key": frame(json.dumps({"a": entry(more=1)}).encode(), b"12"),
    "no name": frame(json.dumps({"": entry()}).encode(), b"12"),
    "a name with a line": frame(json.dumps({"a\nb": entry()}).encode(), b"12"),
    "metadata of numbers": frame(json.dumps({"__metadata__": {"a": 1}, "a": entry()}).encode(), b"12"),
    "NaN": frame(b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,2]}}', b"12"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_named(name: str) -> None:
    files = {"model.safetensors": HOSTILE[name], "config.json": b"{}"}
    with on_disk(files) as folder, pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_headers(folder)


def test_a_million_tensors_are_refused_within_bounds(refuses: Refuses) -> None:
    count = 1_000_000
    text = b"{" + b",".join(b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(count)) + b"}"
    tracemalloc.start()
    with refuses(CheckpointError):
        specs(FILE, text, 8 + len(text))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20 and count > MAX_TENSORS
    tracemalloc.stop()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "ec"
    write_checkpoint(healthy("ec"), path)
    return path


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("config.json", b"[]"),
        ("config.json", b"\xff"),
        ("config.json", b'{"a":1,"a":2}'),
        ("config.json", b"{}"),
        ("config.json", b'{"text_config":1,"vision_config":2}'),
        ("quantization_config.json", b"[1]"),
        ("tokenizer_config.json", b"7"),
        ("model.safetensors.index.json", b"[]"),
        ("model.safetensors.index.json", b"{}"),
        ("model.safetensors.index.json", b'{"weight_map":{"a":1}}'),
        ("model.safetensors.index.json", b'{"weight_map":{"a":"../../etc/passwd"}}'),
        ("model.safetensors.index.json", b'{"weight_map":{"a":"/etc/passwd"}}'),
        ("model.safetensors.index.json", b'{"weight_map":{"a":"b","a":"c"}}'),
    ],
)
def test_a_hostile_side_file_is_named(tiny: Path, tmp_path: Path, path: str, content: bytes, refuses: Refuses) -> None:
    for file in tiny.iterdir():
        (tmp_path / file.name).hardlink_to(file)
    (tmp_path / path).unlink()
    (tmp_path / path).write_bytes(content)
    with refuses(CheckpointError):
        inspect(read_headers(tmp_path))


def test_a_loop_of_links_is_refused(tmp_path: Path, refuses: Refuses) -> None:
    (tmp_path / "a").symlink_to(tmp_path)
    with refuses(CheckpointError):
        read_headers(tmp_path)


def test_nothing_is_no_checkpoint(tmp_path: Path, refuses: Refuses) -> None:
    with refuses(CheckpointError):
        inspect(read_headers(tmp_path))


@pytest.mark.parametrize(
    ("table", "key"), [("text_config", "num_hidden_layers"), ("text_config", "num_experts"), ("vision_config", "depth")]
)
def test_a_configuration_without_end_is_refused(tiny: Path, table: str, key: str, refuses: Refuses) -> None:
    headers = read_headers(tiny)
    config = json.loads(headers.sides["config.json"])
    config[table][key] = 10**12
    sides = {**headers.sides, "config.json": json.dumps(config).encode()}
    with refuses(CheckpointError):
        inspect(type(headers)(headers.name, headers.shards, headers.data_bytes, sides, headers.paths))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(data=st.data())
def test_any_change_to_a_configuration_is_judged_or_refused(tiny: Path, data: st.DataObject) -> None:
    headers = read_headers(tiny)
    config = json.loads(headers.sides["config.json"])
    where = config
    for _ in range(data.draw(st.integers(0, 2))):
        inner = [key for key in where if isinstance(where[key], dict)]
        where = where[data.draw(st.sampled_from(sorted(inner)))] if inner else where
    if where:
        where[data.draw(st.sampled_from(sorted(where)))] = data.draw(json_values)
    sides = {**headers.sides, "config.json": json.dumps(config).encode()}
    changed = type(headers)(headers.name, headers.shards, headers.data_bytes, sides, headers.paths)
    try:
        inspect(changed, LOADERS, TENSOR_PARALLEL)
    except RequantError as error:
        assert str(error)


@pytest.mark.parametrize("path", [INDEX, "config.json"])
def test_a_side_file_that_would_swell_is_refused(path: str, refuses: Refuses) -> None:
    headers = Headers("here", {}, 0, {path: b" " * ((1 << 25) + 1)}, ())
    with refuses(CheckpointError):
        headers.json(path)
