"""The plan: what the quantizer, asked in the locked environment, says it will do to each tensor of a base.

`builds/<name>/plan.json` holds it for the base and for its tiny models, in templates, so that a person can read it
whole. It is asked for, never written by hand, and every build asks again: `build.survey`.
"""

import json
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from requant.checkpoint.safetensors import ITEM_BITS, Spec
from requant.digest import MAX_INDEX, read_whole, strict_json
from requant.errors import CheckpointError, RecipeError
from requant.formats import BITS
from requant.formats.form import Form
from requant.model.templates import fold, parse, unfold
from requant.mtp_blocks import MtpBlock
from requant.names import NUMBER
from requant.protocol import BASE, Layer, Own, Source

FILE = "plan.json"
BIAS = ".bias"
Specs = dict[str, Spec]
_PLACE = re.compile(r"\{(\d{1,3})\}")


@dataclass(frozen=True)
class Plan:
    """What becomes of a base's `tensors`: `layers` by name, `blocks` in the order of tuning.

    `unloaded` are tensors of the base that the model's class does not load; `tied` are parameters that are other ones:
    AutoRound writes none of them, and files of a base may hold them all the same. `elsewhere` are tensors that stay
    float and lie in the base under another name, or in part of a tensor.
    """

    versions: Mapping[str, str]
    tensors: Specs
    blocks: tuple[str, ...]
    layers: Mapping[str, Layer]
    unloaded: frozenset[str] = frozenset()
    tied: Mapping[str, str] = field(default_factory=dict)
    elsewhere: Mapping[str, Source] = field(default_factory=dict)

    @cached_property
    def packed(self) -> dict[str, Layer]:
        """The layers that become codes."""
        return {name: layer for name, layer in self.layers.items() if layer.packed}

    @cached_property
    def by_tensor(self) -> dict[str, list[str]]:
        """The layers whose weights lie in each tensor of the base, in the order in which they lie there."""
        return _by_tensor({name: layer.source for name, layer in self.layers.items()})

    def written(self, names: Iterable[str], layers: Mapping[str, Layer], form: Form) -> Specs:
        """Return what a checkpoint has of the tensors `names` of the base, in their order, where `layers` are packed.

        A tensor none of whose layers is packed stays whole. Where one is, all that lie in it are named apart, and so
        are the biases of packed layers that lie in one tensor. What the model has under another name gets that one, as
        packed layers do: transformers 5.5.1 casts to the dtype that it is asked for only what it need not rename.
        """
        result: Specs = {}
        inside = _by_tensor({name: layer.source for name, layer in layers.items()})
        renamed = {source.tensor: name for name, source in self.elsewhere.items() if source.whole}
        biases = {name: source for name, source in self.elsewhere.items() if not source.whole}
        apart = _by_tensor({name: each for name, each in biases.items() if is_packed_bias(name, layers)})
        for name in names:
            if name in apart:
                dtype = self.tensors[name].dtype
                result |= {each: Spec(dtype, (layers[each.removesuffix(BIAS)].shape[0],)) for each in apart[name]}
                continue
            if not any(layers[each].packed for each in inside.get(name, ())):
                result[renamed.get(name, name)] = self.tensors[name]
                continue
            for each in inside[name]:
                if layers[each].packed:
                    packed = form.of(layers[each]).specs(layers[each].shape)
                    result |= {f"{each}.{suffix}": spec for suffix, spec in packed.items()}
                else:
                    result[f"{each}.weight"] = Spec(self.tensors[name].dtype, layers[each].shape)
        return result

    def beside_blocks(self, mtp: MtpBlock, ignore: Sequence[str]) -> dict[str, Layer]:
        """Return the linear layers of a block that the quantizer does not see: the MTP block, but for its copies.

        They are those of the block of the model that has tensors of the same names. A matrix that no block has is one
        layer. Packed is what is not in `ignore` and whose widths are multiples of 32, as in the blocks.
        """
        found: dict[str, Layer] = {}
        for name, spec in self.tensors.items():
            if mtp.holds(name):
                for layer, source in self.layers_in(name, spec):
                    rows = spec.shape[-2] // source.parts
                    shape = (spec.shape[-1], rows) if source.transposed else (rows, spec.shape[-1])
                    found[layer] = Layer(shape, float_reason(layer, shape, ignore), source)
        return found

    def with_block(self, mtp: MtpBlock, ignore: Sequence[str]) -> "Plan":
        """Return the plan in which the MTP block, which the worker loads itself, is tuned as the last.

        AutoRound is not asked about it beforehand: it is held against this before it tunes, as against all of a plan.
        """
        return replace(
            self,
            blocks=(*self.blocks, mtp.block),
            layers={**self.layers, **self.beside_blocks(mtp, ignore)},
            unloaded=frozenset(name for name in self.unloaded if not mtp.holds(name)),
        )

    def layers_in(self, name: str, spec: Spec) -> Iterator[tuple[str, Source]]:
        """Yield the linear layers that lie in a tensor of a block that the quantizer does not see."""
        match = re.fullmatch(r"(.+\.layers\.\d+)\.(.+)", name)
        alike = [f"{block}.{match[2]}" for block in self.blocks if block != match[1]] if match else []
        like = next((each for each in alike if each in self.tensors), "")
        if like and match:
            block = like.removesuffix(f".{match[2]}")
            for layer in self.by_tensor.get(like, []):
                if source := self.layers[layer].source:
                    yield match[1] + layer.removeprefix(block), replace(source, tensor=name)
        elif len(spec.shape) == 2 and name.endswith(".weight"):
            yield name.removesuffix(".weight"), Source(name)


