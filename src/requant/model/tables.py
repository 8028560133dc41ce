"""The little that neither a model's `config.json` nor the quantizer says: one table per architecture, in `tables/`.

What loaders make of a model decides which layers a recipe may keep float. That is held against the layers that the base
has, so it is known where the base's configuration is; what is wrong in a recipe of whatever base, `recipe.py` refuses.
"""

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from typing import Any

from requant.errors import RecipeError
from requant.model.part import Part
from requant.mtp_blocks import MTP_BLOCKS, MtpBlock
from requant.recipe import Recipe

PACKING = ("rtn", "calibrated")
"""The values of `mtp.policy` by which the MTP block becomes codes."""


@dataclass(frozen=True)
class Table:
    """What is known of one `model_type`; of one that is not modelled, nothing.

    `fused` are ends of layers' names: each set of layers that loaders make one module of. `experts` is the part of a
    name that layers of fused experts share, "" where there are none. `extras` are the prefixes of what AutoRound does
    not tune: `visual`, `mtp`. `mtp` is where a base's MTP block lies, whether it has one or not. `routers` are patterns
    of tensors that a loader takes for layers, `aliases` a layer's part and the name under which a loader asks for the
    layer that it makes of it. `processor` is the class that reads the base's two preprocessor files,
    `zero_centred` says that the class stores the scale of a norm less one.
    """

    model_type: str
    fused: tuple[tuple[str, ...], ...] = ()
    experts: str = ""
    extras: Mapping[str, str] = field(default_factory=dict)
    mtp: MtpBlock | None = None
    routers: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    processor: str = ""
    zero_centred: bool = False


def table_of(config: Mapping[str, Any]) -> Table:
    """Return what is known of a configuration's architecture; an empty table where it is not modelled.

    Nothing is known of an MTP block that is numbered on from layers whose number is not stated. Raises RecipeError
    where that is no number.
    """
    kind = str(config.get("model_type"))
    found = _tables().get(kind) or Table(kind)
    if kind not in MTP_BLOCKS:
        return found
    mtp, layers = MTP_BLOCKS[kind], 0
    if mtp.is_numbered and not (layers := Part(config, "").language.layers or 0):
        return found
    mtp = mtp.behind(layers)
    return replace(found, mtp=mtp, extras={**found.extras, "mtp": mtp.prefix})


def ignored(name: str, ignore: tuple[str, ...]) -> bool:
    """Say whether AutoRound's `ignore_layers` keeps the layer `name`: a pattern keeps every name it is part of.

    Source: `get_fp_layer_names` of auto_round/utils (0.12.2 and 2dda035).
    """
    return any(pattern in name for pattern in ignore)


@cache
def _tables() -> dict[str, Table]:
    found: dict[str, Table] = {}
    for file in resources.files("requant.model").joinpath("tables").iterdir():
        value = tomllib.loads(file.read_text())
        for model_type in value["model_types"]:
            found[model_type] = Table(
                model_type,
                fused=tuple(map(tuple, value["fused"])),
                experts=value["experts"],
                extras=value["extras"],
                routers=tuple(value.get("routers", ())),
                aliases=value.get("aliases", {}),
                processor=value.get("processor", ""),
                zero_centred=value.get("zero_centred", False),
            )
    return found


def confirm_layers(recipe: Recipe, table: Table, layers: Collection[str]) -> None:
    """Raise RecipeError where the recipe does not fit the base, whose linear layers, MTP's too, are `layers`.

    A pattern of `layers.ignore` is part of some layer's name: AutoRound only warns. Layers that loaders fuse stay float
    together (defect D06), and no expert does alone (D17). `mtp.policy` is `none` where there is no such block, and
    nowhere else. What is copied anyway, such as MTP under `bf16`, may be ignored as it likes.
    """
    ignore, policy = recipe.layers.ignore, recipe.mtp.policy
    mtp = table.mtp
    if mtp and any(name.startswith(mtp.prefix) for name in layers):
        if policy == "none":
            allowed = f"bf16, rtn or calibrated: the base has an MTP block, {mtp.prefix}*"
            raise recipe.refusal("mtp.policy", policy, allowed)
    elif policy != "none":
        raise recipe.refusal("mtp.policy", policy, "none: no MTP block is known of the base")
    for pattern in ignore:
        if not any(pattern in name for name in layers):
            raise RecipeError(f"{recipe.path}: layers.ignore: {pattern!r} is part of no layer's name")
    copied = tuple(prefix for part, prefix in table.extras.items() if part != "mtp" or policy not in PACKING)
    kept = {name: ignored(name, ignore) for name in layers if not name.startswith(copied)}
    for group in table.fused:
        for parent in {name.removesuffix(part) for part in group for name in kept if name.endswith(f".{part}")}:
            if len({kept[f"{parent}{part}"] for part in group if f"{parent}{part}" in kept}) == 2:
                allowed = f"{' and '.join(group)} alike: loaders fuse them (defect D06)"
                raise recipe.refusal("layers.ignore", list(ignore), allowed)
    if table.experts and any(kept[name] for name in kept if f".{table.experts}." in name):
        allowed = f"nothing of {table.experts}: loaders read no override there (defect D17)"
        raise recipe.refusal("layers.ignore", list(ignore), allowed)
    if mtp and policy in PACKING and not ignored(mtp.floats, ignore):
        allowed = f'bf16, or "{mtp.floats}" in layers.ignore: loaders read {mtp.floats} as float only (defect D08)'
        raise recipe.refusal("mtp.policy", policy, allowed)
