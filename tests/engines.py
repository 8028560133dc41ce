"""Container engines for tests: those that answer here, and an image of this machine's own Python to run in them."""

import io
import os
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from requant.environment.image.engine import Engine, find
from requant.errors import RequantError
from requant.programs import run

REQUIRED = "REQUANT_REQUIRE_ENGINE"
"""Environment variable: where it is 1, a test without an engine fails, because somebody started one for it."""

STAND_IN = "requant-stand-in:test"

PROGRAM = """\
import os, signal, sys, threading, time
from pathlib import Path

def leash():
    while os.read(0, 4096):  # not sys.stdin, whose lock would be held when the program ends
        pass
    os._exit(1)

if os.environ["REQUANT_LEASH"] == "1":
    threading.Thread(target=leash, daemon=True).start()
folder = Path(sys.argv[1])
exec((folder / "program.py").read_text())
"""
"""What the stand-in's entry point does: the leash of the real worker, and a program of the test's own."""

LEFT_OUT = {"__pycache__", "dist-packages", "ensurepip", "idlelib", "site-packages", "test", "tkinter"}


def answering(kind: str) -> Engine:
    """Return the engine, or skip the test with the reason; where an engine is required, one of them must be there."""
    try:
        engine = find(kind)
    except RequantError as error:
        if os.environ.get(REQUIRED) == "1":
            find()
        pytest.skip(str(error))
    return _able(engine)


@cache
def inability(engine: Engine) -> str:
    """Say why an engine that answers runs no container, such as Podman where it may not raise a limit."""
    with tempfile.TemporaryDirectory() as name:
        stand_in(engine, Path(name))
        python = str(Path(sys.executable).resolve())
        words = ("--rm", "--pull", "never", "--network", "none", "--entrypoint", python, STAND_IN, "-c", "pass")
        try:
            run([*engine.words, "run", *words])
        except RequantError as error:
            return str(error).splitlines()[-1]
    return ""


def buildable() -> Engine:
    """Return an engine that builds images with fixed times and runs them, or skip the test with the reason."""
    try:
        engine = find()
        engine.builder()
    except RequantError as error:
        if os.environ.get(REQUIRED) == "1":
            raise
        pytest.skip(str(error))
    return _able(engine)


def _able(engine: Engine) -> Engine:
    if reason := inability(engine):
        if os.environ.get(REQUIRED) == "1" and engine == find():
            pytest.fail(reason)
        pytest.skip(f"{engine} cannot run a container here: {reason}")
    return engine


def stand_in(engine: Engine, folder: Path) -> str:
    """Put an image that runs `program.py` of its folder into the engine's store; return its reference."""
    tar = folder / "stand-in.tar"
    write_stand_in(tar)
    python = Path(sys.executable).resolve()
    changes = (f'ENTRYPOINT ["{python}", "-I", "/stand_in.py"]', "LABEL made.for=tests", "ENV IN_THE_IMAGE=1")
    engine.ask("import", *(word for change in changes for word in ("--change", change)), str(tar), STAND_IN)
    return STAND_IN


def write_stand_in(path: Path) -> None:
    """Write a file system that holds this Python, what it links to, and `PROGRAM`."""
    python = Path(sys.executable).resolve()
    library = Path(sysconfig.get_path("stdlib"))
    files = {python, *_library(library)}
    programs = [python, *(file for file in files if file.suffix == ".so")]
    for word in run(["ldd", *map(str, programs)]).split():
        if word.startswith("/") and not word.endswith(":"):
            files.add(Path(word))
    with tarfile.open(path, "w") as tar:
        for file in sorted(files):
            data = file.read_bytes()
            entry = tarfile.TarInfo(str(file).lstrip("/"))
            entry.size, entry.mode = len(data), 0o755
            tar.addfile(entry, io.BytesIO(data))
        entry = tarfile.TarInfo("stand_in.py")
        entry.size = len(PROGRAM)
        tar.addfile(entry, io.BytesIO(PROGRAM.encode()))


def _library(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name in LEFT_OUT or path.name.startswith("config-"):
            continue
        if path.is_dir():
            yield from _library(path)
        elif path.suffix in (".py", ".so"):
            yield path


def left(engine: Engine, folder: Path) -> list[str]:
    """Return the names of all containers that have this folder mounted, running or not."""
    return engine.ask("ps", "--all", "--filter", f"volume={folder}", "--format", "{{.Names}}").split()
