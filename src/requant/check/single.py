"""Layers with one scale, of which a search over ranges made it: the scale is held against the ranges, as of groups."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from requant.check.findings import NEAR, ROUNDED, Finding, Measured
from requant.check.searches import Settled
from requant.formats import floats
from requant.formats.codec import Array
from requant.rounding.mse import CHOSEN, SEARCHED
from requant.rounding.mse_single import OneChoice

PLAIN = "compressed-tensors, min-max"
"""What the names of forms begin with that round as after a search."""


def searched(
    settled: Settled,
    measured: Measured,
    tensor: str,
    scale: Array,
    choice: OneChoice,
    fitting: Callable[[Array], str | None],
) -> tuple[Settled, Measured] | None:
    """Return how a search made a layer whose codes may follow from its scale, and what was measured; None if it did not.

    `tensor` is that of the scale. `fitting` returns the form by which all codes follow from another scale, if one does.
    """
    way, found = settled
    told = choice.told(scale)
    likeliest = choice.scales[choice.can.argmax()]
    detail = f"{_number(scale):.9g}, recomputed {_number(likeliest):.9g}"
    wrong = Finding(ROUNDED, tensor, 1, tuple(0 for _ in scale.shape), detail)
    if told.any() and way.startswith(PLAIN):
        fits = bool((told & choice.can).any())
        worse = not fits and bool(choice.worse[told].all())
        counts = replace(
            measured.counts, groups=1, ties=int(fits and bool((choice.can & ~told).any())), worse=int(worse)
        )
        chosen, loose = way.replace(PLAIN, CHOSEN), way.replace(PLAIN, SEARCHED)
        ways = {chosen: found if fits else (*found, wrong), loose: found}
        return (chosen if fits else loose, found), Measured({**measured.findings, **ways}, counts)
    for each in np.unique(choice.scales[choice.can]):
        if form := fitting(np.full(scale.shape, each, scale.dtype)):
            detail = f"{_number(scale):.9g}, recomputed {_number(each):.9g}"
            wrong, chosen = replace(wrong, detail=detail), form.replace(PLAIN, CHOSEN)
            return (chosen, (wrong,)), Measured(
                {chosen: (wrong,), NEAR: measured.findings.get(NEAR, ())}, measured.counts
            )
    return None


def _number(value: Array) -> float:
    return float(floats.widened(np.asarray(value).reshape(1))[0])
