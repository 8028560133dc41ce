"""Rounding to nearest in FP8 as transformers, DeepGEMM and AutoFP8 have it.

torch divides a number by a tensor as the tensor's reciprocal times the number: two roundings.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from requant.formats import floats
from requant.formats.codec import Array, Arrays, narrow
from requant.formats.fp8 import INVERSE, SCALE, Blocks, PerTensor
from requant.rounding.formula import Formula
from requant.rounding.quotients import PLACES, e4m3, widest

TOP = np.float32(448)


@dataclass(frozen=True)
class Scaled:
    """Blocks are multiplied by 448 / max|w|, in float32, and by 1 where they are zero; its reciprocal is stored.

    Source: `Fp8Quantize` in integrations/finegrained_fp8.py of transformers 5.24.0.
    """

    codec: Blocks
    name = "transformers, absmax"

    def encode(self, weights: Array, dtype: str, stored: Arrays) -> Arrays:
        """Return the tensors of some rows."""
        del dtype, stored
        most = _widest(weights, self.codec)
        with np.errstate(all="ignore"):
            scales = np.where(most > 0, (np.float32(1) / most) * TOP, np.float32(1))
            inverse = np.float32(1) / scales
        return {
            "weight": _codes(weights, scales, self.codec, times=True),
            INVERSE: narrow(inverse, self.codec.scale),
        }

    def whole(self, widest: float, dtype: str) -> Arrays:
        """Return nothing: no tensor is of a layer as a whole."""
        del widest, dtype
        return {}


@dataclass(frozen=True)
class Divided:
    """The scale is max|w| / 448 in float32, max|w| being at least `least`.

    Blocks are divided by it (as written down; no tool was run), or if it says `times`, multiplied by its
    reciprocal (`per_block_cast_to_fp8`, deep_gemm/utils/math.py of DeepGEMM at 54e2261, where `least` is 1e-4).
    """

    codec: Blocks
    times: bool
    least: float

    @property
    def name(self) -> str:
        """What people read."""
        return "DeepGEMM, absmax" if self.times else "absmax, divided in float32"

    def encode(self, weights: Array, dtype: str, stored: Arrays) -> Arrays:
        """Return the tensors of some rows."""
        del dtype, stored
        most = np.maximum(_widest(weights, self.codec), np.float32(self.least))
        with np.errstate(all="ignore"):
            scales = most / TOP
            factors = np.float32(1) / scales if self.times else scales
        return {
            "weight": _codes(weights, factors, self.codec, times=self.times),
            INVERSE: narrow(scales, self.codec.scale),
        }

    def whole(self, widest: float, dtype: str) -> Arrays:
        """Return nothing: no tensor is of a layer as a whole."""
        del widest, dtype
        return {}


@dataclass(frozen=True)
class AutoFP8:
    """The layer is multiplied by 448 / max|w|, in the base's dtype; its reciprocal is stored, in float32.

    Source: `per_tensor_quantize` in auto_fp8/quantize.py of AutoFP8 at 505a7ed.
    """

    codec: PerTensor
    name = "AutoFP8, absmax"

    def encode(self, weights: Array, dtype: str, stored: Arrays) -> Arrays:
        """Return the codes of some rows; the scale is taken as stored."""
        wide = np.ascontiguousarray(weights, np.float32)
        with np.errstate(all="ignore"):
            factor = floats.rounded(np.float32(1) / stored[SCALE].reshape(1, 1).astype(np.float32), dtype)
        codes = np.empty(wide.shape, np.uint8)
        e4m3(wide, factor, max(len(wide), 1), max(wide.shape[1], 1), PLACES[dtype], True, True, codes)
        return {"weight": codes}

    def whole(self, widest: float, dtype: str) -> Arrays:
        """Return the scale."""
        with np.errstate(all="ignore"):
            most = floats.rounded(np.maximum(np.full(1, widest, np.float32), np.float32(1e-12)), dtype)
            factor = floats.rounded(floats.rounded(np.float32(1) / most, dtype) * TOP, dtype)
            return {SCALE: (np.float32(1) / factor).reshape(())}


def _widest(weights: Array, codec: Blocks) -> Array:
    found = np.zeros(codec.grid.shape(*weights.shape), np.int32)
    widest(np.ascontiguousarray(weights, np.float32).view(np.int32), *codec.grid.steps(*weights.shape), found)
    return found.view(np.float32)


def _codes(weights: Array, scales: Array, codec: Blocks, *, times: bool) -> Array:
    codes = np.empty(weights.shape, np.uint8)
    wide = np.ascontiguousarray(weights, np.float32)
    e4m3(wide, scales, *codec.grid.steps(*weights.shape), 0, True, times, codes)
    return codes


def blocks(codec: Blocks) -> Sequence[Formula]:
    """Return the forms that can have made layers of a codec."""
    return (Scaled(codec), Divided(codec, times=False, least=0), Divided(codec, times=True, least=1e-4))


def per_tensor(codec: PerTensor) -> Sequence[Formula]:
    """Return the form that can have made layers of a codec."""
    return (AutoFP8(codec),)
