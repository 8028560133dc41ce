"""Rounding to nearest as compressed-tensors has it, between the least and the greatest weight of each group.

Sources: `calculate_qparams` (quantization/utils/helpers.py), `_quantize` (quantization/lifecycle) of compressed-tensors
0.9.4, 0.12.2, 0.15.0.1 and 0.20.1, and the observer `memoryless_minmax` of llm-compressor 0.14.0.1. All is
computed in the base's dtype, each operation in float32 and rounded to it: for b bits of integers, symmetric, the scale
is max|w| / ((2^b - 1) / 2), of FP8 max|w| / 448; asymmetric, (max - min) / (2^b - 1), and the zero point is
-2^(b-1) - min/scale, rounded. A code is weight / scale + zero point, rounded and clamped.

NVFP4: the global scale is 448 * 6 / max|w|, in the base's dtype, of a layer or of those that loaders fuse; a scale is
F8_E4M3 of max|w| / 6, in the base's dtype, times it, or 0.125 for 0, and codes are weight / (scale / global scale) in
float32. MXFP4, MXFP6 and MXFP8: a scale is a power of two, 2^-2 or of the latter 2^-8 of max|w| when it is rounded to
one at 1.75 up, of MXFP6 at 1.9375 (`generate_mx_scales`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from requant.formats import floats, streams
from requant.formats.codec import Array, Arrays, narrow
from requant.formats.compressed_tensors import GLOBAL, MX, NVFP4, PACKED, SCALE, ZERO, Packed, Plain
from requant.formats.grid import Grid
from requant.rounding.formula import Formula
from requant.rounding.quotients import PLACES, e2m1, e2m3, e4m3, ends, integers, joined, widest

EPSILON = {"BF16": 2.0**-7, "F16": 2.0**-10, "F32": 2.0**-23}
"""What a scale of 0 becomes, by dtype (`torch.finfo(dtype).eps`); of FP8's scales with FP4 it is 0.125."""
Ranges = Callable[[Array | np.float32], tuple[Array, Array]]
"""Makes scales and zero points of a share of the range, or of several shares, [shares, 1, 1]."""


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
        return f"{self._way}{', quotients in float32' if self.wide else ''}{', -0 kept' if self.signed else ''}"

    @property
    def _way(self) -> str:
        return "compressed-tensors to 0.12, min-max" if self.clamped else "compressed-tensors, min-max"

    def encode(self, weights: Array, dtype: str, stored: Arrays) -> Arrays:
        """Return the tensors of some rows; the scale of a whole tensor, and its zero point, are taken as stored."""
        codec, weights = self.codec, np.ascontiguousarray(weights, np.float32)
        if codec.grid.height is None:
            scales = floats.widened(stored[SCALE]).reshape(1, 1)
            return self._codes(weights, dtype, scales, codec.zeros(stored, weights.shape[0]))
        return self._tensors(weights, dtype, *self._ranges(weights, dtype)(np.float32(1)))

    def _codes(self, weights: Array, dtype: str, scales: Array, zeros: Array) -> Arrays:
        """Return the tensor of codes."""
        codec, codes = self.codec, np.empty(weights.shape, np.uint8)
        steps, places = codec.grid.steps(*weights.shape), PLACES["F32" if self.wide else dtype]
        if isinstance(codec, Plain) and codec.float:
            e4m3(weights, scales, *steps, places, self.signed, False, codes)
            return {"weight": codes}
        half = 1 << codec.bits - 1
        ends_ = (np.float32(-half), np.float32(half - 1), np.int32(half if isinstance(codec, Packed) else 0))
        integers(weights, scales, zeros, *steps, places, *ends_, codes)
        if not isinstance(codec, Packed):
            return {"weight": codes.view(np.int8)}
        whole = codec.bits == 4 and weights.shape[1] % 8 == 0
        return {PACKED: joined(codes).view(np.int32) if whole else codec.pack(codes)}

    def _tensors(self, weights: Array, dtype: str, scales: Array, zeros: Array) -> Arrays:
        """Return codes, scales and zero points as they are stored."""
        own: dict[str, Array] = {SCALE: narrow(scales, dtype)}
        if not self.codec.symmetric:
            own[ZERO] = self._zeros(zeros)
        return {**self._codes(weights, dtype, scales, zeros), **own}

    def whole(self, widest: float, dtype: str) -> Arrays:
        """Return the scale of a layer that has one, where it follows from the greatest magnitude."""
        if self.codec.grid.height is not None or not self.codec.symmetric:
            return {}
        return {SCALE: narrow(self._symmetric(np.full(1, widest, np.float32), dtype), dtype)}

    def _ranges(self, weights: Array, dtype: str, expand: float = 1.0) -> Ranges:
        """Return what makes scales and zero points, float32 [n, m], of a share of each group's range.

        The range is `expand` times that of its weights.
        """
        shape = self.codec.grid.shape(*weights.shape)
        low, high = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        steps, symmetric = self.codec.grid.steps(*weights.shape), self.codec.symmetric
        if symmetric:
            widest(weights.view(np.int32), *steps, high)
        else:
            ends(weights.view(np.int32), *steps, low, high)
        span = low.view(np.float32), high.view(np.float32)
        if expand != 1:
            wide = np.float32(expand)
            span = floats.rounded(span[0] * wide, dtype), floats.rounded(span[1] * wide, dtype)

        def made(share: Array | np.float32) -> tuple[Array, Array]:
            least, most = (floats.rounded(each * share, dtype) for each in span)
            if symmetric:
                return self._symmetric(most, dtype), np.zeros(most.shape, np.float32)
            return self._asymmetric(least, most, dtype)

        return made

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
        return np.ascontiguousarray(self.codec.pack(np.ascontiguousarray(codes.T)).T)


