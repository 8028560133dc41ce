"""Layers whose bytes follow from the base by a formula: each is made again, and compared.

Where no formula gives what is stored, the decoded weights are measured: their distance from the base accuses only
where zeros would be nearer.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from requant.check.distance import beside_finite, distance, far_from, infinite, lost, squares
from requant.check.findings import (
    CLEARLY,
    FAITHFUL,
    FAR,
    NEAR,
    ROUNDED,
    STRANGE,
    Counts,
    Finding,
    Kind,
    Measured,
    accuses,
    merge,
)
from requant.check.ranges import Ends, gives, greatest, siblings
from requant.check.reader import Reader
from requant.check.searches import TIES, Settled, Sought, needs_search, weighed
from requant.check.single import searched
from requant.check.spans import Span, Window
from requant.check.stored import Stored, begins, read_part, tensors
from requant.check.weights import as_floats, read_weights
from requant.formats.codec import Array, Arrays, Codec, Part, converted, named, widen
from requant.formats.compressed_tensors import SCALE
from requant.rounding.formula import Choice, Choosing, Formula
from requant.rounding.formulas import formulas
from requant.rounding.mse import CHOSEN, SEARCHED
from requant.rounding.mse_floats import ChosenFloats
from requant.rounding.mse_single import OneScale, one_scale

FEW = 1 / 16
"""Of the elements of a tensor, what may differ, or else one, before it was made in another way rather than damaged."""
MOST = 3 / 4
"""Of the layers of a file, what has to be as a formula says before it accuses the others."""
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
    weights = _weights(window, held, base)
    findings: dict[str, tuple[Finding, ...]] = {}
    fits, reference, choices = False, None, [Choice({})]
    every = every or bool(ways)
    forms = [each for each in formulas(held.codec) if not ways or each.name in ways]
    loose = any(each.name.startswith(SEARCHED) for each in forms)
    for formula in forms:
        if fits and not every:
            break
        first_choice = loose and isinstance(formula, Choosing) and len(choices) == 1  # what is said of it depends on it
        if findings and not (every or first_choice) and _differs(formula, held, weights, stored):
            continue
        if isinstance(formula, Choosing):
            choices.append(formula.choose(weights, held.dtype, stored))
            made = choices[-1].tensors
        else:
            made = formula.encode(weights, held.dtype, stored)
        findings[formula.name] = tuple(_differences(span, held, made, stored, first))
        if isinstance(formula, Choosing) and findings[formula.name]:
            findings[formula.name] += tuple(_worse(span, held, choices[-1], stored, first))
        reference = reference or {**stored, **made}
        fits |= not findings[formula.name]
    needed = any(not part.every and part.sized for part in held.parts.values())
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


def _weights(window: Window, held: Stored, base: Reader) -> Array:
    """Return the base's weights of some rows, float32 [rows, columns], of the numbers that the tool had."""
    weights = as_floats(read_weights(base, window.span, window.first, window.last - window.first))
    return converted(weights, base.tensors[window.span.base].spec.dtype, held.dtype)


def _differs(formula: Formula, held: Stored, weights: Array, stored: Arrays) -> bool:
    """Say whether a formula surely did not make a window: nothing of a few rows at three places is nearly as it is."""
    step = _few(held)
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
        detail = f"{_text(both[0], at)}, recomputed {_text(both[1], at)}"
        yield Finding(kind, named(span.name, suffix), count, index, detail)


def _text(values: Array, at: int) -> str:
    value = values.reshape(-1)[at]
    return f"{float(value):.9g}" if values.dtype.kind == "f" else f"{int(value):#x}"


