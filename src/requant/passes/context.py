"""What every pass may look at, beside the checkpoint that it is given."""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from requant.checkpoint.checkpoint import Checkpoint, Tensor
from requant.checkpoint.safetensors import Spec
from requant.errors import BuildError, NotModelledError
from requant.formats import FORMATS
from requant.model.target import Target
from requant.protocol import Layer, Source
from requant.recipe import DATA_TYPE, Effort, Recipe

MAIN = "main.safetensors"
"""The file of the main tensors, until the pass `shards` spreads them."""
EXTRAS = "model_extra_tensors.safetensors"


class Aim(ABC):
    """What the passes aim at: a base, and what becomes of it. `Context` has it from a recipe, `Mending` from files.

    `target` is what becomes of the base's tensors, `shards` the number of main files, `declared` what
    `quantization_config` says beside blocks and overrides.
    """

    base: Checkpoint
    target: Target

    if TYPE_CHECKING:  # fields or properties, as each aim has them

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
        """The base's tensors; raises BuildError for one that is not what was planned."""
        found, expected = self.base.tensors, self.target.plan.tensors
        for name in sorted(found.keys() | expected.keys()):
            spec = found[name].spec if name in found else None
            if spec != expected.get(name):
                raise BuildError(f"{name}: the base has {spec}, the plan says {expected.get(name, 'no such tensor')}")
        return found

    def weight(self, layer: Layer) -> Tensor:
        """Return a linear layer's weight [out, in] as the base has it, in the dtype of its tensor."""
        return self._part(layer.source, layer.shape)

    def _part(self, source: Source | None, shape: tuple[int, ...]) -> Tensor:
        """Return a weight [out, in] or a bias [out]."""
        if source is None or not source.plain:
            raise NotModelledError(f"{source}: what a layer has is no rows of one tensor")
        tensor = self.tensors[source.tensor]
        spec = Spec(tensor.spec.dtype, shape)
        if spec.nbytes == tensor.spec.nbytes:
            return Tensor(spec, tensor.content)
        seen = tensor.spec.shape if len(shape) > 1 else (*tensor.spec.shape, 1)
        first, last = source.flat_rows(seen, shape[0])
        row = Spec(spec.dtype, spec.shape[1:]).nbytes
        return Tensor(spec, tensor.part(first * row, last * row))

    def untuned(self, name: str) -> Tensor:
        """Return a tensor that is not packed as the base has it; `x.weight` or `x.bias` may be part of a fused one."""
        if name in self.tensors:
            return self.tensors[name]
        if source := self.target.plan.elsewhere.get(name):
            return self._part(source, self.target.main[name].shape)
        key = name.removesuffix(".weight")
        return self.weight(self.target.plan.layers.get(key) or self.target.mtp[key])


@dataclass(frozen=True)
class Context(Aim):
    """A build's aim: the base, the recipe, the effort really spent, and AutoRound's version as its output states it.

    AutoRound's raw output has to be as expected: a build stops at what a repair mends.
    """

    base: Checkpoint
    target: Target
    recipe: Recipe
    effort: Effort
    autoround: str

    @property
    def shards(self) -> int:
        """The number of main files, of the base or of its tiny model."""
        return self.effort.shards

    @property
    def declared(self) -> dict[str, Any]:
        """The scheme and the effort, under AutoRound's names; of an export, what its tool asks for too."""
        scheme, effort = self.recipe.scheme, self.effort
        method = FORMATS[scheme.format].method
        exported: dict[str, dict[str, Any]] = {
            "auto-round": {"packing_format": scheme.format},
            "gptq": {"provider": "auto-round", "desc_act": False, "true_sequential": False, "damp_percent": 0.01},
            "awq": {"provider": "auto-round", "zero_point": not scheme.symmetric, "version": "gemm"},
        }
        return {
            "quant_method": method,
            **exported[method],
            "autoround_version": self.autoround,
            "bits": scheme.bits,
            "group_size": scheme.group_size,
            "sym": scheme.symmetric,
            "data_type": DATA_TYPE,
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
    target: Target
    shards: int
    declared: dict[str, Any]

    def refuse(self, finding: str) -> None:
        """Go on: the report compares what was with what became of it."""
