"""What nobody foresaw is no verdict: status 70, a short message, a file, and no secret in either."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import ROOT

MANIFEST = "builds/ec/mini.manifest.json"
RAISES = {
    "KeyError('a')": 70,
    "ZeroDivisionError()": 70,
    "MemoryError()": 70,
    "ImportError('numba')": 70,
    "AssertionError()": 70,
    "GeneratorExit()": 70,
    "SystemExit('text')": 70,
    "KeyboardInterrupt()": 130,
    "BrokenPipeError()": 141,
    "OSError(28, 'No space left on device')": 8,
}
DEEP = "def deep(*_): return deep()\nrequant.checkpoint.manifest.read_manifest = deep\n"


def run(
    module: str, program: str, stdout: int = subprocess.PIPE, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a module as `python -m` does, with `program` before it."""
    words = ["requant", "verify"] if module == "requant" else ["verify"]
    text = (
        f"import runpy, sys\nimport requant.checkpoint.manifest\nsys.argv = {[*words, 'builds', MANIFEST]}\n{program}\n"
    )
    text += f"runpy.run_module({module!r}, run_name='__main__', alter_sys=False)"
    flags = ["-S", "-s"] if module == "requant.verify" else []
    command = [sys.executable, *flags, "-c", text]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment}
    return subprocess.run(command, cwd=ROOT, env=env, stdout=stdout, stderr=subprocess.PIPE, text=True)


def raising(error: str) -> str:
    return f"def fail(*_): raise {error}\nrequant.checkpoint.manifest.read_manifest = fail\n"


@pytest.mark.parametrize(
    ("module", "error", "status"),
    [
        *(("requant.verify", *each) for each in RAISES.items()),
        ("requant", "MemoryError()", 70),
        ("requant", "KeyboardInterrupt()", 130),
        ("requant", "SystemExit('text')", 141),  # how click answers a closed pipe
        ("requant", "OSError(28, 'No space left on device')", 8),
    ],
)
def test_whatever_is_raised_is_no_verdict(module: str, error: str, status: int, tmp_path: Path) -> None:
    done = run(module, raising(error), TMPDIR=str(tmp_path))
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 3


@pytest.mark.parametrize("module", ["requant", "requant.verify"])
def test_the_traceback_is_in_a_file_that_is_named(module: str, tmp_path: Path) -> None:
    for program in (raising("KeyError('x\\x1b[2Jy')"), DEEP):
        done = run(module, program, TMPDIR=str(tmp_path))
        assert done.returncode == 70
        assert "internal error" in done.stderr and "says nothing about the checkpoint" in done.stderr
        assert "\x1b" not in done.stderr
        (file,) = re.findall(rf"{re.escape(str(tmp_path))}/requant-crash-\S+\.txt", done.stderr)
        assert "Traceback" in Path(file).read_text()
        assert Path(file).stat().st_mode & 0o777 == 0o600


def test_an_installation_that_cannot_be_imported_is_no_verdict() -> None:
    done = run("requant", "sys.modules['requant.cli.verify'] = None\n")
    assert (done.returncode, "ModuleNotFoundError" in done.stderr) == (70, True)


def test_no_secret_is_told_or_written(tmp_path: Path) -> None:
    text = "https://user:p4ssw0rd@host/x?a=1 Bearer abcdefgh hf_ABCDEFGH 0123456789"
    done = run("requant", raising(f"ValueError({text!r})"), TMPDIR=str(tmp_path), MY_TOKEN="0123456789")  # noqa: S106
    (file,) = tmp_path.iterdir()
    for told in (done.stderr, file.read_text()):
        assert "https://***@host" in told
        assert not any(secret in told for secret in ("p4ssw0rd", "abcdefgh", "hf_ABC", "0123456789"))


def test_where_no_file_can_be_written_the_traceback_is_told() -> None:
    program = "import tempfile\ndef full(**_): raise FileNotFoundError\ntempfile.mkstemp = full\n"
    done = run("requant.verify", program + raising("KeyError('a')"))
    assert done.returncode == 70
    assert "no folder for temporary files" in done.stderr and "KeyError: 'a'" in done.stderr


@pytest.mark.parametrize("closed", ["sys.stderr = None", "sys.stderr.close()", "import os; os.close(2)"])
def test_without_standard_error_the_status_stays(closed: str, tmp_path: Path) -> None:
    assert run("requant.verify", f"{raising('KeyError()')}{closed}", TMPDIR=str(tmp_path)).returncode == 70


@pytest.mark.parametrize("module", ["requant", "requant.verify"])
def test_a_full_disk_under_the_result_is_no_verdict(module: str) -> None:
    with Path("/dev/full").open("w") as full:
        assert run(module, "", stdout=full.fileno()).returncode == 8
