"""`BASE FOLDER`: as `mtp`, of an MTP block that is numbered on from the blocks of the model: GLM-4 MoE, DeepSeek-V3.

Its logits as the worker computes them, in float32, beside what the formulas say, computed plainly in float64.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.worker.blocks import tensors
from tests.worker.mtp import angles, attended, held, loaded, refused, sigmoid, turned
from tests.worker.prepared import answer

from requant.worker import mtp

Array = Any


def block(base: str, folder: str) -> dict[str, Any]:
    stored = tensors(Path(base))
    config = json.loads(Path(base, "config.json").read_text())
    kind = {"glm4_moe": Glm, "deepseek_v3": DeepSeek}[config["model_type"]]
    model = loaded(base)
    plain = kind({name: value.double().numpy() for name, value in stored.items()}, model.config)
    variants: dict[str, dict[str, Any]] = {
        "as it is": {},
        "hidden state first": {"swapped": True},
        "norms exchanged": {"exchanged": True},
        "this token's embedding": {"shifted": False},
        "the state before the norm": {"normed": False},
        "no positions": {"placed": False},
        "rows that see later ones": {"causal": False},
        "one more in weights of norms": {"one": True},
        "its own copies of embedding and head": {"copies": True},
        "the embedding at position 0 left out": {"masked": True},
        "routers without their bias": {"biased": False},
        "counted from the next token": {"first": 1},
    }
    return {
        "layer": mtp.layer_name(model),
        **held(model, plain, config["hidden_size"], variants),
        "refused": refused(model, others(stored, plain.root), Path(folder)),
    }


def others(stored: dict[str, Any], root: str) -> dict[str, dict[str, Any]]:
    """Return the tensors of bases whose MTP block is another one."""
    own = {name: value for name, value in stored.items() if name.startswith(root)}

    def without(*names: str) -> dict[str, Any]:
        return {name: value for name, value in own.items() if name not in {f"{root}{each}" for each in names}}

    norm = own[f"{root}enorm.weight"]
    return {
        "one norm less": without("hnorm.weight"),
        "one tensor of the layer less": without("input_layernorm.weight"),
        "one more": own | {f"{root}mlp.gate.other": norm.clone()},
        "another shape": own | {f"{root}input_layernorm.weight": norm[1:].clone()},
        "no experts": {name: value for name, value in own.items() if ".experts." not in name},
        "wider experts": {
            name: torch.cat([value, value]) if name.endswith("down_proj.weight") else value
            for name, value in own.items()
        },
        "one expert less": without("mlp.experts.3.up_proj.weight"),
        "no copies": without("embed_tokens.weight", "shared_head.head.weight"),
    }


class Plain:
    """What the formulas of such an MTP block say, by numpy, of tensors and a configuration."""

    def __init__(self, tensors: dict[str, Array], config: Any) -> None:
        self.tensors, self.config = tensors, config
        self.root = f"model.layers.{config.num_hidden_layers}."
        self.one = False
        self.biased = True

    def logits(
        self,
        put_out: Array,
        tokens: Array,
        *,
        swapped: bool = False,
        exchanged: bool = False,
        shifted: bool = True,
        normed: bool = True,
        placed: bool = True,
        causal: bool = True,
        one: bool = False,
        copies: bool = False,
        masked: bool = False,
        biased: bool = True,
        first: int = 0,
    ) -> Array:
        self.one, self.biased = one, biased
        embedding, head = "model.embed_tokens", "lm_head"
        if copies:
            embedding, head = f"{self.root}embed_tokens", f"{self.root}shared_head.head"
        embedded = self.tensors[f"{embedding}.weight"][tokens[:, 1:] if shifted else tokens[:, :-1]]
        if masked:
            embedded = embedded * (np.arange(embedded.shape[1]) > 0)[:, None]
        hidden = put_out[:, :-1]
        hidden = self.norm("model.norm", hidden) if normed else hidden
        one_, other = ("hnorm", "enorm") if exchanged else ("enorm", "hnorm")
        halves = [self.norm(f"{self.root}{one_}", embedded), self.norm(f"{self.root}{other}", hidden)]
        x = self.linear("eh_proj", np.concatenate(halves[::-1] if swapped else halves, axis=-1))
        count = x.shape[1]
        positions = (np.arange(count) + first) * placed
        seen = np.tri(count, dtype=bool) if causal else np.ones((count, count), bool)
        x = x + self.attention(self.norm(f"{self.root}input_layernorm", x), positions, seen)
        x = x + self.experts(self.norm(f"{self.root}post_attention_layernorm", x))
        return self.norm(f"{self.root}shared_head.norm", x) @ self.tensors[f"{head}.weight"].T

    def norm(self, name: str, x: Array, epsilon: float | None = None) -> Array:
        scale = self.tensors[f"{name}.weight"] + (1 if self.one else 0)
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + (epsilon or self.config.rms_norm_eps)) * scale

    def linear(self, name: str, x: Array) -> Array:
        bias = self.tensors.get(f"{self.root}{name}.bias", 0)
        return x @ self.tensors[f"{self.root}{name}.weight"].T + bias

    def attention(self, x: Array, positions: Array, seen: Array) -> Array:
        raise NotImplementedError

    @property
    def theta(self) -> float:
        return float(self.config.rope_parameters["rope_theta"])

    def experts(self, x: Array) -> Array:
        """Chosen among groups, of which those count whose best two experts do; weighed by what chose, less the bias."""
        config = self.config
        chances = sigmoid(self.linear("mlp.gate", x))
        bias = self.tensors[f"{self.root}mlp.gate.e_score_correction_bias"]
        scores = chances + bias if self.biased else chances
        grouped = scores.reshape(*scores.shape[:-1], config.n_group, -1)
        best = np.sort(grouped, axis=-1)[..., -2:].sum(axis=-1)
        rank = np.argsort(np.argsort(-best, axis=-1), axis=-1)
        scores = np.where((rank < config.topk_group)[..., None], grouped, -np.inf).reshape(scores.shape)
        chosen = np.argsort(-scores, axis=-1)[..., : config.num_experts_per_tok]
        weights = np.take_along_axis(chances, chosen, -1)
        if config.norm_topk_prob:
            weights = weights / weights.sum(axis=-1, keepdims=True)
        weights = weights * config.routed_scaling_factor
        found = self.mlp("mlp.shared_experts", x)
        for expert in range(config.n_routed_experts):
            share = np.where(chosen == expert, weights, 0).sum(axis=-1, keepdims=True)
            found = found + share * self.mlp(f"mlp.experts.{expert}", x)
        return found

    def mlp(self, name: str, x: Array) -> Array:
        gate, up = (self.linear(f"{name}.{each}_proj", x) for each in ("gate", "up"))
        return self.linear(f"{name}.down_proj", gate * sigmoid(gate) * up)


class Glm(Plain):
    """Grouped heads with norms and biases; the first numbers of each are turned, half by half."""

    def attention(self, x: Array, positions: Array, seen: Array) -> Array:
        size = self.config.head_dim

        def heads(name: str) -> Array:
            return self.linear(f"self_attn.{name}_proj", x).reshape(*x.shape[:2], -1, size)

        query, key = (self.norm(f"{self.root}self_attn.{each}_norm", heads(each)) for each in "qk")
        half = int(size * self.config.rope_parameters["partial_rotary_factor"]) // 2
        query, key = (turned(each, positions, half, self.theta) for each in (query, key))
        return self.linear("self_attn.o_proj", attended(query, key, heads("v"), seen))


class DeepSeek(Plain):
    """Latent attention: one turned key for all heads, neighbours turned as pairs."""

    def attention(self, x: Array, positions: Array, seen: Array) -> Array:
        config = self.config
        bare, turned, latent = config.qk_nope_head_dim, config.qk_rope_head_dim, config.kv_lora_rank
        own = 1e-6  # the class gives these norms none of the configuration's
        low = self.norm(f"{self.root}self_attn.q_a_layernorm", self.linear("self_attn.q_a_proj", x), own)
        query = self.linear("self_attn.q_b_proj", low).reshape(*x.shape[:2], -1, bare + turned)
        both = self.linear("self_attn.kv_a_proj_with_mqa", x)
        low = self.norm(f"{self.root}self_attn.kv_a_layernorm", both[..., :latent], own)
        keys = self.linear("self_attn.kv_b_proj", low).reshape(*x.shape[:2], query.shape[2], -1)
        key, value = keys[..., :bare], keys[..., bare:]
        shared = np.broadcast_to(self.turned(both[..., None, latent:], positions), (*key.shape[:3], turned))
        query = np.concatenate([query[..., :bare], self.turned(query[..., bare:], positions)], axis=-1)
        return self.linear("self_attn.o_proj", attended(query, np.concatenate([key, shared], -1), value, seen))

    def turned(self, x: Array, positions: Array) -> Array:
        cos, sin = angles(positions, x.shape[-1] // 2, self.theta)
        one, two = x[..., ::2], x[..., 1::2]
        return np.concatenate([one * cos - two * sin, two * cos + one * sin], axis=-1)


if __name__ == "__main__":
    answer(block)
