"""A base on a hub, by a real server on loopback: what `new` pins, what it asks for, and what it refuses."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.hub import Hub, running
from tests.test_new import base
from tests.test_remote import header_bytes

import requant.new
from requant.build import inputs
from requant.checkpoint.checkpoint import open_checkpoint
from requant.cli.options import app
from requant.digest import sha256
from requant.errors import CheckpointError, NotAvailableError, RequantError, UsageError
from requant.hub import repository, stated
from requant.hub.pinned import PinnedFile, Pins, read_pins
from requant.model.plan import read_tensors
from requant.new import new
from requant.progress import silent
from requant.recipe import read_recipe

COMMIT = "c" * 40
WEIGHT = "model.safetensors"


class Asked(Exception):
    """AutoRound would be asked now: everything that is fetched has been."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with all that hubs hold beside one: a card, pickles, the same weights for another program."""
    path = base("qwen3", tmp_path_factory.mktemp("hub") / "model")
    for name in ("README.md", "pytorch_model.bin", "modeling.py", "original/consolidated.safetensors"):
        (path / name).parent.mkdir(exist_ok=True)
        shutil.copy(path / WEIGHT, path / name) if name.endswith(".safetensors") else (path / name).write_text(name)
    return path


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with running() as served:
        served.large = 1 << 16  # side files are git's own
        served.serve("model", "o/n", COMMIT, folder)
        yield served


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object, **__: object) -> None:
        raise Asked

    monkeypatch.setattr(requant.new, "ask", ask)


def pins_of(hub: Hub, text: str, had: tuple[str, ...] = ()) -> Pins:
    patience = repository.web.Patience()
    found = repository.listing(*repository.named(text, "main"), patience, hub.url, stated=True)
    folder = hub.repositories["o/n"][1]
    return stated.stated_pins(found, found.paths, patience, had={name: (folder / name).read_bytes() for name in had})


@pytest.mark.parametrize("text", ["o/n", "o/n@main", f"o/n@{COMMIT}"])
@pytest.mark.parametrize("large", [1, 1 << 10, 1 << 30])
def test_pins_are_the_files_bytes_however_they_are_stored(hub: Hub, folder: Path, text: str, large: int) -> None:
    hub.large = large
    pins = pins_of(hub, text, ("config.json",))
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert pins.files == {name: PinnedFile(len(data), sha256(data)) for name, data in files.items()}
    assert (pins.repository, pins.revision) == ("o/n", COMMIT)
    assert hub.url in pins.provenance
    fetched = {request.path.partition(COMMIT)[2].lstrip("/") for request in hub.downloads()}
    assert fetched == {name for name, data in files.items() if len(data) < large} - {"config.json"}


def test_pins_are_read_back(hub: Hub, tmp_path: Path) -> None:
    pins = pins_of(hub, "o/n")
    (tmp_path / "pins.json").write_text(pins.to_json())
    assert read_pins(tmp_path / "pins.json") == replace(pins, files=read_pins(tmp_path / "pins.json").files)
    assert read_pins(tmp_path / "pins.json").files == pins.files


@pytest.mark.usefixtures("unasked")
def test_no_byte_of_a_weight_is_asked_for(hub: Hub, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Asked):
        new("o/n", "mine", tmp_path / "project", endpoint=hub.url)
    weights = [request for request in hub.downloads() if request.path.endswith(".safetensors")]
    assert {request.path.rpartition("/")[2] for request in weights} == {WEIGHT, "consolidated.safetensors"}
    assert all("range" in request.headers for request in weights)
    assert sum(request.sent for request in weights) == 2 * header_bytes(folder)
    assert not {"README.md", "pytorch_model.bin", "modeling.py"} & {
        request.path.rpartition("/")[2] for request in hub.requests
    }
    assert len({request.path for request in hub.requests if "/resolve/" in request.path}) + 2 * len(
        weights
    ) // 4 == len([request for request in hub.requests if "/resolve/" in request.path])


@pytest.mark.parametrize(
    ("asked", "error", "told"),
    [
        ("o/other", NotAvailableError, "no such repository, status 401"),
        ("o/n@branch", NotAvailableError, "no such revision, status 404"),
        ("nowhere", UsageError, "no such folder"),
        ("/no/where", UsageError, "no such folder"),
        ("o/n@", UsageError, "no such folder"),
    ],
)
def test_what_is_not_there_is_named(hub: Hub, tmp_path: Path, asked: str, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        new(asked, "mine", tmp_path / "project", endpoint=hub.url)
    assert not (tmp_path / "project").exists()


def refused(hub: Hub, project: Path, error: type[RequantError], told: str) -> str:
    with pytest.raises(error, match=told) as caught:
        new("o/n", "mine", project, endpoint=hub.url)
    assert not project.exists()
    return caught.value.advice


def test_a_gated_repository_is_told(hub: Hub, tmp_path: Path) -> None:
    hub.token = "hf_secret"
    assert "accept its conditions" in refused(hub, tmp_path / "project", NotAvailableError, "gated, status 401")


def test_a_server_that_tells_no_blobs_is_no_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.hub._git", lambda _: "no name")
    refused(hub, tmp_path / "project", NotAvailableError, "not a list of files.*no name that git gives")


@pytest.mark.parametrize(("large", "kind"), [(1 << 16, "git blob"), (10, "sha256")])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_file_with_other_bytes_is_refused(hub: Hub, tmp_path: Path, large: int, kind: str, name: str) -> None:
    """One that is stored as LFS and that nobody looks into, `fetch` refuses."""
    hub.large = large
    content = (hub.repositories["o/n"][1] / name).read_bytes()
    hub.content[name] = content.replace(b"{", b"{ ", 1).removesuffix(b"\n")  # as long as before
    assert len(hub.content[name]) == len(content)
    if (name, kind) == ("generation_config.json", "sha256"):
        assert pins_of(hub, "o/n").files[name].sha256 == sha256(content)
    else:
        refused(hub, tmp_path / "project", CheckpointError, rf"{name}: found .*{kind}.*the hub states")


def test_git_files_are_bounded(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stated, "MAX_FETCHED", 100)
    refused(hub, tmp_path / "project", CheckpointError, "not stored as LFS, expected 100 at most")


@pytest.mark.parametrize(
    ("without", "told"), [("config.json", r"no config\.json"), ("model.safetensors", "no safetensors files")]
)
def test_what_is_no_base_is_told(hub: Hub, folder: Path, tmp_path: Path, without: str, told: str) -> None:
    ignored = shutil.ignore_patterns(without, "original")
    hub.serve("model", "o/n", COMMIT, shutil.copytree(folder, tmp_path / "less", ignore=ignored))
    refused(hub, tmp_path / "project", CheckpointError, told)


def test_offline_is_told_without_a_traceback(hub: Hub, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "requant", "new", "o/n", "--name", "mine", "--project", tmp_path / "project"]
    environment = hub.environment | {"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == NotAvailableError.exit_status
    assert "HF_HUB_OFFLINE is set" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "project").exists()


def test_interrupted_it_leaves_no_half_of_a_build(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(requant.new, "ask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        new("o/n", "mine", tmp_path, environment="cpu", endpoint=hub.url)
    assert [path.name for path in (tmp_path / "builds").iterdir()] == ["datasets"]
