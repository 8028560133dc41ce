"""One `quantization_config`, in `config.json` and in the side file alike (defect D04)."""

from typing import Any

from requant.checkpoint.checkpoint import Checkpoint, json_file
from requant.model.inventory import LM, MTP, linears, mtp_linears, mtp_quantized, quantized
from requant.passes.context import Aim

FLOAT = {"bits": 16, "data_type": "fp"}


def quantization_config(checkpoint: Checkpoint, context: Aim) -> Checkpoint:
    """Add `config.json`, the base's with a `quantization_config`, and the same as `quantization_config.json`.

    Field names are AutoRound's. Blocks are declared packed by prefix, and every linear layer in them that is
    not packed has an override (defects D05, D06, D08, D15). vLLM's fused `in_proj_ba` gets one beside its halves.
    """
    declared = {
        **context.declared,
        "block_name_to_quantize": _blocks(context),
        "extra_config": dict.fromkeys(_float_layers(context), FLOAT),
    }
    files = {
        **checkpoint.files,
        "config.json": json_file({**context.config, "quantization_config": declared}),
        "quantization_config.json": json_file(declared),
    }
    return Checkpoint(checkpoint.shards, files)


def _blocks(context: Aim) -> list[str]:
    packed_mtp = [f"{MTP}layers"] if context.policy == "rtn" else []
    return [f"{LM}layers", *packed_mtp]


def _float_layers(context: Aim) -> list[str]:
    ignore = context.ignore
    packed: dict[str, Any] = quantized(context.config, ignore)
    layers = {name for name in linears(context.config) if name.startswith(f"{LM}layers.")}
    if context.policy == "rtn":
        packed = packed | mtp_quantized(context.config, ignore)
        layers |= mtp_linears(context.config).keys()
        # The router is no linear layer, but a loader that goes by prefix takes it for one; AutoRound declares it too.
        layers |= {name.removesuffix(".weight") for name in context.extras if name.endswith(".mlp.gate.weight")}
    names = sorted(layers - packed.keys())
    fused = [name.removesuffix("a") + "ba" for name in names if name.endswith(".in_proj_a")]
    return sorted(names + fused)
