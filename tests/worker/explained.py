"""`WHAT`: hold routers' choices, or signs, against a try: another machine's, and those of a builder who lies."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from tests.worker.prepared import answer

from requant.worker.autoround import counts, ends, gradients, hints
from requant.worker.autoround.bounds import BeyondError, Bounds, _ranked
from requant.worker.autoround.gradients import SIGMAS
from requant.worker.autoround.series import Place

TOKENS, EXPERTS, CHOSEN = 512, 256, 8
GROUPS = 8
NOISE = 0.01
"""Of logits, of which two machines and a try have each their own."""
TURNED = range(0, TOKENS, 16)
PLACES = {"next": CHOSEN, "tenth": CHOSEN + 9, "far": EXPERTS // 4, "last": EXPERTS - 1}
"""Which expert a token is sent to instead of the last one of its choice, by their order."""

OUTPUTS, INPUTS, OFF = 64, 256, 0.06
"""Of a layer; and how far the gradient of each token's outputs is off, of itself."""


def found(what: str) -> dict[str, Any]:
    """Answer one of the questions below."""
    torch.manual_seed(7)
    answers: dict[str, Any] = {"routes": routes, "tokens": tokens, "signs": signs, "numbers": numbers, "far": far}
    answers["ends"] = clamped_codes
    result: dict[str, Any] = answers[what]()
    return result


def held(scores: Any, tried: Any, own: Any, theirs: Any) -> Bounds:
    """Hold `theirs` against scores and those of a try. Raises BeyondError where that does not explain them."""
    bounds = Bounds(64, "bfloat16")

    def again() -> None:
        bounds.routes(tried, own, theirs)

    bounds.try_again("", lambda: nullcontext(again))
    bounds.routes(scores, own, theirs)
    bounds.tried()
    return bounds


