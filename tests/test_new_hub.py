"""A base on a hub, by a real server on loopback: what `new` pins, what it asks for, and what it refuses."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from tests.conftest import Refuses, Worded
from tests.hub import Hub, running
from tests.owned import base
from tests.test_remote import header_bytes
from typer.testing import CliRunner

import requant.build.inputs
import requant.new
from requant.build import build
from requant.check import check
from requant.check.reader import open_reader
from requant.cli.options import app
from requant.digest import sha256
from requant.errors import CheckpointError, NotAvailableError, RequantError, UsageError
from requant.hub import repository, stated
from requant.hub.pinned import PinnedFile, Pins, pins_for, read_pins
from requant.hub.web import Patience
from requant.inspect.headers import read_headers
from requant.model.target import target_of
from requant.model.tiny import calibration_text
from requant.new import new
from requant.recipe import Recipe, read_recipe
from requant.verdict import Outcome

COMMIT = "c" * 40
WEIGHT = "model-00002-of-00003.safetensors"
STRAYS = ("pytorch_model.bin", "modeling.py", "consolidated.safetensors")


class AskedError(Exception):
    """AutoRound would be asked now: everything that is fetched has been."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with what hubs hold beside one: a card, code, and the weights in other formats and for other programs."""
    path = base("qwen3", tmp_path_factory.mktemp("hub") / "model")
    for name in STRAYS:
        shutil.copy(path / WEIGHT, path / name)
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
        raise AskedError

    monkeypatch.setattr(requant.new, "ask", ask)


def pins_of(hub: Hub, text: str, had: tuple[str, ...] = ()) -> Pins:
    patience = Patience()
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
    with pytest.raises(AskedError):
        new("o/n", "mine", tmp_path / "project", endpoint=hub.url)
    files = [request for request in hub.requests if "/resolve/" in request.path]
    weights = [request for request in files if request.path.endswith(".safetensors")]
    assert all("range" in request.headers for request in weights)
    assert sum(request.sent for request in weights) == header_bytes(folder)
    others = [request.path.rpartition("/")[2] for request in files if request not in weights]
    assert len({*others}) == len(others) > 5
    assert not {"README.md", *STRAYS} & {*others}


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ("o/other", NotAvailableError),
        ("o/n@branch", NotAvailableError),
        ("nowhere", UsageError),
        ("/no/where", UsageError),
        ("o/n@", UsageError),
    ],
)
def test_what_is_not_there_is_named(
    hub: Hub, tmp_path: Path, asked: str, error: type[Exception], refuses: Refuses
) -> None:
    with refuses(error):
        new(asked, "mine", tmp_path / "project", endpoint=hub.url)
    assert not (tmp_path / "project").exists()


@pytest.fixture
def refused(hub: Hub, tmp_path: Path, refuses: Refuses) -> Callable[..., None]:
    """Expect that a base in the hub is refused, and that nothing is written."""

    def expect(error: type[RequantError], vary: str = "") -> None:
        with refuses(error, vary):
            new("o/n", "mine", tmp_path / "project", endpoint=hub.url)
        assert not (tmp_path / "project").exists()

    return expect


def test_a_gated_repository_is_told(hub: Hub, refused: Callable[..., None]) -> None:
    hub.token = "hf_secret"  # noqa: S105 (asked for, and not given)
    refused(NotAvailableError)


