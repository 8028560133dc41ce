"""What every pass may look at, beside the checkpoint that it is given."""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from requant.checkpoint import Checkpoint, Tensor
from requant.errors import BuildError
from requant.inventory import Specs, base_tensors, extra_tensors, main_tensors
from requant.recipe import Effort, Recipe

MAIN = "main.safetensors"
"""The file of the main tensors, until the pass `shards` spreads them."""
EXTRAS = "model_extra_tensors.safetensors"


@dataclass(frozen=True)
class Context:
    """The base, the recipe, the effort really spent, and AutoRound's version as its own output states it."""

    base: Checkpoint
    recipe: Recipe
    effort: Effort
    autoround: str

    @cached_property
    def config(self) -> dict[str, Any]:
        """The base's `config.json`."""
        value: dict[str, Any] = json.loads(self.base.file("config.json"))
        return value

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The base's tensors; raises BuildError for one that is not what its `config.json` means."""
        found, expected = self.base.tensors, base_tensors(self.config)
        for name in sorted(found.keys() | expected.keys()):
            spec = found[name].spec if name in found else None
            if spec != expected.get(name):
                raise BuildError(f"{name}: the base has {spec}, its config.json means {expected.get(name)}")
        return found

    @cached_property
    def main(self) -> Specs:
        """What the main shards hold in the end, in order."""
        return main_tensors(self.config, self.recipe.layers.ignore, self.recipe.scheme.group_size)

    @cached_property
    def extras(self) -> Specs:
        """What `model_extra_tensors.safetensors` holds in the end, in order."""
        scheme, layers = self.recipe.scheme, self.recipe.layers
        return extra_tensors(self.config, layers.ignore, scheme.group_size, self.recipe.mtp.policy)
