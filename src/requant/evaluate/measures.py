"""What is measured, from the values of sequences, and how sure it is: a bootstrap over sequences.

Sequences are parts of different texts, and so the units that are drawn; tokens of one are no independent ones. An
interval is that of the percentile bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section
13.3); two models that read the same sequences are compared draw by draw (paired). Every percentile is of nearest rank:
the least value that at least that share of all values does not exceed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from requant.protocol import Scored

Array = npt.NDArray[Any]

RESAMPLES, SEED = 2000, 0
"""How often as many sequences are drawn as there are, and PCG64's seed, whose raw numbers numpy keeps for ever."""
CONFIDENCE = 95
"""Percent of draws that an interval holds."""
MOST = 4096
"""Sequences, at most: draws of so many take 64 MiB."""
UNTOLD = "not told apart"
"""What is said of a difference whose interval holds 0."""
PERMILLE = 999
"""The percentile of divergences that is told, in thousandths."""


@dataclass(frozen=True)
class Measured:
    """What came of one sequence: means over its tokens, in nats where they are no shares.

    `text` is the SHA-256 of the text that it begins. `largest` are its greatest divergences, in falling order: as many
    as the percentile can depend on. MTP's are None where a model has no MTP block.
    """

    text: str
    divergence: float
    largest: tuple[float, ...]
    agreement: float
    base_surprise: float
    surprise: float
    base_drafted: float | None
    base_overlap: float | None
    drafted: float | None
    overlap: float | None


@dataclass(frozen=True)
class Interval:
    """A value, and the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Measure:
    """How a measure is called, in which unit it is told, and which of two checkpoints' values is better.

    That is "" of what is the base's alone, and of what says no more of two checkpoints than another measure does.
    """

    label: str
    unit: Literal["nats", "percent", ""]
    better: Literal["less", "more", ""]


MEASURES: Mapping[str, Measure] = {
    "divergence": Measure("KL divergence, mean", "nats", "less"),
    "divergence_99_9": Measure("KL divergence, 99.9th percentile", "nats", "less"),
    "agreement": Measure("top token agrees", "percent", "more"),
    "base_perplexity": Measure("perplexity of the base", "", ""),
    "perplexity": Measure("perplexity", "", "less"),
    "perplexity_ratio": Measure("perplexity, of the base's", "", ""),
    "base_drafted": Measure("MTP draft accepted by the base, greedy", "percent", ""),
    "drafted": Measure("MTP draft accepted, greedy", "percent", "more"),
    "drafted_change": Measure("MTP draft accepted, greedy, less the base's", "percent", ""),
    "base_overlap": Measure("MTP draft accepted by the base, sampled", "percent", ""),
    "overlap": Measure("MTP draft accepted, sampled", "percent", "more"),
    "overlap_change": Measure("MTP draft accepted, sampled, less the base's", "percent", ""),
}
"""Every measure, in the order in which they are told."""


def rank(sequences: int, tokens: int) -> int:
    """Return the rank, from the greatest on, of the percentile among the divergences of all sequences."""
    count = sequences * tokens
    return count - -(-count * PERMILLE // 1000) + 1


def measured(texts: Sequence[str], base: Sequence[Scored], model: Sequence[Scored]) -> tuple[Measured, ...]:
    """Return what came of each sequence, from what the base and the checkpoint's model made of it."""
    deepest = rank(len(model), len(model[0].divergences))
    return tuple(
        Measured(
            text,
            _mean(theirs.divergences),
            tuple(sorted(theirs.divergences, reverse=True)[:deepest]),
            _mean(theirs.agreed),
            _mean(ours.surprises),
            _mean(theirs.surprises),
            *(_mean(each) if each else None for each in (ours.drafted, ours.overlaps, theirs.drafted, theirs.overlaps)),
        )
        for text, ours, theirs in zip(texts, base, model, strict=True)
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def measures(sequences: Sequence[Measured], tokens: int) -> dict[str, Interval]:
    """Return every measure that there is of some sequences, each of so many `tokens` with a next one."""
    drawn = _drawn(len(sequences))
    once = np.arange(len(sequences))[None]
    values = _values(sequences, tokens, once)
    draws = _values(sequences, tokens, drawn)
    return {name: _interval(float(values[name][0]), draws[name]) for name in values}


def differences(one: Sequence[Measured], other: Sequence[Measured], tokens: int) -> dict[str, Interval]:
    """Return by how much the measures of one model are above another's, which read the same sequences."""
    drawn = _drawn(len(one))
    once = np.arange(len(one))[None]
    values, draws = ([_values(each, tokens, index) for each in (one, other)] for index in (once, drawn))
    return {
        name: _interval(float((values[0][name] - values[1][name])[0]), draws[0][name] - draws[1][name])
        for name in MEASURES
        if MEASURES[name].better and name in values[0] and name in values[1]
    }


def _drawn(sequences: int) -> Array:
    """Return which sequences are drawn, [RESAMPLES, sequences]."""
    raw = np.random.PCG64(SEED).random_raw(RESAMPLES * sequences)
    return np.asarray(raw % np.uint64(sequences), np.intp).reshape(RESAMPLES, sequences)


def _interval(value: float, draws: Array) -> Interval:
    ordered = np.sort(draws)
    outside = len(draws) * (100 - CONFIDENCE) // 200
    return Interval(value, float(ordered[outside - 1]), float(ordered[len(draws) - outside - 1]))


def _values(sequences: Sequence[Measured], tokens: int, drawn: Array) -> dict[str, Array]:
    """Return each measure of each draw, [draws]; those that not all sequences have are left out."""

    def mean(field: str) -> Array | None:
        each = [getattr(one, field) for one in sequences]
        with np.errstate(over="ignore"):  # what is no number is refused where it is told
            return None if None in each else np.asarray(each, np.float64)[drawn].mean(axis=1)

    means = {field.name: each for field in _MEANS if (each := mean(field.name)) is not None}
    own, base = (means.pop(name) for name in ("surprise", "base_surprise"))
    with np.errstate(over="ignore"):
        found: dict[str, Array] = means | {
            "divergence_99_9": _percentile(sequences, tokens, drawn),
            "base_perplexity": np.exp(base),
            "perplexity": np.exp(own),
            "perplexity_ratio": np.exp(own - base),
        }
    for name in ("drafted", "overlap"):
        if name in found:
            found[f"{name}_change"] = found[name] - found[f"base_{name}"]
    return {name: found[name] for name in MEASURES if name in found}


_MEANS = [field for field in fields(Measured) if field.name not in ("text", "largest")]


def _percentile(sequences: Sequence[Measured], tokens: int, drawn: Array) -> Array:
    """Return the percentile of all divergences of each draw.

    It is the one of the rank from the greatest on, each counted as often as its sequence was drawn.
    """
    values = np.asarray([*chain.from_iterable(each.largest for each in sequences)])
    own = np.repeat(np.arange(len(sequences)), [len(each.largest) for each in sequences])
    order = np.argsort(-values, kind="stable")
    values, own = values[order], own[order]
    wanted = rank(len(sequences), tokens)
    found = np.empty(len(drawn))
    for number, each in enumerate(drawn):
        times = np.bincount(each, minlength=len(sequences))
        found[number] = values[np.searchsorted(np.cumsum(times[own]), wanted)]
    return found


def word(name: str, difference: Interval) -> str:
    """Return what a difference says of a measure: "better" or "worse" where its interval leaves out 0."""
    if difference.low <= 0 <= difference.high:
        return UNTOLD
    return "better" if (difference.value < 0) == (MEASURES[name].better == "less") else "worse"
