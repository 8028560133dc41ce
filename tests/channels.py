"""A block of Qwen2's kind with channels that weigh more than others, as AWQ looks for: the same on every machine.

Needs numpy alone, so that the script that made the fixtures runs where the real tools are.
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
SHAPES = {f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"}
SHAPES |= {"mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN), "mlp.down_proj": (HIDDEN, INNER)}


def base() -> dict[str, Any]:
    """Weights by name, as bits of BF16: uint16."""
    rng = np.random.default_rng(1)

    def drawn(*shape: int) -> Any:
        parts = rng.integers(-(1 << 20), 1 << 20, (6, *shape)).sum(0)
        return (parts * 2.0**-26).astype(np.float32)

    def norm() -> Any:
        scale = 1 + 8 * drawn(HIDDEN)
        scale[::17] *= 4
        return scale

    made = {"model.embed_tokens": drawn(WORDS, HIDDEN), "lm_head": drawn(WORDS, HIDDEN), "model.norm": norm()}
    inside = {name: norm() for name in NORMS} | {name: drawn(*shape) for name, shape in SHAPES.items()}
    made |= {f"model.layers.0.{name}": values for name, values in inside.items()}
    weights = {f"{name}.weight": values for name, values in made.items()}
    weights |= {f"model.layers.0.self_attn.{name}_proj.bias": drawn(HIDDEN) for name in "qkv"}
    return {name: (values.view(np.uint32) >> 16).astype(np.uint16) for name, values in weights.items()}
