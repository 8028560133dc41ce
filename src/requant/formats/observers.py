"""Which search over ranges a scheme of compressed-tensors declares: its observer, as llm-compressor reads that.

Sources: `MemorylessMSEObserver` and `MovingAverageMSEObserver` (observers/mse.py) of llm-compressor 0.3.1, 0.6.0,
0.8.1, 0.9.0.5, 0.12.0.2, 0.13.0 and 0.14.0.1, and what makes them (modifiers/quantization/calibration.py). Weights are
observed once, so the average moves nowhere. 0.3.1 hands no argument over, and tries 80 ranges; 0.6.0 reads `maxshrink`
and `patience` alone; `expand` is of 0.14. An argument that a release does not know changes nothing of what it does.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

USUALLY: Mapping[str, float] = {"maxshrink": 0.2, "grid": 100.0, "norm": 2.4, "patience": 5, "expand": 1.0}
EXPANDED: Mapping[str, float] = {**USUALLY, "maxshrink": 1 - 0.8 / 1.8, "grid": 200.0, "patience": 1000, "expand": 1.8}
MSE = {
    **dict.fromkeys(("mse", "memoryless_mse"), USUALLY),
    **dict.fromkeys(("nvfp4_expanded_mse", "fouroversix"), EXPANDED),
}
"""The arguments of the observers that search so, where none are handed to them; the expanded ones are of 0.14."""
HARMLESS = ("averaging_constant", "chunk_size", "triton_error_buffer")
"""Of their arguments, those that change nothing of what is found in weights on a CPU."""
MOST = 256
"""Ranges that are tried, at most: a stranger says how many."""
POWERS, WIDEST = (1.0, 8.0), 2.0
"""Powers, and how much wider than its weights a range may be. By powers below 1, and in ranges that are far too wide, a
search takes what decodes to hardly anything: that a tool does so, if it is told to, makes no such file clean."""


@dataclass(frozen=True)
class Search:
    """`steps` ranges are tried, of which each is 1/grid of the whole one narrower than the one before.

    The whole one is `expand` times what the weights span. It is `stated` if a configuration says that there was a
    search; `strange` says why what it states is not modelled. `release` is that of llm-compressor, where the search is
    not that of all of them. `hundredths` are the ranges that 0.6 tries, whose grid is always 100.
    """

    norm: float = 2.4
    grid: float = 100.0
    steps: int = 20
    patience: int = 5
    stated: bool = False
    expand: float = 1.0
    strange: str = ""
    release: str = ""
    hundredths: int = 20

    @property
    def shares(self) -> tuple[np.float32, ...]:
        """The shares of a group's range that are tried, as torch multiplies by them."""
        return tuple(np.float32(1 - step / self.grid) for step in range(self.steps))

    @property
    def earlier(self) -> Sequence["Search"]:
        """What releases did that do not take all that is stated, the newest first."""
        oldest = replace(OLDEST, stated=self.stated)
        if self.strange:
            return (oldest,)
        whole = replace(self, expand=1.0, release="0.13")
        fixed = replace(whole, norm=USUAL.norm, grid=USUAL.grid, steps=self.hundredths, release="0.6")
        found = [whole] if self.expand != 1 else []
        if (self.norm, self.grid, self.steps) != (fixed.norm, fixed.grid, fixed.steps):
            found += [fixed]
        return (*found, oldest)


USUAL, OLDEST = Search(), Search(steps=80, patience=MOST, release="0.3")
"""What is searched where nothing is stated; and what 0.3.1 did, whatever was."""


def search_of(weights: Mapping[str, Any]) -> Search:
    """Return what a scheme's weights are searched by; what is not modelled of it is said there.

    What declares no such observer can have been made by the usual one.
    """
    observer = weights.get("observer")
    if not isinstance(observer, str) or observer not in MSE:
        return USUAL
    said = weights.get("observer_kwargs")
    try:
        return _read({} if said is None else said, MSE[observer])
    except ValueError as error:
        return Search(stated=True, strange=str(error))


def _read(said: Any, numbers: Mapping[str, float]) -> Search:
    """Read arguments as Python does; ValueError for those that no release takes, or that are not modelled."""
    if not isinstance(said, dict):
        raise ValueError(f"{said!r:.40}, which is no object: no release takes it")
    said = {key: value for key, value in said.items() if key not in HARMLESS}
    if unheard := sorted(map(str, said.keys() - numbers.keys())):
        raise ValueError(f"`{unheard[0]:.40}`, which no release that was read knows")
    for key, value in said.items():
        if not isinstance(value, int | float):
            raise ValueError(f"{key} {value!r:.40}, which is no number: no release takes it")
    shrink, grid, norm, patience, expand = ({**numbers, **said}[key] for key in numbers)
    try:
        steps = int(shrink * grid)
        shares = 1 - (steps - 1) / grid if steps > 0 else 1.0
        norm, expand = float(norm), float(expand)
    except (OverflowError, ValueError):
        raise ValueError("numbers that Python does not multiply: no release takes them") from None
    if steps > MOST:
        raise ValueError(f"more than {MOST} ranges")
    if not 0 < shares <= 1:
        raise ValueError(f"maxshrink {shrink:.9g} and grid {grid:.9g}, which try no ranges between nothing and all")
    if not 1 <= expand <= WIDEST:
        raise ValueError(f"expand {expand:.9g}; from 1 to {WIDEST:g} are modelled")
    waited = MOST if not patience < MOST else max(1, math.ceil(patience))
    hundredths = max(1, int(min(max(shrink, 0), 1) * USUAL.grid))
    if steps <= 0 or norm == 0 or math.isnan(norm):  # then nothing errs less than the whole range
        return Search(steps=1, patience=waited, stated=True, expand=expand, hundredths=hundredths)
    if not POWERS[0] <= norm <= POWERS[1]:
        raise ValueError(f"norm {norm:.9g}; powers from {POWERS[0]:g} to {POWERS[1]:g} are modelled")
    return Search(norm, float(grid), steps, waited, stated=True, expand=expand, hundredths=hundredths)
