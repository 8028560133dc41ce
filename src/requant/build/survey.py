"""`plan RECIPE --tiny --ask`: what the quantizer itself, asked in the locked environment, would pack.

AutoRound is asked where it would begin to tune, so nothing is tuned. Its answer names each linear layer of its blocks,
whether it is packed, and where in the base its weight lies; the plan was written by hand for one architecture.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from requant.build.inputs import tiny_inputs
from requant.build.workplace import set_up
from requant.environment.identity import environment_digest
from requant.environment.lock import read_lock
from requant.model import plan as model
from requant.model.plan import Plan
from requant.model.target import target_of
from requant.progress import Progress, Tell, silent
from requant.recipe import Recipe
from requant.sandbox.choice import choose
from requant.sandbox.running import run_worker


@dataclass(frozen=True)
class Source:
    """Where in a tensor of the base a weight [out, in] lies, counted in numbers.

    `first` is the place of its first number; the next row is `row` further on, the next column `column`.
    """

    tensor: str
    first: int
    row: int
    column: int


@dataclass(frozen=True)
class Layer:
    """A linear layer of a block; `source` is None where its weight is no such part of one tensor."""

    shape: tuple[int, ...]
    bits: int
    source: Source | None

    @property
    def packed(self) -> bool:
        """Whether its weight becomes codes: AutoRound packs what has 8 bits or fewer."""
        return self.bits <= 8


@dataclass(frozen=True)
class Survey:
    """What a quantizer said: blocks in the order of tuning, and layers by name."""

    versions: Mapping[str, str]
    blocks: tuple[str, ...]
    layers: Mapping[str, Layer]


@dataclass(frozen=True)
class Asked:
    """A survey in numbers, and where it differs from what was planned."""

    versions: Mapping[str, str]
    blocks: int
    layers: int
    differences: tuple[str, ...]


def ask(recipe: Recipe, tiny: str, *, sandbox: str = "venv", tell: Tell = silent) -> Survey:
    """Ask the quantizer of a recipe's lock about the tiny model of a size in `SIZES`.

    Raises what `sandbox.choice.choose` raises, and BuildError where the worker fails.
    """
    lock = read_lock(recipe.lockfiles, recipe.effort(tiny=True).environment)
    with tempfile.TemporaryDirectory(prefix="requant-survey-") as folder:
        work = Path(folder)
        inputs = tiny_inputs(recipe, tiny, work, tell)
        chosen = choose(recipe, tiny, sandbox, tell)
        environment = environment_digest(recipe.lockfiles, lock)
        set_up(work, recipe, tiny, inputs, environment, {"task": "survey", "accelerator": chosen.sandbox.accelerator})
        tell(Progress("asking"))
        run_worker(chosen.sandbox, work, (inputs.base, inputs.text), lambda: None)
        return read_survey((work / "survey.json").read_bytes(), json.loads((work / "worker.json").read_bytes()))


def read_survey(answer: bytes, report: Mapping[str, Any]) -> Survey:
    """Read what the worker wrote: its answer, and its report for the versions that were asked."""
    said = json.loads(answer)
    layers = {
        name: Layer(tuple(layer["shape"]), layer["bits"], layer["source"] and Source(**layer["source"]))
        for name, layer in said["layers"].items()
    }
    return Survey(report["versions"], tuple(name for group in said["blocks"] for name in group), layers)


def compare(recipe: Recipe, tiny: str, survey: Survey) -> Asked:
    """Hold a survey against the plan for the same tiny model."""
    plan = target_of(recipe, tiny).plan
    packed = {name: layer for name, layer in survey.layers.items() if layer.packed}
    found = _differences(packed, plan)
    if survey.blocks != plan.blocks:
        found = ["blocks: other ones, or in another order", *found]
    return Asked(survey.versions, len(survey.blocks), len(packed), tuple(found))


def _differences(packed: Mapping[str, Layer], plan: Plan) -> list[str]:
    found = [f"{name}: packed, and not planned" for name in packed.keys() - plan.packed.keys()]
    found += [f"{name}: planned, and not packed" for name in plan.packed.keys() - packed.keys()]
    for name in packed.keys() & plan.packed.keys():
        found += _differing(name, packed[name], plan.packed[name], plan)
    return sorted(found)


def _differing(name: str, layer: Layer, planned: model.Layer, plan: Plan) -> Iterator[str]:
    if layer.shape != planned.shape:
        yield f"{name}: has the shape {list(layer.shape)}, planned {list(planned.shape)}"
    elif layer.source != (source := _planned_source(planned, plan)):
        yield f"{name}: is {layer.source or 'no part of one tensor'}, planned {source}"


def _planned_source(layer: model.Layer, plan: Plan) -> Source | None:
    """Return where a planned layer lies: rows of numbers, one after the other."""
    if layer.source is None:
        return None
    columns = layer.shape[1]
    first, _ = layer.source.rows(plan.tensors[layer.source.tensor], layer.shape[0])
    return Source(layer.source.tensor, first * columns, columns, 1)
