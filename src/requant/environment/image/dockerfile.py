"""Dockerfiles, one per environment, from one text: `nox -s dockerfiles` writes them, a test writes them again.

They share every stage but the base, the lock, and the stage that builds a package which was never released. What
each measure is for: docs/images.md. Base images are data, `lockfiles/images.toml`.
"""

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from requant.digest import MAX_TOML, read_whole
from requant.environment.identity import dockerfile_path
from requant.environment.lock import Intent, Lock, Pin, read_intent, read_lock
from requant.errors import LockError

BASES = "images.toml"
"""File of base images, in the folder of the locks."""
TOOLS = "build-"
"""How locks begin that are of no environment."""
INSTALLER = f"{TOOLS}image"
"""Lock of what installs the packages: pip, from its wheel."""
SOURCE = "source"
"""Stage that holds what a package is built from; another folder can be given in its place."""
REPOSITORIES = {"auto-round": "https://github.com/intel/auto-round.git"}
"""Where packages are built from that were never released, by name; the commit stands in the `.in`."""
FACTS = ("commit", "source-date-epoch", "record-sha256")
"""What an `.in` states of such a package, beside its source's tree."""
PLATFORMS = {"aarch64": "linux/arm64", "x86_64": "linux/amd64"}
"""A lock's machines, in the words of container engines."""
ADVICE = "run `nox -s dockerfiles` and review what it changes"

ZEROS = f"sha256:{64 * '0'}"
"""Digest of nothing: it stands for one that is not known yet."""

_FORMS = {
    "image": re.compile(r"[a-z0-9]+(?:[._/-][a-z0-9]+)*:[A-Za-z0-9_][A-Za-z0-9_.-]*"),
    "digest": re.compile("sha256:[0-9a-f]{64}"),
    "index": re.compile("sha256:[0-9a-f]{64}"),
}


@dataclass(frozen=True)
class Base:
    """The image that an environment's image stands on, and whether it is to see NVIDIA's devices.

    `digest` is of the manifest for the lock's platform; `index` of the list over all platforms.
    """

    image: str
    digest: str
    index: str
    nvidia: bool

    def __str__(self) -> str:
        return f"{self.image}@{self.digest}"

    @property
    def placeholder(self) -> str:
        """The first of `digest` and `index` that is all zeros, as a new table has them until a registry is asked."""
        return next((key for key in ("digest", "index") if getattr(self, key) == ZEROS), "")


def read_bases(folder: Path) -> dict[str, Base]:
    """Read `images.toml`: each environment's base. Raises LockError for anything that is not exactly the format."""
    file = folder / BASES
    try:
        tables = tomllib.loads(read_whole(file, MAX_TOML).decode())
    except OSError as error:
        raise LockError(f"{file}: {error.strerror}") from None
    except ValueError as error:
        raise LockError(f"{file}: not TOML: {error}") from None
    return {name: _base(f"{file}: {name}", table) for name, table in tables.items()}


def pinned_base(folder: Path, name: str) -> Base:
    """Return an environment's base. Raises LockError where `images.toml` has none, or placeholders for its digests."""
    bases, file = read_bases(folder), folder / BASES
    if name not in bases:
        raise LockError(
            f"{file}: has no base for {name}, only for {', '.join(bases)}",
            f"Add a table [{name}] with {', '.join(field.name for field in fields(Base))}: "
            "docs/environments.md, A new environment.",
        )
    if key := bases[name].placeholder:
        raise LockError(
            f"{file}: {name}: {key} is all zeros, a placeholder for the digest of {bases[name].image}",
            f"`requant update images {name} --write` asks a registry and pins it: "
            "docs/environments.md, A new environment.",
        )
    return bases[name]


def _base(where: str, table: Any) -> Base:
    expected = [field.name for field in fields(Base)]
    if not isinstance(table, dict) or sorted(table) != sorted(expected):
        raise LockError(f"{where}: found {table!r:.200}, expected a table of exactly {', '.join(expected)}")
    for key, form in _FORMS.items():
        if not isinstance(table[key], str) or not form.fullmatch(table[key]):
            raise LockError(f"{where}: found {table[key]!r} for {key}, expected {form.pattern}")
    if not isinstance(table["nvidia"], bool):
        raise LockError(f"{where}: found {table['nvidia']!r} for nvidia, expected true or false")
    return Base(**table)


