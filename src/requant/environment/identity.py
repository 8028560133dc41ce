"""The identity of an environment: what its lock, its Dockerfile and the worker's sources do, by digest."""

import re
from importlib import resources
from pathlib import Path

from requant.digest import canonical_json, sha256
from requant.environment.lock import Lock, read
from requant.environment.syntax import meaning

SHARED = ("digest", "errors", "evidence/journal", "recipe")
"""What the worker shares with the host, beside its own package `worker`. Not `__init__`: it is for host scripts."""


def worker_sources() -> dict[str, bytes]:
    """Return the sources that run in the worker, by path below the folder that Python imports from."""
    package = Path(str(resources.files("requant")))
    files = [package / f"{name}.py" for name in SHARED] + [*(package / "worker").rglob("*.py")]
    return {f"requant/{file.relative_to(package).as_posix()}": file.read_bytes() for file in sorted(files)}


def dockerfile_path(lockfiles: Path, name: str) -> Path:
    """Return where an environment's Dockerfile stands: beside the folder of the locks."""
    return lockfiles.resolve().parent / f"Dockerfile.{name}"


def worker_digest() -> str:
    """Return the digest of what the sources do that run in the worker, whatever their comments and layout."""
    return sha256(canonical_json({path: sha256(meaning(data)) for path, data in worker_sources().items()}))


def environment_digest(lockfiles: Path, lock: Lock) -> str:
    """Return the identity of an environment, the same in a container and in a virtual environment.

    It is that of what its lock, its Dockerfile and the sources of the worker do: an edit of a comment renews none.
    Raises LockError without a Dockerfile.
    """
    file = dockerfile_path(lockfiles, lock.name)
    dockerfile = sha256(instructions(read(file, f"run `nox -s dockerfiles -- {lock.name}`: docs/environments.md")))
    locked = {"cutoff": lock.cutoff, "platform": lock.platform, "python": lock.python, "pins": [*map(str, lock.pins)]}
    return sha256(canonical_json({"dockerfile": dockerfile, "lock": locked, "worker": worker_digest()}))


def instructions(dockerfile: bytes) -> bytes:
    """Return a Dockerfile without its comments; whole where a `#` may mean something, in a directive or a heredoc."""
    if re.match(rb"\s*#\s*\w+\s*=", dockerfile) or b"<<" in dockerfile:
        return dockerfile
    return b"".join(line for line in dockerfile.splitlines(keepends=True) if not re.match(rb"\s*(#|$)", line))
