"""Which formulas make a few layers of each format: what `identify --base` takes for a fingerprint of the tool.

The layers are made again as in a check, and judged as there; but every formula is tried, because two may give the
same bytes, and then neither is excluded.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from requant.check import side_of, traced_spans, windows_of
from requant.check.checked import judge
from requant.check.declared import read_scheme
from requant.check.examine import examine
from requant.check.findings import Measured, accuses, merge
from requant.check.nearest import settled as nearly
from requant.check.reader import Reader
from requant.check.recomputed import recompute
from requant.check.searches import TIES, needs_search
from requant.check.settled import givers, settle
from requant.check.spans import Span, Window
from requant.check.stored import Stored
from requant.rounding import ways as rounding
from requant.rounding.formulas import formulas
from requant.rounding.mse_single import one_scale
from requant.rounding.reach import loosest

LAYERS = 8
"""Of a format, how many layers are made again at most."""
WHOLE = 1 << 28
"""Weights of these, at most, where all of a layer has to be read because something belongs to it as a whole."""


@dataclass(frozen=True)
class Made:
    """Some of the `layers` of one format, made again.

    `gave` counts, for each formula that was tried, the layers of which it gives every byte that was read; `ways` says
    how `check` would say that each was made.
    """

    format: str
    layers: int
    tried: int
    gave: Mapping[str, int]
    ways: Mapping[str, int]


def made_again(
    checkpoint: Reader, base: Reader, threads: int = os.cpu_count() or 1
) -> tuple[list[Made], dict[str, int]]:
    """Make some layers of every format again; return what gave them, and of others why nothing can, with a count.

    The first rows of each layer are read, or all of it where a formula says something of the layer as a whole. Raises
    CheckpointError for what cannot be read.
    """
    theirs, ours = map(side_of, (checkpoint, base))
    scheme, _ = read_scheme(theirs)
    spans, _, _ = traced_spans(scheme, checkpoint, base, theirs, ours)
    formats: dict[str, list[Span]] = {}
    for span in spans:
        if span.quantized and not span.unmodelled:
            formats.setdefault(_format(span), []).append(span)
    made = []
    with ThreadPoolExecutor(threads) as pool:
        for name, some in formats.items():
            chosen, whole = _few(some, checkpoint, base)
            windows = [
                window
                for span in chosen
                for window in _first(span, checkpoint, base, whole, scheme is not None and scheme.rounds)
            ]
            each = pool.map(partial(_examined, checkpoint=checkpoint, base=base), windows)
            made.append(_made(name, len(some), [*zip(windows, each, strict=True)], checkpoint, base))
    return made, dict(Counter(span.unmodelled for span in spans if span.unmodelled))


def _format(span: Span) -> str:
    if span.codec:
        return span.codec.name
    if span.packing is None:
        raise TypeError(f"{span.name} is not quantized")
    middle = "symmetric" if span.symmetric else "asymmetric"
    return f"words of {span.packing.layout.upper()}, {span.packing.bits} bits, groups of {span.group}, {middle}"


def _few(spans: Sequence[Span], checkpoint: Reader, base: Reader) -> tuple[list[Span], bool]:
    """Return some layers of one format, and whether all of each is to be read.

    Layers of one module are taken together: what belongs to a layer as a whole may follow from another one.
    """
    modules: dict[str, list[Span]] = {}
    for span in spans:
        modules.setdefault(span.name.rpartition(".")[0], []).append(span)
    if codec := spans[0].codec:
        dtype = Stored.of(spans[0], checkpoint, base).dtype
        entire = any(formula.whole(1.0, dtype) for formula in formulas(codec))
    else:
        entire = False
    chosen: list[Span] = []
    for some in modules.values():
        weights = sum((span.last - span.first) * span.columns for span in (*chosen, *some))
        if len(chosen) + len(some) <= LAYERS and not (entire and weights > WHOLE):
            chosen += some
    return chosen or [*next(iter(modules.values()))][:LAYERS], entire and bool(chosen)


def _first(span: Span, checkpoint: Reader, base: Reader, whole: bool, rounds: bool) -> list[Window]:
    windows = windows_of([span], None, checkpoint, base, rounds)
    return [*windows] if whole else [next(windows)]


def _examined(window: Window, checkpoint: Reader, base: Reader) -> Measured:
    if window.span.recomputed:
        return recompute(window, checkpoint, base, every=True)
    return examine(window, checkpoint, base, loosest())


def _made(name: str, count: int, results: Iterable[tuple[Window, Measured]], checkpoint: Reader, base: Reader) -> Made:
    by_layer: dict[str, list[tuple[Window, Measured]]] = {}
    for window, measured in results:
        by_layer.setdefault(window.span.name, []).append((window, measured))
    coded = {layer: some for layer, some in by_layer.items() if some[0][0].span.recomputed}
    settled = settle(coded, checkpoint, base)
    by_nearest = {layer: some for layer, some in by_layer.items() if some[0][0].span.by_nearest}
    settled |= {layer: nearly(each for _, each in some) for layer, some in by_nearest.items()}
    _, ways, _, _ = judge({layer: [each for _, each in some] for layer, some in by_layer.items()}, settled)
    gave = {layer: named for layer, named in givers(coded, checkpoint, base).items() if not settled[layer][1]}
    tried: dict[str, None] = {}
    for layer, some in by_layer.items():
        if layer in by_nearest:
            gave[layer] = set()
        elif (codec := some[0][0].span.codec) is None:
            found = merge(each for _, each in some).findings
            exact = {way: each for way, each in found.items() if way in (*rounding.EXACT, *rounding.CHOSEN)}
            gave[layer] = {way for way, each in exact.items() if not any(map(accuses, each))}
            tried |= dict.fromkeys(exact)
        else:
            tried |= dict.fromkeys(formula.name for formula in formulas(codec))
            if one_scale(codec) and needs_search(way := settled[layer][0].removesuffix(TIES)) and not settled[layer][1]:
                gave[layer], tried = {*gave[layer], way}, {**tried, way: None}
    counts = Counter(way for some in gave.values() for way in some)
    return Made(name, count, len(by_layer), {way: counts[way] for way in tried}, dict(Counter(ways.values())))