def platform_of(lock: Lock) -> str:
    """Return the platform that a lock is for, as container engines write it: `linux/amd64`."""
    return PLATFORMS[lock.platform.partition("-")[0]]


def built_package(intent: Intent) -> str:
    """Return the package that is built from a commit, stated by its source's tree; "" where none is."""
    return next((key.partition(".")[0] for key, _ in intent.sources if key.endswith(".tree")), "")


def write_dockerfiles(lockfiles: Path, names: Iterable[str] = ()) -> tuple[Path, ...]:
    """Write the Dockerfiles of environments, or of all of them, beside the folder of locks; return their paths.

    All or none: raises as `dockerfile` where one cannot be written.
    """
    chosen = list(names) or environments(lockfiles)
    texts = {dockerfile_path(lockfiles, name): dockerfile(lockfiles, name) for name in chosen}
    for file, text in texts.items():
        file.write_text(text)
    return tuple(texts)


def environments(lockfiles: Path) -> list[str]:
    """Return the names of all environments: of each `.in` but those of tools, `build-…`, and of each base."""
    asked = {file.stem for file in lockfiles.glob("*.in") if not file.name.startswith(TOOLS)}
    return sorted(asked | read_bases(lockfiles).keys())


def dockerfile(lockfiles: Path, name: str) -> str:
    """Return the text of an environment's Dockerfile.

    Raises LockError where a lock or the base is missing or malformed, or the base is not for the lock's Python.
    """
    base = pinned_base(lockfiles, name)
    intent, lock = read_intent(lockfiles, name), read_lock(lockfiles, name)
    if not base.image.startswith(f"python:{lock.python}-"):
        raise LockError(f"{lockfiles / BASES}: {name} stands on {base.image}, and its lock is for Python {lock.python}")
    pip = _installer(lockfiles)
    package = built_package(intent)
    return _TEXT.format(
        name=name,
        base=base,
        devices=_NVIDIA.format(cuda=_cuda(lock)) if base.nvidia else "",
        built=_built(lockfiles, intent, lock, package) if package else _NOTHING_BUILT,
        python=lock.python,
        pip=f"/wheelhouse/pip-{pip.version}-py3-none-any.whl",
        pip_sha256=pip.sha256,
    )


def _cuda(lock: Lock) -> str:
    """Return the CUDA release that the lock's packages are built for: `12.4`."""
    found = [pin.version for pin in lock.pins if re.fullmatch("nvidia-cuda-runtime(-cu[0-9]+)?", pin.name)]
    if len(found) != 1:
        raise LockError(
            f"{lock.name}.txt: expected one nvidia-cuda-runtime, found {found}: {BASES} says it is NVIDIA's"
        )
    return ".".join(found[0].split(".")[:2])


def _installer(lockfiles: Path) -> Pin:
    pins = read_lock(lockfiles, INSTALLER).pins
    names = [pin.name for pin in pins]
    if names != ["pip"]:
        raise LockError(f"{lockfiles / INSTALLER}.txt: found {', '.join(names) or 'nothing'}, expected pip alone")
    return pins[0]


def _built(lockfiles: Path, intent: Intent, lock: Lock, package: str) -> str:
    file = lockfiles / f"{intent.name}.in"
    if package not in REPOSITORIES:
        raise LockError(
            f"{file}: found {package}.tree, expected one of a package that is built: {', '.join(REPOSITORIES)}"
        )
    facts = {key.partition(".")[2]: value for key, value in intent.sources if key.startswith(f"{package}.")}
    if lacking := [f"{package}.{key}" for key in FACTS if key not in facts]:
        raise LockError(f"{file}: found {package}.tree, expected {', '.join(lacking)} too")
    pin = next((pin for pin in lock.pins if pin.name == package), None)
    if pin is None:
        raise LockError(f"{file.with_suffix('.txt')}: found no {package}, expected the one that {file.name} describes")
    return _BUILT.format(
        package=package,
        repository=REPOSITORIES[package],
        source=SOURCE,
        commit=facts["commit"],
        epoch=facts["source-date-epoch"],
        record=facts["record-sha256"],
        version=pin.version,
        python=lock.python,
    )


