"""The worker in place: requant itself runs in the environment's image already, as in a pod of Kubernetes.

Nothing outside confirms which image it is, so the worker's files are held against what they must be, and what is not
shut in is a taint.
"""

import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from requant.environment.identity import worker_sources
from requant.environment.lock import Lock
from requant.environment.syntax import meaning
from requant.errors import LockError, NotAvailableError
from requant.sandbox.running import Running, VirtualEnvironment, isolation

PLACE = Path("/opt")
"""Where an image has the environment, in `environment`, and the worker's sources, in `requant`: see the Dockerfiles."""


@dataclass(frozen=True)
class InPlace:
    """A worker in the image that this process runs in; `taints` say what it cannot keep out, or cannot confirm."""

    python: Path
    prefix: tuple[str, ...]
    taints: tuple[str, ...]
    accelerator: str = ""

    def start(self, folder: Path, readable: Sequence[Path]) -> Running:
        """Start the worker; it ends with the thread that calls this."""
        return VirtualEnvironment(self.python, self.prefix, self.accelerator).start(folder, readable)


def this_image(lock: Lock, place: Path = PLACE, accelerator: str = "") -> InPlace:
    """Return the worker of the image around this process.

    Raises NotAvailableError where there is none, LockError where its packages or sources are not the lock's and
    requant's own.
    """
    python = place / "environment" / "bin" / "python"
    if not python.exists():
        raise NotAvailableError(
            f"{python}: no such file, so this process does not run in an environment's image",
            "--sandbox in-place is for a pod or a job whose container is the worker; elsewhere: --sandbox auto.",
        )
    _confirm_packages(place / "environment", lock)
    _confirm_sources(place / "requant")
    prefix = isolation()
    taints = ["image: nothing outside the worker says which one it is"]
    links = sorted({name for _, name in socket.if_nameindex()} - {"lo"})
    if links and not prefix:
        taints.append(f"network: {', '.join(links)}")
    if not os.statvfs(place).f_flag & os.ST_RDONLY:
        taints.append("root file system: writable")
    return InPlace(python, prefix, tuple(taints), accelerator)


def _confirm_packages(environment: Path, lock: Lock) -> None:
    """Compare names and versions: of the hashes nothing is left once pip has installed."""
    found = dict(
        folder.name.removesuffix(".dist-info").rsplit("-", 1)
        for folder in environment.glob("lib/python3*/site-packages/*.dist-info")
    )
    versions = {re.sub("[-_.]+", "-", name).lower(): version for name, version in found.items()}
    expected = {pin.name: pin.version for pin in lock.pins}
    for name in sorted(versions.keys() | expected.keys()):
        if versions.get(name) != expected.get(name):
            raise LockError(
                f"{environment}: {name} is {versions.get(name, 'absent')}, expected {expected.get(name, 'none')}",
                "The image is of another lock: run it with the image that `requant image` builds from here.",
            )


def _same(ours: bytes, theirs: bytes) -> bool:
    try:
        return meaning(ours) == meaning(theirs)
    except (SyntaxError, ValueError):
        return False


def _confirm_sources(sources: Path) -> None:
    """Compare what the worker's sources do with what those of this very package do."""
    expected = worker_sources()
    found = {str(path.relative_to(sources)): path.read_bytes() for path in sources.rglob("*.py")}
    for name in sorted(expected.keys() | found.keys()):
        if name not in expected or name not in found or not _same(expected[name], found[name]):
            raise LockError(
                f"{sources / name}: is not the source of this requant's worker",
                "The image is of another version: run it with the image that `requant image` builds from here.",
            )
