"""Rounding to nearest as compressed-tensors has it, between the least and the greatest weight of each group.

Sources: `calculate_qparams` (quantization/utils/helpers.py), `_quantize` (quantization/lifecycle) of compressed-tensors
0.6.0, 0.9.4, 0.12.2, 0.15.0.1 and 0.20.1, and the observer `memoryless_minmax` of llm-compressor 0.14.0.1. All is
computed in the base's dtype, each operation in float32 and rounded to it: for b bits of integers, symmetric, the scale
is max|w| / ((2^b - 1) / 2), of FP8 max|w| / 448; asymmetric, (max - min) / (2^b - 1), and the zero point is
-2^(b-1) - min/scale, rounded. A code is weight / scale + zero point, rounded and clamped.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from requant.formats import floats
from requant.formats.codec import Array, Arrays
from requant.formats.compressed_tensors import PACKED, SCALE, ZERO, Packed, Plain, pack
from requant.formats.grid import Grid
from requant.rounding.formula import Formula
from requant.rounding.quotients import PLACES, e4m3, ends, integers, widest

EPSILON = {"BF16": 2.0**-7, "F16": 2.0**-10, "F32": 2.0**-23}
"""What a scale of 0 becomes, by dtype (`torch.finfo(dtype).eps`); of FP8's scales with FP4 it is 0.125."""


@dataclass(frozen=True)
class MinMax:
    """A form of it.

    `wide`: quotients are not rounded to the base's dtype, as in the Triton kernel of 0.20.1 that runs on a GPU.
    `clamped`: no scale is below 2^-23, as up to 0.12.2; else a scale of 0 is replaced by the dtype's epsilon.
    `signed`: no zero point is added to weights of FP8, so that -0 stays, as in llm-compressor's `model_free_ptq`.
    """

    codec: Packed | Plain
    wide: bool = False
    clamped: bool = False
    signed: bool = False

    @property
    def name(self) -> str:
        """What people read."""
        said = "compressed-tensors to 0.12, min-max" if self.clamped else "compressed-tensors, min-max"
        return f"{said}{', quotients in float32' if self.wide else ''}{', -0 kept' if self.signed else ''}"

    def encode(self, weights: Array, dtype: str, stored: Arrays) -> Arrays:
        """Return the tensors of some rows; the scale of a whole tensor, and its zero point, are taken as stored."""
        codec, grid, rows = self.codec, self.codec.grid, weights.shape[0]
        weights = np.ascontiguousarray(weights, np.float32)
        own: dict[str, Array] = {}
        if grid.height is None:
            scales = floats.widened(stored[SCALE]).reshape(1, 1)
            zeros = codec.zeros(stored, rows)
        else:
            scales, zeros = self._groups(weights, grid, dtype)
            own[SCALE] = floats.stored(scales, dtype)
            if not codec.symmetric:
                own[ZERO] = self._zeros(zeros)
        codes = np.empty(weights.shape, np.uint8)
        steps, places = grid.steps(*weights.shape), PLACES["F32" if self.wide else dtype]
        if isinstance(codec, Plain) and codec.float:
            e4m3(weights, scales, *steps, places, self.signed, codes)
            return {"weight": codes, **own}
        half = 1 << codec.bits - 1
        packed = isinstance(codec, Packed)
        ends_ = (np.float32(-half), np.float32(half - 1), np.int32(half if packed else 0))
        integers(weights, scales, zeros, *steps, places, *ends_, codes)
        return {PACKED: pack(codes, codec.bits), **own} if packed else {"weight": codes.view(np.int8), **own}

    def whole(self, widest: float, dtype: str) -> Arrays:
        """Return the scale of a layer that has one, where it follows from the greatest magnitude."""
        if self.codec.grid.height is not None or not self.codec.symmetric:
            return {}
        return {SCALE: floats.stored(self._symmetric(np.full(1, widest, np.float32), dtype), dtype)}

    def _groups(self, weights: Array, grid: Grid, dtype: str) -> tuple[Array, Array]:
        """Return scales and zero points, float32 [n, m]."""
        shape = grid.shape(*weights.shape)
        low, high = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        steps = grid.steps(*weights.shape)
        if self.codec.symmetric:
            widest(weights.view(np.int32), *steps, high)
            return self._symmetric(high.view(np.float32), dtype), np.zeros(shape, np.float32)
        ends(weights.view(np.int32), *steps, low, high)
        return self._asymmetric(low.view(np.float32), high.view(np.float32), dtype)

    def _symmetric(self, most: Array, dtype: str) -> Array:
        codec = self.codec
        top = 448 if isinstance(codec, Plain) and codec.float else ((1 << codec.bits) - 1) / 2
        with np.errstate(all="ignore"):
            return self._lifted(floats.rounded(most / np.float32(top), dtype), dtype)

    def _asymmetric(self, low: Array, high: Array, dtype: str) -> tuple[Array, Array]:
        half, top = 1 << self.codec.bits - 1, (1 << self.codec.bits) - 1
        with np.errstate(all="ignore"):
            scales = floats.rounded(floats.rounded(high - low, dtype) / np.float32(top), dtype)
            lifted = self._lifted(scales, dtype)
            steps = floats.rounded(low / (lifted if self.clamped else scales), dtype)
            zeros = np.rint(np.clip(floats.rounded(np.float32(-half) - steps, dtype), -half, half - 1))
        return lifted, np.where(np.isnan(zeros), np.float32(0), zeros)

    def _lifted(self, scales: Array, dtype: str) -> Array:
        if self.clamped:
            return np.maximum(scales, np.float32(2.0**-23))
        return np.where(scales == 0, np.float32(EPSILON[dtype]), scales)

    def _zeros(self, zeros: Array) -> Array:
        if isinstance(self.codec, Plain):
            return zeros.astype(np.int8)
        codes = (zeros + np.float32(1 << self.codec.bits - 1)).astype(np.uint8)
        return np.ascontiguousarray(pack(np.ascontiguousarray(codes.T), self.codec.bits).T)


def min_max(codec: Packed | Plain) -> Sequence[Formula]:
    """Return the forms that can have made layers of a codec; none where inputs are in an order of their own."""
    if isinstance(codec, Packed) and codec.ordered:
        return ()
    forms = [MinMax(codec), MinMax(codec, wide=True), MinMax(codec, clamped=True)]
    if isinstance(codec, Plain) and codec.float:
        forms += [MinMax(codec, wide=True, signed=True), MinMax(codec, signed=True)]
    return forms
