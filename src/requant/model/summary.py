"""`plan RECIPE`: every tensor before and after, from the base's `config.json` alone; no weight is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from requant.checkpoint.safetensors import Spec
from requant.model.plan import Specs
from requant.model.target import target_of
from requant.model.templates import Template, fold
from requant.recipe import Recipe


@dataclass(frozen=True)
class Size:
    """How much a set of tensors is."""

    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Alike:
    """Tensors of one dtype and shape whose names differ in numbers: `model.layers.{0..2,4}.mlp.up_proj.weight`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    count: int


@dataclass(frozen=True)
class Summary:
    """What a recipe makes of a base: the tensors of the base, of the main shards and of the extra file.

    `linears` counts the linear layers that AutoRound sees, `quantized` those of them that become codes, in `schemes`.
    """

    recipe: str
    base: str
    extras_of: Mapping[str, str]
    before: Specs
    main: Specs
    extras: Specs
    linears: int
    quantized: int
    schemes: tuple[str, ...]

    @property
    def sizes(self) -> dict[str, Size]:
        """What the base and the checkpoint weigh, in parts, in the order in which a person reads them.

        A part of `after` is counted with its packed words, so that its parameters are not those of the base.
        """
        after = self.main | self.extras
        return {
            "base": _size(self.before),
            **{f"base, {part}": _size(specs) for part, specs in _parts(self.before, self.extras_of).items()},
            "checkpoint": _size(after),
            **{f"checkpoint, {part}": _size(specs) for part, specs in _parts(after, self.extras_of).items()},
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
            "schemes": list(self.schemes),
            "sizes": {name: vars(size) for name, size in self.sizes.items()},
            "tensors": {
                file: {name: [spec.dtype, list(spec.shape)] for name, spec in specs.items()}
                if layers
                else [vars(_alike(each)) for each in fold(specs)]
                for file, specs in (("main", self.main), ("extras", self.extras))
            },
        }


def summarize(recipe: Recipe, tiny: str | None = None) -> Summary:
    """Return what the recipe makes of its base, or of the tiny model of a size in `SIZES`.

    Raises what `target_of` raises.
    """
    target = target_of(recipe, tiny)
    return Summary(
        recipe=recipe.name,
        base=f"{recipe.base.repository}@{recipe.base.revision}" if tiny is None else f"tiny model {tiny}",
        extras_of=dict(target.table.extras),
        before=target.plan.tensors,
        main=target.main,
        extras=target.extras,
        linears=len(target.plan.layers),
        quantized=len(target.plan.packed),
        schemes=tuple(dict.fromkeys((recipe.scheme.name, *(own.name for own in recipe.layers.schemes.values())))),
    )


def _alike(template: Template[Spec]) -> Alike:
    return Alike(str(template), template.value.dtype, template.value.shape, template.count)


def _parts(specs: Specs, extras: Mapping[str, str]) -> dict[str, Specs]:
    parts: dict[str, Specs] = {"language model": {}, **{_TITLES.get(part, part): {} for part in extras}}
    for name, spec in specs.items():
        part = next((part for part, prefix in extras.items() if name.startswith(prefix)), "")
        parts[_TITLES.get(part, part) or "language model"][name] = spec
    return parts


_TITLES = {"visual": "visual tower", "mtp": "MTP"}


def _size(specs: Specs) -> Size:
    return Size(len(specs), sum(spec.size for spec in specs.values()), sum(spec.nbytes for spec in specs.values()))
