"""The parts of a checkpoint, and what each is made of, from headers alone.

Equal blocks are examined once: a checkpoint has 41 of them with 2,300 tensors each, and a healthy one three kinds.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from requant.checkpoint import INDEX
from requant.inspecting.headers import Headers
from requant.inventory import FLOAT, LM, MTP, PACKED, VISUAL, Linear, base_tensors, linears, mtp_linears, packed_specs
from requant.loaders.declared import Declared
from requant.safetensors import Spec

BLOCKS = (f"{LM}layers.", f"{MTP}layers.")
GATES = ("mlp.gate", "mlp.shared_expert_gate")
EXPERTS = "mlp.experts"

_PREFIX = re.compile(r"^(?:(?:model|language_model)\.)+(?=layers\.|embed_tokens\.|norm\.)")

Form = Literal["packed", "float", "fused", "mixed", "missing"]
Flaw = Literal["missing", "shape", "dtype", "both", "unknown"]


@dataclass(frozen=True)
class Fault:
    """What is wrong with one tensor; in a block, `name` is below the block's."""

    flaw: Flaw
    name: str
    detail: str = ""


@dataclass(frozen=True)
class Build:
    """What a block is made of: the form of each linear layer, experts as one, what is wrong, its scales' dtypes."""

    forms: Mapping[str, Form]
    faults: tuple[Fault, ...]
    scales: frozenset[str]


@dataclass(frozen=True)
class Template:
    """What a block of a kind has to hold: float tensors, linear layers, the experts' layers and fused tensors."""

    floats: Mapping[str, Spec]
    layers: Mapping[str, Linear]
    experts: Mapping[str, Linear]
    fused: Mapping[str, Spec]


@dataclass(frozen=True)
class Anatomy:
    """Every tensor once, by block and beside the blocks; `copies` names the files of those that stand in several."""

    blocks: Mapping[str, Mapping[str, Spec]]
    rest: Mapping[str, Spec]
    copies: Mapping[str, tuple[str, ...]]


def canonical(name: str) -> str:
    """Return the base's name for a tensor, whatever prefix a loader or a tool gave it."""
    return VISUAL + name.removeprefix("visual.") if name.startswith("visual.") else _PREFIX.sub(LM, name)


def dissect(headers: Headers) -> Anatomy:
    """Sort the tensors of a checkpoint by block; of two of one name, the last file's counts, as for loaders."""
    blocks: dict[str, dict[str, Spec]] = {}
    rest: dict[str, Spec] = {}
    inside, block = rest, "\n"  # no name begins with it
    read = _read_files(headers)
    for file in read:
        for name, spec in headers.shards[file].items():
            if not name.startswith(block):  # the tensors of a block stand together
                inside, block = rest, "\n"
                if name.startswith(BLOCKS):
                    block = name[: name.find(".", name.index("layers.") + 7) + 1]
                    inside = blocks.setdefault(block[:-1], {})
            inside[name if inside is rest else name[len(block) :]] = spec
    count = len(rest) + sum(map(len, blocks.values()))
    copies = {} if count == sum(len(headers.shards[file]) for file in read) else _copies(headers, read)
    return Anatomy(blocks, rest, copies)


def _read_files(headers: Headers) -> list[str]:
    """Return the files that loaders read, in their order: those that the index names, all without one."""
    index = headers.object(INDEX) or {}
    weight_map = index.get("weight_map")
    named = set(weight_map.values()) if isinstance(weight_map, dict) and _are_texts(weight_map) else set()
    return sorted(headers.shards.keys() & named or headers.shards.keys())


def _are_texts(weight_map: Mapping[str, Any]) -> bool:
    return not set(map(type, weight_map.values())) - {str}


def _copies(headers: Headers, read: list[str]) -> dict[str, tuple[str, ...]]:
    files: dict[str, list[str]] = {}
    for file in read:
        for name in headers.shards[file]:
            files.setdefault(name, []).append(file)
    return {name: tuple(found) for name, found in files.items() if len(found) > 1}


def template(config: Mapping[str, Any], kind: str) -> Template:
    """Return what a block of a kind holds: `linear_attention`, `full_attention` or `mtp`."""
    text = {**config["text_config"], "num_hidden_layers": 1, "layer_types": [kind], "mtp_num_hidden_layers": 1}
    if kind == "mtp":
        text["layer_types"] = ["full_attention"]
    small = {**config, "text_config": text}
    block = f"{MTP if kind == 'mtp' else LM}layers.0."
    tensors = {name.removeprefix(block): spec for name, spec in base_tensors(small).items() if name.startswith(block)}
    found = {
        name.removeprefix(block): replace(layer, name=name.removeprefix(block))
        for name, layer in (mtp_linears(small) if kind == "mtp" else linears(small)).items()
        if name.startswith(block)
    }
    layers = {name: each for name, each in found.items() if not name.startswith((EXPERTS, *GATES))}
    experts = {name: each for name, each in found.items() if name.startswith(EXPERTS)}
    fused = {name: spec for name, spec in tensors.items() if name.startswith(EXPERTS)}
    floats = {
        name: spec for name, spec in tensors.items() if name not in fused and name.removesuffix(".weight") not in layers
    }
    return Template(floats, layers, experts, fused)


