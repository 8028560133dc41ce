import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import Refuses

from requant.errors import RecipeError
from requant.hub.pinned import PinnedFile, Pins, path_fault, read_pins

BUILDS = Path(__file__).parent.parent / "builds"
SHA256 = "ab" * 32


def document(**changes: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "kind": "model",
        "repository": "owner/name",
        "revision": "0123456789" * 4,
        "provenance": "Written for this test.",
        "files": {"a/b.txt": {"bytes": 3, "sha256": SHA256}, "c": {"bytes": None, "sha256": None}},
    } | changes


def written(folder: Path, value: Any) -> Path:
    path = folder / "pins.json"
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return path


def test_reads_every_field(tmp_path: Path) -> None:
    files = {"a/b.txt": PinnedFile(3, SHA256), "c": PinnedFile(None, None)}
    expected = Pins("model", "owner/name", "0123456789" * 4, "Written for this test.", files)
    assert read_pins(written(tmp_path, document())) == expected


FILE = {"bytes": 3, "sha256": SHA256}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"schema": 2}, "schema"),
        ({"schema": True}, "schema"),
        ({"kind": "space"}, "kind"),
        ({"kind": ["model"]}, "kind"),
        ({"repository": "name"}, "repository"),
        ({"repository": "a/b/c"}, "repository"),
        ({"repository": "../name"}, "repository"),
        ({"repository": "owner/na--me"}, "repository"),
        ({"revision": "main"}, "revision"),
        ({"revision": "0123456789" * 4 + "\n"}, "revision"),
        ({"revision": "ABCDEF0123" * 4}, "revision"),
        ({"provenance": " "}, "provenance"),
        ({"provenance": "two\nlines"}, "provenance"),
        ({"provenance": None}, "provenance"),
        ({"files": {}}, "files"),
        ({"files": []}, "files"),
        ({"files": {"/etc/passwd": FILE}}, "/etc/passwd"),
        ({"files": {"a/../../b": FILE}}, "a/../../b"),
        ({"files": {"a//b": FILE}}, "a//b"),
        ({"files": {"./a": FILE}}, "./a"),
        ({"files": {"a\\b": FILE}}, "files"),
        ({"files": {"a\0b": FILE}}, "files"),
        ({"files": {"": FILE}}, "files"),
        ({"files": {"a": FILE, "a/b": FILE}}, "a/b"),
        ({"files": {"a": None}}, 'files."a"'),
        ({"files": {"a": {"bytes": 3}}}, 'files."a".sha256'),
        ({"files": {"a": FILE | {"size": 3}}}, "files.\"a\".'size'"),
        ({"files": {"a": FILE | {"bytes": -1}}}, 'files."a".bytes'),
        ({"files": {"a": FILE | {"bytes": 1.0}}}, 'files."a".bytes'),
        ({"files": {"a": FILE | {"bytes": True}}}, 'files."a".bytes'),
        ({"files": {"a": FILE | {"sha256": SHA256.upper()}}}, 'files."a".sha256'),
        ({"files": {"a": FILE | {"sha256": SHA256[:-1]}}}, 'files."a".sha256'),
        ({"files": {"a": FILE | {"sha256": 5}}}, 'files."a".sha256'),
        ({"extra": 1}, "extra"),
    ],
)
def test_refuses_and_names_file_and_key(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    path = written(tmp_path, document(**changes))
    with pytest.raises(RecipeError) as caught:
        read_pins(path)
    assert str(path) in str(caught.value)
    assert key in str(caught.value)


@pytest.mark.parametrize("key", document())
def test_refuses_an_absent_key(tmp_path: Path, key: str) -> None:
    value = document()
    del value[key]
    with pytest.raises(RecipeError, match=key):
        read_pins(written(tmp_path, value))


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b"\xff", b"NaN", b"[" * 100_000, b'{"schema":1,"schema":1}']
)
def test_refuses_what_is_not_one_json_object(tmp_path: Path, text: bytes, refuses: Refuses) -> None:
    with refuses(RecipeError):
        read_pins(written(tmp_path, text))


def test_names_a_key_that_stands_twice(tmp_path: Path, refuses: Refuses) -> None:
    text = json.dumps(document()).replace('"c": {', '"a/b.txt": {').encode()
    with refuses(RecipeError):
        read_pins(written(tmp_path, text))


def test_refuses_a_file_that_is_absent(tmp_path: Path, refuses: Refuses) -> None:
    with refuses(RecipeError):
        read_pins(tmp_path / "pins.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def reads(folder: Path, value: Any) -> Pins | None:
    """Return what was read, None where a RecipeError refused it; whatever else is raised fails the test."""
    try:
        return read_pins(written(folder, value))
    except RecipeError as error:
        str(error).encode()
        return None


@given(value=json_values)
def test_any_json_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    assert reads(tmp_path_factory.getbasetemp(), value) is None


@given(key=st.sampled_from(sorted(document())), value=json_values)
def test_any_value_of_a_key_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, key: str, value: Any) -> None:
    pins = reads(tmp_path_factory.getbasetemp(), document(**{key: value}))
    assert pins is None or pins == reads(tmp_path_factory.getbasetemp(), document(**{key: value}))


@given(path=st.text(st.sampled_from("ab./\\\0 \n"), max_size=8))
def test_a_path_that_is_accepted_stays_below_its_folder(path: str) -> None:
    if not path_fault(path):
        folder = Path("/folder")
        assert folder in (folder / path).parents
        assert ".." not in (folder / path).parts


@pytest.mark.parametrize("name", ["bases/qwen3.6-35b-a3b.json", "datasets/pile-10k.json"])
def test_the_pins_in_this_repository_can_be_read(name: str) -> None:
    pins = read_pins(BUILDS / name)
    assert pins.kind == ("model" if name.startswith("bases") else "dataset")
    assert all(file.sha256 for file in pins.files.values())


def test_the_base_is_complete() -> None:
    pins = read_pins(BUILDS / "bases" / "qwen3.6-35b-a3b.json")
    shards = {path: file for path, file in pins.files.items() if path.endswith(".safetensors")}
    assert (len(pins.files), len(shards)) == (40, 26)
    assert sum(file.bytes or 0 for file in shards.values()) == 71_903_776_776
