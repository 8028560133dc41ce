"""The command as a person meets it: statuses, streams, no traceback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import ROOT


def requant(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "requant", *arguments], cwd=cwd, capture_output=True, text=True)


def test_help_lists_the_verbs() -> None:
    done = requant("--help")
    assert done.returncode == 0
    for verb in ("build", "rebuild", "coverage", "show", "verify", "manifest", "twin", "lock"):
        assert verb in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("frobnicate",), 2, "frobnicate"),
        (("build",), 2, "RECIPE"),
        (("build", "builds/none", "--twin"), 4, "builds/none"),
        (("build", "builds/ec", "--twin", "--size", "huge"), 2, "mini, demo, wide"),
        (("build", "builds/ec", "--twin", "--runner", "cloud"), 2, "venv"),
        (("verify", "builds", "README.md"), 6, "not a manifest"),
        (("verify", "nowhere", "builds/ec/mini.manifest.json"), 6, "no such folder"),
        (("manifest", "nowhere"), 6, "no such folder"),
        (("verify", "nowhere", "builds/ec/mini.manifest.json"), 6, "Name the folder"),
        (("verify", "builds", "nowhere.json"), 6, "Name a manifest"),
        (("show", "journal", "nowhere"), 6, "Name a journal"),
        (("inspect", "out/nope"), 2, "written owner/name@revision"),
        (("identify", "out/nope"), 2, "written owner/name@revision"),
        (("check", "out/nope", "--base", "builds"), 2, "written owner/name@revision"),
        (("lock", "--check", "none"), 5, "none.in"),
        (("audit", "out", "--recipe", "builds/ec", "--engine", "moon"), 2, "here and ray"),
        (("audit", "out", "--recipe", "builds/ec", "--address", "localhost:6379"), 2, "only ray has an --address"),
    ],
)
def test_errors_are_short_and_have_their_status(arguments: tuple[str, ...], status: int, says: str) -> None:
    done = requant(*arguments)
    assert done.returncode == status, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) < 8


def test_a_twin_is_written_and_its_manifest_verifies_it(tmp_path: Path) -> None:
    assert requant("twin", "--size", "mini", "--out", str(tmp_path / "twin")).returncode == 0
    done = requant("manifest", str(tmp_path / "twin"))
    (tmp_path / "manifest.json").write_text(done.stdout)
    done = requant("verify", str(tmp_path / "twin"), str(tmp_path / "manifest.json"))
    assert (done.returncode, done.stdout.split()[0].strip(",")) == (0, "identical")
    (tmp_path / "twin" / "README.md").unlink()
    done = requant("verify", str(tmp_path / "twin"), str(tmp_path / "manifest.json"), "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["outcome"] == "equivalent"
    assert requant("verify", str(tmp_path / "twin"), str(tmp_path / "manifest.json"), "--tensors").returncode == 0
    assert requant("twin", "--size", "mini", "--out", str(tmp_path / "twin")).returncode == 2


def test_a_closed_pipe_is_no_traceback(tmp_path: Path) -> None:
    requant("twin", "--size", "mini", "--out", str(tmp_path / "twin"))
    command = f"{sys.executable} -m requant manifest {tmp_path / 'twin'} | head -c 10"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_a_pipe_that_nobody_reads_is_not_a_verdict(tmp_path: Path) -> None:
    requant("twin", "--size", "mini", "--out", str(tmp_path / "twin"))
    (tmp_path / "manifest.json").write_text(requant("manifest", str(tmp_path / "twin")).stdout)
    for module in ("requant verify", "requant.verify"):
        words = f"{tmp_path / 'twin'} {tmp_path / 'manifest.json'}"
        command = f"{sys.executable} -m {module} {words} | true; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode in (0, 8, 141), "0 where the pipe took all of it"
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("key", "value"), [("iterations", "0x" + "f" * 5000), ("hours", "0x" + "f" * 5000)])
def test_numbers_too_large_to_print(tmp_path: Path, key: str, value: str) -> None:
    lines = (ROOT / "builds" / "ec" / "recipe.toml").read_text().splitlines()
    recipe = [f"{key} = {value}" if line.startswith(f"{key} = ") else line for line in lines]
    (tmp_path / "recipe.toml").write_text("\n".join(recipe))
    done = requant("build", str(tmp_path), "--twin")
    assert done.returncode == 4
    assert f"{key}: found a number of more than 63 bits" in done.stderr
