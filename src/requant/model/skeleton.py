"""What a `config.json` of a known architecture means: every tensor of such a model, and each block's kind.

It serves where there is no base to read and no plan: for a stranger's checkpoint. One table per architecture stands in
`skeletons/`. Its shapes are sums and products of the configuration's own numbers. Shapes are in elements, weights are
[out, in].
"""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from math import prod
from typing import Any

from requant.checkpoint.safetensors import Spec
from requant.errors import CheckpointError
from requant.model.plan import Plan, Specs, float_reason
from requant.model.tables import table_of
from requant.protocol import Layer, Source

Shape = tuple[int, int]


@dataclass(frozen=True)
class Skeleton:
    """The tensors in the model's own order, the kind of each block by its name, and what blocks of a kind hold."""

    tensors: Specs = field(default_factory=dict)
    blocks: Mapping[str, str] = field(default_factory=dict)
    inside: Mapping[str, Specs] = field(default_factory=dict)
    table: Mapping[str, Any] = field(default_factory=dict)

    def layers(self, tensors: Specs, reason: Callable[[str, Shape], str] = lambda *_: "") -> dict[str, Layer]:
        """Return the linear layers whose weights lie in these tensors of the model, or of one of its blocks.

        `reason` says of a layer why it is not packed.
        """
        found: dict[str, Layer] = {}
        split: Mapping[str, list[str]] = self.table["split"]
        for name, spec in tensors.items():
            parts = next((split[end] for end in split if name.endswith(f".{end}")), [])
            experts = name.rpartition(".")[0]
            for expert in range(spec.shape[0] if parts else 0):
                for number, part in enumerate(parts):
                    layer, shape = f"{experts}.{expert}.{part}", (spec.shape[1] // len(parts), spec.shape[2])
                    found[layer] = Layer(shape, reason(layer, shape), Source(name, (expert,), number, len(parts)))
            if name.endswith(".weight") and not name.endswith(tuple(self.table["float"])) and len(spec.shape) == 2:
                layer, shape = name.removesuffix(".weight"), (spec.shape[0], spec.shape[1])
                found[layer] = Layer(shape, reason(layer, shape), Source(name))
        return found


def is_modelled(config: Mapping[str, Any]) -> bool:
    """Say whether there is a table for a configuration's `model_type`."""
    return config.get("model_type") in (*tables(),)


def skeleton(config: Mapping[str, Any]) -> Skeleton:
    """Return what a configuration means whose architecture is modelled.

    Raises CheckpointError where it lacks a field, or gives a tensor an impossible shape.
    """
    table = tables()[config["model_type"]]
    try:
        return _skeleton(table, _Numbers(config, table))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"config.json: no configuration of {config['model_type']}: {error!r}") from None


def plan(config: Mapping[str, Any], ignore: tuple[str, ...]) -> Plan:
    """Return the plan of a base that nobody asked the quantizer about; raises what `skeleton` raises.

    `ignore` are parts of the names of layers that stay float.
    """
    found, extras = skeleton(config), table_of(config).extras
    blocks = tuple(name for name in found.blocks if not name.startswith(tuple(extras.values())))
    inside = tuple(f"{block}." for block in blocks)
    loaded = {name: spec for name, spec in found.tensors.items() if not name.startswith(extras["mtp"])}

    def reason(name: str, shape: Shape) -> str:
        return float_reason(name, shape, ignore) if name.startswith(inside) else "outside the blocks"

    unloaded = frozenset(found.tensors.keys() - loaded.keys())
    return Plan({}, found.tensors, blocks, found.layers(loaded, reason), unloaded)


@cache
def tables() -> Mapping[str, Mapping[str, Any]]:
    """Return the tables of all architectures that are modelled, by `model_type`."""
    files = resources.files("requant.model").joinpath("skeletons").iterdir()
    return {file.name.removesuffix(".toml"): tomllib.loads(file.read_text()) for file in files}


def _skeleton(table: Mapping[str, Any], numbers: "_Numbers") -> Skeleton:
    for name, most in table["limits"].items():
        if (found := numbers.one(name)) > most:
            raise ValueError(f"{name}: found {found:.3g}, expected {most:,} at most")
    absent = [prefix for prefix, name in table["where"].items() if numbers.one(name) <= 0]
    absent += [prefix for prefix, name in table["unless"].items() if numbers.one(name)]
    tensors, blocks, inside = Specs(), dict[str, str](), dict[str, Specs]()
    for line, said in table["model"].items():
        if line.startswith(tuple(absent)):
            continue
        if isinstance(said, str):
            tensors |= numbers.specs({line: said})
            continue
        for number, kind in enumerate(numbers.kinds(*said)):
            if kind not in inside:
                parts = [part for part in table["blocks"] if kind in part["kinds"]]
                inside[kind] = numbers.specs({key: part[key] for part in parts for key in part if key != "kinds"})
            block = line.replace("*", str(number))
            blocks[block] = kind
            tensors |= {f"{block}.{name}": spec for name, spec in inside[kind].items()}
    return Skeleton(tensors, blocks, inside, table)


@dataclass(frozen=True)
class _Numbers:
    """What a table's names stand for in a configuration. What is not there, or no such number, raises."""

    config: Mapping[str, Any]
    table: Mapping[str, Any]

    def specs(self, lines: Mapping[str, str]) -> Specs:
        """Return the tensors of lines of the table."""
        found = Specs()
        for line, said in lines.items():
            name, _, bias = line.partition("+")
            shape = tuple(map(self.sum, said.split(",")))
            if min(shape) <= 0:
                raise ValueError(f"{name} would have the shape {shape}")
            found[name] = Spec(self.table["dtype"], shape)
            if bias:
                found[f"{name.rpartition('.')[0]}.{bias}"] = Spec(self.table["dtype"], shape[:1])
        return found

    def kinds(self, count: str, *kinds: str) -> list[str]:
        """Return the kind of each of so many blocks, as the configuration lists them."""
        every = self.one(self.table["every"])
        usual = [kinds[0] if i % every else kinds[-1] for i in range(1, self.one(count) + 1)]
        found = list(self._value(self.table["listed"], usual)) if len(kinds) > 1 else usual
        if len(found) != len(usual) or not {*found} <= {*kinds}:
            expected = f"expected {len(usual)} of {' or '.join(kinds)}"
            raise ValueError(f"{self.table['listed']}: found {found!r:.80}, {expected}")
        return found

    def sum(self, text: str) -> int:
        """Return a sum of products of numbers."""
        return sum(prod(self.one(each.strip()) for each in term.split("*")) for term in text.split("+"))

    def one(self, name: str) -> int:
        """Return a number: the name itself, a width of the table's own, or what the configuration has by this name."""
        if name.isdecimal():
            return int(name)
        if name in self.table["widths"]:
            return self.sum(self.table["widths"][name])
        default = self.table["defaults"].get(name)
        found = self._value(name, default)
        if type(found) is not type(0 if default is None else default):
            raise TypeError(f"{name}: found {found!r:.80}")
        return int(found)

    def _value(self, name: str, default: Any) -> Any:
        part, _, key = name.rpartition(".")
        inside = self.config[f"{part or 'text'}_config"]
        return inside[key] if default is None else inside.get(key, default)