_NVIDIA = """\
# What NVIDIA's container runtime is to put in: every device it is given, and no graphics. A driver that is too old for
# the lock's CUDA is refused.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility NVIDIA_REQUIRE_CUDA="cuda>={cuda}"
"""

_NOTHING_BUILT = """\
# Every package comes as a released wheel.
FROM scratch AS built
"""

_BUILT = """\
# {package} at a commit that was never released. Where its host does not answer: `requant image --source <its tree>`
FROM scratch AS {source}
ADD {repository}#{commit} /

# The wheel's hash is pinned, and checked where it is installed. It holds for zlib 1.2.13; should another zlib have
# compressed it to other bytes, the digest of the RECORD inside decides:
# {record}
FROM installer AS build
ARG SOURCE_DATE_EPOCH
COPY lockfiles/build-{package}.txt /tools.txt
RUN --mount=type=bind,source=wheelhouse,target=/wheelhouse \\
    --mount=type=bind,from={source},target=/source,rw \\
    python{python} -m venv --without-pip /tools \\
 && /tools/bin/python "$PIP" install --quiet --no-index --find-links /wheelhouse --no-cache-dir \\
    --require-hashes --no-deps --only-binary :all: --requirement /tools.txt \\
 && chmod --recursive u=rwX,go=rX /source \\
 && printf 'Metadata-Version: 2.1\\nName: {package}\\nVersion: {version}\\n' > /source/PKG-INFO \\
 && SOURCE_DATE_EPOCH={epoch} /tools/bin/python "$PIP" wheel --quiet --no-index --no-cache-dir \\
    --no-deps --no-build-isolation --wheel-dir /wheels /source

FROM scratch AS built
COPY --from=build /wheels /
"""

_TEXT = """\
# generated by 'nox -s dockerfiles' from lockfiles/images.toml and lockfiles/{name}.in; do not edit
# `requant image {name}` builds it: the context (locks, wheels, the worker's sources) is made there.

ARG BASE={base}
FROM $BASE AS base
{devices}
# pip is run from its wheel, so that no layer holds it.
FROM base AS installer
ENV PIP={pip}/pip PYTHONDONTWRITEBYTECODE=1
ARG SOURCE_DATE_EPOCH
RUN --mount=type=bind,source=wheelhouse,target=/wheelhouse \\
    echo '{pip_sha256}  {pip}' > /pip.sha256 \\
 && sha256sum --check /pip.sha256

{built}
# Bytecode is compiled at the end, Python's own too, and holds its source's hash: with a time in it, it would differ
# every time. One process compiles in one order; what is written for another Python stays source.
FROM installer AS packages
ARG SOURCE_DATE_EPOCH
COPY lockfiles/{name}.txt /lock.txt
RUN --mount=type=bind,source=wheelhouse,target=/wheelhouse \\
    --mount=type=bind,from=built,target=/built \\
    python{python} -m venv --without-pip /opt/environment \\
 && /opt/environment/bin/python "$PIP" install --quiet --no-index --find-links /wheelhouse --find-links /built \\
    --no-cache-dir --no-compile --require-hashes --no-deps --only-binary :all: --requirement /lock.txt \\
 && /opt/environment/bin/python "$PIP" check \\
 && PYTHONPYCACHEPREFIX=/opt/bytecode PYTHONHASHSEED=0 /opt/environment/bin/python -c "import compileall, py_compile; \\
    compileall.compile_path(maxlevels=99, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)"

# Nothing runs here: what the image adds to its base is what is copied, and no log, cache or compiler is.
FROM base
COPY --from=packages /opt/environment /opt/environment
COPY --from=packages /opt/bytecode /opt/bytecode
COPY worker /opt/requant
ENV PYTHONPATH=/opt/requant PYTHONPYCACHEPREFIX=/opt/bytecode PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
ENTRYPOINT ["/opt/environment/bin/python", "-s", "-P", "-m", "requant.worker"]
"""
