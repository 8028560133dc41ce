"""`pins`: everything that this project pins, what holds it, where it stands, who said so, and what it lacks.

A pin is complete where a digest stands for every byte that it brings in: a wheel's SHA-256, an image's digest, a
commit of 40 hexadecimal digits, each file of a model or data set by its SHA-256 and its size. What runs on the
host alone is listed too, and lacks nothing: none of it can change a byte of a checkpoint.
"""

import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from requant.digest import MAX_SIDE, MAX_TOML, read_whole
from requant.environment.image.dockerfile import BASES, TOOLS, ZEROS, read_bases
from requant.environment.lock import files_advice, read_files_digest, read_intent, read_lock
from requant.errors import LockError, RecipeError, UsageError
from requant.hub.pinned import pins_for, read_pins
from requant.recipe import FILE, read_recipe

GAPS = "builds/gaps.toml"
"""What is known to be incomplete: each gap by file, name, what is lacking, and why; one without a why is none."""
HOST = "host, not in the worker"
UNHELD = "under the worker"
_UNHELD = {
    "Python": "in a virtual environment the host's, with its standard library; in a container the base image's",
    "C library": "the host's in a virtual environment: libc, libm, the loader; in a container the base image's",
    "kernel": "always the host's",
    "container engine": "its version is recorded; it is not held",
    "GPU driver": "always the host's; an image refuses one that is too old for its CUDA",
    "processor": "its class is recorded in every journal; microcode and firmware are not",
}

_COMMIT = "[0-9a-f]{40}"
_DIGEST = "sha256:(?!0{64})[0-9a-f]{64}"  # zeros are a placeholder
_PROSE = re.compile(r"#(?!!|\s*///|\s*[\w.-]+\s*=)")  # a comment that no program obeys
_CONTINUED = re.compile(r"(?<!\\)\\[ \t\r]*\n(?:[ \t\r]*(?:#.*)?\n)*")
_DIRECTIVE = r"(?:#|//)\s*(?=(?:syntax|escape)\s*=)"
_INSTRUCTION = re.compile(rf"^\s*(?:{_DIRECTIVE}|(?!#)(?:ONBUILD\s+)?)(\w(?:.*{_CONTINUED.pattern})*.*)", re.M | re.I)
_REMOTE = re.compile(r"(?:(?:https?|ssh|git)://|git@)\S+", re.I)
_REQUIRED = re.compile(r'"([A-Za-z0-9][\w.-]*) ?((?:\[[\w, -]+\])? ?(?:[<>=!~]=|[<>]|@[^"\n]*://)[^"\n]*)"')
_INSTALL = re.compile(
    r"^[^#\n]*?\b(?:apt-get\b[^;|&#\n]*?\binstall|pipx? install|(pipx run|uvx))\b((?:\\\n|[^;|&>#\n])*)", re.M
)


@dataclass(frozen=True)
class Pinned:
    """A reference, and the file that it stands in: a POSIX path below the project."""

    kind: str
    name: str
    by: str  # `sha256:…`, a commit, a range, or "" for nothing
    line: int
    source: str = ""  # who said so, in the words of the file
    fault: str = ""  # what is lacking
    file: str = ""
    known: str = ""  # why it is known to lack that, from `GAPS`


def find_pins(root: Path) -> tuple[Pinned, ...]:
    """Return every pin of the project in the folder `root`; what cannot be read in a lock is what it lacks.

    Raises RecipeError where a recipe or a file of pins cannot be read as one, LockError for `GAPS` or a file that is
    no text, UsageError where there is no pin at all.
    """
    try:
        listed = tomllib.loads(_text(root / GAPS)).get("gap", [])
        gaps = {(each["file"], each["name"], each["lacks"]): str(each["why"]) for each in listed if each["why"]}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise LockError(f"{root / GAPS}: expected tables [[gap]] with file, name, lacks and why: {error!r}") from None
    pins: list[Pinned] = []
    for pattern, read in (
        ("Dockerfile*", _dockerfile),
        (f"lockfiles/{BASES}", _bases),
        ("lockfiles/*.in", _environment),
        ("lockfiles/*.txt", _environment),
        (f"builds/*/{FILE}", _recipe),
        ("builds/bases/*.json", _files),
        ("builds/datasets/*.json", _files),
        ("pyproject.toml", _host),
        ("noxfile.py", _host),
        (".ci/*", _host),
        (".ci/*Dockerfile*", _dockerfile),
    ):
        for file in sorted(file for file in root.glob(pattern) if file.is_file()):
            for pin in read(file):
                place = file.with_name(pin.file or file.name)
                path, source = place.relative_to(root).as_posix(), pin.source or _said(_text(place), pin.line)
                known = gaps.pop((path, pin.name, pin.fault), "")
                pins.append(replace(pin, source=source or "by hand", file=path, known=known))
    if not pins:
        raise UsageError(f"{root}: nothing is pinned there", "Name the project's folder.")
    for path, name, fault in gaps:
        said = f"{GAPS} says that {path} has a gap ({fault}), and it has none: remove the entry"
        pins.append(Pinned("gap", name, "", 1, "by hand", said, GAPS))
    return (*pins, *(Pinned(UNHELD, name, "nothing", 0, said, "", "the host") for name, said in _UNHELD.items()))


