"""What a model or a data set consists of at one revision: every file by size and SHA-256.

A revision alone names content by SHA-1 and by the word of whoever serves it; the digests here hold wherever
the bytes come from. A digest of null says that the file exists and that nobody has vouched for its bytes:
no build may read such a file (`fetch`).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from requant.digest import read_whole, strict_json
from requant.errors import RecipeError

SCHEMA = 1
KINDS = ("model", "dataset")

_WORD = r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?"
_OWNER_NAME = re.compile(f"{_WORD}/{_WORD}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class PinnedFile:
    """One file: its size in bytes and the SHA-256 of its content, null where it is not known."""

    bytes: int | None
    sha256: str | None


@dataclass(frozen=True)
class Pins:
    """The files of `repository` at `revision`, a commit of 40 hexadecimal digits, by POSIX path below its root.

    `kind` is "model" or "dataset"; `provenance` says in one sentence where the digests come from.
    """

    kind: str
    repository: str
    revision: str
    provenance: str
    files: Mapping[str, PinnedFile]

    def to_json(self) -> str:
        """Return the text of a file of pins, a line for each file; `read_pins` reads it back."""
        value = {"schema": SCHEMA} | {each.name: getattr(self, each.name) for each in fields(self)} | {"files": {}}
        head = json.dumps(value, indent=1, ensure_ascii=False).removesuffix("{}\n}")
        lines = (f"  {_json(path)}: {_json(vars(file))}" for path, file in self.files.items())
        return head + "{\n" + ",\n".join(lines) + "\n }\n}\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def read_pins(path: Path) -> Pins:
    """Read a file of pins; its paths keep their order.

    Raises RecipeError, which names the file and the key, for anything that is not exactly the format:
    `{"schema":1,"kind","repository","revision","provenance","files":{path:{"bytes","sha256"}}}`.
    """
    try:
        value = strict_json(read_whole(path))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise RecipeError(f"{path}: not JSON as requant reads it: {error}") from None
    try:
        return _pins(value)
    except _WrongError as wrong:
        raise RecipeError(f"{path}: {wrong}", "hub/pinned.py describes the format") from None


def pins_for(path: Path, repository: str, revision: str, asks: Path) -> Pins:
    """Read the pins of a repository at a revision, for which the recipe `asks`; raise RecipeError for another's."""
    pins = read_pins(path)
    if (pins.repository, pins.revision) != (repository, revision):
        raise RecipeError(
            f"{asks}: asks for {repository} at {revision}, but {path} pins {pins.repository} at {pins.revision}",
            "Name the file that pins the repository, or the repository that it pins.",
        )
    return pins


class _WrongError(ValueError):
    """A key, what stands there and what should; becomes an error once the file's name is known."""

    def __init__(self, key: str, found: Any, expected: str) -> None:
        super().__init__(f"{key or 'the document'}: found {found!r:.200}, expected {expected}")


def _pins(value: Any) -> Pins:
    keys = _keys(value, "", ("schema", *(field.name for field in fields(Pins))))
    if type(keys["schema"]) is not int or keys["schema"] != SCHEMA:
        raise _WrongError("schema", keys["schema"], f"{SCHEMA}, the only one that this version reads")
    if keys["kind"] not in KINDS:
        raise _WrongError("kind", keys["kind"], " or ".join(KINDS))
    repository = _text(keys, "repository", _OWNER_NAME, "owner/name")
    if "--" in repository or ".." in repository or repository.endswith(".git"):
        raise _WrongError("repository", repository, "owner/name without '--', '..' or a final '.git'")
    revision = _text(keys, "revision", _COMMIT, "40 lower-case hexadecimal digits")
    provenance = keys["provenance"]
    if not isinstance(provenance, str) or not provenance.strip() or not provenance.isprintable():
        raise _WrongError("provenance", provenance, "one sentence on one line")
    return Pins(keys["kind"], repository, revision, provenance, MappingProxyType(_files(keys["files"])))


def _files(value: Any) -> dict[str, PinnedFile]:
    if not isinstance(value, dict) or not value:
        raise _WrongError("files", value, "an object with at least one path")
    for path in value:
        if fault := path_fault(path):
            raise _WrongError("files", path, f"a path below the repository's root: {fault}")
        parts = path.split("/")
        if folder := next((above for n in range(1, len(parts)) if (above := "/".join(parts[:n])) in value), None):
            raise _WrongError("files", path, f"a path beside {folder!r}, which is a file and so no folder")
    return {path: _file(f'files."{path}"', entry) for path, entry in value.items()}


def _file(key: str, value: Any) -> PinnedFile:
    keys = _keys(value, key, ("bytes", "sha256"))
    size = keys["bytes"]
    if size is not None and (type(size) is not int or size < 0):
        raise _WrongError(f"{key}.bytes", size, "a number of bytes, or null")
    if keys["sha256"] is None:
        return PinnedFile(size, None)
    expected = "64 lower-case hexadecimal digits, or null"
    return PinnedFile(size, _text(keys, "sha256", _SHA256, expected, f"{key}."))


def path_fault(path: str) -> str:
    """Say why `path` is no POSIX path that stays below the folder it is joined to; "" where it is one."""
    if len(path) > 4096:
        return "it is longer than 4,096 characters"
    if not path.isprintable() or "\\" in path:
        return "it holds a backslash or an unprintable character"
    if path.startswith("/"):
        return "it is absolute"
    if any(part in ("", ".", "..") for part in path.split("/")):
        return "a part of it is empty, '.' or '..'"
    return ""


def _keys(value: Any, key: str, names: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _WrongError(key, value, "an object")
    for name in value:
        if name not in names:
            raise _WrongError(f"{key}.{name!r}".removeprefix("."), "this key", f"only {', '.join(names)}")
    for name in names:
        if name not in value:
            raise _WrongError(f"{key}.{name}".removeprefix("."), "no such key", f"all of {', '.join(names)}")
    return value


def _text(keys: dict[str, Any], name: str, form: re.Pattern[str], expected: str, prefix: str = "") -> str:
    value = keys[name]
    if not isinstance(value, str) or not form.fullmatch(value):
        raise _WrongError(f"{prefix}{name}", value, expected)
    return value