def is_packed_bias(name: str, layers: Mapping[str, Layer]) -> bool:
    """Say whether a tensor is the bias of one of `layers` that is packed."""
    layer = layers.get(name.removesuffix(BIAS)) if name.endswith(BIAS) else None
    return layer is not None and layer.packed


def _by_tensor(sources: Mapping[str, Source | None]) -> dict[str, list[str]]:
    found: dict[str, list[tuple[tuple[int, ...], int, str]]] = {}
    for name, source in sources.items():
        if source:
            found.setdefault(source.tensor, []).append((source.index, source.part, name))
    return {tensor: [name for *_, name in sorted(places)] for tensor, places in found.items()}


def float_reason(name: str, shape: tuple[int, int], ignore: Sequence[str]) -> str:
    """Say why a layer of a block is not packed, "" where it is: AutoRound leaves odd widths alone."""
    if pattern := next((each for each in ignore if each in name), ""):
        return f"ignored by {pattern!r}"
    odd = next((width for width in shape if width % 32), 0)
    return f"a width of {odd:,}, no multiple of 32" if odd else ""


class NotPlannedError(RecipeError):
    """A plan file says nothing of a target."""


@dataclass(frozen=True)
class Question:
    """What of a recipe can change the quantizer's answer: a plan that was asked for with another is not this one's."""

    scheme: str
    group_size: int
    ignore: tuple[str, ...]
    schemes: Mapping[str, tuple[str, bool, int]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return it as `plan.json` has it: `schemes` only where there are any."""
        value = {"scheme": self.scheme, "group_size": self.group_size, "ignore": list(self.ignore)}
        return value | ({"schemes": {key: list(each) for key, each in self.schemes.items()}} if self.schemes else {})


def write_plans(file: Path, asked: Question, plans: Mapping[str, Plan]) -> None:
    """Write `plan.json`; `read_plan` inverts it, but for the order of layers."""
    value = {
        "generator": "requant plan --record",
        "asked": asked.as_json(),
        **{target: _as_json(plan) for target, plan in plans.items()},
    }
    file.write_text(_pretty(value))


def read_plan(file: Path, target: str, asked: Question) -> Plan:
    """Read one target's plan. Raises RecipeError where there is none, it cannot be read, or another recipe's."""
    advice = f"Ask for it: requant plan {file.parent} --record"
    try:
        value = strict_json(read_whole(file, MAX_INDEX))
        if value["asked"] != asked.as_json():
            raise RecipeError(
                f"{file}: was asked for with {reprlib.repr(value['asked'])}, the recipe says {asked.as_json()}", advice
            )
        if target not in value:
            raise NotPlannedError(f"{file}: no plan of {target}", advice)
        return _from_json(value[target])
    except OSError as error:
        raise RecipeError(f"{file}: {error.strerror}", advice) from None
    except (AttributeError, CheckpointError, LookupError, TypeError, ValueError) as error:
        raise RecipeError(f"{file}: no plan of {target} that can be read: {error!r}", advice) from None


def read_tensors(file: Path) -> Specs:
    """Return the tensors of a plan's base, whatever it was asked for with. Raises RecipeError where it has none."""
    try:
        return _tensors(strict_json(read_whole(file, MAX_INDEX))[BASE])
    except (AttributeError, CheckpointError, LookupError, OSError, TypeError, ValueError) as error:
        raise RecipeError(f"{file}: no tensors of a base: {error!r}") from None


def differences(planned: Plan, found: Plan) -> list[str]:
    """Say in what a quantizer's answer differs from what was planned: packed layers, blocks, tensors."""
    said = [f"{name}: packed, and not planned" for name in found.packed.keys() - planned.packed.keys()]
    said += [f"{name}: planned, and not packed" for name in planned.packed.keys() - found.packed.keys()]
    for name in planned.packed.keys() & found.packed.keys():
        said += _unlike(name, planned.packed[name], found.packed[name])
    for name in planned.tensors.keys() | found.tensors.keys():
        said += _unlike(name, planned.tensors.get(name), found.tensors.get(name))
    if planned.blocks != found.blocks:
        said.append("blocks: other ones, or in another order")
    return sorted(said)


def _unlike(name: str, planned: object, found: object) -> list[str]:
    return [] if planned == found else [f"{name}: is {found}, planned {planned}"]


def _as_json(plan: Plan) -> dict[str, Any]:
    layers = {
        name: (layer.shape, layer.reason, _relative(name, layer.source), *([astuple(layer.own)] if layer.own else []))
        for name, layer in plan.layers.items()
    }
    elsewhere = {name: _relative(name, source) for name, source in plan.elsewhere.items()}
    return {
        "versions": dict(plan.versions),
        "blocks": [str(each) for each in fold(dict.fromkeys(plan.blocks, None))],
        "tensors": [[str(each), each.value.dtype, list(each.value.shape)] for each in fold(plan.tensors)],
        "layers": [[str(each), *each.value] for each in fold(layers)],
        "unloaded": [str(each) for each in fold(dict.fromkeys(sorted(plan.unloaded), None))],
        "tied": dict(plan.tied),
        **({"elsewhere": [[str(each), *(each.value or ())] for each in fold(elsewhere)]} if elsewhere else {}),
    }


def _relative(name: str, source: Source | None) -> tuple[Any, ...] | None:
    """Return a source by the numbers of the layer's name, so that layers of one template have one source.

    `{0}` stands for the first number of the name. It is a tensor, an index, and what `Source` has beside.
    """
    if source is None:
        return None
    numbers = NUMBER.findall(name)
    left = list(range(len(numbers)))

    def place(number: str) -> str:
        found = next((each for each in left if numbers[each] == number), None)
        if found is None:
            return number
        left.remove(found)
        return f"{{{found}}}"

    tensor = NUMBER.sub(lambda match: place(match[0]), source.tensor)
    index = tuple(place(str(each)) for each in source.index)
    return (tensor, index, source.part, source.parts, source.interleaved, source.transposed)


def _absolute(name: str, relative: Any) -> Source | None:
    if relative is None:
        return None
    numbers = NUMBER.findall(name)
    tensor, index, part, parts, interleaved, transposed = relative
    kinds = (str, list, int, int, bool, bool)
    if tuple(map(type, relative)) != kinds or not 0 <= part < parts:
        raise ValueError(f"no source: {reprlib.repr(relative)}")

    def filled(text: str) -> str:  # str.format would also obey a stranger's widths
        return _PLACE.sub(lambda match: numbers[int(match[1])], text)

    return Source(filled(tensor), tuple(int(filled(each)) for each in index), part, parts, interleaved, transposed)


def _shape(value: Any) -> tuple[int, ...]:
    if type(value) is not list or not all(type(each) is int and 0 <= each < 1 << 63 for each in value):
        raise ValueError(f"no shape: {reprlib.repr(value)}")
    return tuple(value)


def _spec(dtype: Any, shape: Any) -> Spec:
    if dtype not in ITEM_BITS:
        raise ValueError(f"no dtype: {reprlib.repr(dtype)}")
    return Spec(dtype, _shape(shape))


def _layer(name: str, shape: Any, reason: Any, relative: Any, own: Any = None) -> Layer:
    rows, columns = _shape(shape)
    return Layer((rows, columns), _text(reason), _absolute(name, relative), None if own is None else _own(*own))


def _own(bits: Any, group_size: Any, symmetric: Any, reason: Any) -> Own:
    found = (bits, group_size, symmetric)
    if tuple(map(type, found)) != (int, int, bool) or bits not in BITS or not (group_size == -1 or group_size > 0):
        raise ValueError(f"no way to pack a layer: {reprlib.repr(found)}")
    return Own(bits, group_size, symmetric, _text(reason))


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"no text: {reprlib.repr(value)}")
    return value


