"""The tiny models of the base of the recipe `ec`, which most tests start from."""

from functools import cache
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

from requant.checkpoint.checkpoint import Checkpoint, write_checkpoint
from requant.model.target import config_of, tiny_model
from requant.recipe import read_recipe

EC = read_recipe(ROOT / "builds" / "ec")


def config(size: str | None) -> dict[str, Any]:
    """The `config.json` of the tiny model of this size, or of the base."""
    return config_of(EC, size)


@cache
def tiny(size: str) -> Checkpoint:
    """The tiny model of this size; its weights are computed when they are read."""
    return tiny_model(EC, size)


def write_tiny(size: str, folder: Path) -> None:
    """Write the tiny model of this size into a new or empty folder."""
    write_checkpoint(tiny(size), folder)
