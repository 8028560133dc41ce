"""MLX's affine rounding, in each form that has been published.

Of a group, `edge` is the end of greater magnitude, and the scale points from it to the other end: (max - min) / top,
negative where `edge` is the greatest. It becomes edge / round(edge / scale), so that 0 is a code; the bias is `edge`,
or 0 where that multiple is 0. Codes are round((weight - bias) / scale). Scale and bias are stored in the
dtype of the weights.

Sources, of MLX: `quantize` of mlx/backend/cpu/quantized.cpp at 0.32.4, which rounds ties to even; `affine_quantize` of
mlx/backend/metal/kernels/quantized.h (its CUDA kernel does the same), where ties go away from 0 and 0 counts among the
weights for the greatest. Since 0.23.2 (commit fd0d63b) both compute in float32, before in the dtype of the weights;
0.12.2 to 0.16.1 did so with array operations (`quantize` of mlx/ops.cpp), which are the CPU's form on any machine.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from requant.formats.codec import Array, Arrays, converted, narrow
from requant.formats.floats import E2M1
from requant.formats.mlx import Affine, Float, e4m3
from requant.formats.streams import pack
from requant.rounding.kernels import affine as affine_codes
from requant.rounding.mxfp4 import e2m1
from requant.rounding.quotients import ends, greatest

EPS = 1e-7


@dataclass(frozen=True)
class AffineRounding:
    """One form: on a GPU or not, in float32 or in the weights' own dtype."""

    codec: Affine
    name: str
    gpu: bool
    wide: bool

    def encode(self, weights: Array, dtype: str, stored: Arrays) -> Arrays:
        """Return weight, scales and biases."""
        inner = "F32" if self.wide else dtype
        top = np.float32(self.codec.top)

        def each(values: Array) -> Array:
            return rounded(values, inner)

        with np.errstate(all="ignore"):
            grouped = weights.reshape(len(weights), -1, self.codec.group)
            low = np.full(grouped.shape[:2], np.inf, np.float32)
            high = np.full(grouped.shape[:2], 0 if self.gpu else -np.inf, np.float32)
            bits = np.ascontiguousarray(weights, np.float32).view(np.int32)
            ends(bits, 1, self.codec.group, low.view(np.int32), high.view(np.int32))
            scale = np.maximum(each(each(high - low) / top), each(np.array(EPS, np.float32)))
            below = np.abs(low) > np.abs(high)
            scale, edge = np.where(below, scale, -scale), np.where(below, low, high)
            multiple = self._round(each(edge / scale))
            none = multiple == 0
            scale = np.where(none, scale, each(edge / multiple))
            bias = np.where(none, np.float32(0), edge)
            codes = np.empty(weights.shape, np.uint8)
            if inner == "F32":
                affine_codes(weights, self.codec.group, bias, scale, top, self.gpu, codes)
            else:
                steps = self._round(each(each(grouped - bias[..., None]) / scale[..., None]))
                codes[:] = np.clip(np.nan_to_num(steps), 0, top).reshape(weights.shape)
        return {
            "weight": pack(codes, self.codec.bits),
            "scales": narrow(scale, dtype),
            "biases": narrow(bias, dtype),
        }

    def whole(self, widest: float, dtype: str) -> Arrays:
        """Return nothing: every tensor follows from rows."""
        return {}

    def _round(self, values: Array) -> Array:
        return away(values) if self.gpu else np.rint(values)


def away(values: Array) -> Array:
    """Return float32 numbers rounded to whole ones, ties away from 0."""
    whole = np.trunc(values)
    return np.where(np.abs(values - whole) >= np.float32(0.5), whole + np.copysign(np.float32(1), values), whole)


def affine(codec: Affine) -> tuple[AffineRounding, ...]:
    """Return the forms, the likeliest first: most checkpoints are made on a Mac's GPU."""
    return (
        AffineRounding(codec, "MLX affine, GPU", gpu=True, wide=True),
        AffineRounding(codec, "MLX affine, CPU", gpu=False, wide=True),
        AffineRounding(codec, "MLX affine in the weights' dtype, GPU, before 0.23.2", gpu=True, wide=False),
        AffineRounding(codec, "MLX affine in the weights' dtype, before 0.23.2", gpu=False, wide=False),
    )


