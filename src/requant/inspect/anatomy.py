"""The parts of a checkpoint, and what each is made of, from headers alone.

Equal blocks are examined once: a checkpoint has 41 of them with 2,300 tensors each, and a healthy one three kinds.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from requant.checkpoint.checkpoint import INDEX
from requant.checkpoint.safetensors import Spec
from requant.formats import PACKED
from requant.inspect.headers import Headers
from requant.model.skeleton import Skeleton

LM, VISUAL, MTP = "model.language_model.", "model.visual.", "mtp."
BLOCKS = (f"{LM}layers.", f"{MTP}layers.")
GATES = ("mlp.gate", "mlp.shared_expert_gate")
EXPERTS = "mlp.experts"

WIDTH = 32
"""Both widths of a packed layer are multiples of it: every tool leaves others alone, and no word is padded."""

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
class Packing:
    """How a packed layer lies in its tensors: the order of codes, bits per code, inputs, and groups of inputs."""

    layout: Literal["gptq", "awq"]
    bits: int
    inputs: int
    groups: int

    def __str__(self) -> str:
        return f"{self.bits} bits in groups of {self.inputs // self.groups}"

    def fits(self, bits: int, group_size: int) -> bool:
        """Say whether these are a loader's bits and group size, which is -1 for one group over all inputs."""
        return bits == self.bits and self.groups == (1 if group_size <= 0 else -(-self.inputs // group_size))


@dataclass(frozen=True)
class Build:
    """What a block is made of: the form of each linear layer, experts as one, what is wrong, its scales' dtypes.

    `packings` are those of each packed layer; experts have one for each of their widths, if all is well.
    """

    forms: Mapping[str, Form]
    faults: tuple[Fault, ...]
    scales: frozenset[str]
    packings: Mapping[str, frozenset[Packing]]


@dataclass(frozen=True)
class Template:
    """What a block of a kind has to hold: float tensors, linear layers, the experts' layers and fused tensors.

    Of a layer it is what its weight [out, in] is where it is float.
    """

    floats: Mapping[str, Spec]
    layers: Mapping[str, Spec]
    experts: Mapping[str, Spec]
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


def template(model: Skeleton, kind: str) -> Template:
    """Return what a block of a kind holds, such as `full_attention`."""
    tensors = model.inside[kind]
    found = {name: Spec(model.table["dtype"], layer.shape) for name, layer in model.layers(tensors).items()}
    layers = {name: spec for name, spec in found.items() if not name.startswith((EXPERTS, *GATES))}
    experts = {name: spec for name, spec in found.items() if name.startswith(EXPERTS)}
    fused = {name: spec for name, spec in tensors.items() if name.startswith(EXPERTS)}
    floats = {
        name: spec for name, spec in tensors.items() if name not in fused and name.removesuffix(".weight") not in layers
    }
    return Template(floats, layers, experts, fused)


def packing(qweight: Spec, qzeros: Spec, scales: Spec) -> Packing | None:
    """Return what three tensors say of a packed layer, None where their shapes do not go together.

    GPTQ packs along the inputs: qweight [inputs * bits / 32, outputs]; AWQ along the outputs: [inputs, outputs * bits /
    32]. In both qzeros is [groups, outputs * bits / 32], and scales is [groups, outputs].
    """
    shapes = (qweight.shape, qzeros.shape, scales.shape)
    if any(len(shape) != 2 or 0 in shape for shape in shapes):
        return None
    (rows, columns), (groups, words), (also, outputs) = shapes
    bits = 32 * words // outputs
    if groups != also or bits not in range(2, 9) or bits * outputs != 32 * words or outputs % WIDTH:
        return None
    if columns == outputs and not 32 * rows % bits:
        return Packing("gptq", bits, 32 * rows // bits, groups)
    return Packing("awq", bits, rows, groups) if columns == words else None


class _Examiner:
    """Goes over the tensors of one block; `used` are those that it expected."""

    def __init__(self, tensors: Mapping[str, Spec]) -> None:
        self.tensors = tensors
        self.faults: list[Fault] = []
        self.used: set[str] = set()
        self.packings: dict[str, set[Packing]] = {}

    def experts(self, made: Template) -> Form:
        fused = {name: spec for name, spec in made.fused.items() if name in self.tensors}
        split = [name for name in self.tensors if name.startswith(EXPERTS) and name not in made.fused]
        self.used.update(fused)
        if not split:
            for name, spec in made.fused.items():
                self.faults += _float(self.tensors, name, spec)
            return "fused" if fused else "missing"
        forms = {self.layer(layer, spec, EXPERTS) for layer, spec in made.experts.items()}
        beside = "fused, although the same experts are also stored one by one"
        self.faults += [Fault("both", name, beside) for name in fused]
        forms.discard("missing")
        return forms.pop() if len(forms) == 1 else "mixed"

    def layer(self, name: str, weight: Spec, module: str) -> Form:
        whole = f"{name}.weight"
        parts = {suffix: f"{name}.{suffix}" for suffix in PACKED}
        self.used.update((whole, *parts.values()))
        found = {suffix: self.tensors[part] for suffix, part in parts.items() if part in self.tensors}
        if not found:
            self.faults += _float(self.tensors, whole, weight)
            return "float" if whole in self.tensors else "missing"
        if whole in self.tensors:
            self.faults.append(Fault("both", whole, "float, although its packed form is there as well"))
        self.faults += [Fault("missing", part) for suffix, part in parts.items() if suffix not in found]
        for suffix, spec in found.items():
            wanted = ("F16", "BF16") if suffix == "scales" else ("I32",)
            if spec.dtype not in wanted:
                detail = f"found {text(spec)}, expected {' or '.join(wanted)}"
                self.faults.append(Fault("dtype", parts[suffix], detail))
        if len(found) == len(PACKED):
            self._shapes(name, weight, module, found)
        return "packed"

    def _shapes(self, name: str, weight: Spec, module: str, found: Mapping[str, Spec]) -> None:
        said = packing(found["qweight"], found["qzeros"], found["scales"])
        if said and (found["scales"].shape[1], said.inputs) == weight.shape:
            self.packings.setdefault(module, set()).add(said)
            return
        shapes = ", ".join(f"{suffix} {text(spec)}" for suffix, spec in found.items())
        detail = f"found {shapes}, which is not a packing of {weight.shape[0]} x {weight.shape[1]} weights"
        self.faults.append(Fault("shape", f"{name}.qweight", detail))


def examine(tensors: Mapping[str, Spec], made: Template) -> Build:
    """Return the form of every layer of a block, and every tensor that is missing, strange or of another shape.

    Bits and groups are what the tensors themselves say; whether that is what a loader expects is another question.
    """
    examiner = _Examiner(tensors)
    forms: dict[str, Form] = {name: examiner.layer(name, spec, name) for name, spec in made.layers.items()}
    forms[EXPERTS] = examiner.experts(made)
    for name, spec in made.floats.items():
        examiner.used.add(name)
        examiner.faults += _float(tensors, name, spec)
    unknown = [Fault("unknown", name, str(tensors[name].dtype)) for name in tensors if name not in examiner.used]
    return Build(
        forms,
        (*examiner.faults, *unknown),
        frozenset(spec.dtype for name, spec in tensors.items() if name.endswith(".scales")),
        {name: frozenset(found) for name, found in examiner.packings.items()},
    )


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