def _dockerfile(file: Path) -> Iterator[Pinned]:
    """Yield what a Dockerfile takes from elsewhere: images and, by ADD, sources. Stages of its own are none of it.

    Read strictly, by BuildKit's grammar (its Dockerfile reference, 1.x): what could name an image in a way that is
    not read here is a fault, never passed over.
    """
    text = _text(file)
    arguments: dict[str, tuple[str, int]] = {}
    stages: list[str] = []
    for match in _INSTRUCTION.finditer(text):
        line, joined = _number(text, match.start(1)), _CONTINUED.sub("", match[1])
        word, rest = [*re.split(r"[\s=]+", joined, maxsplit=1), ""][:2]
        flags = [*takewhile(lambda each: each.startswith("--"), rest.split())]
        words, flagged = rest.split()[len(flags) :], " ".join(flags)
        if word.upper() == "ARG" and not stages:
            for name, given, default in (each.partition("=") for each in words):
                for spelled in (f"${name}", f"${{{name}}}"):
                    arguments[spelled] = (default.strip("\"'") if given else spelled, line)
        elif word.upper() == "FROM":
            image, *named = words or [""]
            if image.lower() not in (*stages, "scratch"):
                yield _image(*arguments.get(image, (image, line)))  # where an argument has its default, the pin stands
            stages.append(named[1].lower() if len(named) == 2 else "")
        elif word.upper() in ("SYNTAX", "ESCAPE"):
            yield _image(words[0] if word.upper() == "SYNTAX" else joined, line)
        elif word.upper() in ("ADD", "COPY", "RUN"):
            own = [*stages, *(str(number) for number in range(len(stages)) if word.upper() == "COPY")]
            named = re.findall(r"(?:--|[=,])from=([^,\s]*)", flagged, re.I)
            yield from (_image(name, line) for name in named if name.lower() not in own)
            if re.search(r"[\"'\\]", flagged) or re.search("(?<!<)<<(?!<)", rest):
                yield _image(joined, line)
        if word.upper() == "ADD":
            if re.search(r"[\"'\\$]", " ".join(words)):
                yield _image(joined, line)
            checksum = re.search(rf"--checksum=({_DIGEST})(?!\S)", flagged)
            for at, _, fragment in (each.partition("#") for each in _REMOTE.findall(rest)):
                held = checksum or re.fullmatch(rf"({_COMMIT})(?::.*)?", fragment)  # a folder may follow
                kind, by = "git commit" if fragment else "download", held[1] if held else ""
                yield Pinned(kind, at, by, line, "", "" if held else "fetched by neither commit nor checksum")


def _image(name: str, line: int) -> Pinned:
    """Judge the name of an image, by the grammar of distribution/reference: only a digest holds it."""
    if match := re.fullmatch(rf"([\w.:/-]+)@({_DIGEST})", name, re.A):
        return Pinned("base image", match[1], match[2], line)
    fault = "a digest that is not sha256: and 64 hexadecimal digits" if "@" in name else "a tag without a digest"
    if not re.fullmatch(r"[\w.:/@-]*", name, re.A):
        fault = "by an argument, quote, escape or here-document this may name any image: write it plainly"
    return Pinned("base image", name, "", line, "", fault)


def _bases(file: Path) -> Iterator[Pinned]:
    text = _text(file)
    try:
        for name, base in read_bases(file.parent).items():
            source = _said(text, _line(text, rf"^\[{name}\]"))
            for key, digest in (("digest", base.digest), ("index", base.index)):
                fault = f"a tag without a digest: no {key}" if digest == ZEROS else ""
                yield Pinned("base image", base.image, digest, _line(text, rf"^\[{name}\]", f"^{key}"), source, fault)
    except LockError as error:
        yield Pinned("lock", BASES, "", 1, "", str(error))


