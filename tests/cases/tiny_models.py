"""Healthy tiny models without the worker: every packed layer rounded to nearest, then the build's own passes."""

from functools import cache
from pathlib import Path

from tests.conftest import ROOT
from tests.tiny import tiny

from requant import passes
from requant.checkpoint.checkpoint import Checkpoint, Tensor
from requant.model.target import target_of
from requant.passes.context import MAIN
from requant.passes.extras import rounded
from requant.recipe import read_recipe

AFTER_TUNING = ("visual", "mtp", "shards", "quantization_config", "side_files", "index")


@cache
def healthy(name: str, size: str = "mini") -> Checkpoint:
    """What a build of the recipe writes, but for the tuning; its bytes are computed when they are read."""
    recipe = read_recipe(Path(ROOT / "builds" / name))
    context = passes.Context(tiny(size), target_of(recipe, size), recipe, recipe.effort(tiny=True), "0.13.0")
    base = context.base.tensors
    packed: dict[str, Tensor] = {}
    for key, layer in context.target.plan.packed.items():
        packed |= rounded(key, layer, context.weight(layer).content, context.target.form)
    main = {key: packed[key] if key in packed else base[key] for key in context.target.main}
    return passes.apply(Checkpoint({MAIN: main}, {}), context, AFTER_TUNING)
