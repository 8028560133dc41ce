"""`diff A B`: which tensors differ, by how many codes and steps; and how the files around them do.

Both sides are read once, in windows, several at a time. What is equal is only compared. Where a tensor stands, in
which order, and what else a header says makes no difference to its values: that is `equivalent`, and named.
"""

import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from requant.checkpoint.checkpoint import Tensor, open_checkpoint
from requant.checkpoint.safetensors import ITEM_BITS, Stretch
from requant.diff.difference import Numbers, Steps, bits_of, elements, numbers, rows_of, step_counts
from requant.diff.side_files import arrangement, side_files
from requant.errors import CheckpointError
from requant.formats import PACKED
from requant.formats.gptq import BITS
from requant.progress import Progress, Tell, silent
from requant.verdict import Outcome

BYTES = 3 << 19
"""Bytes of a tensor in one window."""


@dataclass(frozen=True)
class Diff:
    """What differs: tensors by name, tensors on one side only, side files, and the arrangement of all."""

    outcome: Outcome
    tensors: Mapping[str, Steps | Numbers | str]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    files: Mapping[str, tuple[str, ...]]
    arrangement: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as `--json` prints it."""
        return asdict(self)

    def text(self, shown: int) -> list[str]:
        """Return what a person reads."""
        lines = [f"{name}: {_line(each)}" for name, each in list(self.tensors.items())[:shown]]
        if len(self.tensors) > shown:
            lines.append(f"and {len(self.tensors) - shown} more tensors: --json names them all")
        for side, names in (("first", self.only_first), ("second", self.only_second)):
            lines += [f"{name}: in the {side} only" for name in names[:shown]]
            lines += [f"and {len(names) - shown} more in the {side} only"] if len(names) > shown else []
        lines += [f"{name}: {each}" for name, some in self.files.items() for each in some[:shown]]
        return lines + list(self.arrangement[:shown]) + _drift(self.tensors)


def diff(first: Path, second: Path, *, threads: int = os.cpu_count() or 1, tell: Tell = silent) -> Diff:
    """Compare two checkpoints tensor by tensor; raise CheckpointError for what cannot be read."""
    ours, theirs = open_checkpoint(first), open_checkpoint(second)
    one, two = ours.tensors, theirs.tensors
    both = [name for name in one if name in two]
    tensors: dict[str, Steps | Numbers | str] = {}
    windows: list[tuple[str, int, int]] = []
    for name in both:
        if one[name].spec != two[name].spec:
            tensors[name] = f"{_spec(one[name])} in the first, {_spec(two[name])} in the second"
            continue
        size, step = one[name].spec.nbytes, _step(name, one)
        windows += [(name, start, min(size, start + step)) for start in range(0, size, step)]
    total, done = sum(stop - start for _, start, stop in windows), 0
    counted: dict[str, list[tuple[int, Any]]] = {}
    with ThreadPoolExecutor(threads) as pool:
        for window, found in zip(windows, pool.map(lambda each: _window(each, one, two), windows), strict=True):
            if found is not None:
                counted.setdefault(window[0], []).append((window[1], found))
            done += window[2] - window[1]
            tell(Progress("diff", 2 * done, 2 * total))
    tensors |= {name: _added(one[name], some) for name, some in counted.items()}
    ours_only, theirs_only = (tuple(name for name in a if name not in b) for a, b in ((one, two), (two, one)))
    files, arranged = dict(side_files(first, second)), tuple(arrangement(first, second))
    outcome = Outcome.EQUIVALENT if files or arranged else Outcome.IDENTICAL
    if tensors or ours_only or theirs_only:
        outcome = Outcome.DIFFERENT
    return Diff(outcome, dict(sorted(tensors.items())), ours_only, theirs_only, files, arranged)


def _window(window: tuple[str, int, int], one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> Any:
    name, start, stop = window
    spec = one[name].spec
    first, second = (_bytes(side[name], start, stop) for side in (one, two))
    if first == second:
        return None
    if name.endswith(".qweight") and spec.dtype == "I32":
        words = np.frombuffer(first, "<u4"), np.frombuffer(second, "<u4")
        return step_counts(*words, _bits(name, one), spec.shape[-1] if spec.shape else 1)
    return numbers(elements(first, spec.dtype), elements(second, spec.dtype), spec.dtype)


def _bits(name: str, tensors: Mapping[str, Tensor]) -> int:
    layer = name.removesuffix("qweight")
    specs = [tensors[f"{layer}{each}"].spec for each in PACKED if f"{layer}{each}" in tensors]
    return bits_of(*specs) if len(specs) == len(PACKED) else BITS


def _step(name: str, tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes of a tensor in one window: where codes straddle words, whole ones."""
    spec = tensors[name].spec
    if not name.endswith(".qweight") or spec.dtype != "I32" or (rows := rows_of(_bits(name, tensors))) == 1:
        return BYTES
    return max(1, BYTES // (4 * rows * spec.shape[1])) * 4 * rows * spec.shape[1]


def _bytes(tensor: Tensor, start: int, stop: int) -> bytes:
    if not isinstance(tensor.content, Stretch):
        return b"".join(tensor.part(start, stop).chunks())
    stretch = tensor.content
    try:
        with stretch.path.open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), stop - start, stretch.start + start)
    except OSError as error:
        raise CheckpointError(f"{stretch.path}: {error.strerror}") from None
    if len(data) != stop - start:
        raise CheckpointError(f"{stretch.path}: shorter than its header promised a moment ago")
    return data


