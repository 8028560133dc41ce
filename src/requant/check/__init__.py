"""`check CHECKPOINT --base BASE`: does every weight follow from the base? Both sides are read once, in windows.

No GPU, no torch and no trust in the publisher. What each answer proves, and what not: docs/levels.md.
"""

import json
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, replace
from itertools import islice
from math import lcm
from pathlib import Path
from typing import Any

from requant.check.checked import Checked, judge
from requant.check.contradictions import beside, contradictions, floats, observers, presence, unmodelled, zero_points
from requant.check.declared import Scheme, read_scheme, unknown
from requant.check.examine import examine
from requant.check.findings import COPIED, EXTENDED, FAITHFUL, NEAR, OFF_BY_ONE, TUNED, Finding, Measured
from requant.check.finished import Finished
from requant.check.key_values import key_values
from requant.check.layouts import settled as laid_out
from requant.check.nearest import settled as nearly
from requant.check.reader import Reader
from requant.check.scaled import adding, beside_unknown, scale
from requant.check.settled import settle
from requant.check.side_files import Side, bind
from requant.check.spans import Span, Window, trace
from requant.check.stored import Stored
from requant.check.tied import needed
from requant.check.words import shuffled, symmetric
from requant.checkpoint.safetensors import ITEM_BITS, Spec
from requant.digest import canonical_json, sha256
from requant.errors import UsageError
from requant.formats import Packing, packing_of
from requant.formats.form import Form
from requant.model.skeleton import is_modelled, skeleton
from requant.model.target import Target, target_like
from requant.progress import Progress, Tell, silent
from requant.recipe import Recipe
from requant.rounding import ways as rounding
from requant.rounding.reach import Reach, loosest, reach_of

WEIGHTS = 1 << 22
"""Weights of a packed layer in one window, at most: with its codes and buffers, some 20 MB per thread."""
CODED = 1 << 21
"""Weights of a layer that is made again in one window, some 20 MB per thread: what Python does between two kernels, for
which threads wait for each other, is as long for fewer."""
BYTES = 3 << 20
"""Bytes of a copied tensor in one window: whole elements, those of six bits too."""
AT_ONCE = 12
"""Windows of `CODED` weights that are examined at a time, at most. Each takes 20 to 50 MB, and all of `check` is to
need less than 1 GiB, however wide layers are and however many processors there are."""
SCHEMA = 7
DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
"""What `config.json` calls the dtypes of tensors."""


def confirm_share(sample: float) -> None:
    """Raise UsageError for a share of the windows that is none."""
    if not 0 < sample <= 1:
        raise UsageError(f"--sample {sample}: expected more than 0 and at most 1")


