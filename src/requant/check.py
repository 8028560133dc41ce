"""`check CHECKPOINT --base BASE`: does every weight follow from the base? Both sides are read once, in windows.

No GPU, no torch and no trust in the publisher. What each answer proves, and what not: docs/levels.md.
"""

import json
import os
import random
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

from requant.digest import canonical_json, sha256, strict_json
from requant.errors import CheckpointError, UsageError
from requant.inventory import linears, mtp_linears, mtp_quantized, quantized
from requant.progress import Progress, Tell, silent
from requant.recipe import Recipe
from requant.safetensors import Spec
from requant.weights import rounding
from requant.weights.binding import Side, bind
from requant.weights.checked import Checked, judge
from requant.weights.examine import Window, examine, symmetric
from requant.weights.ledger import Ledger
from requant.weights.lineage import Piece, lineage
from requant.weights.reach import Reach, loosest, reach_of
from requant.weights.scheme import Scheme, contradictions, presence, read_scheme, unknown, unmodelled, zero_points
from requant.weights.source import Source
from requant.weights.tally import COPIED, FAITHFUL, TUNED, Finding, Measured

WEIGHTS = 1 << 22
"""Weights of a packed layer in one window, at most: with its codes and buffers, some 20 MB per thread."""
BYTES = 3 << 20
"""Bytes of a copied tensor in one window: whole elements, those of six bits too."""
SCHEMA = 2


def confirm_share(sample: float) -> None:
    """Raise UsageError for a share of the windows that is none."""
    if not 0 < sample <= 1:
        raise UsageError(f"--sample {sample}: expected more than 0 and at most 1")