def settle(
    results: Mapping[str, Sequence[tuple[Window, Measured]]], checkpoint: Reader, base: Reader
) -> dict[str, tuple[str, tuple[Finding, ...]]]:
    """Return the way in which each layer was made, by its name, and what is found, from the windows of all layers.

    What belongs to a layer as a whole can be held against it only where all of its windows were read, and where the
    base has finite numbers in it and in those that it may be fused with.
    """
    totals = {name: Counts.total(each.counts for _, each in some) for name, some in results.items()}
    sides, joined = siblings({name: each.widest for name, each in totals.items()}), greatest(totals)
    settled: dict[str, tuple[str, tuple[Finding, ...]]] = {}
    off: dict[str, tuple[Finding, ...]] = {}
    odd: dict[str, tuple[Finding, ...]] = {}
    seen: dict[str, Measured] = {}
    unmade: dict[tuple[Codec, str], frozenset[str]] = {}
    searching = {some[0][0].span.codec for some in results.values() if any(_is_chosen(each) for _, each in some)}
    for name, some in results.items():
        span = some[0][0].span
        held = Stored.of(span, checkpoint, base)
        whole = sum(window.last - window.first for window, _ in some) == span.last - span.first
        whole &= np.isfinite(sides[name][0])
        tried = {frozenset(each.findings) for _, each in some}
        if len(tried) > 1:  # a window may fit a formula that others do not
            ways = frozenset().union(*tried)
            some = [(window, recompute(window, checkpoint, base, ways=ways)) for window, _ in some]
        measured = merge(each for _, each in some)
        way, found = _way(span, held, measured)
        if way != NEAR and measured.counts.missed > measured.counts.whole:
            near = measured.findings.get(NEAR, ())  # a text said otherwise of what fits to the last bit
            found = (*found, *(replace(each, kind=STRANGE) if each.kind == FAR else each for each in near))
        windows = [each for each, _ in some]
        told = joined[name] if held.codec in searching and not measured.counts.groups else ()
        if way == NEAR and whole and (its := _by_its_own(windows, held, sides[name], told, checkpoint, base)):
            (way, widest), found = its, ()
            joined[name] = [(widest, widest)]
        settled[name] = way, found
        seen[name] = measured
        formula = next((each for each in formulas(held.codec) if each.name == way), None)
        if formula and (kind := (held.codec, formula.name)) not in unmade:
            unmade[kind] = _unmade(span, held, formula, checkpoint)
        if formula and not found and (unmade[kind] or not (whole or not formula.whole(1.0, held.dtype))):
            settled[name] = FAITHFUL, found
        odd[name] = (*fixed(span, held, checkpoint), *_inputs(span, held, checkpoint))
        if whole and formula and settled[name][0] == way:
            off[name] = tuple(_wholes(span, held, formula, sides[name], joined[name], checkpoint))
        if whole and (search := one_scale(held.codec)) and (search.search.stated or off.get(name)):
            again = _searched(settled[name], measured, search, windows, held, totals[name].widest, checkpoint, base)
            settled[name], seen[name] = again or (settled[name], measured)
    spans = {name: some[0][0].span for name, some in results.items()}
    helds = {name: Stored.of(span, checkpoint, base) for name, span in spans.items()}
    sought = {
        name: Sought(helds[name].codec, spans[name].columns, each, seen[name])
        for name, each in settled.items()
        if needs_search(each[0]) and not (each[1] and one_scale(helds[name].codec) and not seen[name].counts.groups)
    }
    codecs = {name: held.codec for name, held in helds.items()}
    settled |= weighed(sought, codecs, lambda name, each: _way(spans[name], helds[name], each))
    for name, more in odd.items():
        way, found = settled[name]
        settled[name] = way, (*found, *more)
    searches = {name for name, held in helds.items() if needs_search(settled[name][0]) and one_scale(held.codec)}
    off = {name: faults for name, faults in off.items() if name not in searches}
    asked = Counter(settled[name][0] for name in off)
    fitting = Counter(settled[name][0] for name, found in off.items() if not found)
    for name, faults in off.items():
        way, found = settled[name]
        if faults and fitting[way] >= MOST * asked[way] and np.isfinite(sides[name]).all():
            settled[name] = way, (*found, *faults)
        elif faults:
            settled[name] = (way if found else FAITHFUL), found
    settled |= _agreed(settled, results, checkpoint, base)
    ties = {name for name, (way, _) in settled.items() if needs_search(way) and seen[name].counts.ties}
    return {
        name: (way + TIES if name in ties and not way.startswith(SEARCHED) else way, found)
        for name, (way, found) in settled.items()
    }


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
    settled: Mapping[str, tuple[str, tuple[Finding, ...]]],
    results: Mapping[str, Sequence[tuple[Window, Measured]]],
    checkpoint: Reader,
    base: Reader,
) -> dict[str, tuple[str, tuple[Finding, ...]]]:
    """Return the layers that fit a likelier formula and also the one that the others of the file need.

    Two formulas may give the same bytes. A file was made by one tool, on one machine, if one gives all of it.
    """
    exact: dict[Codec, dict[str, str]] = {}
    for name, (way, found) in settled.items():
        if (codec := results[name][0][0].span.codec) and not found and way in _names(codec):
            exact.setdefault(codec, {})[name] = way
    agreed: dict[str, tuple[str, tuple[Finding, ...]]] = {}
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
    few = replace(windows[0], last=min(windows[0].last, windows[0].first + _few(held)))
    for formula in formulas(held.codec):
        own = widest
        if isinstance(formula, ChosenFloats) and formula.whole(1.0, held.dtype):
            taken = (formula.greatest(_weights(each, held, base), held.dtype) for each in windows if ranges)
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


def _few(held: Stored) -> int:
    """Return how many rows are made to see whether a formula can have made them."""
    return -(-PROBED // held.codec.align) * held.codec.align


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
    choice = search.choose((_weights(each, held, base) for each in windows), held.dtype, widest)
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
            detail = f"{_text(found, 0)}, recomputed {_text(wanted, 0)}"
            yield Finding(ROUNDED, named(span.name, suffix), 1, (), detail)


def fixed(span: Span, held: Stored, checkpoint: Reader) -> Iterator[Finding]:
    """Yield the tensors that do not say what the shape of the weight gives."""
    rows = span.last - span.first
    for suffix, part in held.parts.items():
        if part.accepts:
            text = read_part(checkpoint, named(span.name, suffix), replace(part, every=0), rows, 0, rows)
            if not part.accepts(text):
                yield Finding("declared otherwise", named(span.name, suffix), detail="it cannot be this weight's")
        if (wanted := part.holds) is None:
            continue
        found = read_part(checkpoint, named(span.name, suffix), replace(part, every=0), rows, 0, rows)
        if found.tobytes() != np.ascontiguousarray(wanted, found.dtype).tobytes():
            apart = found.reshape(-1) != np.ascontiguousarray(wanted, found.dtype).reshape(-1)
            index = tuple(int(each) for each in np.unravel_index(int(apart.argmax()), found.shape))
            detail = f"{_text(found, int(apart.argmax()))}, expected {_text(wanted, int(apart.argmax()))}"
            yield Finding("declared otherwise", named(span.name, suffix), int(np.count_nonzero(apart)), index, detail)


def _inputs(span: Span, held: Stored, checkpoint: Reader) -> Iterator[Finding]:
    """Yield the scales of inputs, which follow from no weight, that no input can have."""
    for suffix, part in held.parts.items():
        if suffix.startswith("input") and suffix.endswith("scale"):
            found = read_part(checkpoint, named(span.name, suffix), replace(part, every=0), 1, 0, 1)
            values = widen(found, part.spec.dtype).reshape(-1)
            if bad := int(np.count_nonzero(~(np.isfinite(values) & (values > 0)))):
                yield Finding("scale out of reach", named(span.name, suffix), bad, (), f"{values[0]:g}, for inputs")
