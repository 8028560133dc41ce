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

from requant.formats.codec import Array, Arrays, narrow, widen
from requant.formats.mlx import Affine, pack
from requant.rounding.kernels import affine as affine_codes

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
            return widen(narrow(values, inner), inner)

        with np.errstate(all="ignore"):
            grouped = weights.reshape(len(weights), -1, self.codec.group)
            low, high = grouped.min(axis=-1), grouped.max(axis=-1)
            high = np.maximum(high, np.float32(0)) if self.gpu else high
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
        if not self.gpu:
            return np.rint(values)
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
