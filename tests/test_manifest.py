import hashlib
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.checkpoints import BITS, SMALL, checkpoints, frame, names, nobody, on_a_disk, on_disk, shard, write
from tests.conftest import Refuses, Worded

from requant.checkpoint.manifest import FileRecord, Manifest, TensorRecord, make_manifest, read_manifest
from requant.digest import MAX_MANIFEST
from requant.errors import CheckpointError

digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
paths = st.from_regex(r"[\wé世 -]+(/[\wé世 -]+)?\.safetensors", fullmatch=True)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    files = draw(st.dictionaries(paths, st.builds(FileRecord, st.integers(0, 2**53), digests), max_size=3))
    if not files:
        return Manifest({}, {})
    records = st.builds(
        TensorRecord,
        st.sampled_from(sorted(files)),
        st.sampled_from(sorted(BITS)),
        st.lists(st.integers(0, 2**40), max_size=4).map(tuple),
        digests,
    )
    return Manifest(files, draw(st.dictionaries(names, records, max_size=4)))


def read(data: bytes) -> Manifest:
    with on_disk({"manifest.json": data}) as folder:
        return read_manifest(folder / "manifest.json")


@on_a_disk
@given(manifest=manifests())
def test_what_is_written_is_read_back(manifest: Manifest) -> None:
    assert read(manifest.to_json()) == manifest
    assert read(manifest.to_json()).to_json() == manifest.to_json()


@on_a_disk
@given(manifest=manifests(), data=st.data())
def test_no_two_texts_are_one_manifest(manifest: Manifest, data: st.DataObject) -> None:
    text = bytearray(manifest.to_json())
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        assert read(bytes(text)) != manifest
    except CheckpointError as error:
        assert "manifest.json" in str(error)


@on_a_disk
@given(files=checkpoints(), data=st.data())
def test_equal_checkpoints_have_byte_equal_manifests(files: dict[str, bytes], data: st.DataObject) -> None:
    shuffled = dict(data.draw(st.permutations(sorted(files.items()))))
    with on_disk(files) as one, on_disk({".cache/huggingface/x": b"", "README.md": b"", **shuffled}) as other:
        for at, name in enumerate(shuffled):
            os.utime(other / name, (at, at))
            (other / name).chmod(0o600)
        assert make_manifest(one).to_json() == make_manifest(other).to_json()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_manifest_names_every_file_and_every_tensor(tmp_path: Path) -> None:
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    assert json.loads(make_manifest(write(tmp_path, SMALL)).to_json()) == {
        "schema": 1,
        "files": {name: {"bytes": len(data), "sha256": sha256(data)} for name, data in SMALL.items()},
        "tensors": {
            "a": {"file": first, "dtype": "F16", "shape": [2], "sha256": sha256(b"\x01\x02\x03\x04")},
            "b": {"file": first, "dtype": "U8", "shape": [3], "sha256": sha256(b"\x05\x06\x07")},
            "c": {"file": second, "dtype": "F16", "shape": [2], "sha256": sha256(b"\x08\x09\x0a\x0b")},
        },
    }


def test_every_byte_is_reported_as_read(tmp_path: Path) -> None:
    heard: list[int] = []
    make_manifest(write(tmp_path, SMALL), heard.append)
    assert sum(heard) == sum(len(data) for data in SMALL.values())


def test_one_name_in_two_files_is_an_error(tmp_path: Path, refuses: Refuses) -> None:
    write(tmp_path, {"a.safetensors": shard({"t": ("U8", [0], b"")}), "b.safetensors": shard({"t": ("U8", [0], b"")})})
    with refuses(CheckpointError):
        make_manifest(tmp_path)


def test_a_file_that_cannot_be_read_is_an_error(refuses: Refuses) -> None:
    with on_disk({"config.json": b"{}"}) as folder:
        (folder / "config.json").chmod(0)
        with nobody(), refuses(CheckpointError):
            make_manifest(folder)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    path = write(tmp_path, {"tokenizer.json": bytes(3 << 20)}) / "tokenizer.json"

    class Sha256:
        def update(self, chunk: bytes) -> None:
            os.truncate(path, 1 << 20)

    monkeypatch.setattr(hashlib, "sha256", Sha256)
    with refuses(CheckpointError, vary=r"\d+ bytes"):
        make_manifest(tmp_path)


FILE = {"bytes": 3, "sha256": "ab" * 32}
TENSOR = {"file": "a.safetensors", "dtype": "U8", "shape": [1], "sha256": "cd" * 32}


def document(**changes: Any) -> dict[str, Any]:
    return {"schema": 1, "files": {"a.safetensors": FILE}, "tensors": {"t": TENSOR}} | changes


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def test_the_document_that_is_spoilt_below_is_a_manifest() -> None:
    assert read(canonical(document())).tensors["t"].shape == (1,)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


