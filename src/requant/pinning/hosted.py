"""What the host's own tools are asked for by: in `pyproject.toml`, in a script's header (PEP 723), in `.ci/`.

Ranges, on purpose: none of it can change a byte of a checkpoint. Only source code has to name its commit.
"""

import re
import tomllib
from collections.abc import Iterator
from typing import Any

from requant.pinning.reference import Reference

HOST = "host, not in the room"
UNHELD = "under the room"
COMMIT = re.compile("[0-9a-f]{40}")
NO_COMMIT = "no commit: 40 lower-case hexadecimal digits"

_SCRIPT = re.compile(r"^# /// script$(.*?)^# ///$", re.M | re.S)
_INSTALL = re.compile(r"\b(?:apt-get\b[^;|&]*?\binstall|pipx? install|pipx run|uvx)\b([^;|&>]*)")
_WORDS = re.compile(r"([^;|&>]*)")
_PACKAGE = re.compile(r"[a-z][a-z0-9.+-]*([=/]\S+)?")


def project_requirements(text: str) -> Iterator[Reference]:
    """Yield what a `pyproject.toml` requires to be built, to run, and in its groups, each where it stands."""
    document: dict[str, Any] = tomllib.loads(text)
    project = document.get("project", {})
    groups = (*document.get("dependency-groups", {}).values(), *project.get("optional-dependencies", {}).values())
    listed = [document.get("build-system", {}).get("requires", ()), project.get("dependencies", ()), *groups]
    yield from _found(text, {each for group in listed for each in group if isinstance(each, str)})


def script_requirements(text: str) -> Iterator[Reference]:
    """Yield what the header of a Python script requires."""
    if match := _SCRIPT.search(text):
        header = tomllib.loads("\n".join(line.removeprefix("#") for line in match[1].split("\n")))
        yield from _found(text, set(header.get("dependencies", ())))


def installed(text: str) -> Iterator[Reference]:
    """Yield what a shell script installs, or runs from an index; of the tools that run one, the first word is it."""
    goes_on = False
    for number, line in enumerate(text.split("\n"), 1):
        command = line.partition("#")[0].rstrip()
        match = _INSTALL.search(command) or (_WORDS.match(command) if goes_on else None)
        goes_on = match is not None and command.endswith("\\")
        packages = [word for word in match[1].split() if _PACKAGE.fullmatch(word)] if match else []
        runs = match and match[0].startswith(("pipx run", "uvx"))
        yield from (_asked(package, number, "") for package in (packages[:1] if runs else packages))


def unheld() -> Iterator[Reference]:
    """Yield what a room stands on and no digest holds: evidence about it is the hardware class and equal bits."""
    for name, said in (
        ("Python", "in a virtual environment the host's, with its standard library; in a container the base image's"),
        ("C library", "the host's in a virtual environment: libc, libm, the loader; in a container the base image's"),
        ("kernel", "always the host's"),
        ("container engine", "its version is recorded; it is not held"),
        ("GPU driver", "always the host's; an image refuses one that is too old for its CUDA"),
        ("processor", "its class is recorded in every journal; microcode and firmware are not"),
    ):
        yield Reference(UNHELD, name, "nothing", 0, said, "")


def _found(text: str, asked: set[str]) -> Iterator[Reference]:
    for number, line in enumerate(text.split("\n"), 1):
        for quoted in re.findall(r'"([^"]+)"', line):
            if quoted in asked:
                yield _asked(quoted, number, line.rpartition('"')[2].partition("#")[2].strip())


def _asked(requirement: str, line: int, source: str) -> Reference:
    name, at, where = requirement.partition("@")
    if at:
        commit = where.rpartition("@")[2].partition("#")[0].strip()
        fault = "" if COMMIT.fullmatch(commit) else NO_COMMIT
        return Reference("git commit", name.strip(), commit, line, source, fault)
    name = re.split(r"[^A-Za-z0-9._+-]", requirement, maxsplit=1)[0]
    return Reference(HOST, name, requirement.removeprefix(name).strip() or "any version", line, source, "")
