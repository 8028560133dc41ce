"""Other processes in tests: ended whatever happens, waited for by events, and no test waits for a time to pass.

`LIMIT` is where a test gives up on something that hangs. No healthy run comes near it, on however busy a machine.
"""

import atexit
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

ROOT = Path(__file__).parent.parent
LIMIT = 900.0
"""Seconds."""


@contextmanager
def started(command: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that is gone when the block ends, also where a test fails in it."""
    with subprocess.Popen([*map(str, command)], text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()


SIGNALLED = """
import os, signal, sys
from contextlib import contextmanager
from requant.cli import build, main

signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs tests in the background may have it ignored
number, stage, done = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
drawn = build.progress

@contextmanager
def progress(*columns):
    with drawn(*columns) as tell:
        def told(now):
            tell(now)
            if now.stage == stage and now.done >= done:
                os.kill(os.getpid(), number)
        yield told

build.progress = progress
sys.argv = ["requant", *sys.argv[4:]]
main()
"""


def signalled(number: int, stage: str, done: int, *words: str | Path) -> list[str]:
    """Words that start `requant` so that it gets a signal when it tells of a stage, and of so much done in it.

    The signal comes from inside: from outside, a busy machine may send it when all is over.
    """
    return [sys.executable, "-c", SIGNALLED, str(int(number)), stage, str(done), *map(str, words)]


def speaking_of(path: Path) -> list[int]:
    """Descriptors of all processes whose command line or working folder has a path in it, without this one."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            told = (process / "cmdline").read_bytes().decode(errors="replace") + str((process / "cwd").readlink())
            if str(path) in told and int(process.name) != os.getpid():
                found.append(os.pidfd_open(int(process.name)))
    return found


def all_ended(path: Path) -> bool:
    """Wait for the end of all processes that speak of a path; False where one does not end."""
    for descriptor in speaking_of(path):
        try:
            if not select.select([descriptor], [], [], LIMIT)[0]:
                return False
        finally:
            os.close(descriptor)
    return True


def awaited(holds: Callable[[], object]) -> bool:
    """Return whether something came to hold of which no event tells."""
    end = time.monotonic() + LIMIT
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


FORKING = """
import json, os, sys
from requant import cli
from requant.__main__ import main

cli.load()

for line in sys.stdin:
    words, cwd, env, *streams = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in enumerate(streams, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        sys.argv = ["requant", *words]
        main()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@cache
def _forking() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", FORKING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(process.communicate)
    return process


def requant(
    *words: str, cwd: Path = ROOT, env: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess[str]:
    """Run `requant` in a process of its own, with `env` besides this one's variables.

    It is forked from one that has imported all, which takes a second each time.
    """
    process = _forking()
    assert process.stdin and process.stdout
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process.stdin.write(json.dumps([words, str(cwd), {**os.environ, **env}, str(out), str(err)]) + "\n")
        process.stdin.flush()
        status = int(process.stdout.readline())
        return subprocess.CompletedProcess(words, status, out.read_text(), err.read_text())
