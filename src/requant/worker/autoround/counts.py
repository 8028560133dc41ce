"""How many decisions can differ at once, where each of many can: signs of gradients, routes of tokens.

Each is within a bound of its own, of `SIGMAS` standard deviations; by the normal distribution it has a probability of
being another one elsewhere. How many are is then the sum of these, give or take `SIGMAS` standard deviations, for which
those that share an error are taken to go all the same way. Few and rare ones are more than that now and then, as a
Poisson distribution has them, so no fewer are let pass than these have with the same certainty.
"""

import math
from collections.abc import Iterable
from typing import Any

from requant.worker.autoround.gradients import SIGMAS


def turned(sizes: Any, bounds: Any) -> int:
    """Return how many signs of gradients of such sizes [outputs, ...] can be others, each within a bound of its own.

    The errors of one output are taken to go all the same way, and those of one input.
    """
    import torch

    far = sizes / (bounds.view_as(sizes) / SIGMAS)
    chances = torch.special.ndtr(-far).nan_to_num(0)  # 0 / 0: a gradient that is zero everywhere
    deviations = (chances * (1 - chances)).sqrt()
    return _at_most(float(chances.sum()), (deviations.sum(dim) for dim in (0, 1)))


def sent(scores: Any, own: Any, square: Any, length: int) -> int:
    """Return how many tokens can be sent to other experts than their own [tokens, chosen].

    Scores [tokens, experts] are off by the roots of `square`, each by itself. Then a token stays with its experts with
    no less a probability than if no pair of experts knew of another (Harris, 1960). The tokens of one sequence, so many
    in a row, are taken to go all the same way: with those of another one nothing is computed.
    """
    import torch

    scores = scores.double()
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, own, True)
    staying = torch.zeros_like(scores[:, 0])
    for each in own.split(1, dim=-1):
        far = (scores.gather(-1, each) - scores) / (square.gather(-1, each) + square).sqrt()
        staying += torch.log1p(-torch.special.ndtr(-far).nan_to_num(0.5).masked_fill(chosen, 0)).sum(-1)
    chances = -torch.expm1(staying)
    deviations = (chances * (1 - chances)).sqrt()
    return _at_most(float(chances.sum()), [each.sum() for each in deviations.split(length)])


def _at_most(mean: float, deviations: Iterable[Any]) -> int:
    """Return how many are other ones at most, of so many in the mean; `deviations` are those of each group."""
    import torch

    most = math.ceil(mean + SIGMAS * math.sqrt(sum(float(each.square().sum()) for each in deviations)))
    certain = math.erfc(SIGMAS / math.sqrt(2)) / 2

    def chance_of_more() -> float:
        ends = (torch.tensor(each, dtype=torch.float64) for each in (most + 1.0, mean))
        return float(torch.special.gammainc(*ends))

    while mean and chance_of_more() > certain:
        most += 1
    return most
