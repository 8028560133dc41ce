"""The room up to the point where the tuning would begin."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from requant.quantizer import calibration, determinism, tuning
from requant.recipe import read_recipe
from requant.twin import CALIBRATION

ROOT = Path(__file__).parent.parent.parent
TEXT = ROOT / "src" / "requant" / "twin" / CALIBRATION


@dataclass(frozen=True)
class Prepared:
    """AutoRound, ready to tune `model` on `tokens`."""

    model: Any
    tokens: calibration.Tokens
    autoround: Any


def prepare(name: str, base: Path, *, iterations: int | None = None) -> Prepared:
    """Do what the room does first, for the twin at `base` and the recipe `name`."""
    recipe = read_recipe(ROOT / "builds" / name)
    effort = recipe.effort(twin=True)
    effort = replace(effort, iterations=iterations or effort.iterations)
    determinism.enforce()
    model, tokenizer = tuning.load(base)
    tokens = calibration.choose(
        tokenizer,
        TEXT,
        samples=effort.samples,
        length=effort.sequence_length,
        seed=recipe.tuning.seed,
    )
    autoround = tuning.tuner(model, tokenizer, tokens.batches(recipe.tuning.batch_size), recipe, effort)
    determinism.confirm(autoround, effort.device, effort.precision)
    return Prepared(model, tokens, autoround)


def answer(program: Callable[..., dict[str, Any]]) -> None:
    """Call `program` with the words of the command line, and print what it returns as the last line."""
    json.dump(program(*sys.argv[1:]), sys.stdout)
    sys.stdout.write("\n")
