"""What an image is made of, as CycloneDX 1.6 JSON: the lock's packages, and those that dpkg lists in its base.

It has no serial number and no time, which the format allows to be left out: equal images have equal lists.
Format: https://cyclonedx.org/docs/1.6/json/, package URLs: https://github.com/package-url/purl-spec.
"""

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from requant.digest import canonical_json
from requant.environment.lock import Lock


def sbom(lock: Lock, environment: str, worker: str, debian: Iterable[tuple[str, str]] = ()) -> bytes:
    """Return the list as one line of canonical JSON.

    `environment` and `worker` are digests; `debian` holds name and version of each package of the base.
    """
    components = [_worker(worker)]
    components += [python(pin.name, pin.version, pin.sha256) for pin in lock.pins]
    components += [_debian(name, version) for name, version in sorted(debian)]
    value = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "container",
                "name": f"requant/{lock.name}",
                "version": environment,
                "bom-ref": "image",
            }
        },
        "components": components,
    }
    return canonical_json(value) + b"\n"


def _worker(digest: str) -> dict[str, Any]:
    return {"type": "application", "name": "requant.worker", "version": digest, "bom-ref": "worker"}


def python(name: str, version: str, sha256: str) -> dict[str, Any]:
    """Return a Python package, its wheel by SHA-256, as CycloneDX has it."""
    url = f"pkg:pypi/{name}@{quote(version, safe='')}"
    hashes = [{"alg": "SHA-256", "content": sha256}]
    return {"type": "library", "name": name, "version": version, "purl": url, "bom-ref": url, "hashes": hashes}


def _debian(name: str, version: str) -> dict[str, Any]:
    url = f"pkg:deb/debian/{quote(name, safe='')}@{quote(version, safe='')}"
    return {"type": "library", "name": name, "version": version, "purl": url, "bom-ref": url}
