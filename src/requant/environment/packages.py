"""Packages as files: what wheels hold, laid out as an environment has it, and held against that whenever it is used.

A wheel is a zip whose members stand where they are to be installed (the specification of the binary distribution
format), so what an environment holds follows from its wheels alone, on every machine. Nothing else is put there: no
bytecode, no scripts with the path of an interpreter, no records of an installer. A list of it has the form that
`sha256sum --check` reads; its own SHA-256 stands for all files. Standard library only.
"""

import os
import re
import stat
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import file_digest, sha256
from pathlib import Path
from typing import IO

from requant.errors import LockError

CHUNK = 1 << 20
FILE, FOLDER = "file", "folder"
_UNPLAIN = re.compile(r"[\x00-\x1f\x7f\\]")
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_SPREAD = re.compile(r"[^/]+\.data/([^/]+)/(.+)")
_LEFT_OUT = ("headers", "scripts")
"""What a wheel has for compilers and shells: nothing that is imported is among it."""


def unpack(wheel: Path, folder: Path, python: str) -> dict[str, str]:
    """Lay out a wheel's files below `folder` as an environment of `python`, such as `3.11`; return `path: SHA-256`.

    Raises LockError for a member that would stand elsewhere, or where another wheel has put other bytes.
    """
    found = {}
    for path, mode, member in _members(wheel, python):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():  # two wheels may hold one file, but not two
            found[path] = sha256(member.read()).hexdigest()
            if found[path] != _sha256(target):
                raise LockError(f"{wheel}: {path}: another wheel of the lock has other bytes there")
            continue
        digest = sha256()
        with target.open("wb") as file:
            while chunk := member.read(CHUNK):
                digest.update(chunk)
                file.write(chunk)
        target.chmod(mode)
        found[path] = digest.hexdigest()
    return found


def contents(wheel: Path, python: str) -> dict[str, str]:
    """Return what `unpack` would, and write nothing."""
    return {path: file_digest(member, "sha256").hexdigest() for path, _, member in _members(wheel, python)}  # type: ignore[arg-type]


def _members(wheel: Path, python: str) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Yield the path, mode and bytes of each file of a wheel that is installed."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                mode = member.external_attr >> 16
                path = _place(member.filename, python)
                if member.is_dir() or path is None:
                    continue
                if _UNPLAIN.search(path) or stat.S_ISLNK(mode) or {"", ".", ".."} & set(path.split("/")):
                    raise LockError(f"{wheel}: {member.filename!r}: not a plain file below an environment's folder")
                with archive.open(member) as file:
                    yield path, 0o755 if mode & 0o111 else 0o644, file
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise LockError(f"{wheel}: cannot be unpacked: {error}") from None


def _place(name: str, python: str) -> str | None:
    packages = f"lib/python{python}/site-packages/"
    if not (spread := _SPREAD.fullmatch(name)):
        return packages + name
    scheme, path = spread.groups()
    if scheme in _LEFT_OUT:
        return None
    return path if scheme == "data" else packages + path


def format_list(files: Mapping[str, str]) -> str:
    """Return files, as `path: SHA-256`, in the form of `sha256sum`; `parse_list` inverts it."""
    return "".join(f"{digest}  {path}\n" for path, digest in sorted(files.items()))


def parse_list(text: str) -> dict[str, str]:
    """Read a list of files. Raises ValueError for what `format_list` does not write."""
    found = {}
    for line in text.split("\n")[:-1]:
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"found {line!r:.100}, expected a SHA-256 and a path")
        found[match[2]] = match[1]
    if format_list(found) != text:
        raise ValueError("not in the order in which it is generated")
    return found


def hold(folder: Path, files: Mapping[str, str]) -> None:
    """Confirm that exactly these files stand below `folder`, byte by byte, and no link, other file or folder.

    An empty folder counts too: Python imports it. Raises LockError, which names the first that is not as it must be.
    """
    try:
        there = dict(_paths(folder, ""))
        expected = dict.fromkeys(files, FILE)
        for path in files:
            while path := path.rpartition("/")[0]:
                expected[path] = FOLDER
        for path in sorted(there.keys() | expected.keys()):
            if path not in expected:
                raise LockError(f"{folder / path}: a {there[path]} that no wheel of the lock holds")
            if there.get(path) != expected[path]:
                raise LockError(f"{folder / path}: found {there.get(path, 'nothing')}, expected a {expected[path]}")
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            found = threads.map(lambda path: _sha256(folder / path), files, chunksize=64)
            for (path, digest), seen in zip(files.items(), found, strict=True):
                if seen != digest:
                    raise LockError(f"{folder / path}: altered: its SHA-256 is {seen}, and in its wheel it is {digest}")
    except OSError as error:
        raise LockError(f"{error.filename or folder}: cannot be read: {error.strerror}") from None


def _paths(folder: Path, above: str) -> Iterator[tuple[str, str]]:
    """Yield each path below a folder, relative to it, and what it is."""
    with os.scandir(folder) as entries:
        for entry in entries:
            path = above + entry.name
            if entry.is_dir(follow_symlinks=False):
                yield path, FOLDER
                yield from _paths(folder / entry.name, f"{path}/")
            else:
                yield path, FILE if entry.is_file(follow_symlinks=False) else "link or device"


def _sha256(path: Path) -> str:
    with _opened(path) as (file, size):
        if size <= CHUNK:  # 20,000 small files: one read each
            return sha256(os.read(file, size + 1)).hexdigest()
        with open(file, "rb", closefd=False) as stream:
            return file_digest(stream, "sha256").hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, int]]:
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        yield file, os.fstat(file).st_size
    finally:
        os.close(file)
