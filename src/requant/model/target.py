"""What is built, audited or checked: a recipe's base, or a tiny model in its place, with all that is known of it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from requant.checkpoint.checkpoint import Checkpoint
from requant.errors import RecipeError
from requant.formats.form import Form
from requant.model.base_config import base_config
from requant.model.plan import FILE, NotPlannedError, Plan, Question, Specs, read_plan
from requant.model.rules import SIZES
from requant.model.shrink import shrink
from requant.model.tables import Table, confirm_layers, table_of
from requant.model.tiny import stand_in
from requant.protocol import BASE, Layer
from requant.recipe import Recipe


def tiny_model(recipe: Recipe, tiny: str) -> Checkpoint:
    """Return the tiny model of a recipe's base, of a size in `SIZES`; its weights are computed when they are read."""
    target = target_of(recipe, tiny)
    return stand_in(tiny, config_of(recipe, tiny), target.plan.tensors, zero_centred=target.table.zero_centred)


@dataclass(frozen=True)
class Target:
    """A plan, and what a recipe makes of it: `ignore` are parts of names of float layers, `policy` is MTP's."""

    plan: Plan
    table: Table
    ignore: tuple[str, ...]
    policy: str
    form: Form

    @cached_property
    def mtp(self) -> dict[str, Layer]:
        """The linear layers of the MTP block, which the quantizer does not see; packed where the policy is `rtn`."""
        prefix = self.table.extras.get("mtp")
        return self.plan.beside_blocks(prefix, self.ignore) if prefix else {}

    @cached_property
    def main(self) -> Specs:
        """What the main shards hold in the end, in order."""
        return self.plan.written(filter(self.is_main, self.plan.tensors), self.plan.layers, self.form)

    @cached_property
    def extras(self) -> Specs:
        """What `model_extra_tensors.safetensors` holds in the end, in order."""
        names = (name for name in self.plan.tensors if not self.is_main(name))
        return self.plan.written(names, self.mtp if self.policy == "rtn" else {}, self.form)

    def is_main(self, name: str) -> bool:
        """Say whether a tensor belongs to what is tuned: neither to a visual tower nor to an MTP block."""
        return not name.startswith(tuple(self.table.extras.values()))


def target_of(recipe: Recipe, tiny: str | None) -> Target:
    """Return what a recipe makes of its base, or of its tiny model of a size in `SIZES`.

    Raises RecipeError where its plan cannot be read, or the recipe does not fit it.
    """
    table = table_of(str(base_config(recipe).get("model_type")))
    plan = read_plan(recipe.beside(FILE), tiny or BASE, question(recipe))
    target = Target(plan, table, recipe.layers.ignore, recipe.mtp.policy, form_of(recipe))
    confirm_layers(recipe, table, [*plan.layers, *target.mtp])
    confirm_groups(recipe, target)
    return target


def form_of(recipe: Recipe) -> Form:
    """Return how a recipe's packed layers are stored."""
    scheme = recipe.scheme
    return Form(scheme.format, scheme.bits, scheme.group_size, scheme.symmetric)


def confirm_groups(recipe: Recipe, target: Target) -> None:
    """Raise RecipeError for groups that AutoRound cannot pack: `WQLinear_GEMM` of 0.12.2 stops at them."""
    size = target.form.group_size
    if target.form.format.layout != "awq" or size == -1:
        return
    for name, layer in target.plan.packed.items():
        if layer.shape[1] % size:
            allowed = f"a divisor of the {layer.shape[1]:,} inputs of {name}: AWQ's layout has whole groups only"
            raise recipe.refusal("scheme.group_size", size, allowed)


def question(recipe: Recipe) -> Question:
    """Return what of a recipe its plan is asked for with."""
    return Question(recipe.scheme.name, recipe.scheme.group_size, recipe.layers.ignore)


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