HOSTILE: tuple[dict[str, Any], ...] = (
    {"schema": 2},
    {"schema": True},
    {"schema": nested(90)},
    {"host": "here"},
    {"\x1b[2J": "here"},
    {"files": []},
    {"files": {"a.safetensors": None}},
    {"files": {"a.safetensors": FILE | {"mode": 420}}},
    {"files": {"a.safetensors": {"bytes": 3}}},
    {"files": {"a.safetensors": FILE | {"bytes": -1}}},
    {"files": {"a.safetensors": FILE | {"bytes": 3.0}}},
    {"files": {"a.safetensors": FILE | {"bytes": True}}},
    {"files": {"a.safetensors": FILE | {"bytes": "3"}}},
    {"files": {"a.safetensors": FILE | {"sha256": "AB" * 32}}},
    {"files": {"a.safetensors": FILE | {"sha256": "ab" * 31}}},
    {"files": {"a.safetensors": FILE | {"sha256": ["a"] * 64}}},
    *(
        {"files": {path: FILE}, "tensors": {}}
        for path in (
            "../a",
            "a/../../b",
            "/etc/passwd",
            "//a",
            "",
            ".",
            "..",
            "./a",
            "a//b",
            "a/",
            "a/.",
            "a\0b",
            "a\nb",
            "\x1b[2J",
        )
    ),
    {"files": {"\ud800": FILE}, "tensors": {}},
    {"tensors": {"\udfff": TENSOR}},
    {"tensors": {"t": TENSOR | {"dtype": "\ud800"}}},
    {"tensors": {"t": TENSOR | {"\ud800": 1}}},
    {"tensors": {"": TENSOR}},
    {"tensors": {"a\x1b[2J": TENSOR}},
    {"tensors": [["t", TENSOR]]},
    {"tensors": {"t": TENSOR | {"offset": 0}}},
    {"tensors": {"t": {}}},
    {"tensors": {"t": TENSOR | {"file": "b.safetensors"}}},
    {"tensors": {"t": TENSOR | {"file": ["a.safetensors"]}}},
    {"tensors": {"t": TENSOR | {"dtype": "U9"}}},
    {"tensors": {"t": TENSOR | {"dtype": ["U8"]}}},
    {"tensors": {"t": TENSOR | {"shape": [-1]}}},
    {"tensors": {"t": TENSOR | {"shape": [True]}}},
    {"tensors": {"t": TENSOR | {"shape": [1.0]}}},
    {"tensors": {"t": TENSOR | {"shape": {"0": 1}}}},
    {"tensors": {"t": TENSOR | {"shape": nested(90)}}},
)


def test_hostile_manifests_are_refused_in_words_that_print(worded: Worded) -> None:
    said = []
    for changes in HOSTILE:
        with pytest.raises(CheckpointError) as caught:
            read(canonical(document(**changes)))
        said.append(str(caught.value))
        assert said[-1].isprintable()
        assert len(said[-1]) < 1000
    worded("\n".join(said), vary=r"(.)\1{99,}")


@pytest.mark.parametrize("key", document())
def test_a_key_that_is_missing_is_named(key: str, refuses: Refuses) -> None:
    value = document()
    del value[key]
    with refuses(CheckpointError, vary=key, shared=True):
        read(canonical(value))


SPOILT: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut": lambda text: text[:-10],
    "without line end": lambda text: text[:-1],
    "with two": lambda text: text + b"\n",
    "with that of Windows": lambda text: text[:-1] + b"\r\n",
    "with a mark of byte order": lambda text: b"\xef\xbb\xbf" + text,
    "with white space": lambda text: text.replace(b":", b": ", 1),
    "with an escape": lambda text: text.replace(b"a.safetensors", b"\\u0061.safetensors"),
    "keys out of order": lambda text: json.dumps(document(), separators=(",", ":")).encode() + b"\n",
    "key twice": lambda text: text.replace(b'"schema":1', b'"schema":1,"schema":1'),
    "number with an exponent": lambda text: text.replace(b'"bytes":3', b'"bytes":3e0'),
    "infinite number": lambda text: text.replace(b'"bytes":3', b'"bytes":1e999'),
    "NaN": lambda text: text.replace(b'"bytes":3', b'"bytes":NaN'),
    "endless number": lambda text: text.replace(b'"bytes":3', b'"bytes":' + b"3" * 5000),
    "not UTF-8": lambda text: text.replace(b'"t"', b'"\xff"'),
    "nested without end": lambda _: b"[" * 100_000,
    "not an object": lambda _: b"[]\n",
    "a shard": lambda _: frame(b"{}"),
}  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_any_other_text_is_refused(spoil: Callable[[bytes], bytes], refuses: Refuses) -> None:
    text = spoil(canonical(document()))
    assert text != canonical(document())
    with refuses(CheckpointError):
        read(text)


def test_what_cannot_be_opened_is_named(tmp_path: Path, refuses: Refuses) -> None:
    for name in ("absent", ".", "x" * 5000):
        with refuses(CheckpointError, vary="x{5000}"):
            read_manifest(tmp_path / name)
    with on_disk({"locked": canonical(document())}) as folder:
        (folder / "locked").chmod(0)
        with nobody(), refuses(CheckpointError):
            read_manifest(folder / "locked")


def test_a_file_without_end_is_refused_in_bounded_memory(tmp_path: Path, refuses: Refuses) -> None:
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 1 << 40)
    tracemalloc.start()
    try:
        for path in (Path("/dev/zero"), tmp_path / "sparse"):
            with refuses(CheckpointError):
                read_manifest(path)
        assert tracemalloc.get_traced_memory()[1] < 3 * MAX_MANIFEST
    finally:
        tracemalloc.stop()


def test_a_manifest_may_come_through_a_pipe() -> None:
    ours, theirs = os.pipe()
    os.write(theirs, canonical(document()))
    os.close(theirs)
    try:
        assert read_manifest(Path(f"/dev/fd/{ours}")) == read(canonical(document()))
    finally:
        os.close(ours)