def min_max(codec: Packed | Plain) -> Sequence[Formula]:
    """Return the forms that can have made layers of a codec; none where inputs are in an order of their own."""
    if isinstance(codec, Packed) and codec.ordered:
        return ()
    forms = [MinMax(codec), MinMax(codec, wide=True), MinMax(codec, clamped=True)]
    if isinstance(codec, Plain) and codec.float:
        forms += [MinMax(codec, wide=True, signed=True), MinMax(codec, signed=True)]
    return forms


@dataclass(frozen=True)
class MinMaxNVFP4:
    """It, of floats of 4 bits with scales in FP8. Source: the same, and `generate_gparam` of 0.12.2 to 0.20.1."""

    codec: NVFP4
    name = "compressed-tensors, min-max"

    def encode(self, weights: Array, dtype: str, stored: Arrays) -> Arrays:
        """Return the tensors of some rows; the global scale, which other layers have part in, is taken as stored."""
        return self.tensors(weights, dtype, self.scales(magnitudes(weights, self.codec.grid), dtype, stored), stored)

    def scales(self, most: Array, dtype: str, stored: Arrays) -> Array:
        """Return the scales, as they are stored, of groups whose greatest magnitudes are float32 [..., n, m]."""
        with np.errstate(all="ignore"):
            exact = floats.rounded(most / np.float32(6), dtype) * stored[GLOBAL].astype(np.float32)
            exact = exact.reshape(-1, most.shape[-1])
            scales = np.empty(exact.shape, np.uint8)
            e4m3(exact, np.ones((1, 1), np.float32), len(exact) or 1, exact.shape[1] or 1, 0, False, False, scales)
        scales[scales == 0] = _EIGHTH
        return scales.reshape(most.shape)

    def tensors(self, weights: Array, dtype: str, scales: Array, stored: Arrays) -> Arrays:
        """Return the tensors of some rows that have these scales, uint8 [n, m]."""
        del dtype
        with np.errstate(all="ignore"):
            divisors = floats.E4M3[scales] / stored[GLOBAL].astype(np.float32)
        return {PACKED: _fp4(weights, divisors, self.codec.grid, "F32"), SCALE: scales}

    def whole(self, widest: float, dtype: str) -> Arrays:
        """Return the global scale that the layer alone would have."""
        with np.errstate(all="ignore"):
            most = np.maximum(np.full(1, widest, np.float32), np.float32(_TINY[dtype]))
            inverse = floats.rounded(np.float32(1) / most, dtype)  # torch divides a number by a tensor so
            scale = floats.rounded(inverse * np.float32(448 * 6), dtype)
        return {GLOBAL: np.where(np.isfinite(scale), scale, np.float32(1))}