def check(
    checkpoint: Reader,
    base: Reader,
    *,
    recipe: Recipe | None = None,
    tiny: bool = False,
    sample: float = 1.0,
    seed: int = 0,
    threads: int = os.cpu_count() or 1,
    resume: Path | None = None,
    tell: Tell = silent,
) -> Checked:
    """Hold a checkpoint against its base: copied bytes, rounded tensors, reachable codes and scales, coverage.

    What side files say of the codes is held against them, and other side files against the base's.

    Without a recipe each layer may be made in any known way, within the loosest bound. `sample` is the share of
    windows that are read, chosen by `seed`; headers are always read. `resume` is a folder where finished windows
    are noted. Raises CheckpointError for what cannot be read, UsageError for an impossible sample.
    """
    confirm_share(sample)
    bound = reach_of(recipe, tiny) if recipe else loosest()
    theirs, ours = map(side_of, (checkpoint, base))
    scheme, findings = read_scheme(theirs)
    target = target_like(recipe, _specs(base)) if recipe else None
    narrow = recipe.effort(tiny).precision == "bfloat16" if recipe else None
    spans, traced, packed = traced_spans(scheme, checkpoint, base, theirs, ours, target, narrow=narrow)
    dtypes = {DTYPES[each] for each in _converted(spans, checkpoint)} | ({scheme.dtype} if scheme else set())
    findings += traced
    findings += [Finding("tensor twice", name, detail=f"also in {file}") for name, file in checkpoint.twice]
    findings += [Finding("not modelled", name, detail=why) for name, why in checkpoint.beyond]
    if checkpoint.declaration:
        findings += key_values(checkpoint.values, checkpoint.lists, ours)
    else:
        findings += bind(theirs, ours, scheme.foreign if scheme else "", dtypes)
    findings += [Finding("could be loaded", each.name, detail=each.why) for each in checkpoint.loadable]
    expected = _expected(recipe, target, tiny) if recipe and target else None
    if expected is not None and target:
        spans = [replace(span, symmetric=_form(target, span).symmetric) if span.packing else span for span in spans]
        findings += _unlike(target, expected, spans)
    rounds = scheme is not None and scheme.rounds
    windows = list(windows_of(spans, expected, checkpoint, base, rounds))
    some = min(len(windows), max(1, round(sample * len(windows))))
    chosen = sorted(random.Random(seed).sample(range(len(windows)), some))  # noqa: S311
    key = [
        SCHEMA,
        checkpoint.files.identity,
        base.files.identity,
        asdict(bound),
        recipe and recipe.digest,
        sample,
        seed,
    ]
    with Finished(resume and resume / f"{sha256(canonical_json(_plain(key)))}.jsonl") as finished:
        before = {number: each for number, each in finished.read().items() if number in set(chosen)}
        results = dict(before)
        done = resumed = sum(windows[number].nbytes for number in before)
        total = sum(windows[number].nbytes for number in chosen)
        left = [number for number in chosen if number not in before]
        for number, measured in _examined(left, windows, checkpoint, base, bound, threads):
            results[number] = measured
            finished.note(number, measured)
            done += windows[number].nbytes
            tell(Progress("check", done, total))
        finished.finish()
    everything = sum(window.nbytes for window in windows)
    by_piece: dict[str, list[Measured]] = {}
    made_again: dict[str, list[tuple[Window, Measured]]] = {}
    for number in sorted(results):
        window = windows[number]
        by_piece.setdefault(window.span.name, []).append(results[number])
        if window.span.recomputed:
            made_again.setdefault(window.span.name, []).append((window, results[number]))
    unread = tuple(span.name for span in spans if span.name not in by_piece and not span.unmodelled)
    settled = settle(made_again, checkpoint, base)
    settled |= {span.name: nearly(by_piece[span.name]) for span in spans if span.by_nearest and span.name in by_piece}
    judged, layers, statistics, counts = judge(by_piece, settled)
    if recipe:  # nothing is left to a tool
        judged = [replace(each, kind="wrong zero point") if each.kind == OFF_BY_ONE else each for each in judged]
    if scheme is not None and scheme.rounds and (tuned := [*layers.values()].count(TUNED)):
        judged.append(Finding("not modelled", "quantization_config: iters", tuned, detail="0, and layers were tuned"))
    return Checked.of(
        [*findings, *judged], bound, packed, layers, statistics, counts, everything, done, resumed, unread
    )


def side_of(reader: Reader) -> Side:
    """Return the files of one side."""
    return Side(reader.name, frozenset(reader.files.names()), reader.files.whole)


def traced_spans(
    scheme: Scheme | None,
    checkpoint: Reader,
    base: Reader,
    theirs: Side,
    ours: Side,
    target: Target | None = None,
    *,
    narrow: bool | None = None,
) -> tuple[list[Span], list[Finding], int]:
    """Trace all tensors to the base, and hold what is declared against them; return how many layers are packed too.

    `narrow` says whether a recipe rounds the base's numbers to BF16 first; without one, converted tensors tell it.
    """
    foreign, transposed = (scheme.foreign, scheme.transposes) if scheme else ("", False)
    planned = target.places if target else {}
    declared = checkpoint.declaration or (scheme.declaration if scheme else None)
    spans, traced = trace(
        _specs(checkpoint),
        _specs(base),
        foreign,
        declared=declared,
        heads=checkpoint.heads,
        transposed=transposed,
        planned=planned,
    )
    spans, said = _as_declared(laid_out(spans, checkpoint, base), scheme, checkpoint, ours)
    if scheme and scheme.scales and scheme.foreign:
        spans = beside_unknown(spans)
        said += [each for each in unmodelled(spans) if each not in said]
    packed = sum(span.quantized for span in spans)
    packed += sum(each.kind == "not modelled" for each in traced)
    strange, narrow = narrow is None, "BF16" in _converted(spans, checkpoint) if narrow is None else narrow
    spans = [_of_floats(span, base, narrow, strange=strange) if span.packing else span for span in spans]
    if strange:
        spans = scale(adding(spans, ours.config()), checkpoint, base)
    return spans, [*needed(traced, base, ours), *said, *presence(scheme, theirs, packed)], packed


