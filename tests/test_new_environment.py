"""The one path from nothing to an image for a new GPU, as docs/environments.md says it; the network is stood in for."""

import re
import shutil
from pathlib import Path

import pytest
from tests.conftest import ROOT
from tests.wheels import make_wheel
from typer.testing import CliRunner, Result

import requant.environment.resolve as locking
import requant.environment.update as updating
from requant.cli.options import app
from requant.environment import install as installation
from requant.environment.image.dockerfile import environments
from requant.environment.lock import format_lock, read_intent, read_lock
from requant.errors import LockError
from requant.hub.pins import find_pins

GUIDE = (ROOT / "docs" / "environments.md").read_text()
TABLE = re.search(r"   \[b200\]\n(?:   \w.+\n)+", GUIDE)
INDEX, IMAGE = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone, a package index that resolves all to what gb10 has, and a registry."""
    for name in ("lockfiles", "builds"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for file in (*ROOT.glob("Dockerfile.*"), ROOT / "pyproject.toml", ROOT / "noxfile.py"):
        shutil.copy(file, tmp_path)
    pins = read_lock(ROOT / "lockfiles", "gb10").pins
    monkeypatch.setattr(locking, "resolve", lambda folder, name: format_lock(read_intent(folder, name), pins))
    make_wheel(tmp_path / "wheels", "heart", {"heart.py": b""})
    wheel = tmp_path / "wheels" / "heart-1.0-py3-none-any.whl"
    monkeypatch.setattr(installation, "wheels", lambda *_, **__: {pins[0]: wheel})
    described = updating._described
    assert callable(described)
    images = [{"digest": IMAGE, "platform": {"os": "linux", "architecture": each}} for each in ("arm64", "amd64")]
    monkeypatch.setattr(updating, "_described", lambda _: {"digest": INDEX, "manifests": images})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def requant(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def test_from_nothing_to_an_image(project: Path) -> None:
    locks, recipe = project / "lockfiles", project / "builds" / "b200"
    shutil.copy(locks / "gb10.in", locks / "b200.in")
    assert requant("lock", "b200").exit_code == 0
    assert requant("lock", "--files", "b200").exit_code == 0
    shutil.copytree(project / "builds" / "gb10", recipe)
    text = (recipe / "recipe.toml").read_text()
    (recipe / "recipe.toml").write_text(text.replace('environment = "gb10"', 'environment = "b200"'))

    # Whoever forgets the base is told of it at each step that needs it, and nowhere sent in a circle.
    early = requant("render", "builds/b200")
    assert isinstance(early.exception, LockError)
    assert "Dockerfile.b200: No such file" in str(early.exception)
    assert "nox -s dockerfiles -- b200" in early.exception.advice
    for words in (("dockerfiles", "b200"), ("dockerfiles",)):
        told = requant(*words)
        assert isinstance(told.exception, LockError)
        assert "images.toml: has no base for b200" in str(told.exception)
        assert "Add a table [b200] with image, digest, index, nvidia: docs/environments.md" in told.exception.advice

    assert TABLE is not None
    with (locks / "images.toml").open("a") as file:
        file.write("\n" + re.sub("(?m)^   ", "", TABLE[0]))
    assert [pin.fault for pin in find_pins(project) if "images.toml" in pin.file and pin.fault] == [
        "a tag without a digest: no digest",
        "a tag without a digest: no index",
    ]
    for words in (("dockerfiles", "b200"), ("dockerfiles",)):
        told = requant(*words)
        assert isinstance(told.exception, LockError)
        assert "b200: digest is all zeros" in str(told.exception)
        assert "requant update images b200 --write" in told.exception.advice
    assert requant("update", "images", "b200", "--write").exit_code == 0
    assert f"ARG BASE=python:3.12-slim-bookworm@{IMAGE}\n" in (project / "Dockerfile.b200").read_text()
    before = (project / "Dockerfile.b200").read_bytes()
    assert requant("dockerfiles", "b200").exit_code == 0
    assert (project / "Dockerfile.b200").read_bytes() == before

    assert requant("plan", "builds/b200").exit_code == 0
    assert requant("render", "builds/b200").exit_code == 0
    assert re.search(r'image: "requant/b200:[0-9a-f]{16}"\n', (recipe / "job.yaml").read_text())
    assert not [pin for pin in find_pins(project) if pin.fault and "b200" in f"{pin.file} {pin.name}"]


def test_tools_need_no_base(project: Path) -> None:
    assert environments(project / "lockfiles") == ["cpu", "cu124", "cu130", "current", "gb10"]


def test_the_guide_names_every_step() -> None:
    guide = GUIDE[GUIDE.index("## A new environment") :]
    steps = (
        "lock -- b200",
        "lock -- --files b200",
        "update-images -- b200 --write",
        "dockerfiles -- b200",
        "image-b200",
    )
    places = [guide.index(f"nox -s {step}") for step in steps]
    assert places == sorted(places)
    assert "requant render builds/b200" in guide
