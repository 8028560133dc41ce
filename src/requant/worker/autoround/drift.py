"""How far what a block is given drifts apart on two machines that add up in other orders: measured, not counted.

Roundings of one block can be counted. What the blocks behind it make of them cannot: some make a difference smaller,
others greater. So a few samples are taken through the blocks once more, each operation on float32 computed in float64
and rounded once. How far these are from what a machine's own order of sums gives is that machine's own error, and
another one that computes in float32 is off by as much, in a way of its own. Experts are the same ones in both: a token
that is sent elsewhere is another decision, no rounding.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from requant.errors import BuildError
from requant.worker.autoround.hints import Repeating, routing
from requant.worker.autoround.perturbed import EXACT


def once_more(decisions: Repeating, run: Callable[[Any], Any], stream: list[Any]) -> Any:
    """Let a stream pass with each operation rounded once, and the experts of the pass that `decisions` heard last."""
    with routing(decisions, None), RoundedOnce(), decisions.repeated(lambda: run(stream)) as repeat:
        return repeat()


def behind(run: Callable[[Any], Any], own: list[Any], other: list[Any]) -> tuple[list[Any], float]:
    """Take samples [1, tokens, hidden] and their others through a block; return the others, and how far apart both are.

    `run` lets the block put out what comes of a stream.
    """
    decisions = Repeating()
    with routing(decisions, None):
        own = run(own)
    other = once_more(decisions, run, other)
    return other, apart(own, other)


def apart(own: list[Any], other: list[Any]) -> float:
    """Return how far tokens [1, tokens, hidden] are from others, of themselves: the root of the mean square.

    Raises BuildError where that is no finite number.
    """
    squares = []
    for mine, theirs in zip(own, other, strict=True):
        mine, theirs = mine.double(), theirs.double()
        squares.append((theirs - mine).square().sum(-1) / mine.square().sum(-1).clamp(min=1e-60))
    found = float(torch.cat([each.flatten() for each in squares]).mean().sqrt())
    if not math.isfinite(found):
        raise BuildError("a block puts out numbers that are not finite", "Look at the base: requant check says where.")
    return found


class RoundedOnce(TorchDispatchMode):
    """While it is entered, what an operation makes of float32 is computed in float64, and rounded to float32.

    One that torch has in float32 alone, such as the product of all experts at once, is left as it is: what it is given
    is off already.
    """

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.partition("::")[2].rstrip("_")
        if function.is_view or function._schema.is_mutable or name in EXACT or name == "_to_copy":
            return function(*args, **(kwargs or {}))
        wide, named = tree_map(_wide, (args, kwargs or {}))
        try:
            return tree_map(_narrow, function(*wide, **named))
        except RuntimeError:
            return function(*args, **(kwargs or {}))


def _wide(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
        return value.double()
    return torch.float64 if value is torch.float32 else value


def _narrow(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.float64 else value
