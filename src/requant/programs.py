"""Starts other programs and waits for them. Commands are lists of words, never a shell's sentence."""

import os
import subprocess
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from errno import ENOENT
from functools import cache
from pathlib import Path
from typing import IO

from requant.errors import BuildError, NotAvailableError, RequantError

TAIL = 4000
"""Characters of a failed program's last words that go into the error."""

MORTAL = ("setpriv", "--pdeathsig", "KILL")
"""Words that let a program end with the thread that starts it."""


def run(command: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """Run a program to its end and return what it wrote to standard output.

    Raises NotAvailableError where there is no such program that may be run, BuildError with its last words where it
    fails.
    """
    try:
        done = subprocess.run(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
        )
    except (FileNotFoundError, PermissionError) as error:
        raise _absent(command[0], error) from None
    if done.returncode:
        words = (done.stdout + done.stderr)[-TAIL:].strip()
        raise BuildError(f"{' '.join(command)}: exit status {done.returncode}\n{words}")
    return done.stdout


def _absent(program: str, error: OSError) -> NotAvailableError:
    return NotAvailableError(f"{program}: {'no such program' if error.errno == ENOENT else error.strerror}")


def follow(command: Sequence[str], tell: Callable[[str], None]) -> None:
    """Run a program to its end; `tell` hears each line that it writes. Raises as `run` does."""
    kept: deque[str] = deque(maxlen=TAIL)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except (FileNotFoundError, PermissionError) as error:
        raise _absent(command[0], error) from None
    with process, _ended(process):
        for line in process.stdout or ():
            kept.extend(line)
            tell(line.rstrip())
    if process.returncode:
        raise BuildError(f"{' '.join(command)}: exit status {process.returncode}\n{''.join(kept).strip()}")


@contextmanager
def reading(command: Sequence[str]) -> Iterator[IO[bytes]]:
    """Start a program and give its standard output as a stream; raise BuildError where it fails."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said)
        with process, _ended(process):
            assert process.stdout is not None  # noqa: S101 (asked for above)
            yield process.stdout
            process.stdout.read()
        said.seek(0)
        words = said.read().decode(errors="replace")[-TAIL:].strip()
    if process.returncode:
        raise BuildError(f"{' '.join(command)}: exit status {process.returncode}\n{words}")


@contextmanager
def _ended(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> Iterator[None]:
    """Kill a program where an exception leaves it."""
    try:
        yield
    except BaseException:
        process.kill()
        raise


def works(words: Sequence[str]) -> bool:
    """Return whether a program can be started by these words here."""
    try:
        run([*words, "true"])
    except RequantError:
        return False
    return True


@cache
def mortal() -> tuple[str, ...]:
    """Return the words that let a program end with the thread that starts it; none where nothing here can do that."""
    return MORTAL if works(MORTAL) else ()


@dataclass(frozen=True)
class Accelerator:
    """An NVIDIA GPU. `total` and `free` are MiB of its memory, None where the driver does not say.

    That is so on a GB10, which shares the host's memory: `nvidia-smi` prints [N/A] there.
    """

    name: str
    uuid: str
    total: int | None
    free: int | None

    def __str__(self) -> str:
        return f"{self.name} ({'memory unknown' if self.free is None else f'{self.free} of {self.total} MiB free'})"


def accelerators() -> list[Accelerator]:
    """Return the NVIDIA GPUs that this process may use, in the driver's order (CUDA_VISIBLE_DEVICES names them).

    There are none where the driver's tool is not here or fails.
    """
    try:
        text = run(["nvidia-smi", "--query-gpu=name,uuid,memory.total,memory.free", "--format=csv,noheader,nounits"])
    except RequantError:
        return []
    found = [_accelerator(line) for line in text.splitlines() if line.count(",") >= 3]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    asked = [word.strip() for word in visible.split(",")]
    return [
        each
        for number, each in enumerate(found)
        if any(word == str(number) or (word.startswith("GPU-") and each.uuid.startswith(word)) for word in asked)
    ]


def _accelerator(line: str) -> Accelerator:
    name, uuid, total, free = (word.strip() for word in line.rsplit(",", 3))

    def number(word: str) -> int | None:
        return int(word) if word.isascii() and word.isdigit() else None

    return Accelerator(name, uuid, number(total), number(free))