def _texts(value: Any) -> dict[str, str]:
    return {key: _text(each) for key, each in value.items()}


def _tensors(value: Mapping[str, Any]) -> Specs:
    return unfold(parse(name, _spec(dtype, shape)) for name, dtype, shape in value["tensors"])


def _elsewhere(value: Any) -> dict[str, Source]:
    found = unfold(parse(name, rest) for name, *rest in value).items()
    return {name: source for name, relative in found if (source := _absolute(name, relative))}


def _from_json(value: Mapping[str, Any]) -> Plan:
    layers = unfold(parse(name, rest) for name, *rest in value["layers"])
    return Plan(
        versions=_texts(value["versions"]),
        tensors=_tensors(value),
        blocks=tuple(unfold(parse(name, None) for name in value["blocks"])),
        layers={name: _layer(name, *rest) for name, rest in layers.items()},
        unloaded=frozenset(unfold(parse(name, None) for name in value["unloaded"])),
        tied=_texts(value["tied"]),
        elsewhere=_elsewhere(value.get("elsewhere", [])),
    )


def _pretty(value: Mapping[str, Any]) -> str:
    """Return JSON with a line for each template, so that a person can read it and git compares it."""

    def text(each: Any, indent: str) -> str:
        inside = indent + " "
        if isinstance(each, dict) and each:
            rows = [f"{inside}{json.dumps(key)}: {text(value, inside)}" for key, value in each.items()]
            return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
        if isinstance(each, list) and any(isinstance(one, list) for one in each):
            return "[\n" + ",\n".join(f"{inside}{json.dumps(one)}" for one in each) + f"\n{indent}]"
        return json.dumps(each)

    return text(value, "") + "\n"
