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
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from requant.digest import read_whole, strict_json
from requant.environment.image.refusals import explained, refusal
from requant.errors import BuildError, LockError, NotAvailableError, RequantError
from requant.programs import follow, reading, run

CHOSEN = "REQUANT_ENGINE"
"""Environment variable that names the engine's program, where none is asked for."""

BUILDKIT = (0, 13)
"""The first BuildKit that rewrites the times in layers (`rewrite-timestamp`)."""

DOCKER = (26,)
"""The first Docker with that BuildKit in it. Debian's build says v0.0.0+unknown of the BuildKit."""


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
    configuration elsewhere. It names the same bytes as long as the engine stays the same. `configuration` is what
    each engine tells of it, in the same words; `RootFS` there holds the digests of its layers.
    """

    id: str
    configuration: Mapping[str, Any]


@dataclass(frozen=True)
class Built:
    """An image that was built, and is in the store under `reference`.

    `config` and `manifest` are their digests, as `sha256:…`, by the builder's own word; Podman has no manifest until
    it pushes. Two that are equal have the same bytes, whatever their references.
    """

    reference: str = field(compare=False)
    config: str
    manifest: str | None
    stored: Stored = field(compare=False)


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
        told = ("Architecture", "Config", "Created", "Os", "RootFS")
        return Stored(_digest(found["Id"]), {key: found.get(key) for key in told})

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
        *,
        name: str,
        epoch: int,
        arguments: Mapping[str, str],
        options: Sequence[str] = (),
        cached: bool = True,
        tell: Callable[[str], None] = lambda _: None,
    ) -> Built:
        """Build the image of `file` without network, and put it into the store under `name`.

        Times are `epoch`, in seconds; `options` are words that both engines' `build` has; `tell` hears the builder's
        lines. Raises NotAvailableError where the builder cannot, BuildError with its last words where a step fails,
        LockError where the store then has another image than the one that the builder says it built.
        """
        # Podman's cache takes a step for the same one whatever its mounts hold: another wheel would go unnoticed.
        cached = cached and self.kind != "podman"
        words = ["--network", "none", "--file", str(file), *options, *(() if cached else ("--no-cache",))]
        given = {**arguments, "SOURCE_DATE_EPOCH": str(epoch)}
        words += [word for item in given.items() for word in ("--build-arg", "=".join(item))]
        # Beside the context, which lies where there is room: BuildKit's file has the size of the image.
        with tempfile.TemporaryDirectory(prefix=".", dir=context.parent) as scratch:
            archive, said = Path(scratch, "image.tar"), Path(scratch, "said")
            try:
                if self.kind == "podman":
                    words += ["--layers", "--timestamp", str(epoch), "--pull=missing"]
                    words += ["--tag", name, "--iidfile", str(said)]
                    follow((*self.words, "build", *words, str(context)), tell)
                    config, manifest = said.read_text().strip(), None
                else:
                    words += ["--provenance=false", "--sbom=false", "--progress", "plain", "--metadata-file", str(said)]
                    # Not compressed: the bytes would depend on the compressor, and they stay on this machine. By way of
                    # a file: Docker's exporter always unpacks, and BuildKit rewrites no times in what it unpacks.
                    form = ("rewrite-timestamp=true", "compression=uncompressed", "force-compression=true")
                    words += ["--output", ",".join(("type=docker", _field("dest", archive), f"name={name}", *form))]
                    follow((*self.words, "buildx", "build", *words, str(context)), tell)
                    config, manifest = _digests(said)
                    tell(f"loading {name}")
                    run((*self.words, "load", "--quiet", "--input", str(archive)))
            except BuildError as error:
                raise explained(self.kind, str(error)) from None
        stored = self.image(name)
        if stored is None or stored.id not in (config, manifest):
            found = stored.id if stored else "nothing"
            raise LockError(f"{name}: the engine has {found}, expected {manifest or config}, which was built")
        return Built(name, config, manifest, stored)

    def builder(self) -> str:
        """Return what builds images here and its version; raise NotAvailableError where it cannot fix times."""
        if self.kind == "podman":
            return str(self)
        info = _info(self.words[0])
        plugins = {each["Name"]: each["Version"] for each in info.get("ClientInfo", {}).get("Plugins") or ()}
        if "buildx" not in plugins:
            raise explained(self.kind, "the buildx component is missing")
        inspected = self.ask("buildx", "inspect").splitlines()
        said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in inspected)}
        version = said.get("BuildKit version", said.get("Buildkit", ""))
        within = said.get("Driver") == "docker"
        if _numbers(self.version) < DOCKER if within else _numbers(version) < BUILDKIT:
            raise NotAvailableError(
                f"docker: its BuildKit is {version or 'of ' + self.version}, expected "
                f"{'.'.join(map(str, BUILDKIT))} or newer: older ones cannot fix the times in an image",
                "Update Docker to 26 or newer, or build with Podman: --sandbox podman.",
            )
        if within and "io.containerd.snapshotter.v1" not in str(info.get("DriverStatus")):
            raise explained(self.kind, "Docker exporter is not supported for the docker driver")
        return f"BuildKit {version} of {self}, buildx {plugins['buildx']}"


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
            "Update the engine, or use none: --sandbox venv.",
        )
    return Engine((program,), kind, version, rootless)


def _info(program: str) -> dict[str, Any]:
    try:
        said = run((program, "info", "--format", "{{json .}}"))
    except NotAvailableError as error:
        raise _AbsentError(
            f"{error}, so there is no container engine to run the worker",
            f"Install Docker or Podman (apt-get install docker.io), name one by {CHOSEN}, or use none: --sandbox venv.",
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


def _digests(file: Path) -> tuple[str, str]:
    """Return the digests of configuration and manifest that buildx writes of a build (`--metadata-file`)."""
    try:
        said = strict_json(read_whole(file))
    except (OSError, ValueError) as error:
        raise BuildError(f"{file}: not what buildx writes about a build: {error}") from None
    match said:
        case {"containerimage.config.digest": str(config), "containerimage.digest": str(manifest)}:
            return config, manifest
    raise BuildError(f"{file}: found {said!r:.200}, expected the digests of an image (containerimage.digest)")


def _strange(program: str) -> NotAvailableError:
    advice = f"Name another one by {CHOSEN}, or use none: --sandbox venv."
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
