"""Which search over ranges a scheme of compressed-tensors declares: its observer, as llm-compressor reads that.

Sources: `MemorylessMSEObserver` and `MovingAverageMSEObserver` (observers/mse.py) of llm-compressor 0.3.1, 0.6.0,
0.8.1, 0.9.0.5, 0.12.0.2, 0.13.0 and 0.14.0.1. Weights are observed once, so the average moves nowhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

MSE = ("mse", "memoryless_mse")
"""The names of the observers that search so."""
HARMLESS = ("averaging_constant", "chunk_size", "triton_error_buffer")
"""Of their arguments, those that change nothing of what is found in weights on a CPU."""
MOST = 256
"""Ranges that are tried, at most: a stranger says how many."""
ODD = (0.5, 3.0)
"""Powers that torch computes otherwise: in BF16 by several roundings."""


@dataclass(frozen=True)
class Search:
    """`steps` ranges are tried, of which each is 1/grid of the whole one narrower than the one before.

    It is `stated` if a configuration says that there was a search.
    """

    norm: float = 2.4
    grid: float = 100.0
    steps: int = 20
    patience: int = 5
    stated: bool = False

    @property
    def shares(self) -> tuple[np.float32, ...]:
        """The shares of a group's range that are tried, as torch multiplies by them."""
        return tuple(np.float32(1 - step / self.grid) for step in range(self.steps))


USUAL, WIDEST = Search(), Search(steps=80)
"""What is searched where nothing is stated; and what 0.3.1 did."""


def search_of(weights: Mapping[str, Any]) -> Search | None:
    """Return what a scheme's weights are searched by, if they are; None where it declares what is not modelled.

    What declares no such observer can have been made by the usual one.
    """
    observer, said = weights.get("observer"), weights.get("observer_kwargs") or {}
    if observer not in MSE:
        return USUAL
    if not isinstance(said, dict):
        return None
    said = {key: value for key, value in said.items() if key not in HARMLESS}
    shrink, grid = said.pop("maxshrink", 0.2), said.pop("grid", 100.0)
    norm, patience = said.pop("norm", 2.4), said.pop("patience", 5)
    if said.pop("expand", 1) != 1 or said or type(patience) is not int or patience < 1:
        return None
    if not all(type(each) in (int, float) for each in (shrink, grid, norm)):
        return None
    if not (0 < shrink < 1 and 1 <= grid <= 1 << 16 and 1 <= norm <= 8) or norm in ODD:
        return None
    steps = int(shrink * grid)
    return Search(float(norm), float(grid), steps, min(patience, MOST), stated=True) if 0 < steps <= MOST else None
