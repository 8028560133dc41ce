"""What SignRound can reach from a weight: the bound that every tuned code and scale must keep.

SignRound (Cheng et al., arXiv:2309.05516) adds to each weight, in steps of a code, an offset v that starts at 0, and
multiplies both ends of each group's range by factors that start at 1. Each of I iterations moves each of them by the
learning rate, up or down (auto_round/sign_sgd.py), and the rate falls linearly to 0. AutoRound 0.12.2 and 2dda035
collect the best parameters *before* an iteration's step (compressors/base.py, of a block as of a layer alone), so the
last step never counts:

    |v| <= V = lr * (I - 1)(I + 2) / 2I        A = max(0, 1 - minmax_lr * (I - 1)(I + 2) / 2I) <= factor <= 1

and `quant_tensor_sym` (data_type/int.py) makes of a group, for b bits, H = 2^(b-1) and `low` <= 0 <= `high` the ends
of its range,

    scale = float16(f * -low / H), or float16(-f' * high / H) where f' * high >= f * -low;  |scale| >= float16(1e-5)
    code  = clamp(round(float32(float32(w / scale) + v)), -H, H - 1)

`quant_tensor_asym` makes of it, for T = 2^b - 1,

    scale = max(float16(float32(f' * high - f * low) / T), float16(1e-5));  zero = round(float32(f * -low / scale))
    code  = clamp(round(float32(float32(w / scale) + v)) + zero, 0, T)

The error budget is nothing: weights are BF16 or float32 and scales float16, which torch divides in float32; v, the
factors and the rates are float32; division, addition, rounding to even and clamping are monotone, so the extremes of
the exact values lead to the extremes of the rounded ones, and V and A are summed here in float32 as torch sums them.
The codes survive the export, which rounds scale * code to BF16 and divides it again: that errs by one 512th of a code,
which is less than half a step even for 255 of them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from requant.recipe import Recipe
from requant.rounding.kernels import error, halves, scales_within

F32 = np.float32
Array = npt.NDArray[Any]

SMALLEST = np.uint16(np.float16(1e-5).view(np.uint16))
"""`q_scale_thresh` (wrapper.py) as float16, in bits."""
SIGN, INFINITE = np.uint16(0x8000), np.uint16(0x7C00)
"""Bits of float16: the sign, and infinity."""
DEFAULTS = tuple(range(4, 4001))
"""Numbers of iterations at AutoRound's default rate, 1/iterations, loosest first: V falls from 0.5625 towards 0.5."""


@dataclass(frozen=True)
class Reach:
    """How far tuning can go: `offset` V in steps of a code, `factor` A of a range's end; both float32 values."""

    offset: float
    factor: float


def reach(iterations: int, rate: float, minmax_rate: float | None) -> Reach:
    """Return what `iterations` at learning rates falling from `rate` to 0 can reach; None: the range stays.

    Sums in float32, as SignSGD does under torch's LinearLR(1.0, 0.0, iterations) with rates that are tensors.
    """
    offset, factor = F32(0), F32(1)
    step, minmax = F32(rate), F32(minmax_rate or 0)
    for i in range(1, iterations):
        offset, factor = offset + step, factor - minmax
        # LinearLR's chained form (torch/optim/lr_scheduler.py), a Python float times a float32 tensor.
        fall = F32(1.0 + -1.0 / (iterations - (i - 1)))
        step, minmax = step * fall, minmax * fall
    return Reach(float(offset), max(0.0, float(factor)))


def reach_of(recipe: Recipe, tiny: bool) -> Reach:
    """Return what a recipe's tuning, or its tiny model's, can reach."""
    iterations, tuning = recipe.effort(tiny).iterations, recipe.tuning

    def number(rate: float | str) -> float:
        return 1.0 / max(1, iterations) if rate == "1/iterations" else float(rate)

    minmax = number(tuning.minmax_learning_rate) if tuning.tune_minmax else None
    return reach(iterations, number(tuning.learning_rate), minmax)


