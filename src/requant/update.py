"""`update`: what newer locks and newer base images would bring, pin by pin; written only when asked.

Nothing here decides that newer is better: an update changes the environment's digest, so everything recorded in
it is stale afterwards (CONTRIBUTING.md).
"""

import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from requant.digest import strict_json
from requant.environment import dockerfile_path, parse_pin, read_intent, read_lock
from requant.errors import BuildError, LockError, NotAvailableError, UsageError
from requant.images.dockerfile import BASES, Base, dockerfile, platform_of, read_bases
from requant.lock import resolve
from requant.programs import run

_CUTOFF = re.compile(r"^# cutoff = \S+$", re.M)


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

    def write(self) -> None:
        """Write every file of the update."""
        for path, text in self.texts.items():
            path.write_bytes(text.encode())


def update_locks(folder: Path, names: Iterable[str], cutoff: str) -> Update:
    """Resolve the named environments as if asked at `cutoff`, an instant such as 2026-06-01T00:00:00Z.

    Raises UsageError for a cutoff that is none or lies ahead, whose lock another day would not give again;
    LockError where an `.in` is malformed or has no solution, NotAvailableError without uv.
    """
    instant = _instant(cutoff)
    if instant > datetime.now(UTC):
        raise UsageError(f"--cutoff {cutoff}: lies ahead, and what is published until then is not known")
    names = list(names)
    for name in names:
        read_intent(folder, name)  # says what is wrong with the file itself, under its own name, before any is resolved
    changes: list[Change] = []
    texts: dict[Path, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            asked, locked = folder / f"{name}.in", folder / f"{name}.txt"
            Path(scratch, asked.name).write_text(_CUTOFF.sub(f"# cutoff = {cutoff}", asked.read_text(), count=1))
            texts[asked] = Path(scratch, asked.name).read_text()
            texts[locked] = resolve(Path(scratch), name)
            changes += compare_locks(locked, locked.read_text() if locked.exists() else "", texts[locked])
    return Update(tuple(changes), texts | _dockerfiles(folder, texts))


def compare_locks(file: Path, before: str, after: str) -> tuple[Change, ...]:
    """Return which packages two locks differ in: by version, or where that is equal by the wheel's SHA-256."""
    old, new = _pins(file, before), _pins(file, after)
    return tuple(
        Change(str(file), name, *_told(old.get(name, ("", "")), new.get(name, ("", ""))))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    )


def _told(before: tuple[str, str], after: tuple[str, str]) -> tuple[str, str]:
    if before[0] != after[0]:
        return before[0], after[0]
    return f"{before[0]} sha256:{before[1]}", f"{after[0]} sha256:{after[1]}"


def _pins(file: Path, text: str) -> dict[str, tuple[str, str]]:
    lines = enumerate(text.split("\n")[:-1], 1)
    pins = (parse_pin(file, number, line, "") for number, line in lines if not line.startswith("#"))
    return {pin.name: (pin.version, pin.sha256) for pin in pins}


def _instant(cutoff: str) -> datetime:
    form = "%Y-%m-%dT%H:%M:%SZ"
    try:
        instant = datetime.strptime(cutoff, form).replace(tzinfo=UTC)
    except ValueError:
        instant = None
    if instant is None or f"{instant:{form}}" != cutoff:
        raise UsageError(f"--cutoff {cutoff}: expected an instant such as 2026-06-01T00:00:00Z")
    return instant


def update_images(folder: Path, names: Iterable[str] = ()) -> Update:
    """Ask a registry, through docker, what the tags of the named base images, or of all, name now.

    A tag names an index, and one image of it for the lock's platform. Raises UsageError for a name that `images.toml`
    does not have, before anything is asked; NotAvailableError where no docker or no registry answers; LockError where
    `images.toml` or a lock is malformed, or the tag names nothing for the lock's platform.
    """
    bases, file = read_bases(folder), folder / BASES
    asked = list(dict.fromkeys(names)) or list(bases)
    for name in asked:
        if name not in bases:
            raise UsageError(f"{name}: {file} has no such image", f"There are {', '.join(bases)}.")
    platforms = {name: platform_of(read_lock(folder, name)) for name in asked}
    newer: dict[str, Base] = {}
    for name, platform in platforms.items():
        base = bases[name]
        index = _described(base.image)
        fitting = [image["digest"] for image in index.get("manifests", ()) if _platform(image) == platform]
        if len(fitting) != 1:
            raise LockError(
                f"{file}: {name}: {base.image} names {len(fitting)} images for {platform}, expected one",
                "name a tag that is there for this platform",
            )
        newer[name] = replace(base, digest=fitting[0], index=index["digest"])
    changes = tuple(
        Change(str(file), f"{name} {base.image} {key}", getattr(bases[name], key), getattr(base, key))
        for name, base in newer.items()
        for key in ("digest", "index")
        if getattr(bases[name], key) != getattr(base, key)
    )
    if not changes:
        text = ""
    elif len(newer) == len(bases):
        text = "".join((_BASES.format(datetime.now(UTC)), *(_table(name, base) for name, base in newer.items())))
    else:
        text = file.read_text()
        for name, base in newer.items():
            if base != bases[name]:
                text = _edited(file, text, name, base)
    texts = {file: text} if text else {}
    return Update(changes, texts | _dockerfiles(folder, texts, newer))


_BASES = """\
# The base of each image, for one platform, by the digest of its manifest; `index` is what the tag named, over all
# platforms. From a registry, through docker, on {:%Y-%m-%d} (`nox -s update-images`).
"""

_TABLE = """
[{name}]
image = "{base.image}"
digest = "{base.digest}"
index = "{base.index}"
nvidia = {nvidia}
"""

_ASKED = "# From a registry, through docker, on {:%Y-%m-%d} (`requant update images {}`).\n"
"""What is said of one table, where the heading is about others."""


def _table(name: str, base: Base) -> str:
    return _TABLE.format(name=name, base=base, nvidia=str(base.nvidia).lower())


def _edited(file: Path, text: str, name: str, base: Base) -> str:
    """Return the text of `images.toml` with one table written anew, and the rest as it stands."""
    said = re.escape(_ASKED).replace(re.escape("{:%Y-%m-%d}"), r"\S+").replace(re.escape("{}"), re.escape(name))
    table = rf"^(?:{said})?\[{re.escape(name)}\]\n(?:[a-z]+ = .+\n?){{4}}"
    anew = _ASKED.format(datetime.now(UTC), name) + _table(name, base).lstrip()
    edited, count = re.subn(table, lambda _: anew, text, flags=re.M)
    if count != 1:
        raise LockError(f"{file}: cannot edit the table of {name}", f"Write it plainly, as here:\n{_table(name, base)}")
    return edited


def _platform(image: Mapping[str, Any]) -> str:
    platform = image.get("platform", {})
    return f"{platform.get('os')}/{platform.get('architecture')}"


def _dockerfiles(folder: Path, texts: Mapping[Path, str], names: Iterable[str] = ()) -> dict[Path, str]:
    """Return the Dockerfiles that are other ones once `texts` are written: they name pip's wheel and their base.

    Without `names`, of all images but those that are not pinned yet: there is nothing to write of them.
    """
    if not (folder / BASES).exists():
        return {}
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(shutil.copytree(folder, Path(scratch, folder.resolve().name)))
        for path, text in texts.items():
            (copy / path.name).write_text(text)
        chosen = list(names) or [name for name, base in read_bases(copy).items() if not base.placeholder]
        made = {dockerfile_path(folder, name): dockerfile(copy, name) for name in chosen}
    return {path: text for path, text in made.items() if not path.exists() or path.read_text() != text}


def _described(name: str) -> dict[str, Any]:
    """Return what a registry says of an image: `digest`, and `manifests` where it is an index (OCI image spec)."""
    try:
        answer = run(["docker", "buildx", "imagetools", "inspect", "--format", "{{json .Manifest}}", name])
    except (BuildError, NotAvailableError) as error:
        raise NotAvailableError(
            f"{name}: no registry answers: {error}", "This needs docker with buildx, and a network."
        ) from None
    try:
        described = strict_json(answer.encode())
        if re.fullmatch("sha256:[0-9a-f]{64}", described["digest"]):
            return dict(described)
    except (ValueError, TypeError, KeyError):
        pass
    raise NotAvailableError(
        f"{name}: docker's answer holds no digest: {answer[:200]!r}", "Is its buildx 0.13 or newer?"
    )
