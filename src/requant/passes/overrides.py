"""One `quantization_config`, in `config.json` and in the side file alike (defect D04)."""

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from requant.checkpoint.checkpoint import Checkpoint, json_file
from requant.model.tables import PACKING
from requant.passes.context import Aim
from requant.recipe import DATA_TYPE

FLOAT: dict[str, Any] = {"bits": 16, "data_type": "fp"}


def quantization_config(checkpoint: Checkpoint, context: Aim) -> Checkpoint:
    """Add `config.json`, the base's with a `quantization_config`, and the same as `quantization_config.json`.

    Field names are AutoRound's, or in its exports those of the other tool. Blocks are declared packed by prefix, and
    every linear layer in them that is not packed has an override (defects D05, D06, D08, D15); an export names all
    layers that are float. vLLM's fused `in_proj_ba` gets an override beside its halves.
    """
    declared = {**context.declared, **_SAID[context.target.form.format.method](context)}
    files = {
        **checkpoint.files,
        "config.json": json_file({**context.config, "quantization_config": declared}),
        "quantization_config.json": json_file(declared),
    }
    return Checkpoint(checkpoint.shards, files)


def _own(context: Aim) -> dict[str, Any]:
    """Return what is said of layers that are stored in their own way."""
    packed = context.target.plan.packed.items()
    stored = {name: each for name, layer in packed if (each := layer.own)}
    own = {name: {"bits": e.bits, "group_size": e.group_size, "sym": e.symmetric} for name, e in stored.items()}
    return own | _fused(context, own)


def _autoround(context: Aim) -> dict[str, Any]:
    own = {name: {**value, "data_type": DATA_TYPE} for name, value in _own(context).items()}
    found = dict.fromkeys(_float_layers(context), FLOAT) | own
    return {
        "block_name_to_quantize": _blocks(context),
        "extra_config": {name: found[name] for name in sorted(found)},
    }


def _gptq(context: Aim) -> dict[str, Any]:
    """Return what `save_quantized_as_autogptq` of AutoRound says, each layer by an expression for its whole name.

    `modules_in_block_to_quantize` are those of all blocks together, as of 0.16.1: 0.12.2 looks at the first one.
    """
    plan = context.target.plan
    places = {f"{block}." for block in plan.blocks if block not in plan.layers}

    def inside(names: Iterable[str]) -> list[str]:
        return sorted({name.removeprefix(place) for name in names for place in places if name.startswith(place)})

    left = {f"-:{_expression(name)}": dict[str, Any]() for name in _left_float(context) if name != "lm_head"}
    dynamic = left | {f"+:{_expression(name)}": value for name, value in sorted(_own(context).items())}
    modules = inside(plan.packed) if inside(plan.layers.keys() - plan.packed.keys()) else []
    return {
        "lm_head": "lm_head" in plan.packed,
        **({"dynamic": dynamic} if dynamic else {}),
        **({"modules_in_block_to_quantize": [modules]} if modules else {}),
    }


def _awq(context: Aim) -> dict[str, Any]:
    return {"modules_to_not_convert": _left_float(context)}


_SAID = {"auto-round": _autoround, "gptq": _gptq, "awq": _awq}
"""What is said of layers, by `quant_method`."""


def _expression(name: str) -> str:
    return f"^{re.escape(name)}$" if not name.endswith(".") else f"^{re.escape(name)}"


def _left_float(context: Aim) -> list[str]:
    """Return the float layers of a whole checkpoint, those that are copied with a tower by its prefix."""
    target = context.target
    towers = {each for each in target.table.extras.values() if any(name.startswith(each) for name in target.extras)}
    names = {name for name, layer in target.plan.layers.items() if not layer.packed}
    names |= {*_float_layers(context)}
    return sorted(towers | {name for name in names if not name.startswith(tuple(towers))})


def _blocks(context: Aim) -> list[str]:
    target = context.target
    names = list(
        dict.fromkeys(name.rpartition(".")[0] for name in target.plan.blocks if name not in target.plan.layers)
    )
    mtp = target.table.mtp if target.rounded else None
    return [*dict.fromkeys([*names, *([mtp.block.rpartition(".")[0]] if mtp else [])])]


def _float_layers(context: Aim) -> list[str]:
    target, inside = context.target, tuple(f"{block}." for block in context.target.plan.blocks)
    names = {name for name, layer in target.plan.layers.items() if name.startswith(inside) and not layer.packed}
    if target.policy in PACKING:
        names |= {name for name, layer in target.mtp.items() if not layer.packed}
    # A router is no linear layer, but a loader that goes by prefix, or makes it one, expects it packed. AutoRound
    # declares that of an MTP block, and not that of Qwen3-MoE, which its own loader then leaves uninitialised.
    declared = tuple(f"{block}." for block in _blocks(context))
    names |= {
        name.removesuffix(".weight")
        for name in (*target.main, *target.extras)
        if name.startswith(declared) and any(fnmatchcase(name, each) for each in target.table.routers)
    }
    # Where transformers drops a block that is numbered on from those it has, it is declared packed with them.
    for name in target.plan.unloaded:
        if name.startswith(declared):
            names |= {layer for layer, _ in target.plan.layers_in(name, target.plan.tensors[name])}
    names -= target.rounded.keys()
    return sorted(names | _fused(context, dict.fromkeys(names)).keys())


def _fused(context: Aim, said: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is said of layers, under the names of the modules that a loader makes of them."""
    return {
        f"{name.removesuffix(part)}{whole}": value
        for part, whole in context.target.table.aliases.items()
        for name, value in said.items()
        if name.endswith(f".{part}")
    }
