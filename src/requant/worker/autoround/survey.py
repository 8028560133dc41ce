"""Asks what the quantizer does with a base of any size: which layers it packs, and where in the base each lies.

No weight is loaded and nothing is guessed from names. The model of `config.json` stands on meta; AutoRound is made as
for a tuning and stopped where it has decided about layers, before it would run the model.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from requant.errors import BuildError
from requant.recipe import Recipe
from requant.worker.autoround import scaling, sources, tensors, tuning
from requant.worker.autoround.calibration import Tokens

BASE = "base"
"""The target whose files are there; what others would hold is told by it."""


class _DecidedError(Exception):
    """AutoRound has decided about layers: it need not go on."""


@dataclass(frozen=True)
class _Answer:
    """What is said of a target."""

    architecture: str
    config: Path
    tensors: tensors.Table
    unloaded: tuple[str, ...]
    tied: Mapping[str, str]
    blocks: list[str]
    layers: dict[str, dict[str, Any]]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(layer["shape"]) for name, layer in self.layers.items()}

    @property
    def numbers(self) -> int:
        return sum(prod(shape) for _, shape in self.tensors.values())


def ask(folder: Path, recipe: Recipe) -> None:
    """Answer what `survey` of `request.json` asks in `survey.json`.

    Asked is, by target, `config`, a folder with a `config.json`, and `tensors`: name to dtype and shape of the base's
    files, or null for a model that has none yet. Answered is, by target, `tensors`; `blocks` in the order of tuning;
    `layers`, as they lie in the base: name to `shape` [out, in], `bits`, `reason` for what is not packed, and `source`
    (`sources.Source`, or null); `unloaded`, tensors that transformers does not load; and `tied`, those that others
    stand for.
    """
    asked = json.loads((folder / "request.json").read_text())["survey"]
    base: tensors.Base | None = None
    answers: dict[str, _Answer] = {}
    for name in sorted(asked, key=lambda name: (name != BASE, asked[name]["tensors"] is None)):
        config, given = Path(asked[name]["config"]), asked[name]["tensors"]
        model = tensors.instantiate(config)
        if given is not None:
            table = {tensor: (dtype, tuple(shape)) for tensor, (dtype, shape) in given.items()}
            there = tensors.read(model, table)
            unloaded = there.unloaded
            base = there if name == BASE else base
        elif base is None or base.architecture != type(model).__name__:
            raise BuildError(f"{name}: has no tensors, and there is no base of its class to tell which it would have")
        else:
            there = base
            table, unloaded = scaling.scaled(model, base)
        tied = tensors.tied(model, there)
        blocks, layers = _decided(model, recipe)
        answers[name] = _Answer(type(model).__name__, config, table, unloaded, tied, blocks, layers)
    found = _sources(answers, folder / "counted")
    said = {name: _told(answers[name], found[name]) for name in asked}
    (folder / "survey.json").write_text(json.dumps(said))


def _decided(model: Any, recipe: Recipe) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Return the blocks in the order of tuning, and all linear layers: shape, bits and, of 16 bits, the reason.

    `configure_layer_config` is where AutoRound 0.12.2 decides, after its replacements of modules and before it runs
    the model; asked earlier it does not know the experts of Qwen3-MoE.
    """
    # AutoRound takes a model on meta where it says where its weights are.
    model.path = model.name_or_path
    effort = replace(recipe.effort(tiny=True), device="cpu")
    autoround = tuning.tuner(model, object(), Tokens([]).batches(recipe.tuning.batch_size), recipe, effort)
    compressor = type(autoround)  # its own: AutoRound makes a class for each

    def configure(self: Any, *args: Any, **kwargs: Any) -> None:
        super(compressor, self).configure_layer_config(*args, **kwargs)
        raise _DecidedError

    compressor.configure_layer_config = configure
    try:
        autoround.quantize_and_save("", format="auto_round")
    except _DecidedError:
        blocks = [name for names in autoround.quant_block_list for name in names]
        kinds, schemes = autoround.supported_types, autoround.layer_config
        layers = {}
        for name, module in autoround.model.named_modules():
            if type(module) in kinds:
                shape, scheme = list(sources.weight(module).shape), schemes.get(name, {})
                bits = int(scheme.get("bits") or 16)
                reason = "" if bits <= 8 else _reason(name, shape, scheme, recipe.layers.ignore)
                layers[name] = {"shape": shape, "bits": bits, "reason": reason}
        return blocks, layers
    raise BuildError("AutoRound decided about no layer", "Report this with the log.")


def _reason(name: str, shape: list[int], scheme: Mapping[str, Any], ignore: tuple[str, ...]) -> str:
    if not scheme.get("in_blocks"):
        return "outside the blocks"
    if matching := [pattern for pattern in ignore if pattern in name]:
        return f"ignored by the recipe's pattern {matching[0]}"
    if any(width % 32 for width in shape):
        return "a width that is no multiple of 32"
    return "left alone by AutoRound's own rules"


def _sources(answers: Mapping[str, _Answer], folder: Path) -> dict[str, sources.Sources]:
    """Return the sources of all targets: small ones are counted through, large ones follow a small one."""
    small = {name: answer for name, answer in answers.items() if answer.numbers <= sources.MAX_NUMBERS}
    found: dict[str, sources.Sources] = {
        name: sources.counted(answer.config, answer.tensors, answer.shapes, folder / name)
        for name, answer in small.items()
    }
    for name, answer in answers.items():
        if name not in found:
            like = [each for each in small if small[each].architecture == answer.architecture]
            if not like:
                raise BuildError(
                    f"{name}: has {answer.numbers:,} numbers, and there is no smaller model of its class",
                    f"Ask with one of {sources.MAX_NUMBERS:,} numbers at most.",
                )
            found[name] = sources.general(answer.shapes, found[like[0]])
        sources.confirm(answer.shapes, found[name], answer.tensors)
    return found


def _told(answer: _Answer, found: sources.Sources) -> dict[str, Any]:
    places = {name: place for place, name in enumerate(answer.tensors)}

    def place(name: str) -> tuple[Any, ...]:
        source = found[name]
        return (places[source.tensor], source.index, source.part) if source else (len(places),)

    layers = {
        name: {**answer.layers[name], "source": asdict(source) if (source := found[name]) else None}
        for name in sorted(found, key=place)
    }
    return {
        "tensors": answer.tensors,
        "blocks": answer.blocks,
        "layers": layers,
        "unloaded": answer.unloaded,
        "tied": answer.tied,
    }
