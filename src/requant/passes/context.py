"""What every pass may look at, beside the checkpoint that it is given."""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from requant.checkpoint.checkpoint import Checkpoint, Tensor
from requant.errors import BuildError
from requant.model.inventory import Specs, base_tensors, extra_tensors, main_tensors
from requant.recipe import Effort, Recipe

MAIN = "main.safetensors"
"""The file of the main tensors, until the pass `shards` spreads them."""
EXTRAS = "model_extra_tensors.safetensors"


class Aim(ABC):
    """What the passes aim at: a base, and what becomes of it. `Context` has it from a recipe, `Mending` from files.

    `ignore` are parts of the names of layers that stay float, `policy` is MTP's, `shards` the number of main files,
    `declared` what `quantization_config` says beside blocks and overrides.
    """

    base: Checkpoint

    if TYPE_CHECKING:  # fields or properties, as each aim has them

        @property
        def ignore(self) -> tuple[str, ...]: ...  # noqa: D102
        @property
        def policy(self) -> str: ...  # noqa: D102
        @property
        def group_size(self) -> int: ...  # noqa: D102
        @property
        def shards(self) -> int: ...  # noqa: D102
        @property
        def declared(self) -> dict[str, Any]: ...  # noqa: D102

    @abstractmethod
    def refuse(self, finding: str) -> None:
        """Hear of something that should not be there, which the pass can mend: stop, or let it go on."""

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
                raise BuildError(
                    f"{name}: the base has {spec}, its config.json means {expected.get(name, 'no such tensor')}"
                )
        return found

    @cached_property
    def main(self) -> Specs:
        """What the main shards hold in the end, in order."""
        return main_tensors(self.config, self.ignore, self.group_size)

    @cached_property
    def extras(self) -> Specs:
        """What `model_extra_tensors.safetensors` holds in the end, in order."""
        return extra_tensors(self.config, self.ignore, self.group_size, self.policy)


@dataclass(frozen=True)
class Context(Aim):
    """A build's aim: the base, the recipe, the effort really spent, and AutoRound's version as its output states it.

    AutoRound's raw output has to be as expected: a build stops at what a repair mends.
    """

    base: Checkpoint
    recipe: Recipe
    effort: Effort
    autoround: str

    @property
    def ignore(self) -> tuple[str, ...]:
        """The recipe's `layers.ignore`."""
        return self.recipe.layers.ignore

    @property
    def policy(self) -> str:
        """The recipe's `mtp.policy`."""
        return self.recipe.mtp.policy

    @property
    def group_size(self) -> int:
        """The recipe's `scheme.group_size`."""
        return self.recipe.scheme.group_size

    @property
    def shards(self) -> int:
        """The number of main files, of the base or of its tiny model."""
        return self.effort.shards

    @property
    def declared(self) -> dict[str, Any]:
        """The scheme and the effort, under AutoRound's names."""
        scheme, numbers, effort = self.recipe.scheme, self.recipe.scheme.numbers, self.effort
        return {
            "quant_method": "auto-round",
            "packing_format": scheme.format,
            "autoround_version": self.autoround,
            "bits": numbers.bits,
            "group_size": scheme.group_size,
            "sym": numbers.symmetric,
            "data_type": numbers.data_type,
            "iters": effort.iterations,
            "nsamples": effort.samples,
            "seqlen": effort.sequence_length,
            "batch_size": self.recipe.tuning.batch_size,
        }

    def refuse(self, finding: str) -> None:
        """Raise BuildError."""
        raise BuildError(finding)


@dataclass(frozen=True)
class Mending(Aim):
    """A repair's aim, read off the checkpoint itself; what a pass refuses, it mends."""

    base: Checkpoint
    ignore: tuple[str, ...]
    policy: str
    group_size: int
    shards: int
    declared: dict[str, Any]

    def refuse(self, finding: str) -> None:
        """Go on: the report compares what was with what became of it."""
