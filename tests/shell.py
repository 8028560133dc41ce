"""A shell script whose `requant` is this process: every command of it runs, and none pays for a Python of its own."""

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from tests.processes import started

Answer = tuple[int, str]
"""An exit status, and what is printed."""
ASKING = """#!/bin/bash
exec 3<>/dev/tcp/127.0.0.1/{port}
printf '%s\\n' "$PWD" "$@" '' >&3
read -r status <&3
cat <&3
exit "$status"
"""


def run(
    script: Sequence[str | Path],
    answer: Callable[[list[str]], Answer],
    programs: Path,
    environment: Mapping[str, str],
    patch: pytest.MonkeyPatch,
    cwd: Path,
) -> int:
    """Run a script, answer each `requant` in it in the folder where that is called, and return the script's status.

    `programs` is a new folder for what it calls instead. No word may be empty, or have more than one line.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        programs.mkdir()
        (programs / "requant").write_text(ASKING.format(port=server.getsockname()[1]))
        (programs / "requant").chmod(0o755)
        path = {"PATH": f"{programs}:{environment.get('PATH', os.environ['PATH'])}"}
        with started(script, cwd=cwd, env={**environment, **path}) as process:
            while process.poll() is None:
                with suppress(TimeoutError):
                    connection, _ = server.accept()
                    with connection, connection.makefile("r", encoding="utf-8") as asked:
                        folder, *words = iter(lambda: asked.readline().rstrip("\n"), "")
                        patch.chdir(folder)
                        status, said = answer(words)
                        connection.sendall(f"{status}\n{said}".encode())
            return process.returncode
