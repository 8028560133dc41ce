"""What an environment's identity is made of, beside its lock: what its Dockerfile and the worker's sources do."""

import re
from importlib import resources
from pathlib import Path

from requant.digest import canonical_json, sha256
from requant.environment.syntax import meaning

SHARED = ("digest", "errors", "evidence/journal", "mtp_blocks", "names", "protocol", "recipe", "records", "toml_tables")
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


def instructions(dockerfile: bytes) -> bytes:
    """Return a Dockerfile without its comments; whole where a `#` may mean something, in a directive or a heredoc."""
    if re.match(rb"\s*#\s*\w+\s*=", dockerfile) or b"<<" in dockerfile:
        return dockerfile
    return b"".join(line for line in dockerfile.splitlines(keepends=True) if not re.match(rb"\s*(#|$)", line))