def routes() -> dict[str, Any]:
    """Say how many routes of another machine were taken, and how many of `TURNED` a builder can turn, by place.

    Scores are probabilities of all experts, logits of which half are left out, or those of the better half of groups,
    of which the try chooses others for some tokens.
    """
    logits = torch.randn(TOKENS, EXPERTS)
    outside = torch.rand(TOKENS, GROUPS).argsort(-1)[:, : GROUPS // 2]
    left = torch.zeros(TOKENS, GROUPS, dtype=torch.bool).scatter(-1, outside, True)
    moved = torch.where((torch.arange(TOKENS) % 8 == 0)[:, None], ~left, left)

    def machine(left_out: Any) -> Any:
        return (logits + NOISE * torch.randn_like(logits)).masked_fill(left_out, -torch.inf)

    def of_groups(left_out: Any) -> Any:
        return left_out.repeat_interleave(EXPERTS // GROUPS, dim=-1)

    came: dict[str, Any] = {}
    nothing, odd = torch.zeros(EXPERTS, dtype=torch.bool), torch.arange(EXPERTS) % 2 > 0
    for name, left_out, left_in_try in (
        ("all", nothing, nothing),
        ("half", odd, odd),
        ("groups", of_groups(left), of_groups(moved)),
    ):
        own, theirs, tried = machine(left_out), machine(left_out), machine(left_in_try)
        best, other = (each.topk(CHOSEN).indices for each in (own, theirs))
        scores, again = (own.softmax(-1), tried.softmax(-1)) if name == "all" else (own, tried)
        came[name] = held(scores, again, best, other).routes_taken
        order = scores.argsort(-1, descending=True)
        turned = dict.fromkeys(PLACES, 0)
        for place, rank in PLACES.items():
            for token in TURNED:
                forged = best.clone()
                forged[token, -1] = order[token, rank]
                try:
                    held(scores, again, best, forged)
                except BeyondError as error:
                    assert str(error).startswith(f"its hints send token {token} of a batch to other experts")
                else:
                    turned[place] += 1
        came[f"{name}, turned"] = turned
    return came


def tokens() -> dict[str, Any]:
    """Say how many tokens could each be sent to the next of eight experts, and what comes of it where some are, or all.

    And how many another machine sends to others, and a builder that turns none can send to them in a pass of few.
    """
    logits = torch.randn(TOKENS, 8)
    scores, again, there = ((logits + NOISE * torch.randn_like(logits)).softmax(-1) for _ in range(3))
    own, order = scores.topk(2).indices, scores.argsort(-1, descending=True)
    first, second = order[:, 1:2], order[:, 2:3]
    square = _ranked(scores, again - scores)
    gap = (scores.gather(-1, first) - scores.gather(-1, second)).double()
    free = (gap <= SIGMAS * (square.gather(-1, first) + square.gather(-1, second)).sqrt()).view(-1)

    def judged(theirs: Any) -> tuple[int, str]:
        try:
            return held(scores, again, own, theirs).routes_taken, ""
        except BeyondError as error:
            return 0, str(error)

    def lie(share: float) -> Any:
        sent = free & (torch.rand(TOKENS) < share)
        return torch.where(sent[:, None], torch.cat([own[:, :1], second], -1), own)

    return {
        "free": int(free.sum()),
        "other": judged(there.topk(2).indices),
        "a tenth": judged(lie(0.1)),
        "all": judged(lie(1.0)),
        "one by one": [counts._at_most(mean, [torch.tensor(mean).sqrt()]) for mean in (0.0, 1e-9, 0.01, 1.0, 1e4)],
    }


@dataclass
class Tried:
    """A layer that was tried, and the standard deviations of the gradients of its weights."""

    off: Any
    name: str = "layer"
    outputs: int = OUTPUTS
    tokens: int = TOKENS
    tried: tuple[int, ...] = (0,)

    def sizes(self, key: str, gradient: Any, _: float) -> tuple[Any, Any]:
        return gradient.view(-1).double().abs(), (SIGMAS * self.off).view(-1).double()


def signs() -> dict[str, Any]:
    """Say what comes of the signs of another machine, and of those of builders that turn some of those that are free.

    Inputs have much in common, so that the errors of an output's gradients do too.
    """
    inputs = torch.randn(TOKENS, INPUTS) + 2 * torch.randn(TOKENS, 1)
    given = torch.randn(TOKENS, OUTPUTS)
    off = OFF * (given.square().T @ inputs.square()).sqrt()
    own, theirs = ((given * (1 + OFF * torch.randn_like(given))).T @ inputs for _ in range(2))
    free = (own.abs() <= SIGMAS * off).view(-1)

    def judged(turned: Any) -> tuple[int, str]:
        parameter = torch.nn.Parameter(torch.zeros(OUTPUTS, INPUTS))
        parameter.grad = own.clone()
        bounds = Bounds(64, "bfloat16")
        bounds._owners[id(parameter)] = Tried(off), "value"  # type: ignore[assignment]
        try:
            bounds.signs(0, [parameter], turned.view(-1))
        except BeyondError as error:
            return bounds.signs_taken, str(error)
        return bounds.signs_taken, ""

    def lie(share: float) -> Any:
        chosen = free & (torch.rand(OUTPUTS * INPUTS) < share)
        return torch.where(chosen, -own.sign().view(-1), own.sign().view(-1))

    return {
        "count": OUTPUTS * INPUTS,
        "free": int(free.sum()),
        "other": judged(theirs.sign()),
        "a tenth": judged(lie(0.1)),
        "half": judged(lie(0.5)),
    }


def far() -> dict[str, str]:
    """Say what is raised for a token that is sent to another expert, by how far the inputs of the block drift apart."""
    found = {}
    for drift in (0.0, 0.01, 0.1):
        bounds = Bounds(64, "float32", drift)
        bounds.look_at(torch.nn.ModuleDict({"mlp": torch.nn.Linear(4, 4)}))
        try:
            bounds.routes(torch.tensor([[0.9, 0.1]]), torch.tensor([[0]]), torch.tensor([[1]]))
        except BeyondError as error:
            found[str(drift)] = str(error)
    return found


def numbers() -> dict[str, Any]:
    """Say what gradients mean as hints that are no number, infinite or small, and which are near to float16's end."""
    parameter = torch.nn.Parameter(torch.zeros(7))
    given = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-30, -1e-30]
    parameter.grad = torch.tensor(given)
    none = torch.nn.Parameter(torch.zeros(2))
    told = hints.unpacked(hints.signs([parameter, none]), 9)
    # One weight each, whose gradients are as far below the end of float16, beyond it, or nowhere near.
    gradient = torch.tensor([[ends.END * (1 - 1e-3)], [ends.END * (1 + 1e-3)], [1.0]])
    parts = [torch.ones(3, 1), -torch.ones(3, 1)]

    def near(off: float) -> list[bool]:
        found: list[bool] = (ends.nearness(gradient, parts, lambda _: torch.full((3,), off)) <= 1).tolist()
        return found

    return {
        "told": told.tolist(),
        "moved": torch.sign(parameter.grad).tolist(),
        "near": [near(100.0), near(1.0)],
    }


def clamping(part: float) -> Callable[..., Any]:
    """Return a clamp that lets so large a part of a gradient pass at the ends of its range."""

    class Clamp(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, numbers: Any, least: float, most: float) -> Any:
            ctx.passes = ((numbers > least) & (numbers < most)) + part * ((numbers == least) | (numbers == most))
            return numbers.clip(least, most)

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            return gradient * ctx.passes, None, None

    def clamp(numbers: Any, *between: Any, **named: Any) -> Any:
        return Clamp.apply(numbers, *between) if len(between) == 2 else numbers.clip(*between, **named)

    return clamp


def clamped_codes() -> dict[str, Any]:
    """Say of a layer's codes what is known of their gradients, by what part of one a clamp lets pass at its ends.

    That is how many weights have codes at an end, and how many gradients are zero; whether the same bounds are; and how
    far gradients are from what is known of them, of the largest.
    """
    result: dict[str, Any] = {}
    for name, clamp in {"torch": torch.clamp, **{str(part): clamping(part) for part in (1.0, 0.5, 0.0)}}.items():
        gradients.passing.cache_clear()
        with Place(torch, "clamp").replaced(clamp):
            result[name] = {"passes": gradients.passing()}
            result[name] |= {kind: _clamped(symmetric=kind == "symmetric") for kind in ("symmetric", "asymmetric")}
    return result


def _clamped(*, symmetric: bool) -> dict[str, Any]:
    from auto_round.wrapper import WrapperLinear

    layer = torch.nn.Linear(INPUTS, OUTPUTS, bias=False)
    scheme = {"bits": 4, "group_size": 32, "sym": symmetric, "data_type": "int", "scale_dtype": torch.float16}
    for name, value in {**scheme, "act_bits": 16, "global_name": "layer"}.items():
        setattr(layer, name, value)
    wrapper = WrapperLinear(layer, enable_minmax_tuning=True, enable_torch_compile=False, device="cpu")
    wrapper.value.data.uniform_(-0.5, 0.5)
    wrapper.min_scale.data.uniform_(0.6, 1)
    wrapper.max_scale.data.uniform_(0.6, 1)
    inputs, given = torch.randn(TOKENS, INPUTS), torch.randn(TOKENS, OUTPUTS)
    weight, scale, zero = wrapper._qdq_weight(wrapper.value, wrapper.min_scale, wrapper.max_scale)
    ((inputs @ weight.T) * given).sum().backward()
    known = gradients.Layer(wrapper)
    known.add(inputs, given, 0)
    products, scale = known._grouped(given.T @ inputs), scale.detach()
    counts, passes = known._in_steps()
    of_weights, of_scales = products * scale * passes, (products * sum(counts)).sum(1)
    codes = known._grouped(weight.detach()) / scale - (-8 if symmetric else -zero.detach())
    # A range's end makes the scale, of 8 or 15 steps; of a symmetric one the greater end, here the upper one.
    of_ranges = of_scales * wrapper.weight_max / (-8 if symmetric else 15)
    if symmetric:
        of_ranges *= wrapper.weight_max * wrapper.max_scale > -wrapper.weight_min * wrapper.min_scale

    def off(found: Any, expected: Any) -> float:
        return float((found.view(-1) - expected.detach().view(-1)).abs().max() / found.abs().max())

    return {
        "at an end": int(((codes.round() == 0) | (codes.round() == 15)).sum()),
        "zero": int((wrapper.value.grad == 0).sum()),
        "same": bool(((wrapper.value.grad == 0) == (known.bound("value", 1e-6) == 0)).all()),
        "off": [off(wrapper.value.grad, of_weights), off(wrapper.max_scale.grad, of_ranges)],
    }


if __name__ == "__main__":
    answer(found)
