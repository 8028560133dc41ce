"""What is built, audited or checked: a recipe's base, or a tiny model in its place, with all that is known of it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from requant.checkpoint.checkpoint import Checkpoint
from requant.environment.lock import read_lock
from requant.errors import RecipeError
from requant.formats.form import Form
from requant.model.base_config import base_config
from requant.model.plan import FILE, NotPlannedError, Plan, Question, Specs, read_plan
from requant.model.rules import SIZES
from requant.model.shrink import shrink
from requant.model.tables import PACKING, Table, confirm_layers, ignored, table_of
from requant.model.tiny import stand_in
from requant.protocol import BASE, Layer, Source
from requant.recipe import Recipe


def tiny_model(recipe: Recipe, tiny: str) -> Checkpoint:
    """Return the tiny model of a recipe's base, of a size in `SIZES`; its weights are computed when they are read."""
    target, config = target_of(recipe, tiny), config_of(recipe, tiny)
    plan = target.plan
    return stand_in(tiny, config, plan.tensors, zero_centred=target.table.zero_centred, tied=plan.tied)


@dataclass(frozen=True)
class Target:
    """A plan, and what a recipe makes of it: `ignore` are parts of names of float layers, `policy` is MTP's.

    `form` is how packed layers are stored that have no way of their own.
    """

    plan: Plan
    table: Table
    ignore: tuple[str, ...]
    policy: str
    form: Form

    @cached_property
    def mtp(self) -> dict[str, Layer]:
        """The linear layers of the MTP block, which transformers does not load; packed by a policy in `PACKING`."""
        return self.plan.beside_blocks(self.table.mtp, self.ignore) if self.table.mtp else {}

    @cached_property
    def rounded(self) -> dict[str, Layer]:
        """The layers of the MTP block that are rounded to nearest; none unless the policy is `rtn`."""
        return {name: layer for name, layer in self.mtp.items() if layer.packed} if self.policy == "rtn" else {}

    @cached_property
    def places(self) -> dict[str, Source]:
        """Where in the base layers lie, and what stays float under a name that is not the base's."""
        layers = {**self.plan.layers, **self.mtp}
        return {name: layer.source for name, layer in layers.items() if layer.source} | {**self.plan.elsewhere}

    @cached_property
    def main(self) -> Specs:
        """What the main shards hold in the end, in order."""
        return self.plan.written(filter(self.is_main, self.plan.tensors), self.plan.layers, self.form)

    @cached_property
    def extras(self) -> Specs:
        """What `model_extra_tensors.safetensors` holds in the end, in order."""
        names = (name for name in self.plan.tensors if not self.is_main(name))
        return self.plan.written(names, self.mtp if self.policy in PACKING else {}, self.form)

    @cached_property
    def kept(self) -> Specs:
        """What is kept of AutoRound's own output, in order."""
        return self.main | {name: spec for name, spec in self.extras.items() if self.is_kept(name)}

    def form_at(self, name: str) -> Form:
        """Return how the packed layer is stored that a tensor is part of."""
        layer = self.plan.layers.get(name.rpartition(".")[0])
        return self.form.of(layer) if layer else self.form

    def is_main(self, name: str) -> bool:
        """Say whether a tensor belongs to the language model: neither to a visual tower nor to an MTP block."""
        return not name.startswith(tuple(self.table.extras.values()))

    def is_kept(self, name: str) -> bool:
        """Say whether a tensor is kept as AutoRound wrote it: the language model's, and MTP's where that is tuned."""
        return self.is_main(name) or (self.policy == "calibrated" and name.startswith(self.table.extras["mtp"]))


def target_of(recipe: Recipe, tiny: str | None) -> Target:
    """Return what a recipe makes of its base, or of its tiny model of a size in `SIZES`.

    Raises RecipeError where its plan cannot be read, or the recipe does not fit it.
    """
    if recipe.scheme.format == "auto_gptq":
        lock = read_lock(recipe.lockfiles, recipe.effort(tiny is not None).environment)
        recipe.confirm_export(lock.version("auto-round"))
    table, plan = table_of(config_of(recipe, tiny)), asked_plan(recipe, tiny)
    if recipe.mtp.policy == "calibrated" and table.mtp:
        plan = plan.with_block(table.mtp, recipe.layers.ignore)
    target = Target(plan, table, recipe.layers.ignore, recipe.mtp.policy, form_of(recipe))
    confirm_layers(recipe, table, [*plan.layers, *target.mtp])
    confirm_schemes(recipe, target)
    confirm_groups(recipe, target)
    confirm_names(recipe, target)
    return target


def asked_plan(recipe: Recipe, tiny: str | None) -> Plan:
    """Return what the quantizer said, asked about a recipe's base or tiny model. Raises what `read_plan` raises."""
    return read_plan(recipe.beside(FILE), tiny or BASE, question(recipe))


def form_of(recipe: Recipe) -> Form:
    """Return how a recipe's packed layers are stored."""
    scheme = recipe.scheme
    return Form(scheme.format, scheme.bits, scheme.group_size, scheme.symmetric)


