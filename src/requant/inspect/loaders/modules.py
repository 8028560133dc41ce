"""The modules with a precision that a loader builds for a Qwen3.5-MoE configuration, some made of several layers.

Sources: vLLM 0.19.1 to 0.33.0, models/qwen3_5.py, qwen3_5_mtp.py and qwen3_next.py; SGLang 0.5.23,
models/qwen3_5.py. Routers, norms, convolutions and embeddings have no precision: they are float whatever is declared.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from requant.model.inventory import layer_types

Packed = tuple[tuple[str, tuple[str, ...]], ...]

QKV = ("qkv_proj", ("q_proj", "k_proj", "v_proj"))
GATE_UP = ("gate_up_proj", ("gate_proj", "up_proj"))
QKVZ = ("in_proj_qkvz", ("in_proj_qkv", "in_proj_z"))
BA = ("in_proj_ba", ("in_proj_b", "in_proj_a"))


@dataclass(frozen=True)
class Module:
    """A module: its name in the loader's model, its parts by name in the checkpoint, and its two widths at TP 1.

    `split` says which width tensor parallelism divides; `packed` is the fusion table that holds where it is built.
    """

    name: str
    parts: tuple[str, ...]
    kind: Literal["linear", "experts", "head"]
    packed: Packed
    inputs: int = 0
    outputs: int = 0
    split: Literal["inputs", "outputs", ""] = ""


@dataclass(frozen=True)
class Names:
    """What a loader calls the parts of the model, and its fusion tables."""

    language_model: str
    visual: str
    head: str
    main: Packed
    drafter: Packed


def modules(config: Mapping[str, Any], names: Names) -> tuple[Module, ...]:
    """Return the modules of the main model and of the MTP drafter; raises what `inventory.base_tensors` refuses."""
    text = config["text_config"]
    found: list[Module] = []
    for number, kind in enumerate(layer_types(text)):
        block, theirs = f"model.language_model.layers.{number}", f"{names.language_model}layers.{number}"
        found += _mixer(text, block, theirs, kind, names.main) + _experts(text, block, theirs, names.main)
    found.append(Module(names.head, ("lm_head",), "head", names.main, text["hidden_size"], text["vocab_size"]))
    found += _visual(config["vision_config"], names)
    for number in range(text.get("mtp_num_hidden_layers", 0)):
        block = f"mtp.layers.{number}"
        found += _mixer(text, block, block, "full_attention", names.drafter)
        found += _experts(text, block, block, names.drafter)
    if text.get("mtp_num_hidden_layers", 0):
        hidden = text["hidden_size"]
        found.append(Module("mtp.fc", ("mtp.fc",), "linear", names.drafter, 2 * hidden, hidden, "outputs"))
    return tuple(found)


def _mixer(text: Mapping[str, Any], block: str, theirs: str, kind: str, packed: Packed) -> list[Module]:
    hidden = text["hidden_size"]
    made: tuple[tuple[str, tuple[str, tuple[str, ...]], int, int, Literal["inputs", "outputs"]], ...]
    if kind == "linear_attention":
        heads = text["linear_num_value_heads"]
        keys, values = text["linear_num_key_heads"] * text["linear_key_head_dim"], heads * text["linear_value_head_dim"]
        made = (
            ("linear_attn", QKVZ, hidden, 2 * keys + 2 * values, "outputs"),
            ("linear_attn", BA, hidden, 2 * heads, "outputs"),
            ("linear_attn", ("out_proj", ("out_proj",)), values, hidden, "inputs"),
        )
    else:
        width = text["head_dim"]
        queries, keys = text["num_attention_heads"] * width, text["num_key_value_heads"] * width
        gated = 2 if text.get("attn_output_gate", True) else 1
        made = (
            ("self_attn", QKV, hidden, gated * queries + 2 * keys, "outputs"),
            ("self_attn", ("o_proj", ("o_proj",)), queries, hidden, "inputs"),
        )
    return [_linear(block, theirs, packed, *each) for each in made]


def _experts(text: Mapping[str, Any], block: str, theirs: str, packed: Packed) -> list[Module]:
    hidden, width = text["hidden_size"], text["shared_expert_intermediate_size"]
    shared = "mlp.shared_expert"
    return [
        _linear(block, theirs, packed, shared, GATE_UP, hidden, 2 * width, "outputs"),
        _linear(block, theirs, packed, shared, ("down_proj", ("down_proj",)), width, hidden, "inputs"),
        Module(
            f"{theirs}.mlp.experts",
            (f"{block}.mlp.experts",),
            "experts",
            packed,
            text["moe_intermediate_size"],
            hidden,
            "inputs",
        ),
    ]


def _linear(
    block: str,
    theirs: str,
    packed: Packed,
    where: str,
    fused: tuple[str, tuple[str, ...]],
    inputs: int,
    outputs: int,
    split: Literal["inputs", "outputs"],
) -> Module:
    name, parts = fused
    whole = tuple(f"{block}.{where}.{part}" for part in parts)
    return Module(f"{theirs}.{where}.{name}", whole, "linear", packed, inputs, outputs, split)


def _visual(vision: Mapping[str, Any], names: Names) -> list[Module]:
    layers = [
        f"blocks.{i}.{name}"
        for i in range(vision["depth"])
        for name in ("attn.qkv", "attn.proj", "mlp.linear_fc1", "mlp.linear_fc2")
    ]
    layers += ["merger.linear_fc1", "merger.linear_fc2"]
    return [Module(names.visual + each, (f"model.visual.{each}",), "linear", names.main) for each in layers]
