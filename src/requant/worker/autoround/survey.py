"""Asks what the quantizer does with a base of any size: which layers it packs, and where in the base each lies.

No weight is loaded and nothing is guessed from names. The model of `config.json` stands on meta; AutoRound is made as
for a tuning and stopped where it has decided about layers, before it would run the model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from requant.errors import BuildError
from requant.protocol import BASE, Answer, Layer, Model, Own, Survey
from requant.recipe import Recipe
from requant.worker.autoround import hooks, scaling, sources, tensors, tuning
from requant.worker.autoround.calibration import Tokens
from requant.worker.autoround.series import installed


class _DecidedError(Exception):
    """AutoRound has decided about layers: it need not go on."""


@dataclass(frozen=True)
class _Asked:
    """A model, and what is to be said of it; the layers' sources are not known yet."""

    architecture: str
    config: Path
    answer: Answer
    floats: Mapping[str, tuple[int, ...]]

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        return {name: layer.shape for name, layer in self.answer.layers.items()}

    @property
    def numbers(self) -> int:
        return sum(prod(shape) for _, shape in self.answer.tensors.values())


def ask(task: Survey, recipe: Recipe, folder: Path) -> dict[str, Answer]:
    """Return what would be done to each model that is asked about; `folder` is made for small ones with weights.

    Raises BuildError for a model that transformers or AutoRound does not take, or of which too little is known.
    """
    base: tensors.Base | None = None
    found: dict[str, _Asked] = {}

    def last(model: tuple[str, Model]) -> tuple[bool, bool]:
        return model[0] != BASE, model[1].tensors is None

    for name, asked in sorted(task.models.items(), key=last):
        model = tensors.instantiate(Path(asked.config))
        architecture = type(model).__name__
        if asked.tensors is not None:
            there, table = tensors.read(model, asked.tensors), asked.tensors
            unloaded = there.unloaded
            base = there if name == BASE else base
        elif base is None or base.architecture != architecture:
            raise BuildError(f"{name}: has no tensors, and there is no base of its class to tell which it would have")
        else:
            there = base
            table, unloaded = scaling.scaled(model, base)
        tied = tensors.tied(model, there)
        blocks, layers, floats = _decided(model, recipe)
        # What a file has under the model's own name is loaded as it stands: `tensors.read` held their shapes.
        strange = {each: shape for each, shape in floats.items() if each not in table and each not in tied}
        answer = Answer(table, blocks, layers, unloaded, tied, {})
        found[name] = _Asked(architecture, Path(asked.config), answer, strange)
    placed = _sources(found, folder)
    return {name: _placed(found[name], placed[name]) for name in task.models}


def _decided(model: Any, recipe: Recipe) -> tuple[tuple[str, ...], dict[str, Layer], dict[str, tuple[int, ...]]]:
    """Return the blocks in the order of tuning, all linear layers without their sources, and shapes of float tensors.

    `configure_layer_config` is where AutoRound decides, after its replacements of modules and before it runs
    the model; asked earlier it does not know the experts of Qwen3-MoE.
    """
    # AutoRound takes a model on meta where it says where its weights are.
    model.path = model.name_or_path
    effort = replace(recipe.effort(tiny=True), device="cpu")
    autoround = tuning.tuner(model, object(), Tokens([]).batches(recipe.tuning.batch_size), recipe, effort)
    decide = autoround.configure_layer_config

    def configure(*args: Any, **kwargs: Any) -> None:
        decide(*args, **kwargs)
        raise _DecidedError

    autoround.configure_layer_config = configure
    try:
        autoround.quantize_and_save("", format=recipe.scheme.format)
    except _DecidedError:
        blocks = tuple(installed().blocks(autoround))
        kinds, schemes = autoround.supported_types, autoround.layer_config
        layers = {}
        for name, module in autoround.model.named_modules():
            if type(module) in kinds:
                (rows, columns), scheme = sources.weight(module).shape, schemes.get(name, {})
                packed = int(scheme.get("bits") or 16) <= 8
                reason = "" if packed else _reason(name, (rows, columns), scheme, recipe.layers.ignore)
                layers[name] = Layer((rows, columns), reason, None, _own(name, scheme, recipe) if packed else None)
        codes = {f"{name}.weight" for name, layer in layers.items() if layer.packed}
        state = autoround.model.state_dict()
        return blocks, layers, {name: tuple(each.shape) for name, each in state.items() if name not in codes}
    raise BuildError("AutoRound decided about no layer", "Report this with the log.")


def _own(name: str, scheme: Mapping[str, Any], recipe: Recipe) -> Own | None:
    """Return how AutoRound packs a layer of which a pattern asks something, or that is not as the recipe says."""
    found = hooks.stored(scheme)
    if matching := [pattern for pattern in recipe.layers.schemes if pattern in name]:
        return Own(*found, f"asked for by the recipe's pattern {matching[0]}")
    asked = recipe.scheme.bits, recipe.scheme.group_size, recipe.scheme.symmetric
    return Own(*found, "by AutoRound's own rules") if found != asked else None


def _reason(name: str, shape: tuple[int, int], scheme: Mapping[str, Any], ignore: tuple[str, ...]) -> str:
    if not scheme.get("in_blocks"):
        return "outside the blocks"
    if matching := [pattern for pattern in ignore if pattern in name]:
        return f"ignored by the recipe's pattern {matching[0]}"
    if any(width % 32 for width in shape):
        return "a width that is no multiple of 32"
    return "left alone by AutoRound's own rules"


def _sources(asked: Mapping[str, _Asked], folder: Path) -> dict[str, sources.Sources]:
    """Return the sources of all models: small ones are counted through, large ones follow a small one."""
    small = {name: each for name, each in asked.items() if each.numbers <= sources.MAX_NUMBERS}
    found: dict[str, sources.Sources] = {
        name: sources.counted(each.config, each.answer.tensors, [*each.shapes, *each.floats], folder / name)
        for name, each in small.items()
    }
    for name, each in asked.items():
        if name not in found:
            like = [other for other in small if small[other].architecture == each.architecture]
            if not like:
                raise BuildError(
                    f"{name}: has {each.numbers:,} numbers, and there is no smaller model of its class",
                    f"Ask with one of {sources.MAX_NUMBERS:,} numbers at most.",
                )
            found[name] = sources.general([*each.shapes, *each.floats], found[like[0]])
        sources.confirm(each.shapes, found[name], each.answer.tensors)
    return found


def _placed(asked: _Asked, found: sources.Sources) -> Answer:
    """Return the answer with all sources, layers in the order in which they lie in the base."""
    answer = asked.answer
    places = {name: number for number, name in enumerate(answer.tensors)}

    def place(name: str) -> tuple[Any, ...]:
        source = found[name]
        return (places[source.tensor], source.index, source.part) if source else (len(places),)

    layers = {name: replace(answer.layers[name], source=found[name]) for name in sorted(answer.layers, key=place)}
    elsewhere = {name: source for name in asked.floats if (source := found[name])}
    return replace(answer, layers=layers, elsewhere=elsewhere)
