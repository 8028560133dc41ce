"""Starts other programs. No other module does.

Commands are lists of words, never a shell's sentence. A room's environment is a virtual environment made from a
lock, every file by its hash, and kept by the lock's digest.
"""

import fcntl
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from requant.environment import Lock
from requant.errors import BuildError, LockError, NotAvailableError, RequantError

TAIL = 2000
"""Characters of a failed program's last words that go into the error."""

TORCH_INDEX = "https://download.pytorch.org/whl/"
"""PyTorch's own index: the builds whose version has a label, such as `+cpu`, are there only."""

READY = "ready"
"""File that is written last into an environment: without it, the environment is made anew."""

KEPT = ("CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "PATH")
"""What a room may see of the host's environment variables; AutoRound, torch and the Hub's library read dozens."""


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


def cache() -> Path:
    """Return the folder that outlives builds: environments, and bases that were fetched."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "requant"


def virtual_environment(lock_file: Path, lock: Lock, tell: Callable[[str], None] = lambda _: None) -> Path:
    """Return the Python of the environment that `lock` describes, made now if it is not in the cache.

    Raises NotAvailableError where this machine is none of the lock's, or lacks its Python, or a package cannot
    be had; LockError where a file does not have the hash that the lock states.
    """
    machine = lock.platform.partition("-")[0]
    if platform.machine() != machine:
        raise NotAvailableError(
            f"{lock_file}: is for {machine}, this machine is {platform.machine()}",
            "A lock is for one platform.",
        )
    folder = cache() / "environments" / lock.digest
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)  # another build may be making it
        if not (folder / READY).exists():
            shutil.rmtree(folder, ignore_errors=True)
            tell(f"environment {lock.name}: Python {lock.python}")
            _make_environment(folder, lock.python)
            tell(f"environment {lock.name}: {len(lock.pins)} packages, each by its hash")
            _install(folder / "bin" / "python", lock_file, lock)
            (folder / READY).write_text(lock.name)
    return folder / "bin" / "python"


def _make_environment(folder: Path, version: str) -> None:
    try:
        run(
            [
                sys.executable,
                "-m",
                "virtualenv",
                "--quiet",
                "--no-setuptools",
                "--python",
                f"python{version}",
                str(folder),
            ]
        )
    except BuildError as error:
        raise NotAvailableError(
            f"Python {version}, which the lock is for, is not here: {error}",
            f"Install it (apt-get install python{version} python{version}-venv, or uv python install {version}).",
        ) from None


def _install(python: Path, lock_file: Path, lock: Lock) -> None:
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet"]
    command += ["--require-hashes", "--no-deps", "--only-binary", ":all:"]
    labelled = [pin for pin in lock.pins if pin.name in lock.given and "+" in pin.version]
    try:
        for pin in labelled:
            requirement = python.parent.parent / f"{pin.name}.txt"
            requirement.write_text(f"{pin}\n")
            try:
                run([*command, "--requirement", str(requirement)])
            except BuildError as error:
                if "HASH" in str(error):
                    raise
                label = pin.version.partition("+")[2]
                index = ["--index-url", TORCH_INDEX + label, "--timeout", "15", "--retries", "1"]
                run([*command, *index, "--requirement", str(requirement)])
        run([*command, "--requirement", str(lock_file)])
        run([str(python), "-m", "pip", "check"])
    except BuildError as error:
        if "HASH" in str(error):
            raise LockError(
                f"{lock_file}: a package does not have the hash that the lock states\n{error}",
                "If you trust the package rather than the lock: nox -s lock, and say in the commit why it changed.",
            ) from None
        raise NotAvailableError(
            f"{lock_file}: cannot be installed\n{error}",
            "Check the network, and what pip is told to use: pip config list.",
        ) from None


def isolation() -> list[str]:
    """Return the words that start a program without network, or none where the kernel does not allow it."""
    words = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
    return words if _works(words) else []


def _works(words: Sequence[str]) -> bool:
    try:
        run([*words, "true"])
    except RequantError:
        return False
    return True


def run_room(python: Path, folder: Path, prefix: Sequence[str], watch: Callable[[], None]) -> None:
    """Run the room on `folder`, its output into `folder/log`; call `watch` a few times a second meanwhile.

    Raises BuildError with the log's last lines. The room does not outlive this process, whatever ends it.
    """
    home = folder / "home"
    home.mkdir()
    env = {name: os.environ[name] for name in KEPT if name in os.environ}
    env |= {
        "HOME": str(home),
        "TMPDIR": str(home),
        "HF_HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "PYTHONHASHSEED": "0",
    }
    env |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    env |= {
        "PYTHONPATH": str(folder / "sources"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    mortal = ["setpriv", "--pdeathsig", "KILL"]
    command = [
        *prefix,
        *(mortal if _works(mortal) else ()),
        str(python),
        "-s",
        "-P",
        "-m",
        "requant.quantizer",
        str(folder),
    ]
    with (folder / "log").open("wb") as log:
        room = subprocess.Popen(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            while room.poll() is None:
                watch()
                try:
                    room.wait(0.2)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if room.poll() is None:
                room.kill()
                room.wait()
    watch()
    if room.returncode:
        words = (folder / "log").read_text(errors="replace")[-TAIL:].strip()
        raise BuildError(f"the room ended with status {room.returncode}; the last it said:\n{words}")


def accelerators() -> list[tuple[str, int]]:
    """Return each NVIDIA GPU's name and memory in MiB; none where the driver's tool is not here or fails."""
    try:
        text = run(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"])
    except RequantError:
        return []
    found = [line.rpartition(",") for line in text.splitlines() if line.strip()]
    return [(name.strip(), int(memory) if memory.strip().isdigit() else 0) for name, _, memory in found]
