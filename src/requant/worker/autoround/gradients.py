"""What the gradients of a layer's parameters are sums of, and so how far two machines can be from each other in them.

The gradient of a weight is a sum over tokens, whose products make `Q` (`bounds.py`). That of a range is that of its
scale, a sum over a group of weights, of which the error of one output is shared: there `Q` is the sum of theirs.
AutoRound keeps scales in float16, and so torch keeps their gradients: two parts, through the product and through the
quotient, are each rounded to float16, and so is their sum, which may be far smaller. Two machines can be a place of
each apart, and a place of the smallest numbers is 2**-24. Where the losses of an iteration's steps are sums, such parts
are beyond what float16 holds (`ends.py`).
"""

import math
from collections.abc import Callable
from functools import cache, cached_property
from typing import Any

from requant.worker.autoround.ends import END, nearness

SIGMAS = 9.0
"""By chance one decision in 2e17 is further away than this; a build of 35 billion weights makes 1e13."""
UNITS = {"float32": 2.0**-24, "bfloat16": 2.0**-8}
"""Unit roundoffs: the greatest relative error of one rounding."""
PLACE, LEAST = 2.0**-10, 2.0**-24
"""Of float16: the distance of two neighbours, of themselves, and the least one."""

PARAMETERS = ("value", "min_scale", "max_scale")
"""What a wrapped layer is quantized by, as AutoRound calls them."""


@cache
def passing() -> tuple[float, float]:
    """Return what part of a gradient `clamp` lets pass at the least and at the greatest number of its range.

    Between numbers, as AutoRound clamps codes of every scheme, that is all of it up to torch 2.13 and nothing since;
    between tensors it became a half (docs/portable.md).
    """
    import torch

    with torch.enable_grad():
        ends = torch.tensor([0.0, 1.0], requires_grad=True)
        (found,) = torch.autograd.grad(torch.clamp(ends, 0, 1).sum(), ends)
    least, greatest = found.tolist()
    return least, greatest