def examine(tensors: Mapping[str, Spec], made: Template, declared: Declared | None) -> Build:
    """Return the form of every layer of a block, and every tensor that is missing, strange or of another shape."""
    group_size = declared.group_size if declared and declared.group_size > 0 else 128
    faults: list[Fault] = []
    used: set[str] = set()
    forms: dict[str, Form] = {}
    for name, layer in made.layers.items():
        forms[name] = _layer(tensors, layer, group_size, faults, used)
    forms[EXPERTS] = _experts(tensors, made, group_size, faults, used)
    for name, spec in made.floats.items():
        used.add(name)
        faults += _float(tensors, name, spec)
    faults += [Fault("unknown", name, str(tensors[name].dtype)) for name in tensors if name not in used]
    scales = frozenset(spec.dtype for name, spec in tensors.items() if name.endswith(".scales"))
    return Build(forms, tuple(faults), scales)


def _experts(tensors: Mapping[str, Spec], made: Template, group_size: int, faults: list[Fault], used: set[str]) -> Form:
    fused = {name: spec for name, spec in made.fused.items() if name in tensors}
    split = [name for name in tensors if name.startswith(EXPERTS) and name not in made.fused]
    if not split:
        used.update(fused)
        for name, spec in made.fused.items():
            faults += _float(tensors, name, spec)
        return "fused" if fused else "missing"
    found: list[Fault] = []
    forms = {_layer(tensors, layer, group_size, found, used) for layer in made.experts.values()}
    faults += found
    used.update(fused)
    faults += [Fault("both", name, "fused, beside the same experts one by one") for name in fused]
    forms.discard("missing")
    return forms.pop() if len(forms) == 1 else "mixed"


def _layer(tensors: Mapping[str, Spec], layer: Linear, group_size: int, faults: list[Fault], used: set[str]) -> Form:
    weight = f"{layer.name}.weight"
    packed = [suffix for suffix in PACKED if f"{layer.name}.{suffix}" in tensors]
    used.update((weight, *(f"{layer.name}.{suffix}" for suffix in PACKED)))
    if not packed:
        faults += _float(tensors, weight, Spec(FLOAT, (layer.out_features, layer.in_features)))
        return "float" if weight in tensors else "missing"
    if weight in tensors:
        faults.append(Fault("both", weight, "float, beside its own packed form"))
    for suffix, spec in packed_specs(layer, group_size).items():
        faults += _packed(tensors, f"{layer.name}.{suffix}", spec)
    return "packed"


def _packed(tensors: Mapping[str, Spec], name: str, spec: Spec) -> Iterator[Fault]:
    found = tensors.get(name)
    if found is None:
        yield Fault("missing", name, f"expected {text(spec)}")
    elif found.shape != spec.shape:
        yield Fault("shape", name, f"found {text(found)}, expected {text(spec)}")
    elif found.dtype != spec.dtype and not (name.endswith("scales") and found.dtype == "BF16"):
        yield Fault("dtype", name, f"found {text(found)}, expected {text(spec)}")


def _float(tensors: Mapping[str, Spec], name: str, spec: Spec) -> Iterator[Fault]:
    found = tensors.get(name)
    if found is None:
        yield Fault("missing", name, f"expected {text(spec)}")
    elif found.shape != spec.shape:
        yield Fault("shape", name, f"found {text(found)}, expected {text(spec)}")
    elif found.dtype != spec.dtype:
        yield Fault("dtype", name, f"found {found.dtype}, the base has {spec.dtype}")


def text(spec: Spec) -> str:
    """Return a tensor's dtype and shape for a person."""
    return f"{spec.dtype} {list(spec.shape)}"


def outside(rest: Mapping[str, Spec], expected: Mapping[str, Spec]) -> Iterator[Fault]:
    """Yield what is wrong with the tensors beside the blocks, which are all float; unknown ones last."""
    for name, spec in expected.items():
        yield from _float(rest, name, spec)
    yield from (Fault("unknown", name, spec.dtype) for name, spec in rest.items() if name not in expected)
