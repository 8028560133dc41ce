"""Where the tensors of a GGUF file lie in the base: names, and the order of rows.

Source: conversion/llama.py and qwen.py of llama.cpp, once `convert_hf_to_gguf.py`, and gguf/tensor_mapping.py of the
package gguf 0.19.0. They rename tensors, stack the experts of a layer, store what is one-dimensional, a norm or a
router in F32, and, of `llama` alone, put the rows of each head of q and k into another order: transformers rotates
row j of d with row j + d/2, and `llama` of llama.cpp rotates neighbours, so that row j becomes row 2j, and row
j + d/2 becomes row 2j + 1 (`LlamaModel.permute`).
"""

import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from requant.checkpoint.gguf import Value

_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_DENSE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NORMED = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{expert}.gate_proj",
    "ffn_up_exps": "mlp.experts.{expert}.up_proj",
    "ffn_down_exps": "mlp.experts.{expert}.down_proj",
}
_MIXTRAL = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{expert}.w1",
    "ffn_up_exps": "block_sparse_moe.experts.{expert}.w3",
    "ffn_down_exps": "block_sparse_moe.experts.{expert}.w2",
}
LAYERS: Mapping[str, Mapping[str, str]] = {
    "llama": _DENSE | _MIXTRAL,
    "qwen2": _DENSE,
    "qwen3": _DENSE | _NORMED,
    "qwen3moe": _DENSE | _NORMED | _EXPERTS,
}
"""By `general.architecture`: a layer's tensors in the base, without their suffix, by what GGUF calls them."""
MAX_EXPERTS = 4096
_HEADS = {"attn_q": ("head_count",), "attn_k": ("head_count_kv", "head_count")}
"""Which keys say how many heads the rows of a tensor are, the first that is there."""
_NAME = re.compile(r"(?:blk\.(?P<layer>\d{1,5})\.)?(?P<what>[a-z_]+)\.(?P<suffix>weight|bias)")


@dataclass(frozen=True)
class Origin:
    """Where a tensor lies in the base: one tensor, or as many as it stacks; `heads` of rows in another order, or 0."""

    tensors: tuple[str, ...]
    heads: int = 0

    def rows(self, count: int) -> npt.NDArray[np.intp]:
        """Return of each of a tensor's `count` rows which row of the base it is, of those of all `tensors` in turn.

        Raises ValueError where they are not so many heads of pairs.
        """
        rows = np.arange(count)
        if not self.heads:
            return rows
        if count % (2 * self.heads):
            raise ValueError(f"{count} rows are no {self.heads} heads of an even number of rows")
        return rows.reshape(self.heads, 2, -1).swapaxes(1, 2).reshape(-1)


def origin(name: str, shape: tuple[int, ...], values: Mapping[str, Value]) -> Origin:
    """Return where the tensor `name` of a file with these key-values lies in the base; `shape` is outermost first.

    Raises ValueError, which says what is not modelled, for another architecture and for a tensor of no base, such as
    `rope_freqs.weight`, which is computed.
    """
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in LAYERS:
        raise ValueError(f"names of the architecture {reprlib.repr(architecture)} are not known")
    match = _NAME.fullmatch(name)
    known = LAYERS[architecture] if match and match["layer"] else _OUTSIDE
    if match is None or match["what"] not in known:
        raise ValueError(f"no tensor of a base is known for {name!r}")
    place = known[match["what"]] + "." + match["suffix"]
    if match["layer"]:
        place = f"model.layers.{int(match['layer'])}.{place}"
    if "{expert}" in place:
        if len(shape) != 3 or shape[0] > MAX_EXPERTS:
            raise ValueError(f"{name!r} has the shape {list(shape)}, and stacks at most {MAX_EXPERTS:,} experts")
        return Origin(tuple(place.format(expert=expert) for expert in range(shape[0])))
    heads = _HEADS.get(match["what"], ()) if architecture == "llama" else ()
    return Origin((place,), _count(architecture, heads, values) if heads else 0)


def _count(architecture: str, keys: tuple[str, ...], values: Mapping[str, Value]) -> int:
    for key in keys:
        found = values.get(f"{architecture}.attention.{key}")
        if type(found) is int and found > 0:
            return found
        if found is not None:
            said = f"{architecture}.attention.{key} is {reprlib.repr(found)}"
            raise ValueError(f"{said}: only one number for all layers is modelled")
    raise ValueError(f"{architecture}.attention.{keys[-1]} is missing")
