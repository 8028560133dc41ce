"""What the gradients of a layer's parameters are sums of, and so how far two machines can be from each other in them.

The gradient of a weight is a sum over tokens, whose products make `Q` (`bounds.py`). That of a range is that of its
scale, a sum over a group of weights, of which the error of one output is shared: there `Q` is the sum of theirs.
AutoRound keeps scales in float16, and so torch keeps their gradients: two parts, through the product and through the
quotient, are each rounded to float16, and so is their sum, which may be far smaller. Two machines can be a place of
each apart, and a place of the smallest numbers is 2**-24.
"""

import math
from collections.abc import Callable
from typing import Any

SIGMAS = 9.0
"""By chance one decision in 2e17 is further away than this; a build of 35 billion weights makes 1e13."""
UNITS = {"float32": 2.0**-24, "bfloat16": 2.0**-8}
"""Unit roundoffs: the greatest relative error of one rounding."""
PLACE, LEAST = 2.0**-10, 2.0**-24
"""Of float16: the distance of two neighbours, of themselves, and the least one."""


class Layer:
    """What the gradients of one layer's parameters are sums of.

    Where its passes are `tried` again, each token's input and gradient have a relative error of their own. As a number
    that is a sum is off by more than of itself where it is small, both count for it: itself, and its row's mean square.
    """

    def __init__(self, wrapper: Any) -> None:
        self.name = str(wrapper.orig_layer.global_name)
        self.weight: Any = None
        self.scale: Any = None
        self.tokens = 0
        self.tried: list[list[Any]] = []
        self._wrapper = wrapper
        self._squares: Any = 0.0
        self._errors: Any = 0.0
        self._unit: Any = 0.0
        self._passes = 0

    @property
    def outputs(self) -> int:
        """How many outputs it has."""
        return int(self._wrapper.orig_layer.weight.shape[0])

    @property
    def parameters(self) -> list[Any]:
        """Its parameters that are tuned."""
        return [*self._wrapper.params.values()]

    def heard(self, given: Any, *, trying: bool) -> Callable[[Any], None]:
        """Return what hears of the gradient of what is put out for an input."""
        if trying:
            self.tried.append(tried := [given])
            return lambda gradient: tried.append(gradient.detach())
        number, self._passes = self._passes, self._passes + 1
        return lambda gradient: self.add(given, gradient, number)

    def add(self, given: Any, gradient: Any, number: int) -> None:
        """Add a forward pass: the weight's gradient [out, in] is that of its outputs, transposed, times its inputs."""
        given, gradient = (each.detach().float().flatten(0, -2) for each in (given, gradient))
        self._unit = self._unit or float(gradient.abs().max())
        self.tokens += len(given)
        if not self._unit:
            return
        # Squares of gradients themselves would be too small for float32.
        inputs, gradients = given.square(), (gradient / self._unit).square()
        self._squares = self._squares + gradients.T @ inputs
        if self.tried:
            off_inputs, off_gradients = (
                ((again.float().flatten(0, -2) - each) / unit).square().sum(-1, keepdim=True)
                for again, each, unit in zip(self.tried[number], (given, gradient), (1.0, self._unit), strict=True)
            )
            off_inputs, off_gradients = (
                (off / each.sum(-1, keepdim=True).clamp(min=1e-30))
                for off, each in ((off_inputs, inputs), (off_gradients, gradients))
            )
            wide_inputs, wide_gradients = (each + each.mean(-1, keepdim=True) for each in (inputs, gradients))
            self._errors = self._errors + (off_gradients * wide_gradients).T @ inputs
            self._errors = self._errors + (off_inputs * gradients).T @ wide_inputs
            self.tried[number] = []

    def bound(self, key: str, relative: float) -> Any:
        """Return how far from zero each gradient of a parameter can have another sign; `key` is AutoRound's name.

        `relative` is how far each product can be off, of itself, where that was not tried. A gradient that is zero by
        what was computed on single numbers alone is zero everywhere: that of a weight beyond its range, and of the
        lesser end of a symmetric one.
        """
        import torch
        from auto_round.data_type.utils import reshape_pad_tensor_by_group_size

        wrapper, layer = self._wrapper, self._wrapper.orig_layer

        def grouped(tensor: Any) -> Any:
            return reshape_pad_tensor_by_group_size(tensor.float(), layer.group_size)[0]

        signed = self.scale.float().view(-1, 1)
        scale = signed.abs()
        if not self._unit:
            return torch.zeros_like(getattr(wrapper, key))
        products = grouped(self._squares).sqrt() * self._unit
        off = SIGMAS * grouped(self._errors).sqrt() * self._unit if self.tried else products * relative
        code, before = grouped(self.weight) / signed, grouped(layer.weight.detach()) / signed
        if key == "value":
            inside = (before + wrapper.value.detach() - code).abs() < 0.75  # else it was not rounded, but clamped
            return off * scale * inside
        # Through the scale each weight counts by its code and by what it is before rounding, both in steps; through an
        # asymmetric zero point by all codes at most.
        steps = code.abs() + before.abs()
        steps = steps if layer.sym else steps + 2**layer.bits
        low, high = (each.abs().float().view(-1) for each in (wrapper.weight_min, wrapper.weight_max))
        low_end, high_end = (low * wrapper.min_scale.detach().view(-1), high * wrapper.max_scale.detach().view(-1))
        own, counts = (low, low_end >= high_end) if key == "min_scale" else (high, high_end >= low_end)
        if self.tried:
            # What the gradient of a weight is off by goes both ways, and so through the difference of both.
            ways = (code - before).abs() if layer.sym else steps
            off = ((off.square() + (SIGMAS * UNITS["bfloat16"] * products).square()) * ways.square()).sum(1).sqrt()
        else:
            off = (off * steps).sum(1)
        bound = (off + 2 * PLACE * (products * steps).sum(1) + 2 * LEAST) * own / 2 ** (layer.bits - 1)
        return bound * counts if layer.sym else bound


def turned(gradients: Any, bounds: Any) -> int:
    """Return how many signs of gradients [outputs, ...] can be others, each of which is within a bound of its own.

    A bound is `SIGMAS` standard deviations, so by the normal distribution each has a probability. How many there are
    then differs from the sum of these by `SIGMAS` standard deviations at most, where the errors of one output go all
    the same way, and those of one input: nothing is said against that.
    """
    import torch

    far = gradients.double().abs() / (bounds.view_as(gradients).double() / SIGMAS)
    chances = torch.special.ndtr(-far).nan_to_num(0)  # 0 / 0: a gradient that is zero everywhere
    deviations = (chances * (1 - chances)).sqrt()
    variance = sum(float(deviations.sum(dim).square().sum()) for dim in (0, 1))
    return math.ceil(float(chances.sum()) + SIGMAS * math.sqrt(variance))
