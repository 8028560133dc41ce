"""Docker and Podman by their command line. What they do differently stands in `DIALECTS`.

No library stands between: docker-py speaks to the builder of before BuildKit, and others call this same command
line. Images are never pulled by running them: what is run was built here or loaded from a file.
"""

import csv
import io
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from requant.errors import BuildError, NotAvailableError, RequantError
from requant.images.refusals import explained, refusal
from requant.programs import follow, reading, run

CHOSEN = "REQUANT_ENGINE"
"""Environment variable that names the engine's program, where none is asked for."""

BUILDKIT = (0, 13)
"""The first BuildKit that rewrites the times in layers (`rewrite-timestamp`)."""

COMPATIBLE = (0, 30)
"""The first BuildKit that can be asked for an older one's form of layers and manifests, by its release notes."""

COMPATIBILITY = "compatibility-version=20"
"""The form that is asked for. The field stands in others' scripts for 0.31; no such BuildKit was run here."""

BUILDKIT_WITHIN = {(26,): (0, 13), (0,): (0, 12)}
"""Docker release and the BuildKit in it, newest first: Debian's build says v0.0.0+unknown of its own."""


@dataclass(frozen=True)
class Dialect:
    """What one engine says its own way; `oldest` is the oldest version that has all that is used here.

    `gpus` are the words that give a GPU, by its UUID in place of `{}`.
    """

    oldest: tuple[int, ...]
    gpus: tuple[str, ...]
    rootless: tuple[str, ...]
    remove: tuple[str, ...]


DIALECTS = {
    "docker": Dialect(
        oldest=(20, 10),  # `--pull never`
        gpus=("--gpus", "device={}"),
        rootless=("--user", "0:0"),  # this user outside
        remove=("rm", "--force"),
    ),
    "podman": Dialect(
        oldest=(4, 0),  # GPUs by CDI
        gpus=("--device", "nvidia.com/gpu=all"),  # CDI of older toolkits has no names by UUID: CUDA shows one
        rootless=("--userns", "keep-id"),  # this user inside too
        remove=("rm", "--force", "--time", "0"),  # or it waits for ten seconds
    ),
}


@dataclass(frozen=True)
class Stored:
    """An image in an engine's store.

    `id` is the digest by which this store names it: of the manifest in Docker's containerd store, of the
    configuration elsewhere. It names the same bytes as long as the engine stays the same.
    """

    id: str
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Limits:
    """What a container may use, in GiB: memory, and of that in files of its /tmp and of its shared memory."""

    memory: int
    temporary: int
    shared: int


