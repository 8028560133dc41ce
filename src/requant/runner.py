"""Starts other programs. No other module does.

Commands are lists of words, never a shell's sentence.
"""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from requant.errors import BuildError, NotAvailableError

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
        raise BuildError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr[-TAIL:].strip()}")
    return done.stdout
