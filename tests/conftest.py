"""The expensive things, made once: the room's environment and image, and one mini build of each recipe."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from tests.engines import buildable
from xdist.scheduler import LoadScopeScheduling

from requant import installation, programs
from requant.build import Built, build
from requant.environment import read_lock
from requant.image import Repetition, debian_base, repeat_image
from requant.images.engine import Engine
from requant.recipe import read_recipe

# Examples are drawn alike in every run, so that a change is judged by what it changed, at any speed of the machine;
# `pytest --hypothesis-profile search` draws others, and many.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("search", max_examples=3000, deadline=None)
settings.load_profile("repeatable")

ROOT = Path(__file__).parent.parent
ENGINE = ("test_image", "test_rooms", "test_container", "test_engine")
"""Files whose tests share a container engine's store: one process runs them, and begins with them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest."""
    items.sort(key=lambda item: item.path.stem not in ENGINE)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Keep each file's tests in one process: what a file shares is made once."""
    return ByFile(config, log)


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """Hands out files; those that share an engine are one."""

    def _split_scope(self, nodeid: str) -> str:
        stem = Path(nodeid.partition("::")[0]).stem
        return "engine" if stem in ENGINE else stem


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of the twin's environment, installed from its lock; it writes no bytecode into the cache."""
    python = installation.virtual_environment(ROOT / "lockfiles" / "cpu.txt", read_lock(ROOT / "lockfiles", "cpu"))
    script = tmp_path_factory.mktemp("room") / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPYCACHEPREFIX="{installation.bytecode(python)}" exec "{python}" "$@"\n')
    script.chmod(0o755)
    return script


@pytest.fixture(scope="session")
def built(room: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    """Build the mini twin of a recipe, once a session; AutoRound's raw output stands in `<folder>.raw` beside it."""

    @cache
    def once(name: str) -> Built:
        folder = tmp_path_factory.mktemp("builds") / name
        return build(read_recipe(ROOT / "builds" / name), twin="mini", out=folder, keep_raw=True)

    return once


@pytest.fixture(scope="session")
def ask(room: Path) -> Callable[..., Any]:
    """Run a program of tests/room in the room's Python and return what it answers."""

    @cache
    def run(program: str, *words: object, path: tuple[Path, ...] = ()) -> Any:
        env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(map(str, (ROOT / "src", *path)))}
        env |= {"HF_HUB_OFFLINE": "1", "LC_ALL": "C.UTF-8"}
        command = [str(room), "-s", "-m", f"tests.room.{program}", *map(str, words)]
        return json.loads(programs.run(command, cwd=ROOT, env=env).splitlines()[-1])

    return run


@pytest.fixture(scope="session")
def builder() -> Engine:
    """An engine that builds images here and fixes the times in them."""
    return buildable()


@pytest.fixture(scope="session")
def debian(builder: Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base image of this machine's Debian, where no registry has to answer."""
    return debian_base(read_lock(ROOT / "lockfiles", "cpu"), builder, tmp_path_factory.mktemp("debian"))


@pytest.fixture(scope="session")
def twice(builder: Engine, debian: str) -> Repetition:
    """The twin's image, built twice; it stays in the engine's store for `ensure_image` to find."""
    return repeat_image(ROOT / "lockfiles", "cpu", builder, base=debian)
