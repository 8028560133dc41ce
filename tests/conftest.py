"""The expensive things, made once: the worker's environment and image, and one mini build of each recipe."""

import fcntl
import json
import os
import pickle
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from syrupy.assertion import SnapshotAssertion
from syrupy.extensions.amber import AmberSnapshotExtension
from syrupy.location import PyTestLocation
from syrupy.types import SnapshotIndex
from tests.engines import buildable
from xdist.scheduler import LoadScopeScheduling

from requant import cli, programs
from requant.build import Built, build
from requant.environment import install as installation
from requant.environment.image import build_image, debian_base
from requant.environment.image.engine import Engine
from requant.environment.image.evidence import Image
from requant.environment.lock import read_lock
from requant.hub import web
from requant.recipe import read_recipe

# Examples are drawn alike in every run, so that a change is judged by what it changed, at any speed of the machine;
# `nox -s tests-full` draws more of them, and `pytest --hypothesis-profile search` others, and many.
TIMELESS: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("repeatable", derandomize=True, max_examples=40, **TIMELESS)
settings.register_profile("more", derandomize=True, max_examples=200, **TIMELESS)
settings.register_profile("search", max_examples=3000, **TIMELESS)
settings.load_profile("repeatable")

# A terminal's colours are decided once, by these, when the first help or error is drawn.
for each in ("GITHUB_ACTIONS", "FORCE_COLOR", "PY_COLORS"):
    os.environ.pop(each, None)
import_module("typer.rich_utils")
cli.load()

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parent.parent
OTHERS = {"gb10", "intel", "ec-mtp"}
"""Recipes whose tiny models are built in the full tier only; `ec` is built in both."""
EXPENSIVE = {"image", "text_only", "gb10"}
"""Fixtures that take a minute and show what others show at less: tests with one are in the full tier."""
ENGINE = ("test_image", "test_sandbox", "test_container", "test_engine")
"""Files whose tests share a container engine's store: one process runs them, and begins with them."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest: engines, then files that run workers, those first that wait for no build of all.

    The tiny model's image of 3 GB is made in the full tier only; small images and workers in containers are tested in
    both.
    """
    workers = {item.path for item in items if item.get_closest_marker("worker")}
    waiting = {item.path for item in items if "built" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: (item.path.stem not in ENGINE, item.path not in workers, item.path in waiting))
    for item in items:
        parameters, fixtures = getattr(item, "callspec", None), getattr(item, "fixturenames", ())
        values = [*parameters.params.values()] if parameters else []
        if EXPENSIVE & {*fixtures} or ("built" in fixtures and any(name in values for name in OTHERS)):
            item.add_marker(pytest.mark.full)


deselected: set[str] = set()


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Note what of the full tier is not run: with several processes, none of them would say so."""
    deselected.update(item.nodeid for item in items if item.get_closest_marker("full"))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the process that hands out tests what this one has not run."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["deselected"] = sorted(deselected)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Hear what a process has not run."""
    deselected.update(getattr(node, "workeroutput", {}).get("deselected", ()))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what was not run."""
    if deselected:
        terminalreporter.section("deselected: the full tier")
        for nodeid, count in sorted(Counter(nodeid.partition("[")[0] for nodeid in deselected).items()):
            terminalreporter.write_line(f"{nodeid}" + (f" ({count})" if count > 1 else ""))
        terminalreporter.write_line(f"{len(deselected)} tests were not run; `nox -s tests-full` runs all")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Keep each file's tests in one process: what a file shares is made once."""
    return ByFile(config, log)


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """Hands out files; those that share an engine are one."""

    def _split_scope(self, nodeid: str) -> str:
        stem = Path(nodeid.partition("::")[0]).stem
        return "engine" if stem in ENGINE else stem


Worded = Callable[..., None]
Refuses = Callable[..., AbstractContextManager[pytest.ExceptionInfo[Any]]]


class Shared(AmberSnapshotExtension):
    """One snapshot for all parameters of a test."""

    @classmethod
    def get_snapshot_name(cls, *, test_location: PyTestLocation, index: SnapshotIndex = 0) -> str:
        return f"{test_location.methodname}.{index}" if index else test_location.methodname


