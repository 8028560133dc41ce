"""A published log says what happened, and nothing of where."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from requant.build import log
from requant.build.log import publish, scrubbed

FOLDERS = {
    "work": Path("/scratch/anna/.out.unfinished"),
    "home": Path("/home/anna"),
    "cache": Path("/home/anna/.cache"),
}
NAMES = {"user": "anna", "host": "node-7"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/scratch/anna/.out.unfinished/raw/model.safetensors", "<work>/raw/model.safetensors"),
        ("/home/anna/.cache/requant/base.py:3", "<cache>/requant/base.py:3"),
        ("'/home/anna' /home/anna, (/home/anna).", "'<home>' <home>, (<home>)."),
        ("file:///home/anna/x", "file://<home>/x"),
        ("for anna on node-7:", "for <user> on <host>:"),
        ("/data/anna/x", "/data/<user>/x"),
        ("/home/annabel hannah anna-lena anna_7 node-70", "/home/annabel hannah anna-lena anna_7 node-70"),
        ("/home/anna.old", "/home/<user>.old"),
        ("a loss of 0.5\r 50%|█████", "a loss of 0.5\r 50%|█████"),
    ],
)
def test_paths_and_names_are_replaced_where_they_are_whole(text: str, expected: str) -> None:
    assert scrubbed(text, FOLDERS, NAMES) == expected


@given(st.lists(st.sampled_from([*map(str, FOLDERS.values()), *NAMES.values(), "/", " ", ":", "\n", "é"])))
def test_nothing_of_it_is_left(parts: list[str]) -> None:
    text = scrubbed(" ".join(parts), FOLDERS, NAMES)
    assert "anna" not in text
    assert "node-7" not in text


@given(st.text())
def test_what_names_nothing_stays(text: str) -> None:
    assert scrubbed(text, {"home": Path("/")}, {"user": "", "host": ""}) == text


def test_links_are_seen_through(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    text = f"{tmp_path}/link/a {tmp_path}/real/a"
    assert scrubbed(text, {"work": tmp_path / "link"}, {}) == "<work>/a <work>/a"


def test_what_is_no_text_is_published_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "pwd", SimpleNamespace(getpwuid=lambda _: SimpleNamespace(pw_name="anna", pw_uid=7)))
    monkeypatch.setattr(log, "platform", SimpleNamespace(node=lambda: "node-7"))
    monkeypatch.setenv("HOME", "/home/anna")
    (tmp_path / "log").write_bytes(b"\xff\x1b[31m/home/anna/x on node-7 as \x1b[0manna\r\n")
    publish(tmp_path / "log", tmp_path / "out.log", {"work": tmp_path})
    assert (tmp_path / "out.log").read_bytes() == b"\xff\x1b[31m<home>/x on <host> as \x1b[0m<user>\r\n"
