"""Environments: what a person asks for in `lockfiles/<name>.in`, and the lock it resolves to in `<name>.txt`.

Both are read strictly, because whatever is installed from a lock can change a byte of a checkpoint. A lock
holds one artifact per package, by its SHA-256, and nothing that says where to get it. It carries the digest of
the `.in` that it was resolved from, so that an edited `.in` makes it stale. Standard library only.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from itertools import pairwise
from pathlib import Path

from requant.digest import canonical_json, read_whole, sha256
from requant.errors import LockError

ADVICE = "run `nox -s lock` and review what it changes"

_HEX = "[0-9a-f]{64}"
_NAME = re.compile("[a-z0-9]+(?:-[a-z0-9]+)*")
_PIN = re.compile(rf"({_NAME.pattern})==([0-9][0-9a-z.!+]*) --hash=sha256:({_HEX})")
_CLAUSE = "(?:==|>=|<=|!=|~=|<|>)[0-9A-Za-z.!+*]+"
_WISH = re.compile(f"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:{_CLAUSE}(?:,{_CLAUSE})*)?")
_DIGEST_LINE = re.compile(rf"# {_NAME.pattern}\.in = sha256:{_HEX}")
_DATE = "20[0-9]{2}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
_TIME = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
_TARGET = {
    "python": re.compile(r"3\.(0|[1-9][0-9]?)"),
    "platform": re.compile(r"(aarch64|x86_64)-manylinux_2_(0|[1-9][0-9]?)"),
    "cutoff": re.compile(f"{_DATE}T{_TIME}Z"),
}
_SOURCE = {
    "commit": re.compile("[0-9a-f]{40}"),
    "tree": re.compile("[0-9a-f]{40}"),
    "source-sha256": re.compile(_HEX),
    "source-date-epoch": re.compile("[1-9][0-9]*"),
    "record-sha256": re.compile(_HEX),
}


@dataclass(frozen=True)
class Pin:
    """One artifact: its name as PEP 503 normalizes it, version and SHA-256; `str` is its line in a lock."""

    name: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"


@dataclass(frozen=True)
class Intent:
    """What an `.in` asks for.

    `sources` holds what is known of the sources of packages, as `("auto-round.commit", "0d10…")`; `given` the
    artifacts that are not looked up but copied into the lock; `wishes` the requirements to resolve; `digest`
    the SHA-256 of the file.
    """

    name: str
    python: str
    platform: str
    cutoff: str
    sources: tuple[tuple[str, str], ...]
    given: tuple[Pin, ...]
    wishes: tuple[str, ...]
    digest: str


@dataclass(frozen=True)
class Lock:
    """A resolved environment. `given` names what the `.in` gave; `digest` is the SHA-256 of the file."""

    name: str
    python: str
    platform: str
    cutoff: str
    given: tuple[str, ...]
    digest: str
    pins: tuple[Pin, ...]


def read_intent(folder: Path, name: str) -> Intent:
    """Read `<name>.in`. Raises LockError where it is absent or not in the strict form."""
    file = _file(folder, name, "in")
    return parse_intent(file, _bytes(file, "an environment is asked for there, by hand"))


def read_lock(folder: Path, name: str) -> Lock:
    """Read `<name>.txt`. Raises LockError where it or its `.in` is absent or malformed, or it is stale."""
    intent = read_intent(folder, name)
    file = _file(folder, name, "txt")
    return parse_lock(file, _bytes(file, ADVICE), intent)


def format_lock(intent: Intent, pins: Iterable[Pin]) -> str:
    """Return the text of the lock with these pins: `parse_lock` inverts it."""
    ordered = sorted(pins, key=lambda pin: pin.name)
    return "".join(f"{line}\n" for line in (*_header(intent), *ordered))


def parse_intent(file: Path, data: bytes) -> Intent:
    """Parse an `.in`: directives in its first lines, then requirements, given artifacts and comments."""
    lines = _lines(file, data, "")
    directives = _directives(file, lines)
    given: list[Pin] = []
    wishes: list[str] = []
    names: set[str] = set()
    for number, line in enumerate(lines[len(directives) :], len(directives) + 1):
        asked = re.sub(r"(^|\s+)#.*", "", line)
        if not asked:
            continue
        if "--hash" in asked:
            given.append(parse_pin(file, number, asked, ""))
            name = given[-1].name
        elif match := _WISH.fullmatch(asked):
            wishes.append(asked)
            name = re.sub("[-_.]+", "-", match[1]).lower()
        else:
            raise LockError(f"{file}, line {number}: {asked!r}: neither a plain requirement nor a given artifact")
        if name in names:
            raise LockError(f"{file}, line {number}: {name} is asked for twice")
        names.add(name)
    for key in directives:
        if "." in key and key.partition(".")[0] not in names:
            raise LockError(f"{file}: the directive {key} is about a package that is not asked for")
    (_, python), (_, platform), (_, cutoff), *sources = directives.items()
    return Intent(file.stem, python, platform, cutoff, tuple(sources), tuple(given), tuple(wishes), sha256(data))


def parse_lock(file: Path, data: bytes, intent: Intent) -> Lock:
    """Parse a lock that was resolved from `intent`. Raises LockError for what the generator does not write."""
    lines = _lines(file, data, ADVICE)
    header = _header(intent)
    digest_line = lines[len(header) - 1 : len(header)]
    if digest_line and digest_line != header[-1:] and _DIGEST_LINE.fullmatch(digest_line[0]):
        raise LockError(f"{file}: stale, {file.with_suffix('.in')} has changed since it was resolved", ADVICE)
    for number, expected in enumerate(header, 1):
        found = lines[number - 1] if number <= len(lines) else "the end of the file"
        if found != expected:
            raise LockError(f"{file}, line {number}: found {found!r}, expected {expected!r}", ADVICE)
    pins = [parse_pin(file, number, line, ADVICE) for number, line in enumerate(lines[len(header) :], len(header) + 1)]
    for pin, following in pairwise(pins):
        if pin.name == following.name:
            raise LockError(f"{file}: {pin.name} stands twice", ADVICE)
    if format_lock(intent, pins).encode() != data:
        raise LockError(f"{file}: not in the order in which it is generated", ADVICE)
    for given in intent.given:
        if given not in pins:
            raise LockError(f"{file}: lacks {given}, which {file.with_suffix('.in')} gives", ADVICE)
    names = tuple(given.name for given in intent.given)
    return Lock(intent.name, intent.python, intent.platform, intent.cutoff, names, sha256(data), tuple(pins))


def platform_tags(platform: str) -> list[str]:
    """Return the platform tags that an index takes and `platform` runs (PEP 600), newest C library first."""
    machine, _, rest = platform.partition("-manylinux_2_")
    oldest = 5 if machine == "x86_64" else 17
    older_names = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
    platforms: list[str] = []
    for minor in range(int(rest), oldest - 1, -1):
        platforms.append(f"manylinux_2_{minor}_{machine}")
        if minor in older_names:
            platforms.append(f"{older_names[minor]}_{machine}")
    return platforms


def _header(intent: Intent) -> list[str]:
    return [
        f"# generated by 'nox -s lock' from {intent.name}.in, one wheel per package; do not edit",
        f"# python = {intent.python}",
        f"# platform = {intent.platform}",
        f"# cutoff = {intent.cutoff}",
        f"# {intent.name}.in = sha256:{intent.digest}",
    ]


def _directives(file: Path, lines: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        match = re.fullmatch(r"# ([a-z0-9.-]+) = (\S+)", line)
        if not match:
            break
        key, value = match.groups()
        # What concerns a source begins with its package.
        pattern = (_SOURCE if "." in key else _TARGET).get(key.rpartition(".")[2])
        if pattern is None or key in found:
            raise LockError(f"{file}, line {number}: an unknown or repeated directive: {key}")
        if not pattern.fullmatch(value):
            raise LockError(f"{file}, line {number}: found {value!r} for {key}, expected {pattern.pattern}")
        if key == "cutoff" and not _in_calendar(value):
            raise LockError(f"{file}, line {number}: found {value!r} for cutoff, expected a day that the month has")
        found[key] = value
    if list(found)[: len(_TARGET)] != list(_TARGET):
        raise LockError(f"{file}: expected to begin with the directives {', '.join(_TARGET)}: `# key = value`")
    return found


def _in_calendar(cutoff: str) -> bool:
    try:
        datetime.fromisoformat(cutoff)
    except ValueError:
        return False
    return True


def parse_pin(file: Path, number: int, line: str, advice: str) -> Pin:
    """Parse one line of a lock, or one given artifact of an `.in`. Raises LockError, which says what it lacks."""
    if match := _PIN.fullmatch(line):
        return Pin(match[1], match[2], match[3])
    hashes = line.count("--hash=")
    if line.startswith("-"):
        found = "an option"
    elif "://" in line or "@" in line:
        found = "a URL"
    elif hashes != 1:
        found = f"{hashes} hashes"
    else:
        found = repr(line)
    expected = "`name==version --hash=sha256:<64 digits>`, the name normalized"
    raise LockError(f"{file}, line {number}: found {found}, expected {expected}", advice)


def _file(folder: Path, name: str, suffix: str) -> Path:
    if not _NAME.fullmatch(name):
        raise LockError(f"{name!r} cannot name an environment: only a-z, 0-9 and single hyphens can")
    return folder / f"{name}.{suffix}"


def _bytes(file: Path, advice: str) -> bytes:
    try:
        return read_whole(file)
    except OSError as error:
        raise LockError(f"{file}: {error.strerror}", advice) from None
    except ValueError as error:
        raise LockError(f"{file}: {error}", advice) from None


def _lines(file: Path, data: bytes, advice: str) -> list[str]:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise LockError(f"{file}: not UTF-8: {error}", advice) from None
    if not text.endswith("\n"):
        raise LockError(f"{file}: the last line has no end", advice)
    # Not splitlines, which sees ends of lines where pip sees none.
    return text.split("\n")[:-1]


ROOM = ("digest", "errors", "journal", "recipe")
"""What the room shares with the host, beside its own package `quantizer`. Not the map in `__init__`: it is prose."""


def room_sources() -> dict[str, bytes]:
    """Return the sources that run in the room, by path below the folder that Python imports from."""
    package = resources.files("requant")
    names = [f"{name}.py" for name in ROOM]
    names += [f"quantizer/{each.name}" for each in package.joinpath("quantizer").iterdir() if each.name.endswith(".py")]
    return {f"requant/{name}": package.joinpath(name).read_bytes() for name in sorted(names)}


def dockerfile_path(lockfiles: Path, name: str) -> Path:
    """Return where an environment's Dockerfile stands: beside the folder of the locks."""
    return lockfiles.resolve().parent / f"Dockerfile.{name}"


def room_digest() -> str:
    """Return the digest of the sources that run in the room."""
    return sha256(canonical_json({path: sha256(data) for path, data in room_sources().items()}))


def environment_digest(lockfiles: Path, lock: Lock) -> str:
    """Return the identity of an environment, the same in a container and in a virtual environment.

    It is that of its lock, its Dockerfile and the sources of the room. Raises LockError without a Dockerfile.
    """
    file = dockerfile_path(lockfiles, lock.name)
    dockerfile = sha256(_bytes(file, "run `nox -s dockerfiles`"))
    return sha256(canonical_json({"dockerfile": dockerfile, "lock": lock.digest, "room": room_digest()}))
