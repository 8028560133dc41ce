import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.checkpoints import on_a_disk, on_disk

from requant import digest
from requant.digest import canonical_json, sha256, sha256_chunks, sha256_file, strict_json

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(chunks=st.lists(st.binary()))
def test_chunks_are_hashed_as_their_concatenation(chunks: list[bytes]) -> None:
    assert sha256_chunks(chunks) == sha256(b"".join(chunks)) == hashlib.sha256(b"".join(chunks)).hexdigest()


@on_a_disk
@given(data=st.binary(max_size=40), start=st.integers(0, 45), length=st.integers(0, 45), chunk=st.integers(1, 9))
def test_a_stretch_of_a_file_is_hashed_as_its_bytes(data: bytes, start: int, length: int, chunk: int) -> None:
    with on_disk({"file": data}) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(digest, "CHUNK", chunk)
        assert sha256_file(folder / "file", start, start + length) == sha256(data[start : start + length])
        assert sha256_file(folder / "file", start) == sha256(data[start:])


def test_the_hash_of_a_huge_file_stays_small(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (tmp_path / "file").open("r+b") as file:
        file.truncate(1 << 40)
    assert sha256_file(tmp_path / "file", (1 << 40) - 3) == sha256(b"\0\0\0")


@given(value=values)
def test_what_is_written_is_read_back(value: Any) -> None:
    text = canonical_json(value)
    assert strict_json(text) == value
    assert canonical_json(strict_json(text)) == text


@given(value=st.dictionaries(st.text(st.characters(max_codepoint=0x7F)), st.integers()))
def test_the_order_of_keys_is_not_written(value: dict[str, int]) -> None:
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


def test_canonical_json_is_that_of_rfc_8785() -> None:
    value = {"\r": 1, "1": [None, True], "\u20ac": '\u20ac$\x0f\nA\'B"\\\\"/'}  # after the RFC's section 3.2.2
    assert canonical_json(value) == '{"\\r":1,"1":[null,true],"€":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'.encode()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b'{"a":1,"b":2,"a":1}', "'a' stands twice"),
        (b'[{"a":{"b":1,"\\u0062":1}}]', "'b' stands twice"),
        (b"[NaN]", "NaN"),
        (b"[Infinity]", "Infinity"),
        (b'{"a":-Infinity}', "-Infinity"),
        (b'"\xff"', "utf-8"),
        (b'"\xed\xa0\x80"', "utf-8"),
        ("[]".encode("utf-16"), "utf-8"),
        (b"\xef\xbb\xbf[]", "BOM"),
        (b'{"\\ud800":1}', "surrogate"),
        (b'["\\udfff"]', "surrogate"),
        (b"", "line 1"),
        (b"[] []", "Extra data"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"":' * 100_000, "nested too deeply"),
        (b"9" * 5000, "4300"),
    ],
)
def test_strict_json_refuses_what_readers_understand_differently(text: bytes, found: str) -> None:
    with pytest.raises(ValueError, match=found):
        strict_json(text)


def test_a_pair_of_surrogates_is_one_character() -> None:
    assert strict_json(b'"\\ud83d\\ude00"') == "\U0001f600"


@given(data=st.binary() | values.map(lambda value: json.dumps(value).encode()))
def test_strict_json_reads_or_raises_a_value_error(data: bytes) -> None:
    try:
        value = strict_json(data)
    except ValueError:
        return
    assert json.loads(data) == value