def test_a_server_that_tells_no_blobs_is_no_hub(refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.hub._git", lambda _: "no name")
    refused(NotAvailableError)


@pytest.mark.parametrize(("large", "kind"), [(1 << 16, "git blob"), (10, "sha256")])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_file_with_other_bytes_is_refused(
    hub: Hub, refused: Callable[..., None], large: int, kind: str, name: str
) -> None:
    """One that is stored as LFS and that nobody looks into, `fetch` refuses."""
    hub.large = large
    content = (hub.repositories["o/n"][1] / name).read_bytes()
    hub.content[name] = content.replace(b"{\n", b"{ ", 1)  # as long as before
    assert len(hub.content[name]) == len(content)
    if (name, kind) == ("generation_config.json", "sha256"):
        assert pins_of(hub, "o/n").files[name].sha256 == sha256(content)
    else:
        refused(CheckpointError, vary=r"\b[0-9a-f]{40,}\b|[\d,]+ bytes")


def test_git_files_are_bounded(refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stated, "MAX_FETCHED", 100)
    refused(CheckpointError, vary=r"\b[0-9a-f]{40,}\b|[\d,]+ bytes")


@pytest.mark.parametrize("without", ["config.json", "*.safetensors"])
def test_what_is_no_base_is_told(
    hub: Hub, folder: Path, tmp_path: Path, refused: Callable[..., None], without: str
) -> None:
    ignored = shutil.ignore_patterns(without)
    hub.serve("model", "o/n", COMMIT, shutil.copytree(folder, tmp_path / "less", ignore=ignored))
    refused(CheckpointError)


def test_offline_is_told_without_a_traceback(hub: Hub, tmp_path: Path, worded: Worded) -> None:
    command = [sys.executable, "-m", "requant", "new", "o/n", "--name", "mine", "--project", str(tmp_path / "project")]
    environment = hub.environment | {"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == NotAvailableError.exit_status
    worded(done.stderr)
    assert not (tmp_path / "project").exists()


def test_interrupted_it_leaves_no_half_of_a_build(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(requant.new, "ask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        new("o/n", "mine", tmp_path, environment="cpu", endpoint=hub.url)
    assert [path.name for path in (tmp_path / "builds").iterdir()] == ["datasets"]


@pytest.fixture
def own(hub: Hub, tmp_path: Path, worker: Path) -> Recipe:
    """A recipe of a base that is on a hub, for a CPU; it is tuned little, on a text of the hub's."""
    del worker
    words = ["new", "o/n", "--name", "mine", "--project", "project", "--environment", "cpu", "--sandbox", "venv"]
    command = [sys.executable, "-m", "requant", *words]
    done = subprocess.run(command, env=os.environ | hub.environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "project" / "builds" / "mine"
    recipe = read_recipe(path)
    cost = requant.build.inputs.cost(recipe, tmp_path)
    pins = pins_for(recipe.beside(recipe.base.files), "o/n", COMMIT, recipe.path)
    assert cost.download_bytes == sum(file.bytes or 0 for file in pins.files.values())
    assert f"A full build takes {cost.text()}, in 6 GiB of memory" in done.stderr

    calibration = recipe.calibration
    text = tmp_path / "text" / calibration.file
    text.parent.mkdir(parents=True)
    lines = [json.loads(line)["text"] for line in calibration_text().splitlines()]
    pyarrow.parquet.write_table(pyarrow.table({"text": lines}), text)
    hub.serve("dataset", calibration.dataset, calibration.revision, tmp_path / "text")
    files = {calibration.file: PinnedFile(text.stat().st_size, sha256(text.read_bytes()))}
    ours = Pins("dataset", calibration.dataset, calibration.revision, "Written for this test.", files)
    recipe.beside(calibration.files).write_text(ours.to_json())

    little = {"iterations = 200": "iterations = 2", "samples = 128": "samples = 8", "length = 2048": "length = 64"}
    edited = recipe.path.read_text()
    for old, less in little.items():
        assert old in edited
        edited = edited.replace(old, less)
    recipe.path.write_text(edited)
    return read_recipe(path)


@pytest.mark.worker
@pytest.mark.full
def test_a_base_on_the_hub_is_planned_fetched_confirmed_and_built(
    own: Recipe, hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (own.base.repository, own.base.revision) == ("o/n", COMMIT)
    headers = {name: spec for file in read_headers(folder).shards.values() for name, spec in file.items()}
    assert target_of(own, None).plan.tensors == headers
    shown = CliRunner().invoke(app, ["plan", str(own.path.parent)])
    assert shown.exit_code == 0
    assert f"o/n@{COMMIT}" in shown.output

    monkeypatch.setattr(requant.build.inputs, "cache", lambda: tmp_path / "cache")
    weight = (folder / WEIGHT).read_bytes()
    hub.content[WEIGHT] = weight[:-1] + bytes([weight[-1] ^ 1])
    with pytest.raises(CheckpointError, match=rf"{WEIGHT}: found .*expected .*{sha256(weight)}"):
        build(own, tiny=None, out=tmp_path / "out", endpoint=hub.url)
    assert not (tmp_path / "out").exists()
    del hub.content[WEIGHT]
    built = build(own, tiny=None, out=tmp_path / "out", endpoint=hub.url)
    assert (built.verdict.outcome, built.taints) == (Outcome.INCONCLUSIVE, ())  # there is no record of it yet
    with open_reader(str(built.folder)) as theirs, open_reader(str(folder)) as ours:
        assert check(theirs, ours, recipe=own).outcome == "clean"