def _converted(spans: Iterable[Span], checkpoint: Reader) -> set[str]:
    """Return the dtypes that float tensors were converted to."""
    return {checkpoint.tensors[span.name].spec.dtype for span in spans if span.converted}


def _as_declared(
    spans: list[Span], scheme: Scheme | None, checkpoint: Reader, base: Side
) -> tuple[list[Span], list[Finding]]:
    """Hold what is declared against the packed layers; return the pieces, those that are asymmetric marked so."""
    if checkpoint.declaration or scheme is None or scheme.foreign:
        return spans, unmodelled(spans)
    if scheme.declaration:
        return spans, [*floats(scheme.declaration, spans), *beside(scheme), *unmodelled(spans), *observers(spans)]
    packed = [span.name for span in spans if span.packing]
    found = [*contradictions(scheme, spans, _linears(base)), *unknown(scheme, packed)]
    made = []
    for span in spans:
        if span.group and (packing := span.packing):
            strange = scheme.strange_tool
            known: dict[str, Any] = {"foreign": strange, "nearest": strange and packing.layout == "awq"}
            if scheme.format and scheme.format.layout == packing.layout:
                known["less"] = scheme.format.less
            if False in {each.symmetric(span.name) for each in (scheme, *scheme.asides.values())}:
                middle = symmetric(checkpoint, replace(span, **known), packing)
                found += zero_points(scheme, span.name, middle)
                known["symmetric"] = middle or scheme.symmetric(span.name)
            moved = shuffled(checkpoint, span, scheme.value.get("desc_act") is True)
            if moved is None:
                known |= {"group": 0, "unmodelled": "inputs in the order of g_idx"}
            span = replace(span, **known, shuffled=bool(moved))
        made.append(span)
    return made, [*found, *unmodelled(made)]


def _of_floats(span: Span, base: Reader, narrow: bool, *, strange: bool) -> Span:
    """Return a packed layer whose base is not in BF16 with what that means for the weights that were rounded.

    In float16 some tools divide in float16, which moves a code in a hundred: without a recipe no bound accuses there.
    """
    dtype = base.tensors[span.base].spec.dtype
    if dtype == "BF16":
        return span
    return replace(span, narrowed=narrow, foreign=span.foreign or (dtype == "F16" and strange and not narrow))


def _linears(base: Side) -> set[str]:
    """Return the linear layers of a base whose architecture is modelled; of others, none are known."""
    config = base.config()
    if config is None or not is_modelled(config):
        return set()
    model = skeleton(config)
    return {*model.layers(model.tensors)}


