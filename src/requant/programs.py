"""Starts other programs and waits for them. Commands are lists of words, never a shell's sentence."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from requant.errors import BuildError, NotAvailableError, RequantError

TAIL = 2000
"""Characters of a failed program's last words that go into the error."""


def run(command: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """Run a program to its end and return what it wrote to standard output.

    Raises NotAvailableError where the program does not exist, BuildError with its last words where it fails.
    """
    try:
        done = subprocess.run(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except FileNotFoundError:
        raise NotAvailableError(f"{command[0]}: no such program") from None
    if done.returncode:
        words = (done.stdout + done.stderr)[-TAIL:].strip()
        raise BuildError(f"{' '.join(command)}: exit status {done.returncode}\n{words}")
    return done.stdout


def works(words: Sequence[str]) -> bool:
    """Return whether a program can be started by these words here."""
    try:
        run([*words, "true"])
    except RequantError:
        return False
    return True


def accelerators() -> list[tuple[str, int]]:
    """Return each NVIDIA GPU's name and memory in MiB; none where the driver's tool is not here or fails."""
    try:
        text = run(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"])
    except RequantError:
        return []
    found = [line.rpartition(",") for line in text.splitlines() if line.strip()]
    return [(name.strip(), int(memory) if memory.strip().isdigit() else 0) for name, _, memory in found]