def confirm_groups(recipe: Recipe, target: Target) -> None:
    """Raise RecipeError for groups that AutoRound cannot pack: `WQLinear_GEMM` of 0.12.2 stops at them."""
    if target.form.format.layout != "awq":
        return
    for name, layer in target.plan.packed.items():
        size = target.form.of(layer).group_size
        if size != -1 and layer.shape[1] % size:
            allowed = f"a divisor of the {layer.shape[1]:,} inputs of {name}: AWQ's layout has whole groups only"
            raise recipe.refusal("layers.schemes" if layer.own else "scheme.group_size", size, allowed)


def confirm_names(recipe: Recipe, target: Target) -> None:
    """Raise RecipeError where AWQ's configuration cannot name the float layers: it does so by parts of names."""
    if target.form.format.method != "awq":
        return
    for name, layer in target.plan.layers.items():
        if not layer.packed and (other := next((each for each in target.plan.packed if name in each), "")):
            allowed = f"another one: {name} is float, and its name, which 'auto_awq' would list, is part of {other}"
            raise recipe.refusal("scheme.format", recipe.scheme.format, allowed)


def confirm_schemes(recipe: Recipe, target: Target) -> None:
    """Raise RecipeError where layers cannot have the schemes of their own that the recipe gives them.

    A pattern names packed layers, and no two ask for different things of one. Layers that loaders fuse have one scheme
    (defect D06), experts that of `[scheme]` (D17), and so has an MTP block that is rounded. Hints are of blocks alone.
    """
    schemes, plan, table = recipe.layers.schemes, target.plan, target.table
    asked = {name: [key for key in schemes if key in name] for name in (*plan.layers, *target.mtp)}

    def refuse(pattern: str, allowed: str) -> RecipeError:
        return recipe.refusal("layers.schemes", pattern, allowed)

    for pattern in schemes:
        matched = {name: layer for name, layer in plan.layers.items() if pattern in name}
        if not any(layer.packed for layer in matched.values()):
            name, reason = next(((name, layer.reason) for name, layer in matched.items()), ("", ""))
            tied = plan.tied.get(f"{name}.weight")
            why = f"it is {tied}, to which it is tied" if tied else reason
            raise refuse(
                pattern, f"a part of a packed layer's name: {f'{name} stays float, {why}' if name else 'of none'}"
            )
        if target.policy in PACKING and (name := next((name for name in target.mtp if pattern in name), "")):
            raise refuse(pattern, f"no part of {name}: MTP is packed as [scheme] says, or else mtp.policy is 'bf16'")
    for name, patterns in asked.items():
        if not patterns or name not in plan.layers:
            continue
        layer, scheme = plan.layers[name], schemes[patterns[0]]
        if other := next((each for each in patterns if schemes[each] != scheme), ""):
            raise refuse(other, f"no part of {name}, of which {patterns[0]!r} asks something else")
        if ignored(name, recipe.layers.ignore):
            raise refuse(patterns[0], f"no part of {name}, which layers.ignore keeps float")
        asks = scheme.bits, scheme.group_size, scheme.symmetric
        if layer.own and (found := (layer.own.bits, layer.own.group_size, layer.own.symmetric)) != asks:
            raise refuse(patterns[0], f"no part of {name}: AutoRound packs it otherwise, {found} and not {asks}")
        if layer.packed and not target.is_main(f"{name}.weight"):
            raise refuse(patterns[0], f"no part of {name}, which is copied from the base")
        if table.experts and f".{table.experts}." in name:
            raise refuse(patterns[0], f"nothing of {table.experts}: loaders read no override there (defect D17)")
        half = "bfloat16" in (recipe.tuning.precision, recipe.tiny.precision)
        if layer.packed and recipe.tuning.hints and half and name in plan.blocks:
            raise refuse(patterns[0], f"no part of {name} with tuning.hints in bfloat16: only blocks are opened")
    for group in table.fused:
        for parent in {name.removesuffix(part) for part in group for name in plan.packed if name.endswith(f".{part}")}:
            parts = {part: plan.packed[f"{parent}{part}"].own for part in group if f"{parent}{part}" in plan.packed}
            if len({own and (own.bits, own.group_size, own.symmetric) for own in parts.values()}) > 1:
                pattern = next(asked[f"{parent}{part}"][0] for part, own in parts.items() if own)
                raise refuse(pattern, f"{' and '.join(group)} alike: loaders fuse them (defect D06)")


def question(recipe: Recipe) -> Question:
    """Return what of a recipe its plan is asked for with."""
    own = {key: (each.name, each.symmetric, each.group_size) for key, each in recipe.layers.schemes.items()}
    return Question(recipe.scheme.name, recipe.scheme.group_size, recipe.layers.ignore, own)


def target_like(recipe: Recipe, tensors: Specs) -> Target:
    """Return the target whose base has these `tensors`: the recipe's base, or one of its tiny models.

    Raises RecipeError where its plan has no such base.
    """
    for tiny in (*SIZES, None):  # the base's plan is the largest
        try:
            target = target_of(recipe, tiny)
        except NotPlannedError:
            continue
        if target.plan.tensors == tensors:
            return target
    file = recipe.beside(FILE)
    raise RecipeError(f"{file}: plans no base with these tensors", "Name the base, or the tiny model, of this recipe.")


def config_of(recipe: Recipe, tiny: str | None) -> dict[str, Any]:
    """Return the `config.json` of a recipe's base, or of its tiny model."""
    return base_config(recipe) if tiny is None else shrink(base_config(recipe), tiny)
