"""`pins`: everything that this project pins, what holds it, where it stands, who said so, and what it lacks.

A pin is complete where a digest stands for every byte that it brings in: a wheel's SHA-256, an image's digest, a
commit of 40 hexadecimal digits, each file of a model or data set by its SHA-256 and its size. What runs on the host
alone is no pin: it cannot change a byte. Dockerfiles add none: they are generated from `images.toml` and the locks.
"""

import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from requant.digest import MAX_SIDE, MAX_TOML, read_whole
from requant.environment.image.dockerfile import ADVICE, BASES, TOOLS, ZEROS, dockerfile, read_bases
from requant.environment.lock import files_advice, read_files_digest, read_intent, read_lock
from requant.errors import LockError, RecipeError, UsageError
from requant.hub.pinned import pins_for, read_pins
from requant.recipe import FILE, read_recipe

GAPS = "builds/gaps.toml"
"""What is known to be incomplete: each gap by file, name, what is lacking, and why; one without a why is none."""
UNHELD = "under the worker"
_UNHELD = {
    "Python": "in a virtual environment the host's, with its standard library; in a container the base image's",
    "C library": "the host's in a virtual environment: libc, libm, the loader; in a container the base image's",
    "kernel": "always the host's",
    "container engine": "its version is recorded; it is not held",
    "GPU driver": "always the host's; an image refuses one that is too old for its CUDA",
    "processor": "its class is recorded in every journal; microcode and firmware are not",
}
_COMMENT = re.compile(r"#(?! *[\w.-]+ = )")  # not a directive of an `.in`


@dataclass(frozen=True)
class Pinned:
    """A reference, and the file that it stands in: a POSIX path below the project."""

    kind: str
    name: str
    by: str  # `sha256:…`, a commit, or "" for nothing
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
        (f"lockfiles/{BASES}", _bases),
        ("lockfiles/*.in", _environment),
        (f"builds/*/{FILE}", _recipe),
        ("builds/bases/*.json", _files),
        ("builds/datasets/*.json", _files),
    ):
        for file in sorted(root.glob(pattern)):
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


def _bases(file: Path) -> Iterator[Pinned]:
    text = _text(file)
    try:
        for name, base in read_bases(file.parent).items():
            source = _said(text, _line(text, rf"^\[{name}\]"))
            for key, digest in (("digest", base.digest), ("index", base.index)):
                fault = f"a tag without a digest: no {key}" if digest == ZEROS else ""
                yield Pinned("base image", base.image, digest, _line(text, rf"^\[{name}\].*?^{key}"), source, fault)
    except LockError as error:
        yield Pinned("lock", BASES, "", 1, "", str(error))


def _environment(file: Path) -> Iterator[Pinned]:
    """Yield the sources in an `.in`, its lock, what a virtual environment is held against, and a false Dockerfile."""
    name, asked, place = file.stem, _text(file), file
    try:
        for key, value in read_intent(file.parent, name).sources:
            if key.endswith(".commit"):
                package = key.removesuffix(".commit")
                source = _said(asked, _line(asked, rf"^{package.replace('-', '[-_.]+')}(?![\w.-])"))
                yield Pinned("git commit", package, value, _line(asked, f"^# {key} = "), source)
        place = file.with_suffix(".txt")
        for pin in read_lock(file.parent, name).pins:
            line = _line(_text(place), f"^{re.escape(str(pin))}$")
            yield Pinned("wheel", f"{pin.name}=={pin.version}", f"sha256:{pin.sha256}", line, "", "", place.name)
        lock, place = place, file.with_suffix(".files")
        if digest := read_files_digest(lock):
            yield Pinned("files in wheels", name, f"sha256:{digest}", 2, "", "", place.name)
        elif not name.startswith(TOOLS):
            fault = f"its environment is held only since it was installed: {files_advice(name)}"
            yield Pinned("files in wheels", name, "", 1, f"the wheels of {lock.name}", fault, place.name)
        place, made = file, file.parent.with_name(f"Dockerfile.{name}")
        if made.exists() and _text(made) != dockerfile(file.parent, name):
            yield Pinned("Dockerfile", name, "", 1, "", f"{made.name} is not what {BASES} and the lock make: {ADVICE}")
    except LockError as error:
        yield Pinned("lock", name, "", 1, file.name, str(error), place.name)


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
        yield Pinned(kind, name, revision, _line(text, rf"^\[{table}\].*?^revision"), "", fault)


def _files(file: Path) -> Iterator[Pinned]:
    if file.name.endswith(".config.json"):
        return
    pins, text = read_pins(file), _text(file)
    yield Pinned(pins.kind, pins.repository, pins.revision, _line(text, '"revision"'), pins.provenance)
    for path, each in pins.files.items():
        by = f"sha256:{each.sha256}" if each.sha256 else ""
        fault = ", ".join(filter(None, ("" if by else "no SHA-256", "" if each.bytes is not None else "no size")))
        line = _line(text, '"files".*?' + re.escape(json.dumps(path, ensure_ascii=False)))
        yield Pinned(f"file of a {pins.kind}", path, by, line, pins.provenance, fault)


def _said(text: str, line: int) -> str:
    """Return what a file says of a line: beside it, or else right above it, or else where the file begins."""
    lines = text.split("\n")
    above = [*takewhile(_COMMENT.match, reversed(lines[: line - 1]))][::-1]
    beside = lines[line - 1].partition(" # ")[2]
    return beside or " ".join(each.strip("# ") for each in above or takewhile(_COMMENT.match, lines))


def _line(text: str, pattern: str) -> int:
    """Return the number of the line where the first match of `pattern` ends."""
    match = re.search(pattern, text, re.M | re.S | re.I)
    return text.count("\n", 0, match.end() if match else 0) + 1


def _text(file: Path) -> str:
    try:
        return read_whole(file, MAX_TOML if file.suffix == ".toml" else MAX_SIDE).decode("utf-8-sig")
    except FileNotFoundError:
        return ""
    except ValueError as error:
        raise LockError(f"{file}: not a file of a project: {error}") from None
