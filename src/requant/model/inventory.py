"""Every tensor of a Qwen3.5-MoE checkpoint, before and after quantization, from `config.json` alone.

Shapes follow `Qwen3_5MoeForConditionalGeneration` of transformers 5.5.1; the MTP block, which transformers does
not instantiate, follows the base's own files. Shapes are in elements, weights are [out, in].
"""

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from requant.checkpoint.safetensors import Spec
from requant.errors import CheckpointError
from requant.formats.gptq import specs as packed_specs
from requant.model.plan import Plan, Specs, float_reason
from requant.model.tables import ignored
from requant.protocol import Layer, Source

ARCHITECTURE = "qwen3_5_moe"
"""The `model_type` that is modelled."""
LM = "model.language_model."
VISUAL = "model.visual."
MTP = "mtp."
FLOAT = "BF16"


@dataclass(frozen=True)
class Linear:
    """A linear layer as AutoRound sees it: `weight` is [out, in]; experts are split from their fused tensor."""

    name: str
    out_features: int
    in_features: int


LIMITS = (
    ("text_config", "num_hidden_layers", 1_000),
    ("text_config", "num_experts", 4_096),
    ("text_config", "mtp_num_hidden_layers", 16),
    ("vision_config", "depth", 1_000),
)
"""More than any model has: a stranger's configuration must not fill the memory."""


def base_tensors(config: Mapping[str, Any]) -> Specs:
    """Return the tensors of the base, in the model's own order: language model, visual tower, MTP.

    Raises CheckpointError where the configuration lacks a field, or gives a tensor an impossible shape.
    """
    try:
        text, vision = config["text_config"], config["vision_config"]
        for table, key, limit in LIMITS:
            if config[table].get(key, 0) > limit:
                raise ValueError(f"{table}.{key}: found {config[table][key]:.3g}, expected {limit:,} at most")
        specs = _language_model(text) | _visual(vision) | _mtp(text)
        for name, spec in specs.items():
            if not all(type(each) is int and each > 0 for each in spec.shape):
                raise ValueError(f"{name} would have the shape {spec.shape}")
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"config.json: not a Qwen3.5-MoE configuration: {error!r}") from None
    return specs


def blocks(config: Mapping[str, Any]) -> list[str]:
    """Return the names of the tuned blocks, in the order of tuning."""
    return [f"{LM}layers.{i}" for i in range(config["text_config"]["num_hidden_layers"])]


def linears(config: Mapping[str, Any]) -> dict[str, Linear]:
    """Return every linear layer that AutoRound counts (language model, head, visual tower), without MTP."""
    found: dict[str, Linear] = {}
    for name, spec in base_tensors(config).items():
        if not name.startswith(MTP):
            found |= {each.name: each for each in _linears(name, spec)}
    return found


def mtp_linears(config: Mapping[str, Any]) -> dict[str, Linear]:
    """Return the linear layers of the MTP block."""
    specs = base_tensors(config)
    return {each.name: each for name in specs if name.startswith(MTP) for each in _linears(name, specs[name])}


def quantized(config: Mapping[str, Any], ignore: tuple[str, ...]) -> dict[str, Linear]:
    """Return the linear layers of the blocks that become INT4, in order.

    AutoRound leaves a layer alone where one of its two widths is no multiple of 32 (`check_to_quantized`,
    `SUPPORTED_LAYER_TYPES`): in this architecture that is `shared_expert_gate`, which has one output.
    """
    return {
        name: layer
        for name, layer in linears(config).items()
        if name.startswith(f"{LM}layers.") and _packable(layer) and not ignored(name, ignore)
    }


def mtp_quantized(config: Mapping[str, Any], ignore: tuple[str, ...]) -> dict[str, Linear]:
    """Return the linear layers of the MTP block that the policy `rtn` packs: what AutoRound packs, plus experts.

    The router, which is no linear layer, and the shared expert's gate stay float, as loaders expect (defect D14).
    """
    return {
        name: layer for name, layer in mtp_linears(config).items() if _packable(layer) and not ignored(name, ignore)
    }