@dataclass(frozen=True)
class MinMaxMX:
    """It, of floats with scales that are powers of two: of 4 bits in 0.15.0.1 and 0.20.1, of 6 and 8 in 0.20.1.

    `signed`: -0 stays, as in floats of 6 bits on a CPU; the Triton kernel that runs on a GPU has no sign for it.
    """

    codec: MX
    signed: bool = False

    @property
    def name(self) -> str:
        """What people read."""
        return f"compressed-tensors, min-max{', -0 kept' if self.signed else ''}"

    def encode(self, weights: Array, dtype: str, stored: Arrays) -> Arrays:
        """Return the tensors of some rows."""
        return self.tensors(weights, dtype, self.scales(magnitudes(weights, self.codec.grid), dtype, stored), stored)

    def scales(self, most: Array, dtype: str, stored: Arrays) -> Array:
        """Return the exponents, as they are stored, of groups whose greatest magnitudes are float32 [..., n, m]."""
        del stored
        highest, places = 8 if self.codec.bits == 8 else 2, 4 if self.codec.bits == 6 else 2
        # Exponents of the dtype: its subnormal numbers have none, and count as zeros.
        lifted = most.view(np.uint32) + np.uint32(1 << 23 - places)
        exponents = (lifted >> np.uint32(23)).astype(np.int32) - highest
        if dtype == "F16":
            exponents[most < _TINY["F16"]] = 0
            exponents[(most < _TINY["F16"]) & (most >= _TINY["F16"] * (1 - 2.0**-places))] = 127 - 14 - highest
        exponents = np.clip(exponents, 0, 255)
        return np.where(_powers(exponents, dtype) == 0, 127, exponents).astype(np.uint8)

    def tensors(self, weights: Array, dtype: str, scales: Array, stored: Arrays) -> Arrays:
        """Return the tensors of some rows that have these exponents, uint8 [n, m]."""
        del stored
        powers, grid = _powers(scales.astype(np.int32), dtype), self.codec.grid
        if self.codec.bits == 6:
            return {PACKED: _fp6(weights, powers, grid, dtype, self.signed), SCALE: scales}
        return {self.codec.codes: (_fp8 if self.codec.bits == 8 else _fp4)(weights, powers, grid, dtype), SCALE: scales}

    def whole(self, widest: float, dtype: str) -> Arrays:
        """Return nothing: no tensor is of a layer as a whole."""
        del widest, dtype
        return {}


_EIGHTH = np.uint8(0x20)
"""0.125 as F8_E4M3."""
_TINY = {"BF16": 2.0**-126, "F16": 2.0**-14, "F32": 2.0**-126}
"""The least normal number of a dtype."""


def _powers(exponents: Array, dtype: str) -> Array:
    with np.errstate(all="ignore"):
        return floats.rounded(np.ldexp(np.float32(1), exponents - 127), dtype)


def magnitudes(weights: Array, grid: Grid) -> Array:
    """Return each group's greatest magnitude, float32 [n, m], of weights float32 [rows, columns]; NaN if it has one."""
    found = np.zeros(grid.shape(*weights.shape), np.int32)
    widest(np.ascontiguousarray(weights, np.float32).view(np.int32), *grid.steps(*weights.shape), found)
    return found.view(np.float32)


def _fp4(weights: Array, scales: Array, grid: Grid, dtype: str) -> Array:
    codes = np.empty(weights.shape, np.uint8)
    e2m1(np.ascontiguousarray(weights, np.float32), scales, *grid.steps(*weights.shape), PLACES[dtype], False, codes)
    return joined(codes)


def _fp6(weights: Array, scales: Array, grid: Grid, dtype: str, signed: bool) -> Array:
    codes = np.empty(weights.shape, np.uint8)
    e2m3(np.ascontiguousarray(weights, np.float32), scales, *grid.steps(*weights.shape), PLACES[dtype], signed, codes)
    return streams.pack(codes, 6).view(np.uint8)


def _fp8(weights: Array, scales: Array, grid: Grid, dtype: str) -> Array:
    codes = np.empty(weights.shape, np.uint8)
    steps = grid.steps(*weights.shape)
    e4m3(np.ascontiguousarray(weights, np.float32), scales, *steps, PLACES[dtype], False, False, codes)
    return codes


def nvfp4(codec: NVFP4) -> Sequence[MinMaxNVFP4]:
    """Return the form that can have made layers of a codec."""
    return (MinMaxNVFP4(codec),)


def mx(codec: MX) -> Sequence[MinMaxMX]:
    """Return the forms that can have made layers of a codec."""
    return (MinMaxMX(codec, signed=True), MinMaxMX(codec)) if codec.bits == 6 else (MinMaxMX(codec),)
