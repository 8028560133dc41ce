"""What is recorded of an image: its evidence, and the very list of materials that this names."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.conftest import Refuses

from requant.digest import sha256
from requant.environment.image.engine import Engine
from requant.environment.image.evidence import Evidence, Image, evidence_path, keep, read_evidence, record
from requant.errors import BuildError, NotAvailableError, UsageError

ENGINE = Engine(("docker",), "docker", "29.0.0", rootless=False)
MATERIALS = b'{"bomFormat":"CycloneDX"}\n'
EVIDENCE = Evidence(
    environment="e" * 64,
    name="tiny",
    platform="linux/amd64",
    base="python:3.11",
    overridden=False,
    rootfs="sha256:1",
    config="sha256:2",
    manifest=None,
    builder="buildx",
    sbom=f"sha256:{sha256(MATERIALS)}",
)
IMAGE = Image("requant/tiny:eeeeeeeeeeeeeeee", EVIDENCE)


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What was kept of the image when it was built: the list of its materials."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = evidence_path(EVIDENCE.environment, ENGINE)
    path.parent.mkdir(parents=True)
    keep(IMAGE, ENGINE, MATERIALS)
    return path.with_suffix(".cdx.json")


def test_recorded_are_the_evidence_and_the_materials_that_it_names(tmp_path: Path) -> None:
    evidence, materials = record(tmp_path, IMAGE, ENGINE)
    assert (evidence, materials) == (tmp_path / "tiny.image.json", tmp_path / "tiny.cdx.json")
    assert read_evidence(evidence) == EVIDENCE
    assert materials.read_bytes() == MATERIALS


def test_other_materials_are_not_recorded(tmp_path: Path, kept: Path, refuses: Refuses) -> None:
    kept.write_bytes(MATERIALS + b"\n")
    with refuses(BuildError):
        record(tmp_path, IMAGE, ENGINE)
    kept.unlink()
    with refuses(NotAvailableError):
        record(tmp_path, IMAGE, ENGINE)
    assert not list(tmp_path.glob("*.json"))


def test_a_tainted_image_is_not_recorded(tmp_path: Path, refuses: Refuses) -> None:
    with refuses(UsageError):
        record(tmp_path, Image("", replace(EVIDENCE, overridden=True)), ENGINE)
    assert not list(tmp_path.glob("*.json"))
