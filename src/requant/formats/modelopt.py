"""NVIDIA Model Optimizer (`quant_method: modelopt`): FP8 with one scale, and NVFP4. Read in version 0.47.0.

FP8: `weight` F8_E4M3 times `weight_scale` float32. NVFP4: `weight` has two floats of 4 bits in a byte, the first in its
lower half; they are multiplied by `weight_scale`, F8_E4M3 per 16 inputs, and by `weight_scale_2`, float32. What inputs
are divided by is `input_scale`. Sources: export/quant_utils.py, quantization/qtensor; vLLM's modelopt.py at 00155cd for
what is excluded. All numbers of a layer as a whole have no dimensions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from requant.checkpoint.safetensors import Spec
from requant.formats.codec import Array, Arrays, Codec, Part, confirm_keys
from requant.formats.floats import E2M1, E4M3, halves
from requant.formats.grid import Grid

KEYS = "quant_method quant_algo kv_cache_quant_algo kv_cache_scheme producer ignore exclude_modules group_size "
KEYS += "config_groups quantization"
"""Of a configuration: those that are read, or change nothing of weights."""
SCALE, WHOLE, INPUT = "weight_scale", "weight_scale_2", "input_scale"
_ONE = Part(Spec("F32", ()), 0)


@dataclass(frozen=True)
class ModelOptFP8:
    """A scale per layer, and one of its inputs."""

    name = "ModelOpt FP8, one scale"
    align = 1

    def parts(self, rows: int, columns: int, dtype: str) -> Mapping[str, Part]:
        """Return the tensors of a weight of any dtype."""
        del dtype
        return {"weight": Part(Spec("F8_E4M3", (rows, columns))), SCALE: _ONE, INPUT: _ONE}

    def decode(self, stored: Arrays, columns: int) -> Array:
        """Return weights in float32."""
        del columns
        with np.errstate(all="ignore"):
            return np.asarray(E4M3[stored["weight"].view(np.uint8)] * stored[SCALE].reshape(1, 1), np.float32)


@dataclass(frozen=True)
class ModelOptNVFP4:
    """A scale per 16 inputs, in FP8, one per layer, and one of its inputs unless those are floats (`W4A16_NVFP4`)."""

    inputs: bool = True
    name = "ModelOpt NVFP4, groups of 16"
    align = 1
    grid = Grid(1, 16)

    def parts(self, rows: int, columns: int, dtype: str) -> Mapping[str, Part]:
        """Return the tensors of a weight of any dtype. Raises ValueError for an impossible one."""
        del dtype
        scale = self.grid.part("F8_E4M3", rows, columns)
        found = {"weight": Part(Spec("U8", (rows, columns // 2))), SCALE: scale, WHOLE: _ONE}
        return found | ({INPUT: _ONE} if self.inputs else {})

    def decode(self, stored: Arrays, columns: int) -> Array:
        """Return weights in float32."""
        codes = E2M1[halves(stored["weight"])]
        with np.errstate(all="ignore"):
            scales = E4M3[stored[SCALE].view(np.uint8)] * stored[WHOLE].reshape(1, 1)
            return np.asarray(codes * self.grid.spread(scales, len(codes), columns), np.float32)


@dataclass(frozen=True)
class ModelOpt:
    """A configuration: one codec, and what is left as it was."""

    form: Codec
    excluded: tuple[str, ...]

    def codec(self, layer: str) -> Codec | None:
        """Return how a linear layer is stored: a pattern, or any part of a name, excludes it, as in vLLM."""
        if any(each in layer or fnmatchcase(layer, each) for each in (*self.excluded, *_VISION)):
            return None
        return self.form


_VISION = ("vision_tower", "vision_model", "visual")
"""What vLLM never takes for quantized."""


def read(config: Mapping[str, Any]) -> ModelOpt:
    """Read a `quantization_config`, of either form. Raises ValueError for what is not modelled."""
    confirm_keys(config, KEYS)
    said = config.get("quantization", config)
    if not isinstance(said, dict):
        raise ValueError("`quantization` is no object")
    lists = [said.get(key) or [] for key in ("exclude_modules", "ignore")]
    excluded = [each for some in lists if isinstance(some, list) for each in some]
    if not (
        all(isinstance(some, list) for some in lists)
        and all(isinstance(each, str) and 0 < len(each) < 1_000 for each in excluded)
    ):
        raise ValueError("`ignore` is no list of names")
    algorithm = str(said.get("quant_algo")).upper()
    forms: dict[str, Codec] = {
        "FP8": ModelOptFP8(),
        "NVFP4": ModelOptNVFP4(),
        "W4A16_NVFP4": ModelOptNVFP4(inputs=False),
    }
    if algorithm not in forms:
        raise ValueError(f"`quant_algo` {algorithm!r:.40}")
    if algorithm.endswith("NVFP4") and said.get("group_size") not in (None, 16):
        raise ValueError(f"{algorithm} with `group_size` {said['group_size']!r:.40}")
    return ModelOpt(forms[algorithm], tuple(excluded))
