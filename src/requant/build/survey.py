"""Asks the quantizer itself, in the locked environment, what it will do to a base and to its tiny models.

The answer is the plan. It is asked for by `requant new` and `requant plan --ask`; a build stops where AutoRound packs
anything else (`worker.autoround.hooks`, the passes).
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from requant.build.inputs import Inputs
from requant.build.workplace import set_up
from requant.checkpoint.safetensors import Spec
from requant.environment.identity import environment_digest
from requant.environment.lock import read_lock
from requant.errors import BuildError, UsageError
from requant.model.base_config import base_config
from requant.model.plan import BASE, FILE, Layer, Plan, Source, Specs, differences, read_tensors, write_plans
from requant.model.rules import SIZES
from requant.model.shrink import shrink
from requant.model.target import config_of, question, target_of
from requant.progress import Progress, Tell, silent
from requant.recipe import Recipe
from requant.sandbox.choice import choose
from requant.sandbox.running import run_worker

MINI = "mini"
"""The tiny model that is counted through: what is found of it holds for the base by its names' numbers."""


@dataclass(frozen=True)
class Asked:
    """A survey in numbers, and where it differs from what was planned."""

    versions: Mapping[str, str]
    blocks: int
    layers: int
    differences: tuple[str, ...]


def ask(
    recipe: Recipe,
    configs: Mapping[str, Mapping[str, Any]],
    tensors: Specs,
    *,
    sandbox: str = "venv",
    tell: Tell = silent,
) -> dict[str, Plan]:
    """Return the plans of a base, whose files hold `tensors`, and of its tiny models.

    `configs` are their `config.json`, by target: `base`, and sizes in `SIZES`, of which `mini` has to be one. Nothing
    is read of the base but this. Raises what `sandbox.choice.choose` raises, and BuildError where the quantizer does
    not take the model.
    """
    lock = read_lock(recipe.lockfiles, recipe.effort(tiny=True).environment)
    with tempfile.TemporaryDirectory(prefix="requant-survey-") as folder:
        work = Path(folder)
        asked: dict[str, Any] = {}
        for target, config in configs.items():
            place = work / "configs" / target
            place.mkdir(parents=True)
            (place / "config.json").write_text(json.dumps(config))
            table = {name: [spec.dtype, list(spec.shape)] for name, spec in tensors.items()}
            asked[target] = {"config": str(place), "tensors": table if target == BASE else None}
        inputs = Inputs(work / "configs", work / "configs", {}, ())
        chosen = choose(recipe, MINI, sandbox, tell)
        task = {"task": "survey", "accelerator": chosen.sandbox.accelerator, "survey": asked}
        set_up(work, recipe, MINI, inputs, environment_digest(recipe.lockfiles, lock), task)
        tell(Progress("asking AutoRound"))
        run_worker(chosen.sandbox, work, (inputs.base,), lambda: None)
        answers = json.loads((work / "survey.json").read_bytes())
        versions = json.loads((work / "worker.json").read_bytes())["versions"]
        return {target: _plan(answers[target], versions) for target in configs}


def record(recipe: Recipe, *, sandbox: str = "venv", tell: Tell = silent) -> None:
    """Ask about a recipe's base and its tiny models, and write `plan.json` beside it: for a recipe that was edited."""
    file = recipe.beside(FILE)
    if not file.exists():
        raise UsageError(f"{file}: there is none to renew", "requant new writes a recipe with its plan.")
    tensors, config = read_tensors(file), base_config(recipe)
    configs = {BASE: config, **{size: shrink(config, size) for size in SIZES}}
    write_plans(file, question(recipe), ask(recipe, configs, tensors, sandbox=sandbox, tell=tell))


def ask_again(recipe: Recipe, tiny: str | None, *, sandbox: str = "venv", tell: Tell = silent) -> Asked:
    """Ask about a recipe's base or tiny model, and hold the answer against its plan."""
    target = tiny or BASE
    configs = {each: config_of(recipe, None if each == BASE else each) for each in dict.fromkeys((BASE, MINI, target))}
    found = ask(recipe, configs, target_of(recipe, None).plan.tensors, sandbox=sandbox, tell=tell)[target]
    planned = target_of(recipe, tiny).plan
    return Asked(found.versions, len(found.blocks), len(found.packed), tuple(differences(planned, found)))


def _plan(answer: Mapping[str, Any], versions: Mapping[str, str]) -> Plan:
    def layer(value: Mapping[str, Any]) -> Layer:
        source, (rows, columns) = value["source"], value["shape"]
        if not value["reason"] and source is None:
            raise BuildError("a packed layer whose weight is no part of one tensor of the base", "Report this model.")
        return Layer((rows, columns), value["reason"], source and Source(**{**source, "index": tuple(source["index"])}))

    return Plan(
        versions=versions,
        tensors={name: Spec(dtype, tuple(shape)) for name, (dtype, shape) in answer["tensors"].items()},
        blocks=tuple(answer["blocks"]),
        layers={name: layer(value) for name, value in answer["layers"].items()},
        unloaded=frozenset(answer["unloaded"]),
        tied=answer["tied"],
    )
