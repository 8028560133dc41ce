"""Resolves each environment's `.in` to its lock, and finds where a lock is no longer what it would be.

Needs uv, which finds the versions, and a package index, which is whatever uv is set to use. The locks do not
depend on this machine: the target's Python, platform and cutoff stand in the `.in`, uv's own settings are left
out, and the wheel is chosen here, by the target's tags. What an `.in` gives is copied and never looked up.
"""

import difflib
import importlib.util
import os
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from requant.environment.lock import Intent, Pin, format_lock, platform_tags, read_intent
from requant.errors import BuildError, LockError, NotAvailableError
from requant.programs import run

KEPT = {
    "UV_CACHE_DIR",
    "UV_DEFAULT_INDEX",
    "UV_HTTP_TIMEOUT",
    "UV_INDEX_URL",
    "UV_INSECURE_HOST",
    "UV_NATIVE_TLS",
    "UV_OFFLINE",
    "UV_SYSTEM_CERTS",
}
"""uv's environment variables that say how to reach the index. All others could change what is resolved."""


def resolve(folder: Path, name: str) -> str:
    """Return the text that the lock of the environment `name` should have.

    Raises LockError where the `.in` is malformed or uv finds no solution, NotAvailableError where uv or
    packaging is not installed.
    """
    intent = read_intent(folder, name)
    try:
        pylock = _compile(intent)
    except BuildError as error:
        advice = "make its requirements agree, or see whether the package index can be reached"
        raise LockError(f"{folder / name}.in: uv could not resolve it: {error}", advice) from None
    return format_lock(intent, (*intent.given, *choose_wheels(intent, pylock)))


def write_locks(folder: Path, names: Iterable[str]) -> None:
    """Resolve the named environments anew and write their locks; all or none where one cannot be resolved."""
    texts = {name: resolve(folder, name) for name in _readable(folder, names)}
    for name, text in texts.items():
        (folder / f"{name}.txt").write_bytes(text.encode())


def check_locks(folder: Path, names: Iterable[str]) -> list[str]:
    """Resolve the named environments anew and return where their locks differ, as lines of a unified diff.

    No lines mean equal bytes. A lock that is absent differs in every line.
    """
    differences: list[str] = []
    for name in _readable(folder, names):
        file = folder / f"{name}.txt"
        recorded = file.read_bytes().decode(errors="replace") if file.exists() else ""
        resolved = resolve(folder, name)
        differences += difflib.unified_diff(
            recorded.split("\n"), resolved.split("\n"), str(file), "resolved anew", n=0, lineterm=""
        )
    return differences


def _readable(folder: Path, names: Iterable[str]) -> list[str]:
    """Return the names; raise LockError where one of them has no `.in` that can be read: before any is resolved."""
    return [read_intent(folder, name).name for name in names]


def choose_wheels(intent: Intent, pylock: str) -> tuple[Pin, ...]:
    """Return one wheel for each package of a pylock.toml (PEP 751): the one that pip would take on the target.

    An index may hold several that fit, and pip's and uv's hash lists name them all; naming one is what makes
    two installations equal. Raises LockError for a package that has none for the target.
    """
    ranks = _ranks(intent)
    return tuple(_choose(intent, package, ranks) for package in tomllib.loads(pylock).get("packages", []))


def _choose(intent: Intent, package: Mapping[str, Any], ranks: Mapping[Any, int]) -> Pin:
    from packaging.utils import parse_wheel_filename

    fitting: list[tuple[int, Any, str]] = []
    for wheel in package.get("wheels", []):
        file = wheel.get("name") or unquote(wheel["url"].rpartition("/")[2])
        _, _, build, tags = parse_wheel_filename(file)
        if found := [ranks[tag] for tag in tags if tag in ranks]:
            fitting.append((-min(found), build, wheel["hashes"]["sha256"]))
    if not fitting:
        asked = f"{package['name']} {package['version']}"
        target = f"Python {intent.python} on {intent.platform}"
        raise LockError(f"{intent.name}.in: {asked} has no wheel for {target}", "ask for a version that has one")
    return Pin(package["name"], package["version"], max(fitting)[2])


def _ranks(intent: Intent) -> dict[Any, int]:
    """Return the target's wheel tags with their ranks, the most specific first, as pip ranks them."""
    from packaging.tags import compatible_tags, cpython_tags

    version = [int(part) for part in intent.python.split(".")]
    platforms = platform_tags(intent.platform)
    interpreter = f"cp{version[0]}{version[1]}"
    # The ABI is named because packaging would otherwise ask the running interpreter for it.
    tags = [
        *cpython_tags(version, [interpreter], platforms),
        *compatible_tags(version, interpreter, platforms),
    ]
    return {tag: rank for rank, tag in reversed(list(enumerate(tags)))}


def _compile(intent: Intent) -> str:
    """Let uv resolve what is not given, for the target, and return its pylock.toml with all their wheels."""
    for module in ("packaging", "uv"):
        if importlib.util.find_spec(module) is None:
            raise NotAvailableError(
                f"{module} is not installed, which finds the versions of a lock",
                "`uvx nox -s lock` brings it, or in the clone: pipx install --force '.[lock]'. "
                "Beside an installed requant: pipx inject requant packaging uv.",
            )
    env = {key: value for key, value in os.environ.items() if not key.startswith("UV_") or key in KEPT}
    with tempfile.TemporaryDirectory() as scratch:
        wishes = Path(scratch, "wishes.in")
        wishes.write_text("\n".join(intent.wishes))
        # A given artifact is not to be looked up where others require it: overridden by what never holds.
        given = Path(scratch, "given.in")
        given.write_text("\n".join(f"{pin.name}; python_version < '0'" for pin in intent.given))
        return run(
            [
                *(sys.executable, "-m", "uv", "pip", "compile", str(wishes)),
                *("--overrides", str(given)),
                *("--python", sys.executable),
                *("--python-version", intent.python),
                *("--python-platform", intent.platform),
                *("--exclude-newer", intent.cutoff),
                *("--format", "pylock.toml"),
                *("--no-build", "--no-config", "--no-header"),
            ],
            env=env | {"UV_PYTHON_DOWNLOADS": "never"},
        )
