"""`RECIPE BASE`: the bounds of the first block's gradients where its experts run together, and where one by one.

AutoRound runs them one by one, by layers of their own, where `AR_MOE_EXPERTS_IMPL` asks for it. What comes back says of
each kind of parameter how many layers have one, and how far the bounds are apart at most, of the largest in the layer.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
from tests.worker.lies import ROOT, Liar, lying, one_block
from tests.worker.prepared import answer

from requant.recipe import read_recipe

WAYS = ("linear_grouped", "linear_loop")


def bounds_of(way: str, recipe: str, base: str) -> dict[tuple[str, str], Any]:
    """Return the bounds in the first iteration, by layer and parameter."""
    os.environ["AR_MOE_EXPERTS_IMPL"] = way
    found: dict[tuple[str, str], Any] = {}

    def look(layer: Any, key: str, grad: Any, bound: Any) -> None:
        found.setdefault((layer.name, key), torch.stack([bound, grad.abs()]))

    liar = Liar(read_recipe(ROOT / "builds" / recipe).effort(tiny=True).sequence_length, look)

    def tune(autoround: Any, block: Any, run: Callable[[], None]) -> None:
        liar.look_at(block)
        with lying(autoround, liar):
            run()

    one_block(recipe, base, 0, tune)
    return found


def together(recipe: str, base: str) -> dict[str, Any]:
    """Compare both ways."""
    one, other = (bounds_of(way, recipe, base) for way in WAYS)
    assert one.keys() == other.keys()
    found: dict[str, Any] = {"experts": sum(".experts." in name for name, _ in one)}
    for _, key in one:
        alike = [(one[each], other[each]) for each in one if each[1] == key]
        found[key] = {
            "layers": len(alike),
            "apart": max(float((a - b)[0].abs().max() / b[0].max()) for a, b in alike),
            "free": max(float((b[1] <= b[0]).double().mean()) for _, b in alike),
        }
    return found


if __name__ == "__main__":
    answer(together)
