"""Released loaders, fetched by pip and unpacked in part, so that their own functions can be asked.

A source distribution of vLLM has 50 MB, a wheel 340. pip wants to know a source's metadata and would run its
build for it; the build back end in `tests/oracle/backend` is found first and answers from PKG-INFO instead.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from requant.environment.install import cache
from requant.inspect.loaders import DEFAULT, Loader

HERE = Path(__file__).parent / "oracle"
WANTED = (
    *("/layers/quantization/", "/models/qwen3_", "/models/utils.py", "/model_loader/"),
    *("/quantizers/auto.py", "/utils/quantization_config.py", "/inference/convert_model.py"),
)
SOURCE = ("--no-binary", ":all:", "--no-build-isolation")
WHEEL = ("--only-binary", ":all:", "--python-version", "3.11", "--platform", "manylinux_2_34_x86_64")


def tried(loaders: Sequence[Loader]) -> list[Any]:
    """Return what to try for each of some loaders: of vLLM the newest, and what came before it in the full tier."""
    older = [each.name for each in loaders if each.program == DEFAULT.program and each is not DEFAULT]
    return [pytest.param(each, id=each.name, marks=[pytest.mark.full] * (each.name in older)) for each in loaders]


def release(requirement: str) -> Path:
    """The unpacked Python files of a release; a test skips where the package index cannot be reached."""
    folder = cache() / "releases" / requirement
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as name:
            _download(requirement, Path(name))
            unpacked = Path(name) / "unpacked"
            _unpack(next(Path(name).glob("*.*")), unpacked)
            unpacked.rename(folder)
    inside = {"vllm": "model_executor", "sglang": "srt", "transformers": "quantizers", "auto-round": "inference"}
    return next(folder.rglob(inside[requirement.partition("==")[0]])).parent


def importable(requirement: str) -> Path:
    """A folder to import a release from, without what it depends on; skips as `release` does."""
    folder = cache() / "releases" / requirement
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as name:
            made = Path(name) / "made"
            command = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--target",
                str(made),
                requirement,
            ]
            done = subprocess.run(command, capture_output=True)
            if done.returncode:
                pytest.skip(f"pip cannot install {requirement}: {done.stderr.decode(errors='replace').strip()[-300:]}")
            made.rename(folder)
    return folder


def _download(requirement: str, folder: Path) -> None:
    how = SOURCE if requirement.startswith("vllm") else WHEEL  # SGLang's newer releases have no source
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *how, requirement, "-d", str(folder)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(HERE / "backend")}, capture_output=True)
    if done.returncode:
        pytest.skip(f"pip cannot download {requirement}: {done.stderr.decode(errors='replace').strip()[-300:]}")


def _unpack(archive: Path, folder: Path) -> None:
    folder.mkdir()

    def keep(name: str, read: Callable[[], bytes]) -> None:
        if name.endswith(".py") and any(part in name for part in WANTED) and not {"..", "tests"} & set(name.split("/")):
            path = folder / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(read())

    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                keep(name, lambda name=name: wheel.read(name))  # type: ignore[misc]
    else:
        with tarfile.open(archive) as source:
            for member in source:
                if member.isfile():
                    keep(member.name, lambda member=member: source.extractfile(member).read())  # type: ignore[misc,union-attr]


Ask = Callable[[dict[str, Any], list[tuple[str, str, bool]]], list[Any]]


@contextmanager
def oracle(requirement: str) -> Iterator[Ask]:
    """A process in which the released code answers: a configuration and modules in, precisions out."""
    command = [sys.executable, str(HERE / "answer.py"), requirement.partition("==")[0], str(release(requirement))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout

        def ask(config: dict[str, Any], modules: list[tuple[str, str, bool]]) -> list[Any]:
            assert process.stdin and process.stdout
            process.stdin.write(json.dumps([config, modules]) + "\n")
            process.stdin.flush()
            answer: list[Any] = json.loads(process.stdout.readline())
            return answer

        yield ask