def main_tensors(config: Mapping[str, Any], ignore: tuple[str, ...], group_size: int) -> Specs:
    """Return the tensors of the main shards of a built checkpoint, in order."""
    specs = {name: spec for name, spec in base_tensors(config).items() if not name.startswith((VISUAL, MTP))}
    return _replaced(specs, quantized(config, ignore), group_size)


def extra_tensors(config: Mapping[str, Any], ignore: tuple[str, ...], group_size: int, mtp: str) -> Specs:
    """Return the tensors of `model_extra_tensors.safetensors`: visual tower, and MTP by policy `bf16` or `rtn`."""
    specs = {name: spec for name, spec in base_tensors(config).items() if name.startswith((VISUAL, MTP))}
    return _replaced(specs, mtp_quantized(config, ignore) if mtp == "rtn" else {}, group_size)


def plan(config: Mapping[str, Any], ignore: tuple[str, ...]) -> Plan:
    """Return the plan of a base that nobody has asked the quantizer about: written by hand, held equal by a test."""
    tensors = base_tensors(config)
    layers = {
        name: Layer((each.out_features, each.in_features), _reason(each, ignore), _source(name))
        for name, each in linears(config).items()
    }
    unloaded = frozenset(name for name in tensors if name.startswith(MTP))
    return Plan({}, tensors, tuple(blocks(config)), layers, unloaded)


def _reason(layer: Linear, ignore: tuple[str, ...]) -> str:
    if not layer.name.startswith(f"{LM}layers."):
        return "outside the blocks"
    return float_reason(layer.name, (layer.out_features, layer.in_features), ignore)


def _source(name: str) -> Source:
    prefix, found, rest = name.partition(".mlp.experts.")
    if not found:
        return Source(f"{name}.weight")
    expert, projection = rest.split(".")
    if projection == "down_proj":
        return Source(f"{prefix}.mlp.experts.down_proj", (int(expert),))
    return Source(f"{prefix}.mlp.experts.gate_up_proj", (int(expert),), int(projection == "up_proj"), 2)


def _packable(layer: Linear) -> bool:
    return layer.in_features % 32 == 0 and layer.out_features % 32 == 0