def _added(tensor: Tensor, windows: list[tuple[int, Any]]) -> Steps | Numbers:
    bits = ITEM_BITS[tensor.spec.dtype]
    at = next(8 * start // bits + found[-1] for start, found in windows)
    index = tuple(int(each) for each in np.unravel_index(at, tensor.spec.shape)) if tensor.spec.shape else ()
    if len(windows[0][1]) == 2:
        counts = sum(histogram for _, (histogram, _) in windows)
        top = len(counts) // 2
        histogram = {step - top: int(count) for step, count in enumerate(counts) if count and step != top}
        return Steps(sum(histogram.values()), tensor.spec.size * 32 // top.bit_length(), histogram, index)
    largest, ulp = max(found[1] for _, found in windows), max(int(found[2]) for _, found in windows)
    return Numbers(sum(found[0] for _, found in windows), tensor.spec.size, largest, ulp, index)


def _drift(tensors: Mapping[str, Steps | Numbers | str]) -> list[str]:
    """Describe codes that differ: scattered single steps, or few and far; a description, no judgement."""
    packed = [each for each in tensors.values() if isinstance(each, Steps)]
    differ = sum(each.differ for each in packed)
    if not differ:
        return []
    single = sum(count for each in packed for step, count in each.histogram.items() if abs(step) == 1) / differ
    share = differ / sum(each.total for each in packed)
    looks = (
        "scattered single steps, as numeric drift leaves"
        if single > 0.98 and len(packed) > 1
        else ("concentrated or large steps, as an edit or another tuning leaves")
    )
    return [f"{len(packed)} packed tensors differ, in {share:.3%} of codes, {single:.1%} of these by one step: {looks}"]


def _line(each: Steps | Numbers | str) -> str:
    if isinstance(each, str):
        return each
    share = f"{each.differ:,} of {each.total:,} ({each.differ / max(each.total, 1):.3%})"
    if isinstance(each, Steps):
        steps = ", ".join(f"{step:+d}: {count:,}" for step, count in each.histogram.items())
        return f"{share} codes differ, first in the word {list(each.index)}; steps {steps}"
    largest = f"{each.largest:.6g}" if math.isfinite(each.largest) else "not finite"
    return f"{share} differ, first at {list(each.index)}; by {largest} and {each.ulp:,} ULP at most"


def _spec(tensor: Tensor) -> str:
    return f"{tensor.spec.dtype} {list(tensor.spec.shape)}"
