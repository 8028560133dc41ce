"""What a repair aims at, read off a broken checkpoint: which layers are packed, what MTP is, what is declared."""

from collections.abc import Iterator, Mapping
from typing import Any

from requant.checkpoint.checkpoint import INDEX, Checkpoint, Tensor
from requant.digest import strict_json
from requant.errors import CheckpointError, NotModelledError
from requant.formats import FORMATS, GPTQ
from requant.formats.form import Form
from requant.inspect.anatomy import LM, MTP, canonical
from requant.inspect.loaders import DEFAULT
from requant.inspect.loaders.modules import modules
from requant.model.skeleton import is_modelled, plan, skeleton, tables
from requant.model.tables import table_of
from requant.model.target import Target
from requant.passes import Mending
from requant.passes.context import EXTRAS

CHOSEN = "chosen.safetensors"
PLAIN = {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "bits": 4, "group_size": 128}
PLAIN |= {"sym": True, "data_type": "int"}
"""What is declared where nothing is: the scheme of every known checkpoint of this kind."""

KINDS: dict[str, tuple[Any, ...]] = {
    "quant_method": ("auto-round",),
    "bits": (4,),
    "group_size": (32, 64, 128),
    "sym": (True,),
    "data_type": ("int",),
}
"""What can be repaired: everything else has other passes than the build's."""


def one_copy(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return each weight once, under the base's name for it: the tuned copy where there are several (D01, D02).

    Tuned is what stands in a main file under its proper name, first of all in the file that the index names;
    AutoRound's second copies stand in the extra file, or under another prefix.
    """
    weight_map = _object(checkpoint, INDEX).get("weight_map")
    named = weight_map if isinstance(weight_map, dict) else {}
    best: dict[str, tuple[tuple[bool, ...], Tensor]] = {}
    for file, tensors in checkpoint.shards.items():
        for name, tensor in tensors.items():
            proper = canonical(name)
            rank = (file != EXTRAS, name == proper, named.get(name) == file)
            if proper not in best or rank > best[proper][0]:
                best[proper] = rank, tensor
    return {name: tensor for name, (_, tensor) in best.items()}


def aim(checkpoint: Checkpoint, weights: Mapping[str, Tensor], base: Checkpoint, policy: str | None) -> Mending:
    """Return what the checkpoint should have been; `policy` is MTP's, None for the one that is found.

    Raises CheckpointError where what it declares cannot be read, NotModelledError where it is of another kind.
    """
    config = _object(base, "config.json")
    if not is_modelled(config):
        found_type = f"base/config.json: model_type: found {config.get('model_type')!r:.80}"
        advice = "Only Qwen3.5-MoE can be repaired."
        raise NotModelledError(f"cannot be repaired: {found_type}, expected {' or '.join(map(repr, tables()))}", advice)
    declared = _declared(checkpoint)
    found = policy or ("rtn" if _packs_mtp(weights) else "bf16")
    main = [file for file, held in checkpoint.shards.items() if file != EXTRAS and any(map(canonical, held))]
    ignore = ("mtp.fc", *_float_layers(config, weights))
    form = Form("auto_round:auto_gptq", declared["bits"], declared["group_size"], declared["sym"])
    return Mending(
        base=base,
        target=Target(plan(config, ignore), table_of(config), ignore, found, form),
        shards=max(1, len(main)),
        declared=declared,
    )


def _packs_mtp(weights: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(MTP) and name.endswith(".qweight") for name in weights)


def _float_layers(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Iterator[str]:
    def is_float(name: str) -> bool:
        return f"{name}.weight" in weights and f"{name}.qweight" not in weights

    model = skeleton(config)
    yield from (name for name in model.layers(model.tensors) if name.startswith(f"{LM}layers.") and is_float(name))
    if _packs_mtp(weights):  # it is made anew, so that what loaders fuse can be made alike
        for module in modules(model, DEFAULT.names):
            if module.name.startswith(MTP) and all(map(is_float, module.parts)):
                yield from module.parts


def _declared(checkpoint: Checkpoint) -> dict[str, Any]:
    inside = _object(checkpoint, "config.json").get("quantization_config")
    found = inside if isinstance(inside, dict) else _object(checkpoint, "quantization_config.json") or PLAIN
    declared = {key: value for key, value in found.items() if key not in ("block_name_to_quantize", "extra_config")}
    if reason := refusal(declared):
        advice = "Only what AutoRound packs as symmetric INT4 can be repaired."
        raise NotModelledError(f"cannot be repaired: {reason}", advice)
    return declared | {key: PLAIN[key] for key in KINDS if key not in declared}


def refusal(declared: Mapping[str, Any]) -> str:
    """Return why a checkpoint that declares this is none that can be repaired; "" where it can."""
    name = declared.get("packing_format")
    if isinstance(name, str) and FORMATS.get(name, GPTQ) != GPTQ:
        return f"quantization_config.packing_format: found {name!r}, expected {PLAIN['packing_format']!r}"
    for key, expected in KINDS.items():
        found = declared.get(key, PLAIN[key])
        if found not in expected:
            return f"quantization_config.{key}: found {found!r:.80}, expected {' or '.join(map(repr, expected))}"
    return ""


def _object(checkpoint: Checkpoint, path: str) -> dict[str, Any]:
    if path not in checkpoint.files:
        return {}
    try:
        value = strict_json(checkpoint.file(path))
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON as requant reads it: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: found {value!r:.80}, expected a JSON object")
    return value
