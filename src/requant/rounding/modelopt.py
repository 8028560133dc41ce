"""Rounding to nearest as NVIDIA Model Optimizer has it, between -max|w| and max|w|. Read in 0.47.0, and run on a CPU.

Layers that a loader fuses share the scale of a whole, so it is taken as stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from requant.formats import floats
from requant.formats.codec import Array, Arrays
from requant.formats.modelopt import SCALE, WHOLE, ModelOptFP8, ModelOptNVFP4
from requant.rounding.formula import Formula
from requant.rounding.quotients import PLACES, e2m1, e4m3, joined, widest

_LEAST = np.float32(2.0**-9)
"""The least scale of a group: the least number of F8_E4M3."""


@dataclass(frozen=True)
class MaxFP8:
    """The scale is max|w| / 448 in float32; codes are weight / scale, rounded to the base's dtype.

    Source: `get_scaling_factor`, `to_quantized_weight` in export/quant_utils.py. torch takes the scale, a tensor of no
    dimensions, in the base's dtype on a GPU, and if it is `wide`, in float32, on a CPU.
    """

    codec: ModelOptFP8
    wide: bool = False

    @property
    def name(self) -> str:
        """What people read."""
        return "ModelOpt on a CPU, max" if self.wide else "ModelOpt, max"

    def encode(self, weights: Array, dtype: str, stored: Arrays) -> Arrays:
        """Return the codes of some rows; the scale is taken as stored."""
        wide = np.ascontiguousarray(weights, np.float32)
        codes = np.empty(wide.shape, np.uint8)
        scale = stored[SCALE].reshape(1, 1).astype(np.float32)
        scale = scale if self.wide else floats.rounded(scale, dtype)
        e4m3(wide, scale, max(len(wide), 1), max(wide.shape[1], 1), PLACES[dtype], True, False, codes)
        return {"weight": codes}

    def whole(self, widest: float, dtype: str) -> Arrays:
        """Return the scale that the layer alone would have; 1 for zeros."""
        del dtype
        with np.errstate(all="ignore"):
            return {SCALE: np.asarray(np.float32(widest if widest else 448) / np.float32(448))}


@dataclass(frozen=True)
class MaxNVFP4:
    """The whole's scale is max|w| / 2688 in float32, a group's F8_E4M3 of max|w| / (6 * the whole's), 1 for 0.

    Codes are weight / (a group's scale * the whole's) in float32. Source: quantization/qtensor/nvfp4_tensor.py.
    """

    codec: ModelOptNVFP4
    name = "ModelOpt, max"

    def encode(self, weights: Array, dtype: str, stored: Arrays) -> Arrays:
        """Return the tensors of some rows; the whole's scale is taken as stored."""
        del dtype
        grid, wide = self.codec.grid, np.ascontiguousarray(weights, np.float32)
        steps, whole = grid.steps(*wide.shape), stored[WHOLE].reshape(1, 1).astype(np.float32)
        most = np.zeros(grid.shape(*wide.shape), np.int32)
        widest(wide.view(np.int32), *steps, most)
        scales, codes = np.empty(most.shape, np.uint8), np.empty(wide.shape, np.uint8)
        with np.errstate(all="ignore"):
            exact = most.view(np.float32) / (np.float32(6) * whole)
            exact = np.where(exact == 0, np.float32(1), np.maximum(exact, _LEAST))
            e4m3(exact, np.ones((1, 1), np.float32), len(exact) or 1, exact.shape[1] or 1, 0, True, False, scales)
            e2m1(wide, floats.E4M3[scales] * whole, *steps, 0, False, codes)
        return {"weight": joined(codes), SCALE: scales}

    def whole(self, widest: float, dtype: str) -> Arrays:
        """Return the scale that the layer alone would have."""
        del dtype
        with np.errstate(all="ignore"):
            return {WHOLE: np.asarray(np.float32(widest) / np.float32(6 * 448))}


def fp8(codec: ModelOptFP8) -> Sequence[Formula]:
    """Return the forms that can have made layers of a codec."""
    return (MaxFP8(codec), MaxFP8(codec, wide=True))


def nvfp4(codec: ModelOptNVFP4) -> Sequence[Formula]:
    """Return the form that can have made layers of a codec."""
    return (MaxNVFP4(codec),)
