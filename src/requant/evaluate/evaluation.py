"""An evaluation as a value: what was measured, of what, with what, and all that its intervals are computed from.

So two results that name the same tokens and reference logits can be compared later, by anybody who has the files, and
one whose measures do not follow from its sequences is no result.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from requant.digest import canonical_json, read_whole, strict_json
from requant.errors import CheckpointError, UsageError
from requant.evaluate.measures import (
    CONFIDENCE,
    MEASURES,
    MOST,
    RESAMPLES,
    Interval,
    Measured,
    differences,
    measures,
    rank,
    word,
)
from requant.records import record

Precision = Literal["float32", "bfloat16"]
"""In which both models are run."""
NAME = "requant.evaluation/1"
LARGEST = 1 << 26
"""Bytes of a result that are read."""
CLOSE = 1e-9
"""By what share of itself a measure that is computed again may be off: exponentials are not the same everywhere."""

BOUNDS: Mapping[str, float] = {
    **dict.fromkeys(("divergence", "base_surprise", "surprise"), math.inf),
    **dict.fromkeys(("agreement", "base_drafted", "base_overlap", "drafted", "overlap"), 1.0),
}
"""The most that each value of a sequence can be; none is below 0."""


@dataclass(frozen=True)
class Digests:
    """What was measured, by SHA-256.

    `base` is of all of its files, path to SHA-256; `checkpoint` of its files of weights, as a manifest's identity, and
    `checkpoint_files` of all. `text` is the held-out file, `tokens` the sequences, `reference` the base's logits of
    them. `harness` is the environment, worker and all, and the host's code that decodes and computes.
    """

    base: str
    checkpoint: str
    checkpoint_files: str
    text: str
    tokens: str
    reference: str
    harness: str


@dataclass(frozen=True)
class Settings:
    """What was asked for: `samples` sequences of `length` tokens, run in a precision on a device."""

    samples: int
    length: int
    precision: Precision
    device: Literal["cpu", "cuda"]
    environment: str


@dataclass(frozen=True)
class Against:
    """By how much the measures are above another checkpoint's, and what that says of each.

    `harness` is that of the other result: where it is another one, only the base's logits say that both do the same.
    """

    checkpoint: str
    harness: str
    differences: Mapping[str, Interval]
    words: Mapping[str, str]


@dataclass(frozen=True)
class Evaluation:
    """How far a checkpoint's model is from its base's, on held-out text.

    `activations` is the key by which the scheme quantizes inputs of layers, which was not done here; "" where it has
    none. `unread` are tensors of the checkpoint that the base's model has no place for. `mtp` says whose drafts were
    measured. `hardware` is that on which base and checkpoint were run, `taints` what the sandbox could not keep out.
    """

    requant: str
    digests: Digests
    settings: Settings
    versions: Mapping[str, str]
    hardware: Mapping[str, Any]
    taints: tuple[str, ...]
    activations: str
    unread: tuple[str, ...]
    mtp: Literal["both", "base", "none"]
    measures: Mapping[str, Interval]
    sequences: tuple[Measured, ...]
    against: Against | None = None

    @property
    def tokens(self) -> int:
        """How many tokens of a sequence have a next one."""
        return self.settings.length - 1

    def as_json(self) -> dict[str, Any]:
        """Return the document."""
        return asdict(self)

    def to_text(self) -> str:
        """Return the file."""
        return json.dumps({"schema": NAME, **self.as_json()}, indent=1, allow_nan=False) + "\n"

    def compared(self, other: "Evaluation") -> "Evaluation":
        """Return it beside another one's measures.

        Raises UsageError where not both were held against the same logits of the same tokens in the same way.
        """
        for name in ("base", "text", "tokens", "reference"):
            if getattr(self.digests, name) != getattr(other.digests, name):
                raise UsageError(
                    f"the two results do not compare: {name} {getattr(self.digests, name)} here, "
                    f"{getattr(other.digests, name)} there",
                    "Evaluate both with the same base, text, samples, length and precision, on one kind of machine.",
                )
        if self.settings.precision != other.settings.precision or self.settings.device != other.settings.device:
            raise UsageError("the two results do not compare: they were run in other precisions or on other devices")
        if self.tokens != other.tokens or [each.text for each in self.sequences] != [
            each.text for each in other.sequences
        ]:
            raise UsageError("the two results do not compare: their sequences are of other texts, or of another length")
        found = differences(self.sequences, other.sequences, self.tokens)
        said = {name: word(name, each) for name, each in found.items()}
        return replace(self, against=Against(other.digests.checkpoint, other.digests.harness, found, said))

    def text(self) -> Iterator[str]:
        """Yield what a person reads."""
        shown = {name: _shown(name, each) for name, each in self.measures.items()}
        widths = [max(map(len, column)) for column in zip(*shown.values(), strict=True)]
        for name, cells in shown.items():
            value, low, high, unit = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
            yield f"{MEASURES[name].label:44} {value}  {low} to {high} {unit.strip()}".rstrip()
        asked = self.settings
        yield f"{asked.samples:,} sequences of {asked.length:,} tokens, {asked.precision}, {asked.device}"
        yield f"intervals: {CONFIDENCE}%, of {RESAMPLES:,} draws of sequences"
        if self.mtp == "base":
            yield "the checkpoint has no MTP head"
        if self.activations:
            yield f"weights alone: what quantizing activations costs ({self.activations}) is not in these numbers"
        if self.unread:
            more = f", and {len(self.unread) - 1:,} more" if len(self.unread) > 1 else ""
            yield f"not in the base's model: {self.unread[0]}{more}"
        yield f"tokens {self.digests.tokens[:16]}, reference logits {self.digests.reference[:16]}"
        if self.against:
            yield from _compared(self.against)
            if self.against.harness != self.digests.harness:
                yield "the other result is of another harness, whose logits of the base are the same"


def _compared(against: Against) -> Iterator[str]:
    yield f"less those of {against.checkpoint[:16]}:"
    for name, each in against.differences.items():
        value, low, high, unit = _shown(name, each, sign="+")
        yield f"  {MEASURES[name].label}: {value}, {low} to {high} {unit}".rstrip() + f": {against.words[name]}"


def _shown(name: str, interval: Interval, sign: str = "") -> tuple[str, str, str, str]:
    """Return value and ends as they are told, and their unit."""
    percent = MEASURES[name].unit == "percent"
    numbers = [each * (100 if percent else 1) for each in (interval.value, interval.low, interval.high)]
    widest = max(map(abs, numbers))
    places = 2 if percent else 5 if widest == 0 else min(8, max(0, 4 - math.floor(math.log10(widest))))
    value, low, high = (f"{each:{sign}.{places}f}" for each in numbers)
    return value, low, high, {"percent": "%", "nats": "nats", "": ""}[MEASURES[name].unit]


def read_evaluation(path: Path) -> Evaluation:
    """Read a result. Raises CheckpointError for what is none, or says otherwise than its own sequences."""
    advice = "Name a file that requant evaluate --out wrote."
    try:
        value = strict_json(read_whole(path, LARGEST))
        if not isinstance(value, dict) or (said := value.pop("schema", None)) != NAME:
            raise ValueError(
                f"schema: found {said!r:.80}, expected {NAME!r}" if isinstance(value, dict) else "no object"
            )
        _confirm_finite(value)
        found = record(Evaluation, value)
        _confirm(found)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}", advice) from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not a result of requant evaluate: {error}", advice) from None
    return found


def _confirm_finite(value: Any) -> None:
    """Raise ValueError for 1e999 and its like, which JSON allows, and which Python reads as infinity."""
    try:
        canonical_json(value)
    except ValueError:
        raise ValueError("a number that is greater than all floats") from None


def _confirm(found: Evaluation) -> None:
    """Raise ValueError where a result contradicts itself."""
    few = 0 < len(found.sequences) <= MOST
    if len(found.sequences) != found.settings.samples or not few or found.tokens < 1:
        raise ValueError(
            f"{len(found.sequences)} sequences, {found.settings.samples} of {found.settings.length} tokens"
        )
    if len({each.text for each in found.sequences}) != len(found.sequences):
        raise ValueError("sequences: a text stands twice")
    deepest = min(found.tokens, rank(len(found.sequences), found.tokens))
    for number, each in enumerate(found.sequences):
        if len(each.largest) != deepest or list(each.largest) != sorted(each.largest, reverse=True):
            raise ValueError(f"sequences[{number}].largest: not the {deepest} greatest in falling order")
        for key, most in BOUNDS.items():
            if (said := getattr(each, key)) is not None and not 0 <= said <= most:
                raise ValueError(f"sequences[{number}].{key}: {said}, expected 0 {'or more' if most > 1 else 'to 1'}")
        if each.largest[-1] < 0 or each.divergence > each.largest[0] * (1 + CLOSE):
            raise ValueError(f"sequences[{number}].largest: below 0, or below their mean")
    again = measures(found.sequences, found.tokens)
    if again.keys() != found.measures.keys():
        raise ValueError(f"measures: {', '.join(sorted(again.keys() ^ found.measures.keys()))}")
    for name, interval in again.items():
        for key, wanted in asdict(interval).items():
            if not math.isclose(said := getattr(found.measures[name], key), wanted, rel_tol=CLOSE, abs_tol=CLOSE):
                raise ValueError(f"measures.{name}.{key}: {said}, its sequences give {wanted}")
    if found.against:
        said = {name: word(name, each) for name, each in found.against.differences.items() if name in MEASURES}
        if said.keys() != found.against.differences.keys() or said != found.against.words:
            raise ValueError("against: its words do not follow from its differences")
