"""`BASE FOLDER`: the MTP block as the worker runs it, beside what the formulas say, computed plainly in float64.

Of each variant of the formulas: by how much the worker's logits are off, relative to the norm of a row. And what the
worker says to bases whose MTP block is another one, of which FOLDER is made.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tests.worker.blocks import tensors
from tests.worker.prepared import answer

from requant.errors import BuildError
from requant.worker import mtp
from requant.worker.autoround import tuning

Array = Any
SAMPLES, TOKENS = 3, 33


def block(base: str, folder: str) -> dict[str, Any]:
    stored = tensors(Path(base))
    config = json.loads(Path(base, "config.json").read_text())["text_config"]
    model = loaded(base)
    plain = Plain({name: value.double().numpy() for name, value in stored.items()}, config)
    variants: dict[str, dict[str, Any]] = {
        "as it is": {},
        "hidden state first": {"swapped": True},
        "this token's embedding": {"shifted": False},
        "the state before the norm": {"normed": False},
        "no positions": {"placed": False},
        "rows that see later ones": {"causal": False},
        "weights of norms as they stand": {"one": False},
    }
    own = {name: value for name, value in stored.items() if name.startswith("mtp.")}
    norm = {"mtp.norm.weight": own["mtp.norm.weight"]}
    others = {
        "one tensor less": {name: own[name] for name in own.keys() - norm.keys()},
        "a second layer": own | {"mtp.layers.1.input_layernorm.weight": norm["mtp.norm.weight"].clone()},
        "another shape": own | {"mtp.norm.weight": norm["mtp.norm.weight"][1:].clone()},
    }
    return {**held(model, plain, config["hidden_size"], variants), "refused": refused(model, others, Path(folder))}


def loaded(base: str) -> Any:
    """Return a base's model with its MTP block, in float32, as the worker loads them."""
    model = tuning.load_model(Path(base), torch.float32)
    mtp.attach(model, Path(base))
    return model


def held(model: Any, plain: Any, width: int, variants: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Say by how much the worker's logits are off from those of each variant of the formulas."""
    torch.manual_seed(7)
    tokens = torch.randint(0, 256, (SAMPLES, TOKENS))
    put_out = torch.randn(SAMPLES, TOKENS, width)
    with torch.no_grad():
        found = mtp.logits(model, put_out, tokens).numpy()
        first = mtp.logits(model, put_out[:, :9], tokens[:, :9]).numpy()
    return {
        "off": {
            name: deviation(found, plain.logits(put_out.double().numpy(), tokens.numpy(), **variant))
            for name, variant in variants.items()
        },
        "rows": list(found.shape[:2]),
        "a beginning": deviation(first, found[:, :8]),
    }


def deviation(found: Array, expected: Array) -> float:
    return float((np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)).max())


def refused(model: Any, others: Mapping[str, dict[str, Any]], folder: Path) -> dict[str, str]:
    """Return what the worker says to bases of other tensors, "" where it takes them."""
    found = {}
    for name, other in others.items():
        save_file(other, folder / "model.safetensors")
        try:
            mtp.attach(model, folder)
            found[name] = ""
        except BuildError as error:
            found[name] = str(error).partition("\n")[0]
    return found