class Layer:
    """What the gradients of one layer's parameters are sums of.

    Where its passes are `tried` again, each token's input and gradient have a relative error of their own. As a number
    that is a sum is off by more than of itself where it is small, both count for it: itself, and its row's mean square.
    """

    def __init__(self, wrapper: Any) -> None:
        self.name = str(wrapper.orig_layer.global_name)
        self.tokens = 0
        self.tried: list[list[Any]] = []
        self._wrapper = wrapper
        self._squares: Any = 0.0
        self._errors: Any = 0.0
        self._unit: Any = 0.0
        self._passes = 0
        self._ends: Any = None

    @property
    def outputs(self) -> int:
        """How many outputs it has."""
        return int(self._wrapper.orig_layer.weight.shape[0])

    @property
    def parameters(self) -> list[Any]:
        """Its parameters that are tuned."""
        return [*self._wrapper.params.values()]

    @cached_property
    def _quantized(self) -> tuple[Any, Any]:
        """Its weight as its parameters round it, and its scales: until a step, those of the forward pass."""
        import torch

        with torch.no_grad():
            weight, scale, _ = self._wrapper._qdq_weight(*(getattr(self._wrapper, key) for key in PARAMETERS))
        return weight, scale

    @property
    def weight(self) -> Any:
        """Its weight, quantized."""
        return self._quantized[0]

    @property
    def scale(self) -> Any:
        """Its scales."""
        return self._quantized[1]

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
        squares, errors = gradients.T @ inputs, None
        self._squares = self._squares + squares
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
            errors = (off_gradients * wide_gradients).T @ inputs + (off_inputs * gradients).T @ wide_inputs
            self._errors = self._errors + errors
            self.tried[number] = []
        most = float(squares.sqrt().sum(-1).amax()) * self._unit * math.sqrt(len(given))
        if most * 2 ** (self._wrapper.orig_layer.bits + 1) >= END / 2:  # else, by Cauchy and Schwarz, no sum is greater
            self._look_at_ends((gradient / self._unit).T @ given, squares, errors)

    def _grouped(self, tensor: Any) -> Any:
        from auto_round.data_type.utils import reshape_pad_tensor_by_group_size

        return reshape_pad_tensor_by_group_size(tensor.float(), self._wrapper.orig_layer.group_size)[0]

    def _in_steps(self) -> tuple[list[Any], Any]:
        """Return by what each weight counts in each part of its scale's gradient, and what part passes the clamp.

        That is its code less the zero point, in the product; itself before rounding, in the quotient, as far as its
        gradient passes; and an asymmetric zero point before rounding, as far as it does not. All are in steps.
        """
        wrapper, scale = self._wrapper, self.scale.float().view(-1, 1)
        bits = wrapper.orig_layer.bits
        code, before = self._grouped(self.weight) / scale, self._grouped(wrapper.orig_layer.weight.detach()) / scale
        rounded, first, zero = _rounded(before + wrapper.value.detach()), -(2 ** (bits - 1)), None
        if not wrapper.orig_layer.sym:
            zero = -(wrapper.weight_min.float() * wrapper.min_scale.detach()).view(-1, 1) / scale
            rounded, first = rounded + _rounded(zero), 0
        last, (least, greatest) = first + 2**bits - 1, passing()
        passes = ((rounded > first) & (rounded < last)) + least * (rounded == first) + greatest * (rounded == last)
        return [code, -before * passes] + ([] if zero is None else [zero * (1 - passes)]), passes

    def _look_at_ends(self, gradient: Any, squares: Any, errors: Any) -> None:
        """Keep how near to the end of float16 a pass comes, of which this is all that `add` has."""
        counts, _ = self._in_steps()
        products = self._grouped(squares).sqrt() * self._unit
        square = None
        if errors is not None:
            square = SIGMAS**2 * (self._grouped(errors) * self._unit**2 + (UNITS["bfloat16"] * products).square())

        def off(each: Any) -> Any:
            return (products * each.abs()).sum(1) if square is None else (square * each.square()).sum(1).sqrt()

        near = nearness(self._grouped(gradient) * self._unit, counts, off)
        self._ends = near if self._ends is None else self._ends.minimum(near)

    def bound(self, key: str, relative: float) -> Any:
        """Return how far from zero each gradient of a parameter can have another sign; `key` is AutoRound's name.

        `relative` is how far each product can be off, of itself, where that was not tried. A gradient that is zero by
        what was computed on single numbers alone is zero everywhere: that of a weight beyond its range, and of the
        lesser end of a symmetric one.
        """
        import torch

        wrapper, layer = self._wrapper, self._wrapper.orig_layer
        if not self._unit:
            return torch.zeros_like(getattr(wrapper, key))
        products = self._grouped(self._squares).sqrt() * self._unit
        off = SIGMAS * self._grouped(self._errors).sqrt() * self._unit if self.tried else products * relative
        counts, passes = self._in_steps()
        if key == "value":
            return off * self.scale.float().view(-1, 1).abs() * passes
        # An asymmetric zero point has a gradient of its own, through which each weight counts by all codes at most.
        steps = sum(each.abs() for each in counts) + (0 if layer.sym else 2**layer.bits)
        low, high = (each.abs().float().view(-1) for each in (wrapper.weight_min, wrapper.weight_max))
        low_end, high_end = (low * wrapper.min_scale.detach().view(-1), high * wrapper.max_scale.detach().view(-1))
        own, decides = (low, low_end >= high_end) if key == "min_scale" else (high, high_end >= low_end)
        if self.tried:
            # What the gradient of a weight is off by goes both ways, and so through the difference of both.
            ways = sum(counts).abs() if layer.sym else steps
            off = ((off.square() + (SIGMAS * UNITS["bfloat16"] * products).square()) * ways.square()).sum(1).sqrt()
        else:
            off = (off * steps).sum(1)
        places = PLACE * math.sqrt(self._passes) * (products * steps).sum(1) + LEAST * self._passes
        bound = (off + 2 * places) * own / 2 ** (layer.bits - 1)
        return bound * decides if layer.sym else bound

    def sizes(self, key: str, gradient: Any, relative: float) -> tuple[Any, Any]:
        """Return how large gradients of a parameter are, and how large each can be where it has another sign elsewhere.

        Near the end of float16 these are, of a range, how far from it its gradient is, and how far rounding explains.
        """
        import torch

        sizes, bounds = gradient.view(-1).double().abs(), self.bound(key, relative).view(-1).double()
        if key == "value" or self._ends is None:
            return sizes, bounds
        ends = self._ends.double() / (1 if self.tried else relative)
        nearer = (bounds > 0) & ~(sizes / bounds <= ends)  # also where there is no number
        return torch.where(nearer, ends, sizes), torch.where(nearer, 1.0, bounds)


def _rounded(numbers: Any) -> Any:
    """Round as AutoRound does: by adding what is missing, so that the last bit may be beyond a code and be clamped."""
    return (numbers.round() - numbers) + numbers
