"""Layers with one scale, of which a search over ranges made it: the scale is held against the ranges, as of groups."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from requant.check.findings import CLEARLY, ROUNDED, Finding, Measured
from requant.check.searches import Settled
from requant.formats import floats
from requant.formats.codec import Array
from requant.rounding.mse import CHOSEN, SEARCHED
from requant.rounding.mse_single import OneChoice

PLAIN = "compressed-tensors, min-max"
"""What the names of forms begin with that round as after a search."""
OLDER = "compressed-tensors to 0.12, min-max"
"""What another form begins with, of which the codes are the same, once there is a scale."""


def searched(
    settled: Settled,
    measured: Measured,
    tensor: str,
    scale: Array,
    choice: OneChoice,
    fitting: Callable[[Array], str | None],
) -> tuple[Settled, Measured] | None:
    """Return how a search made a layer whose codes may follow from its scale, and what was measured; None if not.

    `tensor` is that of the scale. `fitting` returns the form by which all codes follow from another scale, if one does:
    then that is what the scale was, and what is found is no matter of other layers.
    """
    way, found = settled[0].replace(OLDER, PLAIN), settled[1]
    told = choice.told(scale)
    wrong = Finding(ROUNDED, tensor, 1, (0,) * scale.ndim, _both(scale, choice.scales[choice.can.argmax()]))
    if told.any() and way.startswith(PLAIN):
        fits = bool((told & choice.can).any())
        clearly = not fits and bool(choice.worse[told].all())
        ties = int(fits and bool((choice.can & ~told).any()))
        counts = replace(measured.counts, groups=1, ties=ties, worse=int(clearly))
        chosen, loose = way.replace(PLAIN, CHOSEN), way.replace(PLAIN, SEARCHED)
        otherwise = (*found, wrong, *([replace(wrong, kind=CLEARLY)] if clearly else []))
        ways = {chosen: found if fits else otherwise, loose: found}
        return (chosen if fits else loose, found), Measured({**measured.findings, **ways}, counts)
    for each in np.unique(choice.scales[choice.can]):
        if form := fitting(np.full(scale.shape, each, scale.dtype)):
            found = (replace(wrong, detail=_both(scale, each)),)
            return (form.replace(OLDER, PLAIN).replace(PLAIN, CHOSEN), found), measured
    return None


def _both(found: Array, wanted: Array) -> str:
    stored, made = (float(floats.widened(np.asarray(each).reshape(1))[0]) for each in (found, wanted))
    return f"{stored:.9g}, recomputed {made:.9g}"
