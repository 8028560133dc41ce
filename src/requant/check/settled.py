"""How layers were made, from all their windows: each by itself, and then as the others of the file are.

A formula that explains nearly all of a layer accuses the rest of it. What of a layer follows from others, or shows only
beside them, is told by these: fused ones, those of the same format, those that the same search made.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from requant.check.findings import (
    FAITHFUL,
    FAR,
    NEAR,
    ROUNDED,
    STRANGE,
    Counts,
    Finding,
    Measured,
    accuses,
    merge,
)
from requant.check.ranges import Ends, gives, greatest, siblings
from requant.check.reader import Reader
from requant.check.recomputed import FEW, few_rows, recompute, weights_of
from requant.check.searches import TIES, Settled, Sought, needs_search, weighed
from requant.check.single import searched
from requant.check.spans import Span, Window
from requant.check.stored import Stored, fixed, read_part, shown, tensors
from requant.formats.codec import Array, Codec, Part, named, widen
from requant.formats.compressed_tensors import SCALE
from requant.rounding.formula import Formula
from requant.rounding.formulas import formulas
from requant.rounding.mse import CHOSEN, SEARCHED
from requant.rounding.mse_floats import ChosenFloats
from requant.rounding.mse_single import OneScale, one_scale

MOST = 3 / 4
"""Of the layers of a file, what has to be as a formula says before it accuses the others."""


@dataclass(frozen=True)
class _Layer:
    """A layer that was made again: how it is settled by what is its own, and what is found beside.

    `odd` are tensors that follow from no weights; `off` those of the layer as a whole that no magnitude gives, None
    where that cannot be told.
    """

    span: Span
    held: Stored
    settled: Settled
    measured: Measured
    odd: tuple[Finding, ...]
    off: tuple[Finding, ...] | None

    @property
    def sought(self) -> Sought | None:
        """What is weighed against other layers that a search made; None of another."""
        way, found = self.settled
        if not needs_search(way) or (found and one_scale(self.held.codec) and not self.measured.counts.groups):
            return None
        return Sought(self.held.codec, self.span.columns, self.settled, self.measured)


def settle(
    results: Mapping[str, Sequence[tuple[Window, Measured]]], checkpoint: Reader, base: Reader
) -> dict[str, Settled]:
    """Return the way in which each layer was made, by its name, and what is found, from the windows of all layers.

    What belongs to a layer as a whole can be held against it only where all of its windows were read, and where the
    base has finite numbers in it and in those that it may be fused with.
    """
    results = {name: _alike(some, checkpoint, base) for name, some in results.items()}
    totals = {name: Counts.total(each.counts for _, each in some) for name, some in results.items()}
    sides, joined = siblings({name: each.widest for name, each in totals.items()}), greatest(totals)
    searching = {some[0][0].span.codec for some in results.values() if any(_is_chosen(each) for _, each in some)}
    unmade: dict[tuple[Codec, str], frozenset[str]] = {}
    layers = {
        name: _by_itself(some, sides[name], joined[name], searching, unmade, checkpoint, base)
        for name, some in results.items()
    }
    settled = {name: each.settled for name, each in layers.items()}
    sought = {name: some for name, each in layers.items() if (some := each.sought)}
    codecs = {name: each.held.codec for name, each in layers.items()}
    settled |= weighed(sought, codecs, lambda name, each: _way(layers[name].span, layers[name].held, each))
    settled = {name: (way, (*found, *layers[name].odd)) for name, (way, found) in settled.items()}
    settled |= _as_a_whole(settled, layers, sides)
    settled |= _agreed(settled, results, checkpoint, base)
    ties = {name for name, each in layers.items() if needs_search(settled[name][0]) and each.measured.counts.ties}
    return {
        name: (way + TIES if name in ties and not way.startswith(SEARCHED) else way, found)
        for name, (way, found) in settled.items()
    }


def _alike(
    some: Sequence[tuple[Window, Measured]], checkpoint: Reader, base: Reader
) -> Sequence[tuple[Window, Measured]]:
    """Return the windows of a layer with the same formulas tried on each: one may fit a formula that others do not.

    The ranges of a layer are known only then, for a formula that does not search says nothing of them.
    """
    tried = {frozenset(each.findings) for _, each in some}
    if len(tried) == 1:
        return some
    ways = frozenset().union(*tried)
    return [(window, recompute(window, checkpoint, base, ways=ways)) for window, _ in some]


def _by_itself(
    some: Sequence[tuple[Window, Measured]],
    sides: Sequence[float],
    ends: Sequence[Ends],
    searching: Collection[Codec | None],
    unmade: dict[tuple[Codec, str], frozenset[str]],
    checkpoint: Reader,
    base: Reader,
) -> _Layer:
    """Settle a layer by its own windows: how they were made, and whether all that it has follows.

    `sides` and `ends` are the magnitudes and ranges from which what belongs to it as a whole may follow; a search made
    other layers in the formats that are `searching`. `unmade` keeps what formulas take as it is stored.
    """
    windows, span = [each for each, _ in some], some[0][0].span
    held = Stored.of(span, checkpoint, base)
    whole = sum(each.last - each.first for each in windows) == span.last - span.first and np.isfinite(sides[0])
    measured = merge(each for _, each in some)
    way, found = _way(span, held, measured)
    if way != NEAR and measured.counts.missed > measured.counts.whole:
        near = measured.findings.get(NEAR, ())  # a text said otherwise of what fits to the last bit
        found = (*found, *(replace(each, kind=STRANGE) if each.kind == FAR else each for each in near))
    told = ends if held.codec in searching and not measured.counts.groups else ()
    if way == NEAR and whole and (its := _by_its_own(windows, held, sides, told, checkpoint, base)):
        (way, widest), found = its, ()
        ends = [(widest, widest)]
    settled = way, found
    formula = next((each for each in formulas(held.codec) if each.name == way), None)
    if formula and (kind := (held.codec, formula.name)) not in unmade:
        unmade[kind] = _unmade(span, held, formula, checkpoint)
    if formula and not found and (unmade[kind] or not (whole or not formula.whole(1.0, held.dtype))):
        settled = FAITHFUL, found
    off = None
    if whole and formula and settled[0] == way:
        off = tuple(_wholes(span, held, formula, sides, ends, checkpoint))
    if whole and (search := one_scale(held.codec)) and (search.search.stated or off):
        again = _searched(settled, measured, search, windows, held, sides[0], checkpoint, base)
        settled, measured = again or (settled, measured)
    odd = (*fixed(span, held, checkpoint), *_inputs(span, held, checkpoint))
    return _Layer(span, held, settled, measured, odd, off)


def _as_a_whole(
    settled: Mapping[str, Settled], layers: Mapping[str, _Layer], sides: Mapping[str, Sequence[float]]
) -> dict[str, Settled]:
    """Return what is said otherwise of layers with tensors that no magnitude gives: they accuse if few have them.

    Else such layers were made in another way. One scale that a search made was held against its ranges.
    """
    asked = {
        name: each.off
        for name, each in layers.items()
        if each.off is not None and not (needs_search(settled[name][0]) and one_scale(each.held.codec))
    }
    every = Counter(settled[name][0] for name in asked)
    fitting = Counter(settled[name][0] for name, faults in asked.items() if not faults)
    said: dict[str, Settled] = {}
    for name, faults in asked.items():
        way, found = settled[name]
        if faults and fitting[way] >= MOST * every[way] and np.isfinite(sides[name]).all():
            said[name] = way, (*found, *faults)
        elif faults:
            said[name] = (way if found else FAITHFUL), found
    return said


def _is_chosen(measured: Measured) -> bool:
    """Say whether the choice of a search, as it is known, gives all of some rows."""
    return any(way.startswith(CHOSEN) and not found for way, found in measured.findings.items())


def givers(
    results: Mapping[str, Sequence[tuple[Window, Measured]]], checkpoint: Reader, base: Reader
) -> dict[str, set[str]]:
    """Return of each layer the formulas that give every byte of it, of windows on which all of them were tried.

    One that says something of the layer as a whole is among them only where all of the layer was read.
    """
    totals = {name: Counts.total(each.counts for _, each in some) for name, some in results.items()}
    sides, joined = siblings({name: each.widest for name, each in totals.items()}), greatest(totals)
    given: dict[str, set[str]] = {}
    for name, some in results.items():
        span = some[0][0].span
        held = Stored.of(span, checkpoint, base)
        whole = sum(window.last - window.first for window, _ in some) == span.last - span.first
        whole &= np.isfinite(sides[name][0])
        found = merge(each for _, each in some).findings
        given[name] = {
            formula.name
            for formula in formulas(held.codec)
            if not found.get(formula.name, (True,))
            and not _unmade(span, held, formula, checkpoint)
            and (whole or not formula.whole(1.0, held.dtype))
            and not any(_wholes(span, held, formula, sides[name], joined[name], checkpoint))
        }
    return given


def _agreed(
    settled: Mapping[str, Settled],
    results: Mapping[str, Sequence[tuple[Window, Measured]]],
    checkpoint: Reader,
    base: Reader,
) -> dict[str, Settled]:
    """Return the layers that fit a likelier formula and also the one that the others of the file need.

    Two formulas may give the same bytes. A file was made by one tool, on one machine, if one gives all of it.
    """
    exact: dict[Codec, dict[str, str]] = {}
    for name, (way, found) in settled.items():
        if (codec := results[name][0][0].span.codec) and not found and way in _names(codec):
            exact.setdefault(codec, {})[name] = way
    agreed: dict[str, Settled] = {}
    for codec, ways in exact.items():
        last = max(ways.values(), key=_names(codec).index)
        if last.startswith(SEARCHED):  # what is exact is not said to be less
            continue
        alike = (name for name, way in ways.items() if needs_search(way) == needs_search(last))
        others = [name for name in alike if ways[name] != last]
        again = ((recompute(window, checkpoint, base, ways=[last]) for window, _ in results[name]) for name in others)
        if all(each.findings.get(last) == () for some in again for each in some):
            agreed |= dict.fromkeys(others, (last, ()))
    return agreed


def _names(codec: Codec) -> list[str]:
    return [each.name for each in formulas(codec)]


def _unmade(span: Span, held: Stored, formula: Formula, checkpoint: Reader) -> frozenset[str]:
    """Return the tensors of a layer that a formula takes as they are stored, but for scales of inputs."""
    last = min(span.last - span.first, held.codec.align)
    stored = tensors(span, held, checkpoint, 0, last)
    made = formula.encode(np.zeros((last, span.columns), np.float32), held.dtype, stored)
    known = made.keys() | formula.whole(1.0, held.dtype).keys()
    others = (suffix for suffix, part in held.parts.items() if suffix not in known and part.holds is None)
    return frozenset(suffix for suffix in others if not suffix.startswith("input"))


def _by_its_own(
    windows: Sequence[Window],
    held: Stored,
    widest: Sequence[float],
    ranges: Sequence[Ends],
    checkpoint: Reader,
    base: Reader,
) -> tuple[str, float] | None:
    """Return the formula, and the magnitude, that give all rows by what they make of the layer as a whole.

    A few rows are made first, and most often they are not as they are stored.
    """
    few = replace(windows[0], last=min(windows[0].last, windows[0].first + few_rows(held)))
    for formula in formulas(held.codec):
        own = widest
        if isinstance(formula, ChosenFloats) and formula.whole(1.0, held.dtype):
            taken = (formula.greatest(weights_of(each, held, base), held.dtype) for each in windows if ranges)
            most = max(taken, default=0.0)
            own = [each for each in (most, *(end for _, end in ranges if end > most)) if each]
        for each in own:
            if given := formula.whole(each, held.dtype):
                made = (
                    recompute(window, checkpoint, base, ways=[formula.name], given=given) for window in (few, *windows)
                )
                if all(some.findings.get(formula.name) == () for some in made):
                    return formula.name, each
    return None


def _searched(
    settled: Settled,
    measured: Measured,
    search: OneScale,
    windows: Sequence[Window],
    held: Stored,
    widest: float,
    checkpoint: Reader,
    base: Reader,
) -> tuple[Settled, Measured] | None:
    """Return how a search made a layer with one scale, and what was measured; None if it did not."""
    span = windows[0].span
    scale = tensors(span, held, checkpoint, 0, 1)[SCALE]
    choice = search.choose((weights_of(each, held, base) for each in windows), held.dtype, widest)
    if not choice.told(scale).any() and not search.search.stated:
        return None

    def fitting(other: Array) -> str | None:
        for formula in formulas(held.codec):
            made = (recompute(each, checkpoint, base, ways=[formula.name], given={SCALE: other}) for each in windows)
            if all(each.findings.get(formula.name) == () for each in made):
                return formula.name
        return None

    return searched(settled, measured, named(span.name, SCALE), scale, choice, fitting)


def _way(span: Span, held: Stored, measured: Measured) -> tuple[str, tuple[Finding, ...]]:
    """Return the formula that gives all of a layer, or nearly all and then what differs; else how near it is."""
    best: tuple[float, str] | None = None
    for name, found in measured.findings.items():
        if name == NEAR:
            continue
        found = (*filter(accuses, found),)
        parts = [(each.count, _part(held, span, each)) for each in found]
        shares = [(count, part.spec.size) for count, part in parts if part.sized]  # a text is right or wrong
        single = len(found) == 1 == found[0].count
        if single or all(count == 1 < size // 2 or count <= FEW * size for count, size in shares):
            best = min(filter(None, (best, (sum(count / size for count, size in shares), name))))
    if best:
        return best[1], (*filter(accuses, measured.findings[best[1]]),)
    return NEAR, measured.findings.get(NEAR, ())


def _part(held: Stored, span: Span, finding: Finding) -> Part:
    return next(part for suffix, part in held.parts.items() if named(span.name, suffix) == finding.tensor)


def _wholes(
    span: Span,
    held: Stored,
    formula: Formula,
    widest: Sequence[float],
    ranges: Sequence[Ends],
    checkpoint: Reader,
) -> Iterator[Finding]:
    """Yield the tensors of a layer as a whole that no magnitude gives: its own, or that of one it may be fused with.

    Where ranges were searched, it is the greatest of those that were taken, the likeliest last.
    """
    ends = ranges if needs_search(formula.name) else ()
    widest = [ends[-1][1]] if ends else widest
    made = [formula.whole(each, held.dtype) for each in widest]
    for suffix in made[0] if made else ():
        part = held.parts[suffix]
        found = read_part(checkpoint, named(span.name, suffix), part, 1, 0, 1)
        known = any(np.asarray(each[suffix], found.dtype).tobytes() == found.tobytes() for each in made)
        if not known and not gives(formula, ends, held.dtype, suffix, found):
            wanted = np.asarray(made[0][suffix], found.dtype)
            detail = f"{shown(found, 0)}, recomputed {shown(wanted, 0)}"
            yield Finding(ROUNDED, named(span.name, suffix), 1, (), detail)


def _inputs(span: Span, held: Stored, checkpoint: Reader) -> Iterator[Finding]:
    """Yield the scales of inputs, which follow from no weight, that no input can have."""
    for suffix, part in held.parts.items():
        if suffix.startswith("input") and suffix.endswith("scale"):
            found = read_part(checkpoint, named(span.name, suffix), replace(part, every=0), 1, 0, 1)
            values = widen(found, part.spec.dtype).reshape(-1)
            if bad := int(np.count_nonzero(~(np.isfinite(values) & (values > 0)))):
                yield Finding("scale out of reach", named(span.name, suffix), bad, (), f"{values[0]:g}, for inputs")
