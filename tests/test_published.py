"""A build is published, found by name, judged and fetched, by a real server that speaks the Hub's protocol."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import close_session, constants
from tests.cases.published import Project, project
from tests.hub import Hub, running
from tests.test_coverage import keyed
from typer.testing import CliRunner, Result

from requant.cli.options import app
from requant.digest import sha256_file
from requant.hub import download

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # how the library uploads

NAME = "ada/ec"


@pytest.fixture(autouse=True)
def _only_loopback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No test asks for an address elsewhere, sends a developer's token, waits long, or uses Xet."""
    ask = socket.getaddrinfo

    def loopback(host: Any, *args: Any, **more: Any) -> Any:
        assert host in ("127.0.0.1", "localhost", b"127.0.0.1", b"localhost"), host
        return ask(host, *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", loopback)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "PAUSE", 0.001)
    monkeypatch.chdir(tmp_path)
    close_session()
    yield
    close_session()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def ours(tmp_path: Path, shared: Path) -> Project:
    return project(tmp_path / "project", shared)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with running() as served:
        served.store = tmp_path / "store"
        yield served


def ran(hub: Hub, *words: object) -> Result:
    done = CliRunner().invoke(app, [*map(str, words), "--endpoint", hub.url], catch_exceptions=False)
    return done


def published(hub: Hub, ours: Project, *words: object) -> Result:
    command = ("publish", ours.checkpoint, NAME, "--recipe", ours.recipe.path.parent, "--tiny", "--size", "mini")
    return ran(hub, *command, *words)


def files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in folder.rglob("*") if path.is_file()}


def test_a_dry_run_sends_nothing_and_says_what_would(hub: Hub, ours: Project) -> None:
    done = published(hub, ours)
    print(done.output)
    assert done.exit_code == 0 and "dry run" in done.stdout
    assert {each.method for each in hub.requests} == {"GET"} and not hub.repositories


def test_what_is_published_is_there_and_comes_back(hub: Hub, ours: Project, tmp_path: Path) -> None:
    ada = keyed("ada", tmp_path)
    done = published(hub, ours, "--sign", tmp_path / "ada.key", "--push")
    print(done.output)
    assert done.exit_code == 0
    commit, folder = hub.head(NAME)
    there = files(folder)
    assert ours.files.items() <= there.items()
    stands = ran(hub, "verify", NAME)
    print(stands.output)
    assert stands.exit_code == 3
    got = ran(hub, "fetch", NAME, "--out", tmp_path / "got")
    print(got.output)
    assert got.exit_code == 0 and files(tmp_path / "got") == there
