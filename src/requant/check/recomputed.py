"""Layers whose bytes follow from the base by a formula: windows of them are made again, and compared.

Where no formula gives what is stored, the decoded weights are measured (`distance.py`). What follows for a layer, from
all of its windows and beside the others of the file, `settled.py` says.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from requant.check.distance import beside_finite, distance, far_from, infinite, lost, squares
from requant.check.findings import (
    CLEARLY,
    NEAR,
    ROUNDED,
    Counts,
    Finding,
    Kind,
    Measured,
)
from requant.check.reader import Reader
from requant.check.spans import Span, Window
from requant.check.stored import Stored, begins, shown, tensors
from requant.check.weights import as_floats, read_weights
from requant.formats.codec import Array, Arrays, converted, named
from requant.formats.compressed_tensors import SCALE
from requant.rounding.formula import Choice, Choosing, Formula
from requant.rounding.formulas import formulas
from requant.rounding.mse import SEARCHED

FEW = 1 / 16
"""Of the elements of a tensor, what may differ, or else one, before it was made in another way rather than damaged."""
PROBED, FEWEST = 4, 12
"""Rows of a window on which a formula is tried first, at three places, and how often a window has them at least."""


def recompute(
    window: Window,
    checkpoint: Reader,
    base: Reader,
    *,
    every: bool = False,
    ways: Collection[str] = (),
    given: Arrays = MappingProxyType({}),
) -> Measured:
    """Make rows of a layer again by each formula; those after the first that fits only if `every` one is asked for.

    If `ways` are named, it is by each of these. What is `given` takes the place of what the checkpoint has of the layer
    as a whole.
    """
    span, first, last = window.span, window.first, window.last
    held = Stored.of(span, checkpoint, base)
    stored = {**tensors(span, held, checkpoint, first, last), **given}
    weights = weights_of(window, held, base)
    findings: dict[str, tuple[Finding, ...]] = {}
    fits, reference, choices = False, None, [Choice({})]
    every = every or bool(ways)
    forms = [each for each in formulas(held.codec) if not ways or each.name in ways]
    for formula in forms:
        if fits and not every:
            break
        choosing = formula if isinstance(formula, Choosing) else None
        first_choice = choosing and len(choices) == 1 and any(each.name.startswith(SEARCHED) for each in forms)
        if findings and not (every or first_choice) and _differs(formula, held, weights, stored):
            continue  # but for a first choice, on which it depends what is said of ranges
        if choosing:
            choices.append(choosing.choose(weights, held.dtype, stored))
            made = choices[-1].tensors
        else:
            made = formula.encode(weights, held.dtype, stored)
        findings[formula.name] = tuple(_differences(span, held, made, stored, first))
        if choosing and findings[formula.name]:
            findings[formula.name] += tuple(_worse(span, held, choices[-1], stored, first))
        reference = reference or {**stored, **made}
        fits |= not findings[formula.name]
    needed = any(not part.every and part.sized and part.holds is None for part in held.parts.values())
    widest = max(float(weights.max(initial=0)), -float(weights.min(initial=0))) if needed else 0.0
    widest = np.inf if np.isnan(widest) else widest  # which is not known, and compares
    choice = choices[-1] if fits else min(choices[1:] or choices, key=lambda each: np.count_nonzero(each.worse))
    worse = int(np.count_nonzero(choice.worse))
    searched = Counts(groups=choice.groups, ties=choice.ties, worse=worse, low=choice.least, high=choice.most)
    counts = replace(searched, codes=weights.size, widest=widest)
    searched_alone = all(found or way.startswith(SEARCHED) for way, found in findings.items())
    if fits and not searched_alone and not any(part.decides for part in held.parts.values()):
        return Measured({**findings, NEAR: ()}, counts)
    with np.errstate(all="ignore"):
        decoded = held.codec.decode(stored, span.columns)
        missed, whole = squares(decoded, weights)
        best = squares(held.codec.decode(reference, span.columns), weights)[0] if reference else missed
    known = beside_finite(held, weights)
    missed_there = np.where(known, missed, 0)
    far = far_from(named(span.name, held.codes), first, decoded, weights, missed_there, whole)
    odd = (*infinite(span, weights, first),) if searched_alone else ()
    findings = {**({} if odd else findings), NEAR: (*far, *lost(span, held, stored, weights, first), *odd)}
    return Measured(findings, Counts.total((counts, distance(first, missed, whole, best))))


def weights_of(window: Window, held: Stored, base: Reader) -> Array:
    """Return the base's weights of some rows, float32 [rows, columns], of the numbers that the tool had."""
    weights = as_floats(read_weights(base, window.span, window.first, window.last - window.first))
    return converted(weights, base.tensors[window.span.base].spec.dtype, held.dtype)


