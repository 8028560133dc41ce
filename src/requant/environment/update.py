"""`update`: what newer locks and newer base images would bring, pin by pin; written only when asked.

Newer is not better: what was recorded in an environment is stale once its lock or image changes (CONTRIBUTING.md).
"""

import re
import shutil
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from requant.digest import strict_json
from requant.environment.identity import dockerfile_path
from requant.environment.image.dockerfile import BASES, dockerfile, platform_of, read_bases
from requant.environment.lock import read_intent, read_lock
from requant.environment.resolve import resolve
from requant.errors import BuildError, LockError, NotAvailableError, UsageError
from requant.programs import run

_NEEDED = "This needs docker with buildx 0.13 or newer, and a network."
_TABLE = """\
# From a registry, through docker, on {today:%Y-%m-%d} (`requant update images {name}`).
[{name}]
image = "{base.image}"
digest = "{base.digest}"
index = "{base.index}"
nvidia = {nvidia}"""


@dataclass(frozen=True)
class Change:
    """One pin that would change, in `file`; `before` or `after` is "" where it would be new, or go."""

    file: str
    name: str
    before: str
    after: str


@dataclass(frozen=True)
class Update:
    """What would change pin by pin, and all that would be written, by path: a cutoff may be all that is new."""

    changes: tuple[Change, ...]
    texts: Mapping[Path, str]


def update_locks(folder: Path, names: Iterable[str], cutoff: str) -> Update:
    """Resolve the named environments as if asked at `cutoff`, an instant such as 2026-06-01T00:00:00Z.

    Raises UsageError for a cutoff that is none or lies ahead, whose lock another day would not give again;
    LockError where an `.in` is malformed or has no solution, NotAvailableError without uv.
    """
    names = [read_intent(folder, name).name for name in names]
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(shutil.copytree(folder, Path(scratch, folder.resolve().name)))
        for asked in (copy / f"{name}.in" for name in names):
            asked.write_text(re.sub(r"(?m)^# cutoff = \S+$", f"# cutoff = {cutoff}", asked.read_text(), count=1))
            try:
                read_intent(copy, asked.stem)
            except LockError:
                raise UsageError(f"--cutoff {cutoff}: expected an instant such as 2026-06-01T00:00:00Z") from None
        if cutoff > f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}":
            raise UsageError(f"--cutoff {cutoff}: lies ahead, and what is published until then is not known")
        for name in names:
            (copy / f"{name}.txt").write_text(resolve(copy, name))
        return _update(folder, copy, [f"{name}{suffix}" for name in names for suffix in (".in", ".txt")])


def update_images(folder: Path, names: Iterable[str] = ()) -> Update:
    """Ask a registry, through docker, what the tags of the named base images, or of all, name now.

    A tag names an index, and one image of it for the lock's platform. Raises UsageError for a name that `images.toml`
    does not have, before anything is asked; NotAvailableError where no docker or no registry answers; LockError where
    `images.toml` or a lock is malformed, or the tag names nothing for the lock's platform.
    """
    bases, file = read_bases(folder), folder / BASES
    asked = list(names) or list(bases)
    if unknown := [name for name in asked if name not in bases]:
        raise UsageError(f"{unknown[0]}: {file} has no such image", f"There are {', '.join(bases)}.")
    text = file.read_text()
    for name, platform in {name: platform_of(read_lock(folder, name)) for name in asked}.items():
        base = bases[name]
        index = _described(base.image)
        images = [(each["digest"], each.get("platform", {})) for each in index.get("manifests", ())]
        fitting = [digest for digest, of in images if f"{of.get('os')}/{of.get('architecture')}" == platform]
        if len(fitting) != 1:
            found = f"{base.image} names {len(fitting)} images for {platform}, expected one"
            raise LockError(f"{file}: {name}: {found}", "name a tag that is there for this platform")
        bases[name] = replace(base, digest=fitting[0], index=index["digest"])
        if bases[name] != base:
            table = _TABLE.format(name=name, base=bases[name], nvidia=str(base.nvidia).lower(), today=datetime.now(UTC))
            text = re.sub(rf"(^# From a registry.*\n)?^\[{name}\](\n\w+ = .*)+", table, text, flags=re.M)
    if tomllib.loads(text) != {name: asdict(base) for name, base in bases.items()}:
        raise LockError(f"{file}: cannot be edited", "Write each table as [NAME] and four lines below it, key = value.")
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(shutil.copytree(folder, Path(scratch, folder.resolve().name)))
        (copy / BASES).write_text(text)
        return _update(folder, copy, [BASES], asked)


def _update(folder: Path, copy: Path, names: Iterable[str], images: Iterable[str] = ()) -> Update:
    """Return what these files of `copy` change, and the Dockerfiles of `images`, or else of all that are pinned."""
    made = {folder / name: (copy / name).read_text() for name in names}
    if (copy / BASES).exists():
        chosen = list(images) or [name for name, base in read_bases(copy).items() if not base.placeholder]
        made |= {dockerfile_path(folder, name): dockerfile(copy, name) for name in chosen}
    changes = []
    for name in names:
        old, new = _held(folder / name), _held(copy / name)
        for key in sorted(old.keys() | new.keys()):
            told = old.get(key, ""), new.get(key, "")
            versions = [each.split(" ")[0] for each in told]
            if told[0] != told[1]:  # a wheel alone is told where its version is the same
                changes.append(Change(str(folder / name), key, *(told if versions[0] == versions[1] else versions)))
    stale = {path: text for path, text in made.items() if not path.exists() or path.read_bytes() != text.encode()}
    return Update(tuple(changes), stale)


def _held(file: Path) -> dict[str, str]:
    """Return what holds each pin of a lock, behind its version, or of `images.toml`; nothing of an `.in`."""
    if file.name == BASES:
        bases = read_bases(file.parent).items()
        return {f"{name} {base.image} {key}": getattr(base, key) for name, base in bases for key in ("digest", "index")}
    text = file.read_text() if file.exists() and file.suffix == ".txt" else ""
    return dict(re.findall("^([^#=\n]+)==(.+)", text.replace("--hash=", ""), re.M))


def _described(image: str) -> dict[str, Any]:
    """Return what a registry says of an image: `digest`, and `manifests` where it is an index (OCI image spec)."""
    try:
        answer = run(["docker", "buildx", "imagetools", "inspect", "--format", "{{json .Manifest}}", image])
        described = dict(strict_json(answer.encode()))
        if not re.fullmatch("sha256:[0-9a-f]{64}", described["digest"]):
            raise ValueError(f"found {described['digest']!r:.200} for its digest")
    except (BuildError, NotAvailableError, ValueError, TypeError, KeyError) as error:
        raise NotAvailableError(f"{image}: no registry answers with a digest: {error}", _NEEDED) from None
    return described
