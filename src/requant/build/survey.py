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
from requant.model.inventory import Fused, Linear, blocks, origin, quantized
from requant.model.tiny import config as tiny_config
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
        inputs = tiny_inputs(tiny, work, tell)
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
    config = tiny_config(tiny)
    packed = {name: layer for name, layer in survey.layers.items() if layer.packed}
    found = _differences(packed, quantized(config, recipe.layers.ignore), config)
    if survey.blocks != tuple(blocks(config)):
        found = ["blocks: other ones, or in another order", *found]
    return Asked(survey.versions, len(survey.blocks), len(packed), tuple(found))


def _differences(packed: Mapping[str, Layer], planned: Mapping[str, Linear], config: Mapping[str, Any]) -> list[str]:
    found = [f"{name}: packed, and not planned" for name in packed.keys() - planned.keys()]
    found += [f"{name}: planned, and not packed" for name in planned.keys() - packed.keys()]
    for name in packed.keys() & planned.keys():
        found += _differing(packed[name], planned[name], origin(name, config))
    return sorted(found)


def _differing(layer: Layer, planned: Linear, where: str | Fused) -> Iterator[str]:
    shape = (planned.out_features, planned.in_features)
    if layer.shape != shape:
        yield f"{planned.name}: has the shape {list(layer.shape)}, planned {list(shape)}"
    elif layer.source != (source := _planned_source(planned, where)):
        yield f"{planned.name}: is {layer.source or 'no part of one tensor'}, planned {source}"


def _planned_source(layer: Linear, where: str | Fused) -> Source:
    """Return where a planned layer lies: rows of `in_features` numbers, one after the other."""
    columns = layer.in_features
    if isinstance(where, str):
        return Source(where, 0, columns, 1)
    halves = 1 if where.rows == slice(None) else 2
    first = where.expert * halves * layer.out_features + (where.rows.start or 0)
    return Source(where.tensor, first * columns, columns, 1)