def _differs(formula: Formula, held: Stored, weights: Array, stored: Arrays) -> bool:
    """Say whether a formula surely did not make a window: nothing of a few rows at three places is nearly as it is."""
    step = few_rows(held)
    places = (0, len(weights) // 2 // step * step, (len(weights) - 1) // step * step)
    if len(weights) < FEWEST * step:
        return False
    for first in places:
        last = min(len(weights), first + step)
        some = {suffix: held.parts[suffix].cut(each, first, last) for suffix, each in stored.items()}
        made = formula.encode(weights[first:last], held.dtype, some)
        by_rows = {suffix: each for suffix, each in made.items() if held.parts[suffix].every}
        pairs = [(np.ascontiguousarray(each, some[suffix].dtype), some[suffix]) for suffix, each in by_rows.items()]
        if all(np.count_nonzero(one.reshape(-1) != two.reshape(-1)) <= FEW * two.size for one, two in pairs):
            return False
    return True


def _differences(span: Span, held: Stored, made: Arrays, stored: Arrays, first: int) -> Iterator[Finding]:
    """Yield, for each tensor, how many elements are not as a formula makes them, and the first."""
    for suffix, wanted in made.items():
        found = stored[suffix]
        both = found.reshape(-1), np.ascontiguousarray(wanted, found.dtype).reshape(-1)
        whole = f"u{8 if both[0].nbytes % 8 == 0 else 1}"
        if np.array_equal(both[0].view(whole), both[1].view(whole)):
            continue
        theirs, ours = (each.view(f"u{found.dtype.itemsize}") for each in both)  # NaN equals itself, and -0 is not 0
        yield from _apart(span, held, suffix, theirs != ours, both, first)


def _worse(span: Span, held: Stored, choice: Choice, stored: Arrays, first: int) -> Iterator[Finding]:
    """Yield how many scales are of ranges that a tool clearly does not choose, and the first, as a note."""
    both = (np.ascontiguousarray(each[SCALE], stored[SCALE].dtype).reshape(-1) for each in (stored, choice.tensors))
    yield from _apart(span, held, SCALE, choice.worse.reshape(-1), (*both,), first, CLEARLY)


def _apart(
    span: Span, held: Stored, suffix: str, apart: Array, both: Sequence[Array], first: int, kind: Kind = ROUNDED
) -> Iterator[Finding]:
    """Yield a finding about the elements that are `apart` of what is found and what is made."""
    if count := int(np.count_nonzero(apart)):
        part, at = held.parts[suffix], int(apart.argmax())
        place = at + begins(part, span.last - span.first, first)
        index = tuple(int(each) for each in np.unravel_index(place, part.spec.shape)) if part.spec.shape else ()
        detail = f"{shown(both[0], at)}, recomputed {shown(both[1], at)}"
        yield Finding(kind, named(span.name, suffix), count, index, detail)


def few_rows(held: Stored) -> int:
    """Return how many rows are made to see whether a formula can have made them."""
    return -(-PROBED // held.codec.align) * held.codec.align
