"""Servers that mean harm, on loopback: no answer takes more time, memory or disk than it may, for any verb."""

import gzip
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import close_session
from tests.cases.tiny_models import healthy
from tests.conftest import Refuses
from tests.hub import answering, running

from requant.check.reader import open_reader
from requant.checkpoint.checkpoint import write_checkpoint
from requant.errors import CheckpointError, NotAvailableError, UsageError
from requant.hub import download, web
from requant.hub import repository as hub
from requant.hub.fetch import fetch
from requant.hub.pinned import PinnedFile, Pins
from requant.inspect.remote import open_headers

COMMIT = "c" * 40
FINE = {"sha": COMMIT, "siblings": [{"rfilename": "model.safetensors"}, {"rfilename": "config.json"}]}
REFUSED = (CheckpointError, NotAvailableError)
VERBS: tuple[Callable[[str, str], Any], ...] = (open_headers, open_reader)
BIG = b"x" * (1 << 16)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(download, "PAUSE", 0.001)
    yield
    close_session()


def head(more: str = "", status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nConnection: close\r\n{more}\r\n".encode()


def listed(value: Any) -> bytes:
    return head() + (value if isinstance(value, bytes) else json.dumps(value).encode())


@pytest.mark.parametrize("verb", VERBS)
def test_a_list_without_an_end(verb: Callable[[str, str], Any], refuses: Refuses) -> None:
    with answering(lambda _: itertools.chain([head()], itertools.repeat(BIG))) as (url, sent):
        with refuses(CheckpointError, shared=True):
            verb("o/n@main", url)
        assert sum(sent) < 10 * hub.MAX_LISTING


@pytest.mark.parametrize("verb", VERBS)
def test_a_list_that_is_a_bomb(verb: Callable[[str, str], Any], refuses: Refuses) -> None:
    bomb = head("Content-Encoding: gzip\r\n") + gzip.compress(bytes(1 << 26))
    with answering(lambda _: [bomb]) as (url, _), refuses(NotAvailableError, shared=True):
        verb("o/n@main", url)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe",
        b'{"sha": NaN}',
        b'{"siblings": 1' + b"0" * 5000 + b"}",
        [],
        {},
        {**FINE, "siblings": 3},
        {**FINE, "siblings": [{}]},
        {**FINE, "siblings": ["x"]},
        {**FINE, "siblings": [{"rfilename": 3}]},
        {**FINE, "siblings": [{"rfilename": "a"}, {"rfilename": None}]},
        {**FINE, "siblings": [{"rfilename": "../a"}]},
        {**FINE, "siblings": [{"rfilename": "a\x1b"}]},
        {**FINE, "siblings": [{"rfilename": "a"}] * 2},
        {**FINE, "siblings": [{"rfilename": f"{n}"} for n in range(hub.MAX_FILES + 1)]},
        {**FINE, "sha": None},
        {**FINE, "sha": "../../etc"},
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_list_that_is_none(verb: Callable[[str, str], Any], value: Any) -> None:
    with answering(lambda _: [listed(value)]) as (url, _), pytest.raises(REFUSED, match="o/n"):
        verb("o/n@main", url)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("drip", ["list", "head", "file", "file's head"])
def test_a_byte_at_a_time(
    verb: Callable[[str, str], Any], drip: str, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    monkeypatch.setenv("REQUANT_TIMEOUT", "0.5")

    def answer(path: str) -> Iterator[bytes]:
        if drip.startswith("file") and "/api/" in path:
            yield listed(FINE)
            return
        if drip in ("list", "file"):
            yield head("Content-Range: bytes 0-7/1000\r\n", "206 Partial Content")
        for _ in range(100):
            yield b"a"
            time.sleep(0.1)

    began = time.monotonic()
    with answering(answer) as (url, _), refuses(NotAvailableError, vary=r"(?<=PORT)\S+(?=: )", shared=True):
        verb("o/n@main", url)
    assert time.monotonic() - began < 8


@pytest.mark.parametrize("verb", VERBS)
def test_redirects_are_few_and_their_bodies_unread(verb: Callable[[str, str], Any], refuses: Refuses) -> None:
    away = head("Location: /again\r\n", "302 Found")
    with answering(lambda _: itertools.chain([away], itertools.repeat(BIG))) as (url, sent):
        with refuses(NotAvailableError, shared=True):
            verb("o/n@main", url)
        assert sum(sent) < 64 * len(BIG) * (2 + web.REDIRECTS)


@pytest.mark.parametrize("size", ["9" * 5000, "²", "-1", "", "99999999999999999"])
def test_a_size_that_is_none(size: str) -> None:
    for verb in VERBS:
        answers = [head(f"Content-Range: bytes 0-7/{size}\r\n", "206 Partial Content") + bytes(8)]
        serve = lambda path, answers=answers: [listed(FINE)] if "/api/" in path else answers  # noqa: E731
        with answering(serve) as (url, _), pytest.raises((NotAvailableError, CheckpointError)):
            verb("o/n@main", url)


@pytest.mark.parametrize("verb", VERBS)
def test_headers_are_bounded_together(
    verb: Callable[[str, str], Any], monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    monkeypatch.setattr(hub, "MAX_HEADERS", 1000)
    header = b'{"a%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'.ljust(400)
    file = len(header).to_bytes(8, "little") + header
    with running() as served, tempfile.TemporaryDirectory() as folder:
        for number in range(9):
            Path(folder, f"{number}.safetensors").write_bytes(file.replace(b"%d", b"%02d" % number))
        served.serve("model", "o/n", COMMIT, Path(folder))
        with refuses(CheckpointError, shared=True):
            verb("o/n@main", served.url)


def test_nothing_is_asked_but_the_list_and_files(tmp_path: Path) -> None:
    write_checkpoint(healthy("ec"), tmp_path / "ec")
    with running() as served:
        served.serve("model", "o/n", COMMIT, tmp_path / "ec")
        open_headers("o/n@main", served.url)
        with open_reader("o/n@main", served.url):
            pass
        lists = {each.path for each in served.requests if "/resolve/" not in each.path}
        assert lists == {"/api/models/o/n/revision/main"}
        assert {each.headers["user-agent"] for each in served.requests} == {"requant"}


@pytest.mark.parametrize("verb", VERBS)
def test_nobody_there_is_told_by_address_and_without_the_password(
    verb: Callable[[str, str], Any], refuses: Refuses
) -> None:
    with refuses(NotAvailableError, shared=True) as caught:
        verb("o/n@main", "http://me:secret@127.0.0.1:1")
    assert "secret" not in str(caught.value)


def pins(size: int | None) -> Pins:
    return Pins("model", "o/n", COMMIT, "-", {"f": PinnedFile(size, "ab" * 32)})


@pytest.mark.parametrize("offered", ["", "Content-Length: 99999999999\r\n"])
def test_a_file_without_a_pinned_size_is_bounded(
    offered: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    monkeypatch.setattr(download, "MAX_UNSIZED", 1 << 20)
    endless = lambda _: itertools.chain([head(offered)], itertools.repeat(BIG))  # noqa: E731
    with answering(endless) as (url, _), refuses(CheckpointError, vary="found [0-9,]+", shared=True):
        fetch(pins(None), tmp_path, endpoint=url)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 2 << 20


def test_a_download_that_never_gets_further_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUANT_TIMEOUT", "0.5")
    count = itertools.count(1)
    answers = lambda _: [head("Content-Length: 10000\r\n") + bytes(next(count))]  # noqa: E731
    with answering(answers) as (url, _), pytest.raises(NotAvailableError):
        fetch(pins(10_000), tmp_path, endpoint=url)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "x"])
def test_a_timeout_that_is_none(text: str, monkeypatch: pytest.MonkeyPatch, refuses: Refuses) -> None:
    monkeypatch.setenv("REQUANT_TIMEOUT", text)
    with refuses(UsageError, vary=f"={text}", shared=True):
        web.Patience()


def test_what_comes_puts_the_end_off() -> None:
    patience = web.Patience(10)
    before = patience.left()
    patience.heard("u", 100 * web.SLOWEST)
    assert 105 < patience.left() - before + 10 < 115