@pytest.fixture(scope="session", autouse=True)
def _no_waiting() -> Iterator[None]:
    """No test waits before it asks a hub once more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(web, "PAUSE", 0.001)
        yield


@pytest.fixture
def worded(snapshot: SnapshotAssertion, tmp_path_factory: pytest.TempPathFactory) -> Worded:
    """Compare a text with the snapshot of the test, which alone words it: tests/__snapshots__.

    What differs from machine to machine gets a name there; the pattern `vary` matches what else does. All parameters
    of a test may say the same, but for what varies: `shared`.
    """
    names = {
        rf"{re.escape(str(tmp_path_factory.getbasetemp()))}/\.?\w+": "TMP",
        rf"{re.escape(tempfile.gettempdir())}/{tempfile.gettempprefix()}[a-z0-9_]{{8}}": "TMP",
        re.escape(str(ROOT)): "ROOT",
        re.escape(str(installation.cache())): "CACHE",
        r"127\.0\.0\.1:\d{4,}": "127.0.0.1:PORT",
        r"\n  (memory|disk): .*": "",  # what the machine lacks for a full build
    }

    def compare(text: str, vary: str = "", shared: bool = False) -> None:
        for pattern, name in {**names, **({vary: "VARIES"} if vary else {})}.items():
            text = re.sub(pattern, name, text)
        assert text.rstrip() == snapshot(extension_class=Shared if shared else None)

    return compare


@pytest.fixture
def refuses(worded: Worded) -> Refuses:
    """Expect an error of this very public class, with the message and the advice that the snapshot of the test has."""

    @contextmanager
    def refused(error: type[Exception], vary: str = "", shared: bool = False) -> Iterator[pytest.ExceptionInfo[Any]]:
        with pytest.raises(error) as caught:
            yield caught
        assert next(each for each in caught.type.__mro__ if not each.__name__.startswith("_")) is error
        said = (f"{error.__name__}: {caught.value}", getattr(caught.value, "advice", ""))
        worded("\n".join(filter(None, said)), vary, shared)

    return refused


@pytest.fixture(scope="session")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of the environment `cpu`, installed from its lock; it writes no bytecode into the cache."""
    return python_of("cpu", tmp_path_factory.mktemp("worker"))


def python_of(environment: str, folder: Path) -> Path:
    """Install an environment from its lock, and write its Python into a folder."""
    python = installation.virtual_environment(read_lock(ROOT / "lockfiles", environment))
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPYCACHEPREFIX="{installation.bytecode(python)}" exec "{python}" "$@"\n')
    script.chmod(0o755)
    return script


@pytest.fixture(scope="session")
def built(worker: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    """Build the tiny model mini of a recipe, once for all processes; AutoRound's raw output stands in
    `<folder>.raw`."""
    own = tmp_path_factory.getbasetemp()
    place = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "builds"

    @cache
    def once(name: str) -> Built:
        place.mkdir(exist_ok=True)
        known = place / f"{name}.pickle"
        with (place / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not known.exists():
                made = build(read_recipe(ROOT / "builds" / name), tiny="mini", out=place / name, keep_raw=True)
                known.write_bytes(pickle.dumps(made))
        found: Built = pickle.loads(known.read_bytes())  # noqa: S301 (written above)
        return found

    return once


@pytest.fixture(scope="session")
def ask(worker: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Run a program of tests/worker in the Python of the environment `cpu`, or another, and return what it answers."""
    python = cache(lambda name: worker if name == "cpu" else python_of(name, tmp_path_factory.mktemp(name)))

    @cache
    def run(program: str, *words: object, path: tuple[Path, ...] = (), environment: str = "cpu") -> Any:
        env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(map(str, (ROOT / "src", *path)))}
        env |= {"HF_HUB_OFFLINE": "1", "LC_ALL": "C.UTF-8"}
        command = [str(python(environment)), "-s", "-m", f"tests.worker.{program}", *map(str, words)]
        return json.loads(programs.run(command, cwd=ROOT, env=env).splitlines()[-1])

    return run


@pytest.fixture(scope="session")
def chromium() -> Iterator["Browser"]:
    """Debian's Chromium, started once for all tests that look at pages."""
    from tests.browsers import browser

    with browser() as running:
        yield running


@pytest.fixture(scope="session")
def builder() -> Engine:
    """An engine that builds images here and fixes the times in them."""
    return buildable()


@pytest.fixture(scope="session")
def debian(builder: Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base image of this machine's Debian, where no registry has to answer."""
    return debian_base(read_lock(ROOT / "lockfiles", "cpu"), builder, tmp_path_factory.mktemp("debian"))


@pytest.fixture(scope="session")
def image(builder: Engine, debian: str) -> Image:
    """The tiny model's image; it stays in the engine's store for `ensure_image` to find."""
    return build_image(ROOT / "lockfiles", "cpu", builder, base=debian)
