"""The list of what an image is made of: valid CycloneDX, complete, and the same whenever it is made."""

import json

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from tests.conftest import ROOT, Refuses

from requant.environment.image.debian import packages
from requant.environment.image.sbom import sbom
from requant.environment.lock import read_lock
from requant.errors import BuildError

LOCK = read_lock(ROOT / "lockfiles", "cpu")
STATUS = b"""\
Package: libc6
Status: install ok installed
Version: 2.36-9+deb12u14
Description: a library
 Package: not-this-one

Package: gone
Status: deinstall ok config-files
Version: 1

Package: libattr1
Status: install ok installed
Version: 1:2.5.1-4
"""


def made() -> bytes:
    return sbom(LOCK, "e" * 64, "f" * 64, packages(STATUS))


@pytest.mark.parametrize("name", ["cpu", "cu124", "cu130", "current", "gb10"])
def test_valid(name: str) -> None:
    text = sbom(read_lock(ROOT / "lockfiles", name), "e" * 64, "f" * 64, packages(STATUS)).decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    broken = text.replace('"SHA-256"', '"SHA-257"')
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(broken) is not None


def test_complete() -> None:
    components = {each["name"]: each for each in json.loads(made())["components"]}
    assert {pin.name for pin in LOCK.pins} | {"libc6", "libattr1", "requant.worker"} == components.keys()
    assert components["libattr1"]["purl"] == "pkg:deb/debian/libattr1@1%3A2.5.1-4"
    assert components["torch"]["purl"] == "pkg:pypi/torch@2.13.0%2Bcpu"
    for pin in LOCK.pins:
        assert components[pin.name]["hashes"] == [{"alg": "SHA-256", "content": pin.sha256}]


def test_the_same_whenever_it_is_made() -> None:
    assert made() == made()
    assert b"serialNumber" not in made()
    assert b"timestamp" not in made()
    other = packages(STATUS.replace(b"2.36", b"2.37"))
    assert sbom(LOCK, "e" * 64, "f" * 64, other) != made()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"Package: libattr1", b"Packages: libattr1"),
        (b"Version: 1:2.5.1-4", b""),
        (b"a library", b"a libr\xe9ry"),
    ],
)
def test_what_dpkg_would_not_write(before: bytes, after: bytes, refuses: Refuses) -> None:
    assert before in STATUS
    with refuses(BuildError):
        list(packages(STATUS.replace(before, after)))
