"""`image NAME`: build an environment's image, twice if asked, and keep what proves which one it is.

An image is found again by its environment's digest and believed by its own: what the engine has under the name must
be what was built here, or it is built anew. Everything that a build reads is laid out first, in one folder: locks,
confirmed wheels, the worker's sources. Then every step runs without network.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from requant.digest import sha256, sha256_file
from requant.environment import Environment
from requant.environment.identity import worker_digest, worker_sources
from requant.environment.image import debian
from requant.environment.image.dockerfile import INSTALLER, SOURCE, built_package, pinned_base, platform_of, read_bases
from requant.environment.image.engine import Built, Engine
from requant.environment.image.evidence import Evidence, Image, find_image, image_name, keep
from requant.environment.image.rootfs import differences, read_rootfs
from requant.environment.image.sbom import sbom
from requant.environment.install import cache
from requant.environment.lock import Lock, read_intent, read_lock
from requant.environment.wheels import wheels
from requant.errors import NotAvailableError, UsageError
from requant.progress import Progress, Tell, silent

DEBIAN = "debian"
"""Word for a base made here, of Debian packages."""

_PATH = "[a-z0-9]+(?:[._/-]+[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?:[A-Za-z0-9.-]+(?::[0-9]+)?/)?{_PATH}(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(?:@sha256:[0-9a-f]{{64}})?"
)
"""What engines read as the name of an image: github.com/distribution/reference, its grammar, for SHA-256 alone."""


@dataclass(frozen=True)
class Repetition:
    """Two builds of one image without a cache: what differs, nothing where their digests are equal."""

    image: Image
    differences: tuple[str, ...]


def ensure_image(environment: Environment, engine: Engine, *, base: str | None = None, tell: Tell = silent) -> Image:
    """Return the environment's image, built now if the engine has it not, or not the one that was built here.

    Without a `base`, an image on any base will do, and one on the pinned base is built. Raises as `build_image`.
    """
    found = find_image(environment, engine)
    if found and (base is None or _stands_on(found, base, engine)):
        return found
    return build_image(environment.lock.file.parent, environment.name, engine, base=base, tell=tell)


def require(
    lockfiles: Path, name: str, *, base: str | None = None, source: Path | None = None, recorded: bool = False
) -> None:
    """Raise what is wrong with an image that is asked for, as far as it is known without an engine or a network.

    That is UsageError for a name, a base or a source that cannot be meant, and for another base in an image that is to
    be `recorded`; LockError for its lock, its Dockerfile or its pinned base; NotAvailableError for a Debian base that
    cannot be made here.
    """
    bases = read_bases(lockfiles)
    if name not in bases:
        raise UsageError(f"{name}: has no image; there are {', '.join(bases)}")
    pinned, lock = str(pinned_base(lockfiles, name)), Environment.load(lockfiles, name).lock
    if base not in (None, DEBIAN) and not _REFERENCE.fullmatch(str(base)):
        advice = f"Name one as your engine does (python:{lock.python}-slim-bookworm), or {DEBIAN}, which makes one."
        raise UsageError(f"--base {base!r}: not the name of an image", advice)
    if recorded and base not in (None, pinned):
        advice = "Build it without --base, or leave --record out."
        raise UsageError(f"--record: an image on another base than the pinned one cannot be recorded: {base}", advice)
    if source and not built_package(read_intent(lockfiles, name)):
        raise UsageError(f"--source: every package of {name} comes as a wheel, so none is built", "Leave it out.")
    if source and not source.is_dir():
        raise UsageError(f"--source {source}: no such folder")
    if base == DEBIAN:
        debian.require(lock.python)


def build_image(
    lockfiles: Path,
    name: str,
    engine: Engine,
    *,
    base: str | None = None,
    source: Path | None = None,
    tell: Tell = silent,
) -> Image:
    """Build an environment's image, take it into the engine's store, and keep the evidence in the cache.

    `base` overrides the pinned base image: a reference that the engine has, or `debian`. `source` is the tree of the
    package that is built from a commit, for machines that cannot fetch it: its wheel's hash tells whether it is.

    Raises LockError where a lock, a wheel or the Dockerfile is not what it should be, NotAvailableError for what is
    missing here, BuildError where a step fails.
    """
    with _workshop(lockfiles, name, engine, base, source, tell) as work:
        return work.describe(work.build(work.reference, cached=True))


def repeat_image(
    lockfiles: Path,
    name: str,
    engine: Engine,
    *,
    base: str | None = None,
    source: Path | None = None,
    tell: Tell = silent,
) -> Repetition:
    """Build an image twice without a cache, hold the two against each other, and take the first. As `build_image`."""
    with _workshop(lockfiles, name, engine, base, source, tell) as work:
        first = work.build(work.reference, cached=False)
        second = work.build(again := f"{work.reference}-again", cached=False)
        try:
            found = () if first == second else _differences(engine, first, second)
        finally:
            engine.ask("image", "rm", again)
        return Repetition(work.describe(first), found)


def _differences(engine: Engine, first: Built, second: Built) -> tuple[str, ...]:
    """Name what keeps two images of the store from having one digest: files, and keys of the configuration."""
    files = []
    for each in (first, second):
        with engine.export(each.reference) as stream:
            files.append(read_rootfs(stream, each.reference))
    one, two = first.stored.configuration, second.stored.configuration
    keys = tuple(f"configuration: {key}" for key in one if one[key] != two[key])
    return differences(*files) + keys or ("manifests or histories, and nothing else that the engine tells",)


@dataclass(frozen=True)
class _Workshop:
    """All that two builds of one image share."""

    environment: Environment
    engine: Engine
    base: str
    overridden: bool
    context: Path
    source: Path | None
    tell: Tell

    @property
    def reference(self) -> str:
        return image_name(self.environment)

    def build(self, reference: str, *, cached: bool) -> Built:
        lock = self.environment.lock
        labels = {"environment": self.environment.digest, "lock": lock.digest, "worker": worker_digest()}
        options = ["--platform", platform_of(lock)]
        options += [word for key, value in labels.items() for word in ("--label", f"requant.{key}={value}")]
        options += ["--build-context", f"{SOURCE}={self.source.resolve()}"] if self.source else []
        return self.engine.build(
            self.context,
            self.environment.dockerfile,
            name=reference,
            epoch=epoch_of(lock),
            arguments={"BASE": self.base} if self.overridden else {},
            options=options,
            cached=cached,
            tell=lambda line: self.tell(Progress(f"image {lock.name}", note=line)),
        )

    def describe(self, built: Built) -> Image:
        """Read what names the image beside its environment, and keep it."""
        self.tell(Progress(f"reading {self.reference}"))
        with self.engine.export(self.reference) as stream:
            files = read_rootfs(stream, self.reference, keep=(debian.STATUS,))
        installed = debian.packages(files.kept.get(debian.STATUS, b""))
        lock = self.environment.lock
        materials = sbom(lock, self.environment.digest, worker_digest(), installed)
        evidence = Evidence(
            environment=self.environment.digest,
            name=lock.name,
            platform=platform_of(lock),
            base=_described(self.base, self.engine) if self.overridden else self.base,
            overridden=self.overridden,
            rootfs=f"sha256:{files.digest}",
            config=built.config,
            manifest=built.manifest,
            builder=self.engine.builder(),
            sbom=f"sha256:{sha256(materials)}",
        )
        image = Image(self.reference, evidence)
        keep(image, self.engine, materials)
        return image


@contextmanager
def _workshop(
    lockfiles: Path, name: str, engine: Engine, base: str | None, source: Path | None, tell: Tell
) -> Iterator[_Workshop]:
    require(lockfiles, name, base=base, source=source)
    engine.builder()
    environment = Environment.load(lockfiles, name)
    lock = environment.lock
    pinned = str(pinned_base(lockfiles, name))
    if base is None and engine.image(pinned) is None:
        tell(Progress(f"base {pinned}"))
        _pull(engine, pinned, lock)
    place = cache() / "images"
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=place) as scratch:
        context = Path(scratch, "context")
        set_up(lockfiles, name, context, tell)
        stands_on = debian_base(lock, engine, Path(scratch), tell) if base == DEBIAN else base
        yield _Workshop(
            environment=environment,
            engine=engine,
            base=stands_on or pinned,
            overridden=stands_on not in (None, pinned),
            context=context,
            source=source,
            tell=tell,
        )


def _pull(engine: Engine, base: str, lock: Lock) -> None:
    try:
        engine.pull(base, platform_of(lock))
    except NotAvailableError as error:
        try:
            debian.require(lock.python)
        except NotAvailableError:
            raise error from None
        raise NotAvailableError(str(error), f"{error.advice} Or make one of Debian packages: --base debian.") from None


def set_up(lockfiles: Path, name: str, context: Path, tell: Tell = silent) -> None:
    """Lay out all that an image's build reads: locks, confirmed wheels, the worker's sources."""
    package = built_package(read_intent(lockfiles, name))
    locks = [name, INSTALLER, *([f"build-{package}"] if package else [])]
    for each in locks:
        lock = read_lock(lockfiles, each)
        found = wheels(cache() / "wheels", lock, without=(package,), tell=tell)
        lay_out(found.values(), context / "wheelhouse")
        _place(context / "lockfiles" / lock.file.name, lock.file.read_bytes())
    for path, data in worker_sources().items():
        _place(context / "worker" / path, data)


def debian_base(lock: Lock, engine: Engine, scratch: Path, tell: Tell = silent) -> str:
    """Make a base of Debian packages with the lock's Python, and return its reference in the engine's store."""
    tell(Progress(f"base of Debian packages, Python {lock.python}"))
    context = scratch / "base"
    context.mkdir(parents=True)
    debian.write_base(context / "base.tar", lock.python, epoch_of(lock), scratch)
    reference = f"requant/{DEBIAN}:{sha256_file(context / 'base.tar')[:16]}"
    if engine.image(reference) is None:
        file = scratch / "Dockerfile.base"
        file.write_text("FROM scratch\nADD base.tar /\nENV PATH=/usr/local/bin:/usr/bin:/bin\n")
        engine.build(context, file, name=reference, epoch=epoch_of(lock), arguments={})
    return reference


def epoch_of(lock: Lock) -> int:
    """Return the time of everything in an image, in seconds: the lock's cutoff."""
    return int(datetime.fromisoformat(lock.cutoff).timestamp())


def _described(base: str, engine: Engine) -> str:
    """Return a reference with the digest that it has now, where the engine knows it: a tag may move."""
    stored = None if "@" in base else engine.image(base)
    return f"{base}@{stored.id}" if stored else base


def _stands_on(image: Image, base: str, engine: Engine) -> bool:
    found = image.evidence.base
    return found.startswith(f"requant/{DEBIAN}:") if base == DEBIAN else found == _described(base, engine)


def lay_out(files: Iterable[Path], folder: Path) -> None:
    """Put wheels into one folder, as links where its file system allows it."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        try:
            os.link(file, folder / file.name)
        except FileExistsError:
            continue  # two locks may hold the same wheel
        except OSError:
            shutil.copyfile(file, folder / file.name)


def _place(path: Path, data: bytes) -> None:
    """Write a file whose mode, and its folders', do not depend on this process's umask."""
    for folder in (path.parent.parent, path.parent):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
    path.write_bytes(data)
    path.chmod(0o644)
