"""The expensive things, made once: the room's environment, and one mini build of each recipe."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from requant import installation
from requant.build import Built, build
from requant.environment import read_lock
from requant.recipe import read_recipe

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def room() -> Path:
    """The Python of the twin's environment, installed from its lock."""
    return installation.virtual_environment(ROOT / "lockfiles" / "cpu.txt", read_lock(ROOT / "lockfiles", "cpu"))


@pytest.fixture(scope="session")
def built(room: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    """Build the mini twin of a recipe, once a session; AutoRound's raw output stands in `<folder>.raw` beside it."""

    @cache
    def once(name: str) -> Built:
        folder = tmp_path_factory.mktemp("builds") / name
        return build(read_recipe(ROOT / "builds" / name), twin="mini", out=folder, keep_raw=True)

    return once
