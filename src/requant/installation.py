"""Virtual environments made from locks: every file by its hash, kept by the lock's digest."""

import fcntl
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from requant.environment import Lock, Pin
from requant.errors import BuildError, LockError, NotAvailableError
from requant.programs import run

TORCH_INDEX = "https://download.pytorch.org/whl/"
"""PyTorch's own index: the builds whose version has a label, such as `+cpu`, are there only."""

READY = "ready"
"""File that is written last into an environment: without it, the environment is made anew."""


def cache() -> Path:
    """Return the folder that outlives builds: environments, and bases that were fetched."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "requant"


def virtual_environment(lock_file: Path, lock: Lock, tell: Callable[[str], None] = lambda _: None) -> Path:
    """Return the Python of the environment that `lock` describes, made now if it is not in the cache.

    Raises NotAvailableError where this machine is none of the lock's, or lacks its Python, or a package cannot
    be had; LockError where a file does not have the hash that the lock states.
    """
    require_machine(lock_file, lock)
    folder = cache() / "environments" / lock.digest
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)  # another build may be making it
        if not (folder / READY).exists():
            shutil.rmtree(folder, ignore_errors=True)
            tell(f"environment {lock.name}: Python {lock.python}")
            python = make_environment(folder, lock.python)
            tell(f"environment {lock.name}: {len(lock.pins)} packages, each by its hash")
            pip(python, ["install"], lock_file, lock, lock.pins)
            _confirm(python, lock_file)
            (folder / READY).write_text(lock.name)
    return folder / "bin" / "python"


def require_machine(lock_file: Path, lock: Lock) -> None:
    """Raise NotAvailableError where this machine is none of the lock's: neither its wheels nor its image run here."""
    machine = lock.platform.partition("-")[0]
    if platform.machine() != machine:
        raise NotAvailableError(
            f"{lock_file}: is for {machine}, this machine is {platform.machine()}",
            "A lock is for one platform.",
        )


def make_environment(folder: Path, version: str) -> Path:
    """Make a virtual environment with pip alone; return its Python. Raises NotAvailableError without this version."""
    command = [sys.executable, "-m", "virtualenv", "--quiet", "--no-setuptools"]
    try:
        run([*command, "--python", f"python{version}", str(folder)])
    except BuildError as error:
        raise NotAvailableError(
            f"Python {version}, which the lock is for, is not here: {error}",
            f"Install it (apt-get install python{version} python{version}-venv, or uv python install {version}).",
        ) from None
    return folder / "bin" / "python"


def pip(python: Path, words: Sequence[str], lock_file: Path, lock: Lock, pins: Iterable[Pin]) -> None:
    """Let pip install or download artifacts of a lock, each by its hash, as `words` say: `["install"]`.

    Raises LockError where a file does not have the hash that the lock states, NotAvailableError for everything
    else that stops pip.
    """
    command = [str(python), "-m", "pip", *words, "--disable-pip-version-check", "--no-input", "--quiet"]
    command += ["--require-hashes", "--no-deps", "--only-binary", ":all:"]
    pins = tuple(pins)
    labelled = [pin for pin in pins if pin.name in lock.given and "+" in pin.version]
    try:
        for pin in labelled:
            try:
                _pip(command, [pin])
            except BuildError as error:
                if "HASH" in str(error):
                    raise
                label = pin.version.partition("+")[2]
                _pip([*command, "--index-url", TORCH_INDEX + label, "--timeout", "15", "--retries", "1"], [pin])
        _pip(command, [pin for pin in pins if pin not in labelled])
    except BuildError as error:
        if "HASH" in str(error):
            raise LockError(
                f"{lock_file}: a package does not have the hash that the lock states\n{error}",
                "If you trust the package rather than the lock: nox -s lock, and say in the commit why it changed.",
            ) from None
        raise _unavailable(lock_file, error) from None


def _pip(command: Sequence[str], pins: Sequence[Pin]) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
        requirements.write("".join(f"{pin}\n" for pin in pins))
        requirements.flush()
        run([*command, "--requirement", requirements.name])


def _confirm(python: Path, lock_file: Path) -> None:
    try:
        run([str(python), "-m", "pip", "check"])
    except BuildError as error:
        raise _unavailable(lock_file, error) from None


def _unavailable(lock_file: Path, error: BuildError) -> NotAvailableError:
    return NotAvailableError(
        f"{lock_file}: cannot be installed\n{error}", "Check the network, and what pip is told to use: pip config list."
    )
