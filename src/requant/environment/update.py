"""`update`: what newer locks and newer base images would bring, pin by pin; written only when asked.

Nothing here decides that newer is better: an update changes the environment's digest, so everything recorded in
it is stale afterwards (CONTRIBUTING.md).
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
        copies = [Path(scratch, f"{name}.in") for name in names]
        for copy in copies:
            asked = (folder / copy.name).read_text()
            copy.write_text(re.sub(r"^# cutoff = \S+$", f"# cutoff = {cutoff}", asked, count=1, flags=re.M))
            try:
                read_intent(copy.parent, copy.stem)
            except LockError:
                raise UsageError(f"--cutoff {cutoff}: expected an instant such as 2026-06-01T00:00:00Z") from None
        if cutoff > f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}":
            raise UsageError(f"--cutoff {cutoff}: lies ahead, and what is published until then is not known")
        texts = {copy.name: copy.read_text() for copy in copies}
        return _update(folder, texts | {f"{name}.txt": resolve(Path(scratch), name) for name in names})


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
    platforms = {name: platform_of(read_lock(folder, name)) for name in asked}
    text = file.read_text()
    for name, platform in platforms.items():
        base = bases[name]
        index = _described(base.image)
        images = [(each["digest"], each.get("platform", {})) for each in index.get("manifests", ())]
        fitting = [digest for digest, of in images if f"{of.get('os')}/{of.get('architecture')}" == platform]
        if len(fitting) != 1:
            found = f"{base.image} names {len(fitting)} images for {platform}, expected one"
            raise LockError(f"{file}: {name}: {found}", "name a tag that is there for this platform")
        bases[name] = replace(base, digest=fitting[0], index=index["digest"])
        if bases[name] != base:
            nvidia = str(base.nvidia).lower()
            table = _TABLE.format(name=name, base=bases[name], nvidia=nvidia, today=datetime.now(UTC))
            parts = [part.split("\n") for part in text.rstrip().split("\n\n")]
            for part in parts:
                if f"[{name}]" in part:
                    said = [line for line in part if line.startswith("#") and "`requant update images" not in line]
                    part[:] = [*said, table]
            text = "\n\n".join("\n".join(part) for part in parts) + "\n"
    if tomllib.loads(text) != {name: asdict(base) for name, base in bases.items()}:
        raise LockError(f"{file}: cannot be edited", "Part its tables by an empty line each, and write [NAME] plainly.")
    return _update(folder, {BASES: text}, asked)


def _update(folder: Path, texts: Mapping[str, str], images: Iterable[str] = ()) -> Update:
    """Return what differs once `texts` are in the folder of locks, and the Dockerfiles of `images` that follow.

    Without `images`, of all but those that are not pinned yet: there is nothing to write of them.
    """
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(shutil.copytree(folder, Path(scratch, folder.resolve().name)))
        for name, text in texts.items():
            (copy / name).write_text(text)
        made = {folder / name: text for name, text in texts.items()}
        if (copy / BASES).exists():
            chosen = list(images) or [name for name, base in read_bases(copy).items() if not base.placeholder]
            made |= {dockerfile_path(folder, name): dockerfile(copy, name) for name in chosen}
        changes = []
        for name in texts:
            old, new = _held(folder / name), _held(copy / name)
            for key in sorted(old.keys() | new.keys()):
                before, after = old.get(key, ""), new.get(key, "")
                versions = before.split(" ")[0], after.split(" ")[0]
                if before != after:  # a wheel alone is told where its version is the same
                    told = versions if versions[0] != versions[1] else (before, after)
                    changes.append(Change(str(folder / name), key, *told))
    stale = {path: text for path, text in made.items() if not path.exists() or path.read_bytes() != text.encode()}
    return Update(tuple(changes), stale)


def _held(file: Path) -> dict[str, str]:
    """Return what holds each pin of a lock, behind its version, or of `images.toml`; nothing of an `.in`."""
    if file.name == BASES:
        bases = read_bases(file.parent).items()
        return {f"{name} {base.image} {key}": getattr(base, key) for name, base in bases for key in ("digest", "index")}
    lines = file.read_text().split("\n") if file.exists() and file.suffix == ".txt" else []
    pins = (line.partition("==") for line in lines if not line.startswith("#"))
    return {name: pinned.replace("--hash=", "") for name, _, pinned in pins if name}


def _described(image: str) -> dict[str, Any]:
    """Return what a registry says of an image: `digest`, and `manifests` where it is an index (OCI image spec)."""
    try:
        answer = run(["docker", "buildx", "imagetools", "inspect", "--format", "{{json .Manifest}}", image])
        described = dict(strict_json(answer.encode()))
        if re.fullmatch("sha256:[0-9a-f]{64}", described["digest"]):
            return described
    except (BuildError, NotAvailableError) as error:
        raise NotAvailableError(f"{image}: no registry answers: {error}", _NEEDED) from None
    except (ValueError, TypeError, KeyError):
        pass
    raise NotAvailableError(f"{image}: docker's answer holds no digest: {answer[:200]!r}", _NEEDED)