@dataclass(frozen=True)
class Engine:
    """A container engine that answered; `kind` is a key of `DIALECTS`, whatever the program in `words` is called."""

    words: tuple[str, ...]
    kind: str
    version: str
    rootless: bool

    def __str__(self) -> str:
        return f"{self.kind} {self.version}"

    def ask(self, *words: str) -> str:
        """Run one of the engine's commands and return what it wrote. Raises what `explained` makes of a refusal."""
        try:
            return run((*self.words, *words))
        except BuildError as error:
            raise explained(self.kind, str(error)) from None

    def image(self, reference: str) -> Stored | None:
        """Return an image of the store, or None where it has none of this name or digest."""
        try:
            said = run((*self.words, "image", "inspect", reference))
        except BuildError as error:
            known = refusal(str(error))
            if known and known.name == "image missing":
                return None
            raise explained(self.kind, str(error)) from None
        found = json.loads(said)[0]
        return Stored(_digest(found["Id"]), found["Config"].get("Labels") or {})

    def load(self, archive: Path) -> str:
        """Take an image from an archive, as `docker save` writes it; return its reference, or else its digest."""
        return self.ask("load", "--quiet", "--input", str(archive)).strip().splitlines()[-1].partition(": ")[2]

    def pull(self, reference: str, platform: str) -> None:
        """Fetch an image from its registry. Raises NotAvailableError where none answers."""
        self.ask("pull", "--quiet", "--platform", platform, reference)

    @contextmanager
    def export(self, reference: str) -> Iterator[IO[bytes]]:
        """Give the image's files as the stream of a tar. What stands in for its mounts (/dev, /etc/hosts) is there."""
        name = unique()
        self.ask("create", "--pull", "never", "--network", "none", "--name", name, reference, "true")
        try:
            with reading((*self.words, "export", name)) as stream:
                yield stream
        finally:
            self.remove(name)

    def remove(self, container: str) -> None:
        """Remove a container, running or not; no matter if it is gone already."""
        try:
            run((*self.words, *DIALECTS[self.kind].remove, container))
        except BuildError as error:
            if not re.search("no such container|already in progress|no container with", str(error), re.IGNORECASE):
                raise explained(self.kind, str(error)) from None

    def container(self, name: str) -> dict[str, Any] | None:
        """Return what the engine says of a container (`inspect`), or None where there is none of this name."""
        try:
            said = run((*self.words, "container", "inspect", name))
        except BuildError as error:
            if re.search("no such container|no container with", str(error), re.IGNORECASE):
                return None
            raise explained(self.kind, str(error)) from None
        found: dict[str, Any] = json.loads(said)[0]
        return found

    def run_words(
        self,
        image: str,
        name: str,
        *,
        writable: Sequence[Path],
        readable: Sequence[Path],
        variables: Mapping[str, str],
        limits: Limits,
        accelerator: str,
    ) -> tuple[str, ...]:
        """Return the words that run `image`, without network, rights or a writable root; its own words follow them.

        Each path is mounted where it is on the host. Docker's /tmp is `noexec` unless told otherwise, and
        libraries that compile load what they compiled from there.
        """
        dialect = DIALECTS[self.kind]
        words = [*self.words, "run", "--rm", "--interactive", "--pull", "never", "--name", name]
        words += ["--network", "none", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        words += ["--security-opt", "label=disable"]  # or SELinux would want the host's files labelled anew
        words += dialect.rootless if self.rootless else ("--user", f"{os.geteuid()}:{os.getegid()}")
        words += ["--memory", f"{limits.memory}g", "--shm-size", f"{limits.shared}g"]
        words += ["--tmpfs", f"/tmp:rw,exec,size={limits.temporary}g"]  # noqa: S108 (inside the container)
        words += [word.format(accelerator) for word in dialect.gpus] if accelerator else ()
        mounts = {path.resolve(): "readonly" for path in readable} | {path.resolve(): "" for path in writable}
        words += [word for path, mode in mounts.items() for word in ("--mount", _mount(path, mode))]
        words += [word for item in variables.items() for word in ("--env", "=".join(item))]
        return (*words, image)

    def build(
        self,
        context: Path,
        file: Path,
        archive: Path,
        *,
        name: str,
        epoch: int,
        arguments: Mapping[str, str],
        options: Sequence[str] = (),
        cached: bool = True,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Build the image of `file` without network into an archive that every engine loads.

        Times are `epoch`, in seconds; `options` are words that both engines' `build` has; `tell` hears the builder's
        lines. Raises NotAvailableError where the builder cannot, BuildError with its last words where a step fails.
        """
        # Podman's cache takes a step for the same one whatever its mounts hold: another wheel would go unnoticed.
        cached = cached and self.kind != "podman"
        words = ["--network", "none", "--file", str(file), *options, *(() if cached else ("--no-cache",))]
        given = {**arguments, "SOURCE_DATE_EPOCH": str(epoch)}
        words += [word for item in given.items() for word in ("--build-arg", "=".join(item))]
        try:
            if self.kind == "podman":
                words += ["--layers", "--timestamp", str(epoch), "--pull=missing", "--tag", name]
                follow((*self.words, "build", *words, str(context)), tell)
                self.ask("save", "--quiet", "--format", "docker-archive", "--output", str(archive), name)
                return
            words += ["--provenance=false", "--sbom=false", "--progress", "plain"]
            # Not compressed: the bytes would depend on the compressor, and they stay on this machine.
            form = ["rewrite-timestamp=true", "compression=uncompressed", "force-compression=true"]
            fields = ("type=docker", _field("dest", archive), f"name={name}", *form, *self._compatibility())
            words += ["--output", ",".join(fields)]
            follow((*self.words, "buildx", "build", *words, str(context)), tell)
        except BuildError as error:
            raise explained(self.kind, str(error)) from None

    def builder(self) -> str:
        """Return what builds images here and its version; raise NotAvailableError where it cannot fix times."""
        if self.kind == "podman":
            return str(self)
        info = _info(self.words[0])
        plugins = {each["Name"]: each["Version"] for each in info.get("ClientInfo", {}).get("Plugins") or ()}
        if "buildx" not in plugins:
            raise explained(self.kind, "the buildx component is missing")
        version, known, driver = self._buildkit
        if known < BUILDKIT:
            raise NotAvailableError(
                f"docker: its BuildKit is {version or 'of ' + self.version}, expected "
                f"{'.'.join(map(str, BUILDKIT))} or newer: older ones cannot fix the times in an image",
                "Update Docker to 26 or newer, or build with Podman: --runner podman.",
            )
        if driver == "docker" and "io.containerd.snapshotter.v1" not in str(info.get("DriverStatus")):
            raise explained(self.kind, "Docker exporter is not supported for the docker driver")
        return ", ".join((f"BuildKit {version} of {self}", f"buildx {plugins['buildx']}", *self._compatibility()))

    def _compatibility(self) -> tuple[str, ...]:
        return (COMPATIBILITY,) if self._buildkit[1] >= COMPATIBLE else ()

    @cached_property
    def _buildkit(self) -> tuple[str, tuple[int, ...], str]:
        """Return the version that BuildKit says it has, the one that it has, and buildx's driver."""
        said = dict(line.strip().split(":", 1) for line in self.ask("buildx", "inspect").splitlines() if ":" in line)
        version = said.get("BuildKit version", said.get("Buildkit", "")).strip()
        within = next(has for docker, has in BUILDKIT_WITHIN.items() if docker <= _numbers(self.version))
        known = _numbers(version) if any(_numbers(version)) else within
        return version, known, said.get("Driver", "").strip()


def find(preferred: str | None = None) -> Engine:
    """Return the engine that is asked for, by name or by the variable `CHOSEN`, or else the first that answers.

    Raises NotAvailableError with the reason of the first that is there and does not answer.
    """
    asked = preferred or os.environ.get(CHOSEN)
    reasons: list[RequantError] = []
    for program in (asked,) if asked else DIALECTS:
        try:
            return _engine(program)
        except _AbsentError as error:
            reasons.append(error)
        except RequantError as error:
            reasons.insert(0, error)
    raise reasons[0]


def unique() -> str:
    """Return a name that no other container has."""
    return f"requant-{secrets.token_hex(8)}"


class _AbsentError(NotAvailableError):
    """There is no such program."""


def _engine(program: str) -> Engine:
    info = _info(program)
    try:
        if "ServerVersion" in info:
            kind, version = "docker", str(info["ServerVersion"])
            rootless = any("name=rootless" in option for option in info["SecurityOptions"] or ())
        else:  # also where the program is called docker: Debian's podman-docker
            kind, version = "podman", str(info["version"]["Version"])
            rootless = bool(info["host"]["security"]["rootless"])
    except (KeyError, TypeError):
        raise _strange(program) from None
    oldest = DIALECTS[kind].oldest
    if _numbers(version) < oldest:
        raise NotAvailableError(
            f"{program}: is version {version}, expected {'.'.join(map(str, oldest))} or newer",
            "Update the engine, or use none: --runner venv.",
        )
    return Engine((program,), kind, version, rootless)


def _info(program: str) -> dict[str, Any]:
    try:
        said = run((program, "info", "--format", "{{json .}}"))
    except NotAvailableError as error:
        raise _AbsentError(
            f"{error}, so there is no container engine to run the room",
            f"Install Docker or Podman (apt-get install docker.io), name one by {CHOSEN}, or use none: --runner venv.",
        ) from None
    except BuildError as error:
        raise explained(program, str(error)) from None
    try:
        found = json.loads(said)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _strange(program)
    return found


def _strange(program: str) -> NotAvailableError:
    advice = f"Name another one by {CHOSEN}, or use none: --runner venv."
    return NotAvailableError(f"{program}: does not describe itself as Docker or Podman do (`{program} info`)", advice)


def _numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: `v0.13.1+ds1` is 0, 13, 1."""
    match = re.match(r"v?(\d+(?:\.\d+)*)", version)
    return tuple(map(int, match[1].split("."))) if match else ()


def _digest(found: str) -> str:
    return found if found.startswith("sha256:") else f"sha256:{found}"


def _mount(path: Path, mode: str) -> str:
    return ",".join(filter(None, ("type=bind", _field("source", path), _field("target", path), mode)))


def _field(key: str, value: Path) -> str:
    """Return a field of an option that engines read as a line of CSV: a path may hold commas and quotes."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow([f"{key}={value}"])
    return line.getvalue()
