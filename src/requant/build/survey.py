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

from requant.build.workplace import set_up
from requant.checkpoint.safetensors import Spec
from requant.environment import Environment
from requant.errors import BuildError, UsageError
from requant.model.base_config import base_config
from requant.model.plan import FILE, Plan, Specs, differences, read_tensors, write_plans
from requant.model.rules import SIZES
from requant.model.shrink import shrink
from requant.model.target import asked_plan, config_of, question
from requant.progress import Progress, Tell, silent
from requant.protocol import BASE, SURVEY, Answer, Answers, Model, Survey, read
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
    is read of the base but this. Raises what `sandbox.choice.choose` raises, RecipeError where the
    locked AutoRound cannot export what the recipe asks for, and BuildError where it does not take the model.
    """
    environment = Environment.load(recipe.lockfiles, recipe.tiny.environment)
    recipe.confirm_export(environment.lock.version("auto-round"))
    with tempfile.TemporaryDirectory(prefix="requant-survey-") as folder:
        work = Path(folder)
        models: dict[str, Model] = {}
        for target, config in configs.items():
            place = work / "configs" / target
            place.mkdir(parents=True)
            (place / "config.json").write_text(json.dumps(config))
            table = {name: (spec.dtype, spec.shape) for name, spec in tensors.items()}
            models[target] = Model(str(place), table if target == BASE else None)
        chosen = choose(recipe, MINI, environment, sandbox, tell)
        set_up(work, recipe, Survey(models))
        tell(Progress("asking AutoRound"))
        run_worker(chosen.sandbox, work, (work / "configs",), lambda: None)
        answers = read(work / SURVEY, Answers)
        return {target: _plan(answers.models[target], answers.versions) for target in configs}


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
    found = ask(recipe, configs, asked_plan(recipe, None).tensors, sandbox=sandbox, tell=tell)[target]
    planned = asked_plan(recipe, tiny)
    return Asked(found.versions, len(found.blocks), len(found.packed), tuple(differences(planned, found)))


def _plan(answer: Answer, versions: Mapping[str, str]) -> Plan:
    if lost := [name for name, layer in answer.layers.items() if layer.packed and layer.source is None]:
        raise BuildError(f"{lost[0]}: a packed layer whose weight is no part of one tensor", "Report this model.")
    return Plan(
        versions=versions,
        tensors={name: Spec(*spec) for name, spec in answer.tensors.items()},
        blocks=answer.blocks,
        layers=answer.layers,
        unloaded=frozenset(answer.unloaded),
        tied=answer.tied,
        elsewhere=answer.elsewhere,
    )
