"""Blocks of Qwen2's kind, of Qwen3.5's and of Mixtral's, with channels that weigh more than others, as AWQ looks for.

They are the same on every machine. Needs numpy alone, so that the script that made the fixtures runs where the real
tools are.
"""

from typing import Any

import numpy as np

HIDDEN, INNER, WORDS, HEADS, GROUP = 128, 256, 64, 2, 64
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "vocab_size": WORDS,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
NORMS = ("input_layernorm", "post_attention_layernorm")
SHAPES: dict[str, tuple[int, ...]] = {f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"}
SHAPES |= {"mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN), "mlp.down_proj": (HIDDEN, INNER)}


HYBRID = CONFIG | {
    "architectures": ["Qwen3_5ForCausalLM"],
    "model_type": "qwen3_5_text",
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "head_dim": HIDDEN // HEADS,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
}
"""Norms of this kind multiply by their numbers and 1, but for those of linear attention."""
LINEAR: dict[str, tuple[int, ...]] = {"in_proj_qkv": (256, HIDDEN), "in_proj_z": (HIDDEN, HIDDEN)}
LINEAR |= {f"in_proj_{name}": (4, HIDDEN) for name in "ab"} | {"out_proj": (HIDDEN, HIDDEN), "conv1d": (256, 1, 4)}

EXPERTS = 3
MIXTRAL = CONFIG | {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "intermediate_size": HIDDEN,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2,
}


def _drawn(rng: Any, *shape: int) -> Any:
    parts = rng.integers(-(1 << 20), 1 << 20, (6, *shape)).sum(0)
    return (parts * 2.0**-26).astype(np.float32)


def _norm(rng: Any) -> Any:
    scale = 1 + 8 * _drawn(rng, HIDDEN)
    scale[::17] *= 4
    return scale


def _bits(values: Any) -> Any:
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def hybrid() -> dict[str, Any]:
    """Weights of a block with linear attention and of one without, by name, as bits of BF16: uint16."""
    rng = np.random.default_rng(2)
    made = {f"{name}.weight": _drawn(rng, WORDS, HIDDEN) for name in ("model.embed_tokens", "lm_head")}
    made["model.norm.weight"] = _norm(rng) - 1
    gated = {"self_attn.q_proj": (2 * HIDDEN, HIDDEN)}
    feed = {name: shape for name, shape in SHAPES.items() if name.startswith("mlp")}
    linear = {f"linear_attn.{name}": shape for name, shape in LINEAR.items()}
    for number, shapes in enumerate((linear | feed, SHAPES | gated)):
        block = f"model.layers.{number}"
        made |= {f"{block}.{name}.weight": _norm(rng) - 1 for name in NORMS}
        made |= {f"{block}.{name}.weight": _drawn(rng, *shape) for name, shape in shapes.items()}
    made |= {f"model.layers.1.self_attn.{name}_norm.weight": 8 * _drawn(rng, HIDDEN // HEADS) for name in "qk"}
    made |= {f"model.layers.0.linear_attn.{name}": 1 + _drawn(rng, 4) for name in ("A_log", "dt_bias")}
    made["model.layers.0.linear_attn.norm.weight"] = 1 + 8 * _drawn(rng, 32)
    return {name: _bits(values) for name, values in made.items()}


def mixtral() -> dict[str, Any]:
    """Weights of a block with experts, as Mixtral's files name them, by name, as bits of BF16: uint16."""
    rng = np.random.default_rng(3)
    made = {f"{name}.weight": _drawn(rng, WORDS, HIDDEN) for name in ("model.embed_tokens", "lm_head")}
    made["model.norm.weight"] = _norm(rng)
    block, moe = "model.layers.0", "model.layers.0.block_sparse_moe"
    made |= {f"{block}.{name}.weight": _norm(rng) for name in NORMS}
    made |= {f"{block}.self_attn.{name}_proj.weight": _drawn(rng, HIDDEN, HIDDEN) for name in "qkvo"}
    made[f"{moe}.gate.weight"] = _drawn(rng, EXPERTS, HIDDEN)
    experts = [f"{moe}.experts.{number}.{name}" for number in range(EXPERTS) for name in ("w1", "w2", "w3")]
    made |= {f"{name}.weight": _drawn(rng, HIDDEN, HIDDEN) for name in experts}
    return {name: _bits(values) for name, values in made.items()}


def base() -> dict[str, Any]:
    """Weights of a block with plain norms, by name, as bits of BF16: uint16."""
    rng = np.random.default_rng(1)

    def drawn(*shape: int) -> Any:
        return _drawn(rng, *shape)

    def norm() -> Any:
        return _norm(rng)

    made = {"model.embed_tokens": drawn(WORDS, HIDDEN), "lm_head": drawn(WORDS, HIDDEN), "model.norm": norm()}
    inside = {name: norm() for name in NORMS} | {name: drawn(*shape) for name, shape in SHAPES.items()}
    made |= {f"model.layers.0.{name}": values for name, values in inside.items()}
    weights = {f"{name}.weight": values for name, values in made.items()}
    weights |= {f"model.layers.0.self_attn.{name}_proj.bias": drawn(HIDDEN) for name in "qkv"}
    return {name: _bits(values) for name, values in weights.items()}
