"""What belongs to a layer as a whole: it follows from a greatest magnitude, or the greatest range that was taken."""

from collections.abc import Mapping, Sequence

import numpy as np

from requant.check.findings import Counts
from requant.formats.codec import Array
from requant.rounding.formula import Formula

FUSED: tuple[tuple[str, ...], ...] = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))
FUSED += (("in_proj_qkv", "in_proj_z"), ("in_proj_a", "in_proj_b"), ("q_a_proj", "kv_a_proj_with_mqa"))
"""Layers of a module that loaders fuse, and that may share what belongs to a layer as a whole."""
Ends = tuple[float, float]
"""The greatest range that was taken, at least and at most."""


def greatest(counts: Mapping[str, Counts]) -> dict[str, list[Ends]]:
    """Return of each layer the greatest range of its own groups, and that of all layers it may be fused with.

    Where it is not known what was taken, it may be any range. A layer that has no finite one is left out.
    """
    own = {name: (each.low, each.high or each.widest) for name, each in counts.items()}
    found = {}
    for name, ends in own.items():
        module, dot, last = name.rpartition(".")
        sides = {f"{module}{dot}{each}" for some in FUSED if last in some for each in some} & own.keys()
        sides = {each for each in sides if np.isfinite(counts[each].widest)}
        all_of_them = max(own[each][0] for each in {name, *sides}), max(own[each][1] for each in {name, *sides})
        found[name] = [ends, all_of_them]
    return found


def gives(formula: Formula, ends: Sequence[Ends], dtype: str, suffix: str, found: Array) -> bool:
    """Say whether one of some greatest ranges gives what is stored; it is the greater, the less the range is."""
    both = ((formula.whole(most, dtype)[suffix], formula.whole(least, dtype)[suffix]) for least, most in ends)
    return any(bool(np.all((low <= found) & (found <= high))) for low, high in both)


def siblings(widest: Mapping[str, float]) -> dict[str, list[float]]:
    """Return each layer's greatest magnitude, and greater ones of layers that it may be fused with."""
    sides = {}
    for name, value in widest.items():
        module, dot, own = name.rpartition(".")
        others = {widest.get(f"{module}{dot}{each}", 0.0) for some in FUSED if own in some for each in some}
        sides[name] = [value, *sorted(each for each in others if each > value)]
    return sides
