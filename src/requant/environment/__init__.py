"""Environments: what the worker runs in, locked. Locks, the packages and images that are made of them, and identity."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from requant.digest import canonical_json, sha256
from requant.environment.identity import dockerfile_path, instructions, worker_digest
from requant.environment.lock import Lock, read, read_files_digest, read_lock


@dataclass(frozen=True)
class Environment:
    """A locked environment as it was read, all of it at once.

    `digest` is its identity, the same in a container and in a virtual environment: that of what its lock, its
    Dockerfile and the sources of the worker do, so an edit of a comment renews none. `files` is the digest of the list
    of all files in the lock's wheels, "" where nobody has recorded it.
    """

    lock: Lock
    dockerfile: Path
    files: str
    digest: str

    @classmethod
    def load(cls, folder: Path, name: str) -> Self:
        """Read an environment of a folder of locks. Raises LockError for a lock as `read_lock`, or a Dockerfile."""
        lock, dockerfile = read_lock(folder, name), dockerfile_path(folder, name)
        text = read(dockerfile, f"run `nox -s dockerfiles -- {name}`: docs/environments.md")
        locked = {
            "cutoff": lock.cutoff,
            "platform": lock.platform,
            "python": lock.python,
            "pins": [*map(str, lock.pins)],
        }
        does = {"dockerfile": sha256(instructions(text)), "lock": locked, "worker": worker_digest()}
        return cls(lock, dockerfile, read_files_digest(lock.file), sha256(canonical_json(does)))

    @property
    def name(self) -> str:
        """The name, such as `cpu`."""
        return self.lock.name

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that it was read from."""
        lock = self.lock.file
        listed = (lock.with_suffix(".files"),) if self.files else ()
        return (lock.with_suffix(".in"), lock, *listed, self.dockerfile)
