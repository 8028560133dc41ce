"""Where float16 ends: gradients of ranges that are beyond it, as where an iteration has several steps.

Their losses are then sums, not means, and so gradients are as many times greater as the step has numbers. AutoRound
keeps scales in float16, and so torch keeps each part of a scale's gradient: what is 65,520 or more is infinite there,
two such parts of both signs together are no number, and a range with such a gradient does not move. On which side of
that end a part is can be another on another machine only if it is as near to it as rounding explains.
"""

from collections.abc import Callable
from typing import Any

END, PLACE = 65520.0, 32.0
"""Where float16 ends, halfway from its greatest number to what would be the next one; and its places there."""


def nearness(gradient: Any, counts: list[Any], off: Callable[[Any], Any]) -> Any:
    """Return how near parts of scales' gradients [groups] are to the end: the distance, by what they can be off.

    The gradient [groups, size] is of quantized weights, of which each counts in each part by a number of `counts`;
    `off` is given these and returns how far a part can be off. The sum of all parts, rounded as well, is one more.
    """
    import torch

    parts, offs = [(gradient * each).sum(1) for each in counts], [off(each) for each in counts]
    distances = [(part.abs() - END).abs() for part in parts]
    distances.append(((sum(parts).abs() - END).abs() - len(parts) * PLACE).clamp(min=0))
    return torch.stack([far / each for far, each in zip(distances, [*offs, sum(offs)], strict=True)]).amin(0)