def _environment(file: Path) -> Iterator[Pinned]:
    """Yield what an `.in` says of sources, its lock, and the digest that a virtual environment is held against."""
    intent, locked, name = file.with_suffix(".in"), file.with_suffix(".txt"), file.stem
    if file == locked and intent.exists():
        return
    asked = _text(intent)

    def said(package: str) -> str:
        return _said(asked, _line(asked, rf"^{package.replace('-', '[-_.]+')}(?![\w.-])"))

    try:
        for key, value in read_intent(file.parent, name).sources:
            if key.endswith(".commit"):
                package = key.removesuffix(".commit")
                yield Pinned("git commit", package, value, _line(asked, f"^# {key} = "), said(package))
        for pin in read_lock(file.parent, name).pins:
            line, by = _line(_text(locked), f"^{re.escape(str(pin))}$"), f"sha256:{pin.sha256}"
            yield Pinned("wheel", f"{pin.name}=={pin.version}", by, line, said(pin.name), "", locked.name)
        if digest := read_files_digest(locked):
            yield Pinned("files in wheels", name, f"sha256:{digest}", 2, "", "", f"{name}.files")
        elif not name.startswith(TOOLS):
            fault = f"its environment is held only since it was installed: {files_advice(name)}"
            yield Pinned("files in wheels", name, "", 1, f"the wheels of {locked.name}", fault, f"{name}.files")
    except LockError as error:
        # It names which of the three files is wrong, and of a line its number.
        place = re.match(rf"\S*{re.escape(name)}(\.(?:in|txt|files))(?:, line (\d+))?: ", str(error))
        suffix, number = place.groups() if place else (".in", None)
        yield Pinned("lock", name, "", int(number or 1), f"{name}.in", str(error), f"{name}{suffix}")


def _recipe(file: Path) -> Iterator[Pinned]:
    recipe, text = read_recipe(file), _text(file)
    base, calibration = recipe.base, recipe.calibration
    for table, kind, name, revision, files in (
        ("base", "model", base.repository, base.revision, base.files),
        ("calibration", "dataset", calibration.dataset, calibration.revision, calibration.files),
    ):
        fault = ""
        try:
            pins_for(recipe.beside(files), name, revision, file)
        except RecipeError as error:
            fault = f"its files are not pinned: {error}"
        yield Pinned(kind, name, revision, _line(text, rf"^\[{table}\]", "^revision"), "", fault)


def _files(file: Path) -> Iterator[Pinned]:
    if file.name.endswith(".config.json"):
        return
    pins, text = read_pins(file), _text(file)
    yield Pinned(pins.kind, pins.repository, pins.revision, _line(text, '"revision"'), pins.provenance)
    for path, each in pins.files.items():
        by = f"sha256:{each.sha256}" if each.sha256 else ""
        fault = ", ".join(filter(None, ("" if by else "no SHA-256", "" if each.bytes is not None else "no size")))
        line = _line(text, '"files"', re.escape(json.dumps(path, ensure_ascii=False)))
        yield Pinned(f"file of a {pins.kind}", path, by, line, pins.provenance, fault)


def _host(file: Path) -> Iterator[Pinned]:
    """Yield what the host's tools are asked for by: a requirement in quotes, or what a script installs or runs."""
    text = _text(file)
    for match in _REQUIRED.finditer(text):
        line, (_, url, commit) = _number(text, match.start()), match[2].partition("#")[0].rpartition("@")
        fault = "" if re.fullmatch(_COMMIT, commit) else "no commit: 40 lower-case hexadecimal digits"
        asked = Pinned("git commit", match[1], commit, line, "", fault)
        yield asked if url else Pinned(HOST, match[1], match[2], line)
    for match in _INSTALL.finditer(text):
        packages = [*re.finditer(r"(?<!\S)([a-z][a-z0-9.+-]*)([=/]\S+)?(?!\S)", match[2])]
        for each in packages[:1] if match[1] else packages:  # of a tool that runs one, the first word is it
            yield Pinned(HOST, each[1], each[2] or "any version", _number(text, match.start(2) + each.start()))


def _said(text: str, line: int) -> str:
    """Return what a file says of a line: beside it, or else right above it, or else where the file begins."""
    lines = text.split("\n")
    beside = re.search(r"\S\s+# (.*)", lines[line - 1])
    above = [*takewhile(_PROSE.match, reversed(lines[: line - 1]))][::-1]
    return beside[1] if beside else " ".join(each.strip("# ") for each in above or takewhile(_PROSE.match, lines))


def _line(text: str, *patterns: str) -> int:
    """Return the number of the line where the last of these is, each looked for behind the one before."""
    end = 0
    for pattern in patterns:
        match = re.compile(pattern, re.M | re.I).search(text, end)
        end = match.end() if match else end
    return _number(text, end)


def _number(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _text(file: Path) -> str:
    try:
        return read_whole(file, MAX_TOML if file.suffix == ".toml" else MAX_SIDE).decode("utf-8-sig")
    except FileNotFoundError:
        return ""
    except ValueError as error:
        raise LockError(f"{file}: not a file of a project: {error}") from None