class Plain:
    """What the formulas of the MTP block say, by numpy, of tensors and a configuration."""

    def __init__(self, tensors: dict[str, Array], config: dict[str, Any]) -> None:
        self.tensors, self.config = tensors, config
        self.one = True

    def logits(
        self,
        put_out: Array,
        tokens: Array,
        *,
        swapped: bool = False,
        shifted: bool = True,
        normed: bool = True,
        placed: bool = True,
        causal: bool = True,
        one: bool = True,
    ) -> Array:
        self.one = one
        tokens = tokens[:, 1:] if shifted else tokens[:, :-1]
        embedded = self.tensors["model.language_model.embed_tokens.weight"][tokens]
        hidden = put_out[:, :-1]
        hidden = self.norm("model.language_model.norm", hidden) if normed else hidden
        halves = [self.norm("mtp.pre_fc_norm_embedding", embedded), self.norm("mtp.pre_fc_norm_hidden", hidden)]
        x = np.concatenate(halves[::-1] if swapped else halves, axis=-1) @ self.tensors["mtp.fc.weight"].T
        x = x + self.attention(self.norm("mtp.layers.0.input_layernorm", x), placed, causal)
        x = x + self.experts(self.norm("mtp.layers.0.post_attention_layernorm", x))
        return self.norm("mtp.norm", x) @ self.tensors["lm_head.weight"].T

    def norm(self, name: str, x: Array) -> Array:
        scale = self.tensors[f"{name}.weight"] + (1 if self.one else 0)
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + self.config["rms_norm_eps"]) * scale

    def linear(self, name: str, x: Array) -> Array:
        return x @ self.tensors[f"mtp.layers.0.{name}.weight"].T

    def attention(self, x: Array, placed: bool, causal: bool) -> Array:
        heads, groups, size = (self.config[n] for n in ("num_attention_heads", "num_key_value_heads", "head_dim"))
        samples, count, _ = x.shape
        both = self.linear("self_attn.q_proj", x).reshape(samples, count, heads, 2 * size)
        query, gate = both[..., :size], both[..., size:]
        key, value = (self.linear(f"self_attn.{n}_proj", x).reshape(samples, count, groups, size) for n in "kv")
        rope, positions = self.config["rope_parameters"], np.arange(count) * placed
        half, theta = int(size * rope["partial_rotary_factor"]) // 2, float(rope["rope_theta"])
        query, key = (
            turned(self.norm(f"mtp.layers.0.self_attn.{name}_norm", each), positions, half, theta)
            for name, each in (("q", query), ("k", key))
        )
        seen = np.tri(count, dtype=bool) if causal else np.ones((count, count), bool)
        found = attended(query, key, value, seen) * sigmoid(gate).reshape(samples, count, -1)
        return self.linear("self_attn.o_proj", found)

    def experts(self, x: Array) -> Array:
        def mlp(gate_up: Array, down: Array, x: Array) -> Array:
            gate, up = np.split(x @ gate_up.T, 2, axis=-1)
            return (gate * sigmoid(gate) * up) @ down.T

        chances = softmax(self.linear("mlp.gate", x))
        chosen = np.argsort(-chances, axis=-1)[..., : self.config["num_experts_per_tok"]]
        weights = np.take_along_axis(chances, chosen, -1)
        weights = weights / weights.sum(axis=-1, keepdims=True)
        gate_up, down = (self.tensors[f"mtp.layers.0.mlp.experts.{n}"] for n in ("gate_up_proj", "down_proj"))
        found = np.zeros_like(x)
        for expert in range(self.config["num_experts"]):
            share = np.where(chosen == expert, weights, 0).sum(axis=-1, keepdims=True)
            found += share * mlp(gate_up[expert], down[expert], x)
        own = [self.tensors[f"mtp.layers.0.mlp.shared_expert.{n}_proj.weight"] for n in ("gate", "up", "down")]
        shared = mlp(np.concatenate(own[:2]), own[2], x)
        return found + sigmoid(self.linear("mlp.shared_expert_gate", x)) * shared


def attended(query: Array, key: Array, value: Array, seen: Array) -> Array:
    """Return [samples, tokens, heads x size] of arrays [samples, tokens, heads, size]."""
    heads, groups = query.shape[2], key.shape[2]
    found = np.empty((*query.shape[:3], value.shape[-1]))
    for head in range(heads):
        group = head // (heads // groups)
        scores = query[:, :, head] @ key[:, :, group].transpose(0, 2, 1) / np.sqrt(query.shape[-1])
        found[:, :, head] = softmax(np.where(seen, scores, -np.inf)) @ value[:, :, group]
    return found.reshape(*found.shape[:2], -1)


def angles(positions: Array, half: int, theta: float) -> tuple[Array, Array]:
    """Return cosines and sines [1, tokens, 1, half] of what positions turn numbers by: text has one axis."""
    found = positions[:, None] / theta ** (np.arange(half) / half)
    return np.cos(found)[None, :, None], np.sin(found)[None, :, None]


def turned(x: Array, positions: Array, half: int, theta: float) -> Array:
    """Turn the first numbers of each head [samples, tokens, heads, size], half by half."""
    cos, sin = angles(positions, half, theta)
    one, two, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate([one * cos - two * sin, two * cos + one * sin, rest], axis=-1)


def softmax(x: Array) -> Array:
    found = np.exp(x - x.max(axis=-1, keepdims=True))
    return found / found.sum(axis=-1, keepdims=True)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


if __name__ == "__main__":
    answer(block)
