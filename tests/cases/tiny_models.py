"""Healthy tiny models without the worker: every packed layer rounded to nearest, then the build's own passes."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
from tests.conftest import ROOT
from tests.tiny import EC, tiny

from requant import passes
from requant.checkpoint.checkpoint import Checkpoint, Content, Made, Tensor
from requant.formats.form import Form
from requant.formats.gptq import bfloat16_to_float32, pack
from requant.model.target import target_of, tiny_model
from requant.passes.context import MAIN
from requant.passes.extras import rounded
from requant.protocol import Layer
from requant.recipe import read_recipe

Rounding = Callable[[str, Layer, Content, Form], dict[str, Tensor]]
AFTER_TUNING = ("visual", "mtp", "shards", "quantization_config", "side_files", "index")


@cache
def healthy(name: str, size: str = "mini", rounded: Rounding = rounded) -> Checkpoint:
    """What a build of the recipe writes, but for the tuning; its bytes are computed when they are read."""
    recipe = read_recipe(Path(ROOT / "builds" / name))
    made = tiny(size) if recipe.base == EC.base else tiny_model(recipe, size)
    context = passes.Context(made, target_of(recipe, size), recipe, recipe.effort(tiny=True), "0.13.0")
    base = context.base.tensors
    packed: dict[str, Tensor] = {}
    for key, layer in context.target.plan.packed.items():
        packed |= rounded(key, layer, context.weight(layer).content, context.target.form)
    main = {key: packed[key] if key in packed else base[key] for key in context.target.kept}
    return passes.apply(Checkpoint({MAIN: main}, {}), context, AFTER_TUNING)


def full_range(name: str, layer: Layer, weight: Content, form: Form) -> dict[str, Tensor]:
    """A layer as tuning leaves it that changes nothing: rounded to the scale of the full range, symmetric 4 bits."""
    specs = form.specs(layer.shape)
    return {
        f"{name}.{suffix}": Tensor(spec, Made(partial(_full_range, layer, weight, form, suffix)))
        for suffix, spec in specs.items()
    }


def _full_range(layer: Layer, weight: Content, form: Form, suffix: str) -> bytes:
    values = bfloat16_to_float32(b"".join(weight.chunks())).reshape(layer.shape)
    groups = values.reshape(layer.shape[0], -1, min(form.group_size, layer.shape[1]))
    low, high = np.minimum(groups.min(axis=-1), 0), np.maximum(groups.max(axis=-1), 0)
    scales = (np.where(high >= -low, -high, -low) / np.float32(8)).astype(np.float16)
    if suffix == "qzeros":
        return form.zeros(form.specs(layer.shape)["qzeros"])
    if suffix == "scales":
        return bytes(scales.T.astype("<f2"))
    codes = np.clip(np.rint(groups / scales[..., None].astype(np.float32)), -8, 7) + 8
    return bytes(pack(codes.astype(np.uint8).reshape(layer.shape), form.bits).astype("<i4"))
