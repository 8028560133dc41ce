"""The worker up to the point where the tuning would begin."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from requant.model.tiny import CALIBRATION
from requant.recipe import read_recipe
from requant.worker import determinism, mtp
from requant.worker.autoround import calibration, mtp_block, tuning

ROOT = Path(__file__).parent.parent.parent
TEXT = ROOT / "src" / "requant" / "model" / "tiny" / CALIBRATION


@dataclass(frozen=True)
class Prepared:
    """AutoRound, ready to tune `model` on `tokens`."""

    model: Any
    tokens: calibration.Tokens
    autoround: Any


def prepare(name: str, base: Path, *, iterations: int | None = None) -> Prepared:
    """Do what the worker does first, for the tiny model at `base` and the recipe `name`."""
    recipe = read_recipe(ROOT / "builds" / name)
    effort = recipe.effort(tiny=True)
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
    if recipe.mtp.policy == "calibrated":
        mtp.attach(model, base)
    batches = tokens.batches(recipe.tuning.batch_size)
    autoround = tuning.tuner(model, tokenizer, batches, recipe, effort)
    if recipe.mtp.policy == "calibrated":
        mtp_block.install(autoround, batches)
    determinism.confirm(autoround, effort.device, effort.precision)
    return Prepared(model, tokens, autoround)


def answer(program: Callable[..., dict[str, Any]]) -> None:
    """Call `program` with the words of the command line, and print what it returns as the last line."""
    json.dump(program(*sys.argv[1:]), sys.stdout)
    sys.stdout.write("\n")