def _examined(
    numbers: list[int], windows: list[Window], checkpoint: Reader, base: Reader, bound: Reach, threads: int
) -> Iterator[tuple[int, Measured]]:
    """Examine windows in order, a bounded number ahead."""
    queue = iter(numbers)
    running: dict[Future[Measured], int] = {}
    workers = at_once(windows, 4 * threads if checkpoint.remote or base.remote else threads)
    with ThreadPoolExecutor(workers) as pool:
        try:
            while True:
                for number in islice(queue, 2 * workers - len(running)):
                    running[pool.submit(examine, windows[number], checkpoint, base, bound)] = number
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def at_once(windows: Iterable[Window], threads: int) -> int:
    """Return how many windows are examined at a time, so that memory has a bound."""
    widest = max(((each.last - each.first) * each.span.columns for each in windows if each.span.codec), default=1)
    return min(threads, AT_ONCE, max(1, AT_ONCE * CODED // widest))


def windows_of(
    spans: Iterable[Span], expected: Mapping[str, str] | None, checkpoint: Reader, base: Reader, rounds: bool
) -> Iterator[Window]:
    """Yield the windows of pieces, and the ways to try; `expected` is how a recipe makes each, where there is one."""
    for span in spans:
        if span.unmodelled:
            continue
        rows, dtype = span.last - span.first, base.tensors[span.base].spec.dtype
        if span.codec:
            align = lcm(span.codec.align, rows // span.heads if span.heads else 1)
            step = max(1, CODED // span.columns // align) * align
            stored = Stored.of(span, checkpoint, base)
            each = base.tensors[span.base].spec.shape[-1] if span.transposed else rows  # experts lie apart
            for begin in range(0, rows, each):
                for first in range(begin, min(rows, begin + each), step):
                    last = min(rows, begin + each, first + step)
                    yield Window(span, first, last, stored.nbytes(span.columns, (last - first) / rows))
        elif span.group:
            ways = _ways(span, expected.get(span.name) if expected else None, rounds)
            step = rows if rows * span.columns <= WEIGHTS else max(32, WEIGHTS // span.columns // 32 * 32)
            per_weight = ITEM_BITS[dtype] / 8 + 0.5
            for first in range(0, rows, step):
                last = min(rows, first + step)
                yield Window(span, first, last, round((last - first) * span.columns * per_weight), ways)
        else:
            size = Spec(dtype, (rows, span.columns)).nbytes
            for first in range(0, max(size, 1), BYTES):
                last = min(size, first + BYTES)
                yield Window(span, first, last, 2 * (last - first), (COPIED,))


def _ways(span: Span, kind: str | None, rounds: bool) -> tuple[str, ...]:
    """Return the ways in which a layer can have been made: as the recipe says, or any, those that take longest last."""
    if span.shuffled:
        return (NEAR,)
    made = rounding.SYMMETRIC if span.symmetric else rounding.ASYMMETRIC
    if kind in ROUNDED:
        ways = rounding.at_no_iterations(*ROUNDED[kind], symmetric=span.symmetric)
        unlike = ways[0] in rounding.CHOSEN and span.packing is not None and span.packing.bits > rounding.TOLD_APART
        return (*ways, FAITHFUL) if unlike else ways
    if kind:
        return (TUNED,) if kind == "tuned" else made
    exact = (way for way in made if way in rounding.EXACT)
    searched = (way for way in made if way in rounding.CHOSEN)
    beyond = [FAITHFUL if rounds else EXTENDED] if span.symmetric else []
    beyond += [NEAR] if span.foreign else []
    return (*exact, TUNED, *searched, *beyond)


ROUNDED: Mapping[str | None, tuple[bool, bool]] = {
    "rounded": (False, False),
    "rounded in BF16": (False, True),
    "searched": (True, False),
    "searched in BF16": (True, True),
}
"""How a recipe of 0 iterations makes layers: whether scales are searched, and whether that is done in BF16."""


def _expected(recipe: Recipe, target: Target, tiny: bool) -> dict[str, str]:
    """Return how the recipe makes each packed layer: `tuned`, one of `ROUNDED`, or `rtn`, as MTP is rounded."""
    kind = "tuned"
    if recipe.rounds:
        half = recipe.effort(tiny).precision == "bfloat16"
        kind = ("searched" if recipe.tuning.search_scales else "rounded") + (" in BF16" if half else "")
    return dict.fromkeys(target.plan.packed, kind) | dict.fromkeys(target.rounded, "rtn")


def _form(target: Target, span: Span) -> Form:
    return target.form_at(f"{span.name}.qweight")


def _unlike(target: Target, expected: Mapping[str, str], spans: Sequence[Span]) -> Iterator[Finding]:
    packed = {span.name: span for span in spans if span.packing or span.unmodelled}
    for name, span in packed.items():
        form = _form(target, span)
        if name not in expected:
            yield Finding("not as the recipe says", f"{name}.qweight", detail="packed; the recipe leaves it float")
        elif span.unmodelled:
            yield Finding("not as the recipe says", f"{name}.qweight", detail=span.unmodelled)
        elif span.shuffled:
            yield Finding("not as the recipe says", f"{name}.g_idx", detail="inputs in another order")
        elif span.packing != (wanted := _wanted(form, span)):
            detail = f"{_packed(span.packing)}, the recipe says {_packed(wanted)}"
            yield Finding("not as the recipe says", f"{name}.scales", detail=detail)
        elif span.less != form.format.less:
            detail = f"declared as stored less {span.less}, the recipe says less {form.format.less}"
            yield Finding("not as the recipe says", f"{name}.qzeros", detail=detail)
    for span in spans:
        if span.converted:
            yield Finding("not as the recipe says", span.name, detail="not in the base's dtype")
    for name in expected.keys() - packed.keys():
        yield Finding(
            "not as the recipe says", f"{name}.qweight", detail=f"not packed; the recipe says {expected[name]}"
        )


def _wanted(form: Form, span: Span) -> Packing | None:
    rows, columns = span.last - span.first, span.columns
    return packing_of(form.specs((rows, columns)), rows, columns)


def _packed(packing: Packing | None) -> str:
    return f"{packing.bits} bits, {packing.groups} groups, {packing.layout}'s order" if packing else "no packing"


def _specs(source: Reader) -> dict[str, Any]:
    return {name: place.spec for name, place in source.tensors.items()}


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value), parse_float=str)