def check(
    checkpoint: Source,
    base: Source,
    *,
    recipe: Recipe | None = None,
    twin: bool = False,
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
    bound = reach_of(recipe, twin) if recipe else loosest()
    theirs, ours = (Side(each.name, frozenset(each.files.names()), each.files.whole) for each in (checkpoint, base))
    scheme, findings = read_scheme(theirs)
    pieces, traced, packed = _traced(scheme, checkpoint, base, theirs, ours)
    findings += [*traced, *bind(theirs, ours, scheme.foreign if scheme else "")]
    findings += [Finding("tensor twice", name, detail=f"also in {file}") for name, file in checkpoint.twice]
    findings += [Finding("could be loaded", each.name, detail=each.why) for each in checkpoint.loadable]
    expected = _expected(recipe, base) if recipe else None
    if expected is not None and recipe:
        findings += _unlike(recipe, expected, pieces)
    rounds = scheme is not None and scheme.rounds
    windows = list(_windows(pieces, expected, base, rounds))
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
    with Ledger(resume and resume / f"{sha256(canonical_json(_plain(key)))}.jsonl") as ledger:
        before = {number: each for number, each in ledger.read().items() if number in set(chosen)}
        results = dict(before)
        done = resumed = sum(windows[number].nbytes for number in before)
        total = sum(windows[number].nbytes for number in chosen)
        left = [number for number in chosen if number not in before]
        for number, measured in _examined(left, windows, checkpoint, base, bound, threads):
            results[number] = measured
            ledger.note(number, measured)
            done += windows[number].nbytes
            tell(Progress("check", done, total))
        ledger.finish()
    everything = sum(window.nbytes for window in windows)
    by_piece: dict[str, list[Measured]] = {}
    for number in sorted(results):
        by_piece.setdefault(windows[number].piece.name, []).append(results[number])
    unread = tuple(piece.name for piece in pieces if piece.name not in by_piece and not piece.unmodelled)
    judged, layers, statistics = judge(by_piece)
    if scheme is not None and scheme.rounds and (tuned := [*layers.values()].count(TUNED)):
        judged.append(Finding("not modelled", "quantization_config: iters", tuned, detail="0, and layers were tuned"))
    return Checked.of([*findings, *judged], bound, packed, layers, statistics, everything, done, resumed, unread)


def _traced(
    scheme: Scheme | None, checkpoint: Source, base: Source, theirs: Side, ours: Side
) -> tuple[list[Piece], list[Finding], int]:
    """Trace all tensors to the base, and hold what is declared against them; return how many layers are packed too."""
    pieces, traced = lineage(_specs(checkpoint), _specs(base), scheme.foreign if scheme else "")
    pieces, said = _as_declared(pieces, scheme, checkpoint, ours)
    packed = sum(bool(piece.packing or piece.unmodelled) for piece in pieces)
    packed += sum(each.kind == "not modelled" for each in traced)
    return pieces, [*traced, *said, *presence(scheme, theirs, packed)], packed


def _as_declared(
    pieces: list[Piece], scheme: Scheme | None, checkpoint: Source, base: Side
) -> tuple[list[Piece], list[Finding]]:
    """Hold what is declared against the packed layers; return the pieces, those that are asymmetric marked so."""
    if scheme is None or scheme.foreign:
        return pieces, unmodelled(pieces)
    found = [*contradictions(scheme, pieces, _linears(base)), *unknown(scheme)]
    made = []
    for piece in pieces:
        said = {each.symmetric(piece.name) for each in (scheme, *scheme.asides.values())}
        if piece.group and False in said:
            middle = symmetric(checkpoint, piece)
            found += zero_points(scheme, piece.name, middle)
            if not (middle or scheme.symmetric(piece.name)):
                piece = replace(piece, group=0, unmodelled="asymmetric codes")
        made.append(piece)
    return made, [*found, *unmodelled(made)]


def _linears(base: Side) -> set[str]:
    """Return the linear layers of a base whose architecture is modelled; of others, none are known."""
    config = base.config()
    if config is None or config.get("model_type") != "qwen3_5_moe":
        return set()
    return {*linears(config), *mtp_linears(config)}


def _examined(
    numbers: list[int], windows: list[Window], checkpoint: Source, base: Source, bound: Reach, threads: int
) -> Iterator[tuple[int, Measured]]:
    """Examine windows in order, a bounded number ahead."""
    queue = iter(numbers)
    running: dict[Future[Measured], int] = {}
    workers = max(threads, min(4 * threads, 16)) if checkpoint.remote or base.remote else threads
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


def _windows(
    pieces: Iterable[Piece], expected: Mapping[str, str] | None, base: Source, rounds: bool
) -> Iterator[Window]:
    every = (rounding.ABSMAX, rounding.FULL, TUNED, rounding.SEARCHED, *([FAITHFUL] if rounds else []))
    for piece in pieces:
        if piece.unmodelled:
            continue
        rows, dtype = piece.last - piece.first, base.tensors[piece.base].spec.dtype
        if piece.group:
            kind = None if expected is None else expected.get(piece.name)
            ways = {"tuned": (TUNED,), "rtn": rounding.WAYS}.get(kind or "", every)
            step = rows if rows * piece.columns <= WEIGHTS else max(8, WEIGHTS // piece.columns // 8 * 8)
            for first in range(0, rows, step):
                last = min(rows, first + step)
                yield Window(piece, first, last, (last - first) * piece.columns * 5 // 2, ways)
        else:
            size = Spec(dtype, (rows, piece.columns)).nbytes
            for first in range(0, max(size, 1), BYTES):
                last = min(size, first + BYTES)
                yield Window(piece, first, last, 2 * (last - first), (COPIED,))


def _expected(recipe: Recipe, base: Source) -> dict[str, str]:
    """Return how the recipe makes each packed layer: `tuned`, or `rtn`."""
    try:
        config = strict_json(base.files.whole("config.json"))
    except ValueError as error:
        raise CheckpointError(f"{base.name}: config.json: {error}") from None
    packed = dict.fromkeys(quantized(config, recipe.layers.ignore), "tuned")
    if recipe.mtp.policy == "rtn":
        packed |= dict.fromkeys(mtp_quantized(config, recipe.layers.ignore), "rtn")
    return packed


def _unlike(recipe: Recipe, expected: Mapping[str, str], pieces: Iterable[Piece]) -> Iterator[Finding]:
    packed = {piece.name: piece for piece in pieces if piece.packing or piece.unmodelled}
    for name, piece in packed.items():
        group = piece.group
        if name not in expected:
            yield Finding("not as the recipe says", f"{name}.qweight", detail="packed; the recipe leaves it float")
        elif piece.unmodelled:
            yield Finding("not as the recipe says", f"{name}.qweight", detail=piece.unmodelled)
        elif group != recipe.scheme.group_size:
            detail = f"groups of {group}, the recipe says {recipe.scheme.group_size}"
            yield Finding("not as the recipe says", f"{name}.scales", detail=detail)
    for name in expected.keys() - packed.keys():
        yield Finding(
            "not as the recipe says", f"{name}.qweight", detail=f"not packed; the recipe says {expected[name]}"
        )


def _specs(source: Source) -> dict[str, Any]:
    return {name: place.spec for name, place in source.tensors.items()}


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value), parse_float=str)
