"""`plan RECIPE`: every tensor before and after, from the base's `config.json` alone; no weight is read."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from requant.checkpoint.safetensors import Spec
from requant.model.base_config import base_config
from requant.model.inventory import (
    MTP,
    VISUAL,
    Specs,
    base_tensors,
    extra_tensors,
    linears,
    main_tensors,
    mtp_linears,
    quantized,
)
from requant.model.tables import confirm_layers, table_of
from requant.model.tiny import config as tiny_config
from requant.recipe import Recipe


@dataclass(frozen=True)
class Size:
    """How much a set of tensors is."""

    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Plan:
    """What a recipe makes of a base: the tensors of the base, of the main shards and of the extra file.

    `linears` counts the linear layers that AutoRound sees, `quantized` those of them that become INT4.
    """

    recipe: str
    base: str
    before: Specs
    main: Specs
    extras: Specs
    linears: int
    quantized: int

    @property
    def sizes(self) -> dict[str, Size]:
        """What the base and the checkpoint weigh, in parts, in the order in which a person reads them.

        A part of `after` is counted with its packed words, so that its parameters are not those of the base.
        """
        after = self.main | self.extras
        return {
            "base": _size(self.before),
            **{f"base, {part}": _size(specs) for part, specs in _parts(self.before).items()},
            "checkpoint": _size(after),
            **{f"checkpoint, {part}": _size(specs) for part, specs in _parts(after).items()},
            "main shards": _size(self.main),
            "model_extra_tensors.safetensors": _size(self.extras),
        }

    def as_json(self, layers: bool = False) -> dict[str, Any]:
        """Return the plan as `--json` prints it: the checkpoint's tensors in templates, or with `layers` each one."""
        return {
            "recipe": self.recipe,
            "base": self.base,
            "linear_layers": self.linears,
            "quantized_layers": self.quantized,
            "sizes": {name: vars(size) for name, size in self.sizes.items()},
            "tensors": {
                file: {name: [spec.dtype, list(spec.shape)] for name, spec in specs.items()}
                if layers
                else [vars(each) for each in templates(specs)]
                for file, specs in (("main", self.main), ("extras", self.extras))
            },
        }


@dataclass(frozen=True)
class Template:
    """Tensors of one dtype and shape whose names differ in numbers: `model.layers.{0..2,4..6}.mlp.experts.{0..255}.up`.

    Every number of a brace goes with every one of the others, so `count` is the product of their sizes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    count: int


def templates(specs: Specs) -> list[Template]:
    """Fold tensors into templates, in the order of the first of each."""
    alike: dict[tuple[str, Spec], list[tuple[int, ...]]] = {}
    for name, spec in specs.items():
        numbers = tuple(map(int, _NUMBER.findall(name)))
        alike.setdefault((_NUMBER.sub("{}", name.replace("{", "{{").replace("}", "}}")), spec), []).append(numbers)
    return [
        Template(name.format(*map(_ranges, sets)), spec.dtype, spec.shape, prod(map(len, sets)))
        for (name, spec), numbers in alike.items()
        for sets in _products(numbers)
    ]


_NUMBER = re.compile(r"(?<=\.)(?:0|[1-9]\d*)(?=\.)")


def _products(numbers: list[tuple[int, ...]]) -> Iterator[list[list[int]]]:
    """Split tuples of one length into sets that are whole products."""
    sets = [sorted(set(column)) for column in zip(*numbers, strict=True)]
    if prod(map(len, sets)) == len(numbers):
        yield sets
        return
    rests: dict[int, list[tuple[int, ...]]] = {}
    for first, *rest in numbers:
        rests.setdefault(first, []).append(tuple(rest))
    alike: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for first, each in rests.items():
        alike.setdefault(tuple(sorted(each)), []).append(first)
    for inner, firsts in alike.items():
        for products in _products(list(inner)):
            yield [sorted(firsts), *products]


def _ranges(numbers: list[int]) -> str:
    """Return `{0..2,4}` for 0, 1, 2 and 4, and a lone number as it is."""
    if len(numbers) == 1:
        return str(numbers[0])
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return "{" + ",".join("..".join(map(str, run)) for run in runs) + "}"


def plan(recipe: Recipe, tiny: str | None = None) -> Plan:
    """Return what the recipe makes of its base, or of the tiny model of a size in `SIZES`.

    Raises what `confirmed_config` raises.
    """
    config = confirmed_config(recipe, tiny)
    ignore, group_size = recipe.layers.ignore, recipe.scheme.group_size
    return Plan(
        recipe=recipe.name,
        base=f"{recipe.base.repository}@{recipe.base.revision}" if tiny is None else f"tiny model {tiny}",
        before=base_tensors(config),
        main=main_tensors(config, ignore, group_size),
        extras=extra_tensors(config, ignore, group_size, recipe.mtp.policy),
        linears=len(linears(config)),
        quantized=len(quantized(config, ignore)),
    )


def confirmed_config(recipe: Recipe, tiny: str | None) -> dict[str, Any]:
    """Return the `config.json` of the recipe's base, or of its tiny model, which the recipe is held against.

    Raises RecipeError where it cannot be read, its pins are another base's, or the recipe does not fit its layers;
    CheckpointError where it is of another kind.
    """
    config = base_config(recipe) if tiny is None else tiny_config(tiny)
    confirm_layers(recipe, table_of(str(config.get("model_type"))), [*linears(config), *mtp_linears(config)])
    return config


def _parts(specs: Specs) -> dict[str, Specs]:
    def part(name: str) -> str:
        return "visual tower" if name.startswith(VISUAL) else "MTP" if name.startswith(MTP) else "language model"

    parts: dict[str, Specs] = {"language model": {}, "visual tower": {}, "MTP": {}}
    for name, spec in specs.items():
        parts[part(name)][name] = spec
    return parts


def _size(specs: Specs) -> Size:
    return Size(len(specs), sum(spec.size for spec in specs.values()), sum(spec.nbytes for spec in specs.values()))