def _linears(name: str, spec: Spec) -> Iterator[Linear]:
    if fnmatch.fnmatch(name, "*.mlp.experts.*"):
        prefix, _, fused = name.rpartition(".")
        experts, rows, columns = spec.shape
        halves = ("gate_proj", "up_proj") if fused == "gate_up_proj" else ("down_proj",)
        for expert in range(experts):
            for half in halves:
                yield Linear(f"{prefix}.{expert}.{half}", rows // len(halves), columns)
    elif name.endswith(".weight") and len(spec.shape) == 2 and not name.endswith(_NO_LINEAR):
        yield Linear(name.removesuffix(".weight"), *spec.shape)


_NO_LINEAR = ("embed_tokens.weight", "pos_embed.weight", ".mlp.gate.weight")
"""Two-dimensional weights of modules that are not `torch.nn.Linear`."""


def _replaced(specs: Specs, packed: Mapping[str, Linear], group_size: int) -> Specs:
    result: Specs = {}
    for name, spec in specs.items():
        layers = [layer for layer in _linears(name, spec) if layer.name in packed]
        if not layers:
            result[name] = spec
        for layer in layers:
            result |= {
                f"{layer.name}.{suffix}": each
                for suffix, each in packed_specs((layer.out_features, layer.in_features), group_size).items()
            }
    return result


def layer_types(text: Mapping[str, Any]) -> list[str]:
    """Return each block's kind, `linear_attention` or `full_attention`; every n-th is full where none is listed."""
    every = text.get("full_attention_interval", 4)
    kinds = ["linear_attention" if i % every else "full_attention" for i in range(1, text["num_hidden_layers"] + 1)]
    found = list(text.get("layer_types", kinds))
    if len(found) != len(kinds) or not {*found} <= {"linear_attention", "full_attention"}:
        raise ValueError(f"layer_types: found {found}, expected {len(kinds)} linear_attention or full_attention")
    return found


def _language_model(text: Mapping[str, Any]) -> Specs:
    hidden, vocabulary = text["hidden_size"], text["vocab_size"]
    specs = {f"{LM}embed_tokens.weight": Spec(FLOAT, (vocabulary, hidden))}
    for i, kind in enumerate(layer_types(text)):
        mixer = _linear_attention(text) if kind == "linear_attention" else _attention(text)
        specs |= {f"{LM}layers.{i}.{name}": Spec(FLOAT, shape) for name, shape in (mixer | _around(text)).items()}
    specs[f"{LM}norm.weight"] = Spec(FLOAT, (hidden,))
    if not text.get("tie_word_embeddings", False):
        specs["lm_head.weight"] = Spec(FLOAT, (vocabulary, hidden))
    return specs


def _linear_attention(text: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, heads = text["hidden_size"], text["linear_num_value_heads"]
    keys = text["linear_num_key_heads"] * text["linear_key_head_dim"]
    values = heads * text["linear_value_head_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "A_log": (heads,),
        "conv1d.weight": (2 * keys + values, 1, text["linear_conv_kernel_dim"]),
        "dt_bias": (heads,),
        "in_proj_a.weight": (heads, hidden),
        "in_proj_b.weight": (heads, hidden),
        "in_proj_qkv.weight": (2 * keys + values, hidden),
        "in_proj_z.weight": (values, hidden),
        "norm.weight": (text["linear_value_head_dim"],),
        "out_proj.weight": (hidden, values),
    }
    return {f"linear_attn.{name}": shape for name, shape in shapes.items()}


def _attention(text: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, width = text["hidden_size"], text["head_dim"]
    queries, keys = text["num_attention_heads"] * width, text["num_key_value_heads"] * width
    gated = 2 if text.get("attn_output_gate", True) else 1
    return {
        "self_attn.q_proj.weight": (gated * queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "self_attn.q_norm.weight": (width,),
        "self_attn.k_norm.weight": (width,),
    }


def _around(text: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, experts = text["hidden_size"], text["num_experts"]
    width, shared = text["moe_intermediate_size"], text["shared_expert_intermediate_size"]
    return {
        "mlp.experts.gate_up_proj": (experts, 2 * width, hidden),
        "mlp.experts.down_proj": (experts, hidden, width),
        "mlp.gate.weight": (experts, hidden),
        "mlp.shared_expert.gate_proj.weight": (shared, hidden),
        "mlp.shared_expert.up_proj.weight": (shared, hidden),
        "mlp.shared_expert.down_proj.weight": (hidden, shared),
        "mlp.shared_expert_gate.weight": (1, hidden),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }


def _mtp(text: Mapping[str, Any]) -> Specs:
    hidden = text["hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(text.get("mtp_num_hidden_layers", 0)):
        shapes |= {f"layers.{i}.{name}": shape for name, shape in (_attention(text) | _around(text)).items()}
    if shapes:
        shapes["fc.weight"] = (hidden, 2 * hidden)
        shapes |= {f"{name}.weight": (hidden,) for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")}
    return {f"{MTP}{name}": Spec(FLOAT, shape) for name, shape in shapes.items()}


def _visual(vision: Mapping[str, Any]) -> Specs:
    hidden, inner = vision["hidden_size"], vision["intermediate_size"]
    merged = hidden * vision["spatial_merge_size"] ** 2
    patch = (vision["in_channels"], vision["temporal_patch_size"], vision["patch_size"], vision["patch_size"])
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (hidden, *patch),
        "patch_embed.proj.bias": (hidden,),
    }
    shapes["pos_embed.weight"] = (vision["num_position_embeddings"], hidden)
    layers = {"attn.qkv": (3 * hidden, hidden), "attn.proj": (hidden, hidden)}
    layers |= {"mlp.linear_fc1": (inner, hidden), "mlp.linear_fc2": (hidden, inner)}
    for i in range(vision["depth"]):
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{i}.{name}.{part}": (hidden,) for part in ("weight", "bias")}
        for name, shape in layers.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
    shapes |= {"merger.norm.weight": (hidden,), "merger.norm.bias": (hidden,)}
    for name, shape in {
        "linear_fc1": (merged, merged),
        "linear_fc2": (vision["out_hidden_size"], merged),
    }.items():
        shapes |= {f"merger.{name}.weight": shape, f"merger.{name}.bias": shape[:1]}
    return {f"{VISUAL}{name}": Spec(FLOAT, shape) for name, shape in shapes.items()}