@dataclass(frozen=True)
class FloatRounding:
    """A mode of floats, on a GPU or a CPU.

    The scale is the greatest magnitude over the greatest number, in E4M3 or as a power of two: the next one `up`, as
    0.32.4 has it, or that of the rounded logarithm, as 0.32.2 did. Sources: `fp_quantize` of mlx/ops.cpp, in the dtype
    of the weights, where the first nearest number is taken; and of mlx/backend/metal/kernels/fp_quantized.h, in
    float32, by the reciprocal, with ties to even.
    """

    codec: Float
    gpu: bool
    up: bool = True

    @property
    def name(self) -> str:
        """What people read."""
        return f"MLX {self.codec.mode}, {'GPU' if self.gpu else 'CPU'}{'' if self.up else ', up to 0.32.2'}"

    def encode(self, weights: Array, dtype: str, stored: Arrays) -> Arrays:
        """Return weight and scales."""
        inner = "F32" if self.gpu else dtype
        with np.errstate(all="ignore"):
            grouped = weights.reshape(-1, self.codec.group)
            most = np.float32(6 if self.codec.bits == 4 else 448)
            scale = rounded(greatest(grouped) / most, inner)
            if self.codec.mode == "nvfp4":
                octets = to_e4m3(scale)
                divisor = e4m3()[octets]
            else:
                octets, divisor = self._power(scale, inner)
            factor = np.where(divisor == 0, np.float32(0), np.float32(1) / divisor)
            if self.gpu and self.codec.bits == 4:
                codes = e2m1(grouped, factor, even=True)
            elif self.codec.bits == 8:
                codes = to_e4m3(grouped * factor[:, None] if self.gpu else rounded(grouped / divisor[:, None], inner))
            else:
                steps = rounded(grouped / divisor[:, None], inner)
                codes = first_nearest(steps, "F32" if self.codec.mode == "nvfp4" else inner)
        return {"weight": pack(codes.reshape(weights.shape), self.codec.bits), "scales": octets}

    def whole(self, widest: float, dtype: str) -> Arrays:
        """Return nothing: both tensors follow from rows."""
        return {}

    def _power(self, scale: Array, inner: str) -> tuple[Array, Array]:
        """Return the byte of a scale, and the power of two that it stands for."""
        logarithm = np.log2(scale) if self.up else rounded(np.log2(scale), inner)
        if self.gpu:
            exponent = np.nan_to_num(away(logarithm)).clip(-127, 127)
            less = np.ldexp(np.float32(1), exponent.astype(np.int32)) < scale
            exponent += self.up & less & (exponent < 127)
            octets = np.where(np.isfinite(scale), exponent + 127, 255).astype(np.uint8)
            return octets, np.ldexp(np.float32(1), octets.astype(np.int32) - 127)
        exponent = np.nan_to_num(np.ceil(logarithm) if self.up else np.rint(logarithm)).clip(-255, 255)
        exponent = np.where(scale == 0, np.float32(0), exponent)
        octets = ((exponent.astype(np.int32) + 127) & 255).astype(np.uint8)
        return octets, rounded(np.ldexp(np.float32(1), exponent.astype(np.int32)), inner)


def rounded(values: Array, dtype: str) -> Array:
    """Return float32 numbers rounded to a dtype, as float32."""
    return converted(values, "", dtype)


def to_e4m3(values: Array) -> Array:
    """Return float32 numbers as bytes of E4M3, ties to even; 448 where they are greater."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    sign, bits = bits & np.uint32(0x80000000), bits & np.uint32(0x7FFFFFFF)
    shift = np.uint32(141 << 23)
    small = (bits.view(np.float32) + shift.view(np.float32)).view(np.uint32) - shift
    large = (bits - np.uint32((120 << 23) - 0x7FFFF) + ((bits >> np.uint32(20)) & np.uint32(1))) >> np.uint32(20)
    found = np.where(bits < np.uint32(121 << 23), small, large)
    found = np.where(bits >= np.uint32(543 << 21), np.uint32(0x7E), found)
    return np.asarray(found | sign >> np.uint32(24)).astype(np.uint8)


def first_nearest(steps: Array, dtype: str) -> npt.NDArray[np.uint8]:
    """Return the first E2M1 number at the least distance, which is rounded to a dtype; the first one for NaN."""
    best, codes = np.full(steps.shape, np.float32(np.inf)), np.zeros(steps.shape, np.uint8)
    for code, value in enumerate(E2M1):
        distance = np.abs(rounded(steps - value, dtype))
        codes = np.where(distance < best, np.uint8(code), codes)
        best = np.minimum(distance, best)
    return codes


def floats(codec: Float) -> tuple[FloatRounding, ...]:
    """Return the forms, the likeliest first."""
    ups = (True,) if codec.mode == "nvfp4" else (True, False)
    return tuple(FloatRounding(codec, gpu, up) for up in ups for gpu in (True, False))
