"""The modules with a precision that a loader builds for a Qwen3.5-MoE model, some made of several layers.

Sources: vLLM 0.19.1 to 0.33.0, models/qwen3_5.py, qwen3_5_mtp.py and qwen3_next.py; SGLang 0.5.23,
models/qwen3_5.py. Routers, norms, convolutions and embeddings have no precision: they are float whatever is declared.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from requant.inspect.anatomy import EXPERTS, GATES, LM, MTP, VISUAL
from requant.model.plan import Specs
from requant.model.skeleton import Skeleton

Packed = tuple[tuple[str, tuple[str, ...]], ...]

QKV = ("qkv_proj", ("q_proj", "k_proj", "v_proj"))
GATE_UP = ("gate_up_proj", ("gate_proj", "up_proj"))
QKVZ = ("in_proj_qkvz", ("in_proj_qkv", "in_proj_z"))
BA = ("in_proj_ba", ("in_proj_b", "in_proj_a"))
HEAD = "lm_head"
LAST = ("out_proj", "o_proj", "down_proj", EXPERTS, "attn.proj", "linear_fc2")
"""Ends of layers that tensor parallelism divides by inputs: those that give back to the stream between blocks."""


@dataclass(frozen=True)
class Module:
    """A module: its name in the loader's model, its parts by name in the checkpoint, and its two widths at TP 1.

    `split` says which width tensor parallelism divides; `packed` is the fusion table that holds where it is built.
    """

    name: str
    parts: tuple[str, ...]
    kind: Literal["linear", "experts", "head"]
    packed: Packed
    inputs: int
    outputs: int
    split: Literal["inputs", "outputs"]


@dataclass(frozen=True)
class Names:
    """What a loader calls the parts of the model, and its fusion tables."""

    language_model: str
    visual: str
    head: str
    main: Packed
    drafter: Packed


def modules(model: Skeleton, names: Names) -> tuple[Module, ...]:
    """Return the modules of the main model and of the MTP drafter."""
    inside = {kind: _layers(model, specs) for kind, specs in model.inside.items()}
    layers = {f"{block}.{name}": shape for block, kind in model.blocks.items() for name, shape in inside[kind].items()}
    beside = {name: spec for name, spec in model.tensors.items() if not name.startswith(tuple(model.blocks))}
    layers |= _layers(model, beside)
    return tuple(_module(name, layers, names) for name in layers if name == _fused(name)[1][0])


def _layers(model: Skeleton, tensors: Specs) -> dict[str, tuple[int, int]]:
    """Return the shape [out, in] of each layer that has a precision; experts are one, of the shape of a last layer."""
    found: dict[str, tuple[int, int]] = {}
    for name, layer in model.layers(tensors).items():
        if f"{EXPERTS}." not in name:
            found |= {} if name.endswith(GATES) else {name: layer.shape}
        elif name.endswith(".0.down_proj"):
            found[name.removesuffix(".0.down_proj")] = layer.shape
    return found


def _fused(name: str) -> tuple[str, tuple[str, ...]]:
    """Return the module of a layer, and the layers that are parts of it."""
    place, dot, last = name.rpartition(".")
    module, parts = next((each for each in (QKV, GATE_UP, QKVZ, BA) if last in each[1]), (last, (last,)))
    return f"{place}{dot}{module}", tuple(f"{place}{dot}{part}" for part in parts)


def _module(name: str, layers: Mapping[str, tuple[int, int]], names: Names) -> Module:
    module, parts = _fused(name)
    prefixes = {LM: names.language_model, VISUAL: names.visual, HEAD: names.head}
    prefix = next((each for each in prefixes if name.startswith(each)), "")
    return Module(
        prefixes.get(prefix, "") + module.removeprefix(prefix),
        parts,
        "experts" if name.endswith(EXPERTS) else "head" if name == HEAD else "linear",
        names.drafter if name.startswith(MTP) else names.main,
        inputs=layers[name][1],
        outputs=sum(layers[part][0] for part in parts),
        split="inputs" if name.endswith(LAST) else "outputs",
    )
