"""Workers: how the quantizer is started, watched and ended. Several may run at once, each on a folder of its own.

A worker speaks through files in its folder and through nothing else: see `requant.protocol`. What it says while it
works goes to `log`.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from requant.errors import BuildError, RequantError
from requant.programs import TAIL, mortal, works
from requant.protocol import ERROR, Ended, read

MODULE = "requant.worker"
"""What every worker runs, with its folder as the only argument."""

KEPT = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR")
"""What a worker may see of the host's environment variables; AutoRound, torch and the Hub's library read dozens.

All but the first it sets itself, unless it tunes by hints: then they say how much of a CPU it uses.
"""


class Sandbox(Protocol):
    """A way to start the quantizer."""

    @property
    def taints(self) -> tuple[str, ...]:
        """Name what this way cannot keep out, or cannot confirm."""
        ...

    @property
    def accelerator(self) -> str:
        """The UUID of the GPU that the worker is given, as in GPU-8b9a...; empty for a CPU."""
        ...

    def start(self, folder: Path, readable: Sequence[Path]) -> "Running":
        """Start the worker on `folder`, where it may write; `readable` are the paths outside that it reads."""
        ...


class Running:
    """A started worker. As a context manager it leaves no worker behind, whatever happens inside.

    `remove` ends what `process` stands for, where that is more than the process itself; `explain` may know what an
    exit status and the last words mean. The worker's standard input stays open as long as this object or its process
    lives: a worker that is no child of this process, such as a container, ends when it is closed (`LEASH`).
    """

    def __init__(
        self,
        folder: Path,
        process: subprocess.Popen[bytes],
        remove: Callable[[], None] | None = None,
        explain: Callable[[int, str], RequantError | None] = lambda *_: None,
    ) -> None:
        self.folder = folder
        self._process = process
        self._remove = remove or process.kill
        self._explain = explain

    def poll(self) -> bool:
        """Return whether the worker still runs."""
        return self._process.poll() is None

    def wait(self, seconds: float) -> bool:
        """Wait at most so long for the end; return whether the worker still runs."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def end(self) -> None:
        """End the worker now, if it still runs, and leave nothing of it but its folder."""
        try:
            self._remove()
            while self.wait(0.2):
                self._remove()  # again: what is just being made was not there yet
        finally:
            self._process.kill()
            self._process.wait()
            if self._process.stdin:
                self._process.stdin.close()

    def confirm(self) -> None:
        """Raise the ended worker's failure: what it says itself, what is known of its end, or else its last words."""
        if (self.folder / ERROR).exists():
            said = read(self.folder / ERROR, Ended)
            raise BuildError(said.message, said.advice)
        if status := self._process.poll():
            words = (self.folder / "log").read_text(errors="replace")[-TAIL:].strip()
            unknown = BuildError(f"the worker ended with status {status}; the last it said:\n{words}")
            raise self._explain(status, words) or unknown

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def run_worker(sandbox: Sandbox, folder: Path, readable: Sequence[Path], watch: Callable[[], None]) -> None:
    """Run the worker on `folder` to its end; call `watch` a few times a second meanwhile, and once after.

    Raises BuildError where the worker fails. It does not outlive this process, whatever ends it.
    """
    with sandbox.start(folder, readable) as running:
        while running.wait(0.2):
            watch()
        watch()
        running.confirm()


@dataclass(frozen=True)
class VirtualEnvironment:
    """A worker on this machine: an environment's `python`, started by the words of `prefix`, which cut the network.

    `bytecode` is a folder of this process's own for what Python compiles; it reads none from anywhere else. What
    cannot be confirmed of the packages stands in `unconfirmed`.
    """

    python: Path
    prefix: tuple[str, ...]
    accelerator: str = ""
    bytecode: Path | None = None
    unconfirmed: tuple[str, ...] = ()

    @property
    def taints(self) -> tuple[str, ...]:
        """The network, where nothing cuts it, and what cannot be confirmed."""
        network = () if self.prefix else ("network: the kernel grants no network namespace",)
        return (*network, *self.unconfirmed)

    def start(self, folder: Path, readable: Sequence[Path]) -> Running:  # noqa: ARG002 (it can read everything)
        """Start the worker; it ends with the thread that calls this."""
        inherited = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "PATH") if name in os.environ}
        inherited["PYTHONPATH"] = str(folder / "sources")
        env = inherited | variables(folder, self.accelerator)
        if self.bytecode:
            del env["PYTHONDONTWRITEBYTECODE"]
            env["PYTHONPYCACHEPREFIX"] = str(self.bytecode)
        command = (*self.prefix, *mortal(), str(self.python), *arguments(folder))
        return Running(folder, started(command, folder, env))


def isolation() -> tuple[str, ...]:
    """Return the words that start a program without network, or none where the kernel does not allow it."""
    words = ("unshare", "--net") if os.geteuid() == 0 else ("unshare", "--map-root-user", "--net")
    return words if works(words) else ()


def arguments(folder: Path) -> tuple[str, ...]:
    """Return the words that follow a worker's Python: nothing of the user's or of the working folder is imported."""
    return ("-s", "-P", "-m", MODULE, str(folder))


def variables(folder: Path, accelerator: str = "") -> dict[str, str]:
    """Return the environment variables of a worker, and empty the folder that it takes for home.

    `accelerator` is the UUID of the only GPU that CUDA shows it. AutoRound at 2dda035 would prepare its texts in a
    forked process and wait for it without a limit; 0.12.2 has no such process, and does not know the variable.
    """
    home = folder / "home"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    places = dict.fromkeys(("HOME", "TMPDIR", "HF_HOME"), str(home))
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    python = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"}
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    shown = {"CUDA_VISIBLE_DEVICES": accelerator} if accelerator else {}
    autoround = {"AR_DISABLE_DATASET_SUBPROCESS": "1"}
    return {**kept, **shown, **places, **offline, **python, **autoround, "LC_ALL": "C.UTF-8"}


def started(command: Sequence[str], folder: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the program that is the worker, or stands for it, in a process group of its own: Ctrl-C is the host's."""
    (folder / ERROR).unlink(missing_ok=True)
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            command, cwd=folder, env=env, stdin=subprocess.PIPE, stdout=log, stderr=log, process_group=0
        )
