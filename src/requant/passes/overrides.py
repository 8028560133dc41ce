"""One `quantization_config`, in `config.json` and in the side file alike (defect D04)."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from requant.checkpoint.checkpoint import Checkpoint, json_file
from requant.passes.context import Aim
from requant.recipe import DATA_TYPE

FLOAT: dict[str, Any] = {"bits": 16, "data_type": "fp"}


def quantization_config(checkpoint: Checkpoint, context: Aim) -> Checkpoint:
    """Add `config.json`, the base's with a `quantization_config`, and the same as `quantization_config.json`.

    Field names are AutoRound's. Blocks are declared packed by prefix, and every linear layer in them that is
    not packed has an override (defects D05, D06, D08, D15). vLLM's fused `in_proj_ba` gets one beside its halves.
    """
    declared = {
        **context.declared,
        "block_name_to_quantize": _blocks(context),
        "extra_config": _overrides(context),
    }
    files = {
        **checkpoint.files,
        "config.json": json_file({**context.config, "quantization_config": declared}),
        "quantization_config.json": json_file(declared),
    }
    return Checkpoint(checkpoint.shards, files)


def _overrides(context: Aim) -> dict[str, dict[str, Any]]:
    """Return what is said of layers that are not as all are: float, or stored in their own way."""
    own = {
        name: {"bits": each.bits, "group_size": each.group_size, "sym": each.symmetric, "data_type": DATA_TYPE}
        for name, layer in context.target.plan.packed.items()
        if (each := layer.own)
    }
    found = dict.fromkeys(_float_layers(context), FLOAT) | own | _fused(context, own)
    return {name: found[name] for name in sorted(found)}


def _blocks(context: Aim) -> list[str]:
    target = context.target
    names = list(
        dict.fromkeys(name.rpartition(".")[0] for name in target.plan.blocks if name not in target.plan.layers)
    )
    rounded = target.policy == "rtn" and any(layer.packed for layer in target.mtp.values())
    return [*names, f"{target.table.extras['mtp']}layers"] if rounded else names


def _float_layers(context: Aim) -> list[str]:
    target, inside = context.target, tuple(f"{block}." for block in context.target.plan.blocks)
    names = {name for name, layer in target.plan.layers.items() if name.startswith(inside) and not layer.packed}
    if target.policy == "rtn":
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
    for name in context.target.plan.unloaded:
        if name.startswith(declared) and context.target.is_main(name):
            names |= {layer for layer, _ in context.target.plan.layers_in(name, context.target.plan.tensors[name])}
    return sorted(names | _fused(context, dict.fromkeys(names)).keys())


def _fused(context: Aim, said: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is said of layers, under the names of the modules that a loader makes of them."""
    return {
        f"{name.removesuffix(part)}{whole}": value
        for part, whole in context.target.table.aliases.items()
        for name, value in said.items()
        if name.endswith(f".{part}")
    }