def loosest() -> Reach:
    """Return what is reachable with AutoRound's default rates in any number of iterations: that of four."""
    return reach(DEFAULTS[0], 1 / DEFAULTS[0], 1 / DEFAULTS[0])


def tightest(offset: float, factor: float) -> int | None:
    """Return the most iterations at default rates that reach as far as was seen; None where no number does."""
    fits = [iterations for iterations in DEFAULTS if _fits(iterations, offset, factor)]
    return max(fits, default=None)


def _fits(iterations: int, offset: float, factor: float) -> bool:
    far = (iterations - 1) * (iterations + 2) / (2 * iterations * iterations)
    # What was seen is measured back from rounded codes' quotients, and from scales rounded to float16.
    return offset <= far + error(4) and factor >= (1 - far) * (1 - 2**-11)


def codes_within(values: Array, scales: Array, bound: Reach, lowest: Any = -8, highest: Any = 7) -> tuple[Array, Array]:
    """Return the least and greatest reachable codes, less zero points, for float32 weights and scales (broadcast).

    `lowest` and `highest` are what codes, less their zero points, are clamped to: -8 and 7 of 4 symmetric bits.
    """
    with np.errstate(all="ignore"):
        steps = values / scales
    ends = [np.rint(steps + F32(side * bound.offset)) for side in (-1, 1)]
    return np.clip(ends[0], lowest, highest), np.clip(ends[1], lowest, highest)


def half(ends: Array) -> Array:
    """Return float32 numbers >= 0, of any shape, rounded to float16, as bits uint16; they order as the numbers do."""
    return np.asarray(halves(np.ascontiguousarray(ends).reshape(-1)).reshape(ends.shape))


def scale_possible(scales: Array, low: Array, high: Array, bound: Reach, middle: int = 8) -> npt.NDArray[np.bool_]:
    """Say of each scale, float16 bits uint16, whether tuning can reach it from a range [low, high], low <= 0 <= high.

    `middle` is the zero point of symmetric codes.
    """
    possible = np.empty(scales.shape, np.bool_)
    flat = (np.ascontiguousarray(each).reshape(1, -1) for each in (scales, low, high, possible))
    scales_within(*flat, F32(bound.factor), F32(middle), SMALLEST)
    return possible


def range_possible(
    scales: Array, zeros: Array, low: Array, high: Array, bound: Reach, top: int
) -> npt.NDArray[np.bool_]:
    """Say of each scale, float16 bits uint16, and its zero point, whether tuning can reach both from [low, high].

    `top` is the greatest asymmetric code. The two ends that tuning leaves are sought: f * -low has to round to the zero
    point, and both together to the scale. Each rounding of float32 on the way is allowed for, twofold.
    """
    steps = scales.view(np.float16).astype(np.float64)
    below, above = -low.astype(np.float64), high.astype(np.float64)
    least, most = below * bound.factor, below
    with np.errstate(invalid="ignore"):
        least, most = np.maximum(least, (zeros - 0.5) * steps), np.minimum(most, (zeros + 0.5) * steps)
        magnitude = scales.astype(np.int64)
        # Half-way to the neighbours in float16, whose positive numbers order as their bits do.
        under, over = (np.clip(magnitude + side, 0, 0x7BFF).astype(np.uint16) for side in (-1, 1))
        narrow, wide = ((steps + each.view(np.float16)) / 2 * top for each in (under, over))
        narrow = np.where(scales == SMALLEST, 0, narrow)
        slack = (wide + below) * 2.0**-20
        fits = least <= most + slack
        fits &= most + above >= narrow - slack
        fits &= np.maximum(least, 0) + above * bound.factor <= wide + slack
    return np.asarray(fits & (scales >= SMALLEST) & (scales < INFINITE) & np.isfinite(below + above))
