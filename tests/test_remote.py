"""Checkpoints on a hub, by a real server on loopback whose log shows what was asked for."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cases.tiny_models import healthy
from tests.conftest import Refuses
from tests.hub import Hub, running

from requant.checkpoint.checkpoint import write_checkpoint
from requant.errors import CheckpointError, NotAvailableError, UsageError
from requant.inspect import inspect
from requant.inspect.headers import read_headers
from requant.inspect.remote import open_headers

COMMIT = "c" * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("remote") / "ec"
    write_checkpoint(healthy("ec"), path)
    return path


@pytest.fixture
def hub(folder: Path) -> Iterator[Hub]:
    with running() as served:
        served.serve("model", "o/n", COMMIT, folder)
        yield served


def header_bytes(folder: Path) -> int:
    return sum(8 + int.from_bytes(path.read_bytes()[:8], "little") for path in folder.glob("*.safetensors"))


@pytest.mark.parametrize("cdn", [False, True])
def test_a_repository_is_what_its_folder_is(hub: Hub, folder: Path, cdn: bool) -> None:
    hub.cdn = cdn
    there, here = open_headers(f"o/n@{COMMIT}", hub.url), read_headers(folder)
    assert (there.shards, there.data_bytes, there.sides, there.paths) == (
        here.shards,
        here.data_bytes,
        here.sides,
        here.paths,
    )
    assert inspect(there).findings == inspect(here).findings


def test_no_byte_of_a_weight_is_asked_for(hub: Hub, folder: Path) -> None:
    found = open_headers("o/n@main", hub.url)
    sent = [request for request in hub.downloads() if request.path.endswith(".safetensors")]
    assert all("range" in request.headers for request in sent)
    assert sum(request.sent for request in sent) == header_bytes(folder)
    for request in sent:
        length = int.from_bytes((folder / request.path.rpartition("/")[2]).read_bytes()[:8], "little")
        assert int(request.headers["range"].rpartition("-")[2]) < 8 + length
    files = sum(request.sent for request in hub.downloads())
    assert files <= found.fetched < files + 10_000  # the listing is no file
    assert found.name == f"o/n@{COMMIT}"


def test_the_command_finds_the_hub_by_its_own_variable(hub: Hub) -> None:
    command = [sys.executable, "-m", "requant", "inspect", "o/n@main"]
    done = subprocess.run(command, env=hub.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "bytes fetched" in done.stdout and "were not read" in done.stdout


def test_a_server_without_ranges_is_told(hub: Hub, refuses: Refuses) -> None:
    hub.ranges = False
    with refuses(NotAvailableError):
        open_headers("o/n@main", hub.url)


@pytest.mark.parametrize("start", [1, 100])
def test_another_part_than_asked_for_is_refused(hub: Hub, start: int, refuses: Refuses) -> None:
    hub.start = start
    with refuses(NotAvailableError):
        open_headers("o/n@main", hub.url)


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ("o/other@main", NotAvailableError),
        ("o/n@branch", NotAvailableError),
        ("o/n", UsageError),
        ("o/n@", UsageError),
        ("x@main", UsageError),
        ("x", UsageError),
    ],
)
def test_what_is_not_there_is_named(hub: Hub, asked: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=asked.partition("@")[0]):
        open_headers(asked, hub.url)


@pytest.mark.parametrize("status", [401, 403, 404, 500, 503])
def test_a_refusal_is_an_error(hub: Hub, status: int, refuses: Refuses) -> None:
    hub.status["config.json"] = status
    with refuses(NotAvailableError):
        open_headers("o/n@main", hub.url)


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 8, b"\0" * 7 + b"\x80", (2**63).to_bytes(8, "little"), b"\x09" + b"\0" * 7 + b"{}"]
)
def test_a_broken_header_is_named(hub: Hub, content: bytes) -> None:
    hub.content["model_extra_tensors.safetensors"] = content
    with pytest.raises((CheckpointError, NotAvailableError), match="model_extra_tensors"):
        open_headers("o/n@main", hub.url)


def test_a_dropped_connection_is_an_error(hub: Hub) -> None:
    hub.drop_at = 100
    with pytest.raises((CheckpointError, NotAvailableError)):
        open_headers("o/n@main", hub.url)


def test_a_folder_comes_before_a_repository(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "n").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    assert open_headers("o/n").folder == Path("o/n")
    with refuses(UsageError):
        open_headers("/nowhere")
