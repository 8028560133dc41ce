"""How the tensors of one block differ, tuned again and published: codes by steps, scales by ULP, all by number."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from requant.checkpoint.checkpoint import Tensor

FARTHEST = 15
"""The most steps that are told apart, which bounds a statement."""


@dataclass(frozen=True)
class Distance:
    """How a block's tensors differ, tuned again and published; `first` is the first of them in order of name.

    `codes` packed codes differ by the `steps` (published - tuned again, -15 to 15, to how many), `scales` scales by
    `ulp` places among all numbers of their type at most. Codes of 8 bits that differ by more count as 15 steps away.
    `tensors` counts all that differ, whatever they hold.
    """

    first: str
    tensors: int
    codes: int = 0
    steps: Mapping[int, int] = field(default_factory=dict)
    scales: int = 0
    ulp: int = 0

    def __str__(self) -> str:
        some = f"tensors {self.tensors:,}, first {self.first}"
        if self.codes:
            steps = ", ".join(f"{step:+d}: {count:,}" for step, count in sorted(self.steps.items()))
            some += f"; codes {self.codes:,}, by steps {steps}"
        if self.scales:
            some += f"; scales {self.scales:,}, by {self.ulp:,} ULP at most"
        return some


def distance(
    tuned: Mapping[str, Tensor], published: Mapping[str, Tensor], bits: Callable[[str], int] = lambda _: 4
) -> Distance | None:
    """Hold a block's tensors, tuned again, against the published ones; None where every byte agrees.

    `bits` says of a tensor how wide its codes are. One tensor of each side is in memory at a time. Raises
    CheckpointError for what cannot be read.
    """
    # Its kernels are numba's, which a pod in the worker's image has not.
    from requant.diff.difference import elements, numbers, step_counts

    different: list[str] = []
    counted: Counter[int] = Counter()
    scales = farthest = 0
    for name in sorted(tuned.keys() | published.keys()):
        if name not in tuned or name not in published or tuned[name].spec != published[name].spec:
            different.append(name)
            continue
        ours, theirs, dtype = tuned[name].read(), published[name].read(), published[name].spec.dtype
        if ours == theirs:
            continue
        different.append(name)
        if name.endswith(".qweight") and dtype == "I32":
            words, top = (np.frombuffer(ours, "<u4"), np.frombuffer(theirs, "<u4")), (1 << bits(name)) - 1
            steps = step_counts(*words, bits(name), published[name].spec.shape[-1])[0]
            for place in np.flatnonzero(steps):
                counted[max(-FARTHEST, min(int(place) - top, FARTHEST))] += int(steps[place])
        elif name.endswith(".scales"):
            differ, _, ulp, _ = numbers(elements(ours, dtype), elements(theirs, dtype), dtype)
            scales, farthest = scales + differ, max(farthest, int(ulp))
    if not different:
        return None
    del counted[0]
    return Distance(different[0], len(different), counted.total(), dict(counted), scales, farthest)
