"""The outcome of a check, as data and in words."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from math import isinf, sqrt
from typing import Any, Self

from requant.check.findings import (
    CONVERTED,
    COPIED,
    EXTENDED,
    FAITHFUL,
    NEAR,
    NOTES,
    RETURNED,
    SCALED,
    SMOOTHED,
    TUNED,
    Counts,
    Finding,
    Measured,
    accuses,
    merge,
)
from requant.evidence.outcomes import Judged
from requant.rounding import ways as rounding
from requant.rounding.mse import CHOSEN
from requant.rounding.reach import Reach, tightest

UNKNOWN = "in no known way"
SHOWN = 6
"""Names that a line of notes has."""


class Outcome(StrEnum):
    """What a check says in one word."""

    CLEAN = "clean"
    VIOLATIONS = "violations"
    NOT_MODELLED = "not modelled"
    """Nothing contradicts the base, and something could not be held against it."""
    NOTHING = "nothing to check"
    """Nothing is quantized: whoever asks whether codes follow from the base has no answer."""


EXIT_STATUS: Mapping[Outcome, int] = {
    Outcome.CLEAN: 0,
    Outcome.VIOLATIONS: 1,
    Outcome.NOT_MODELLED: 3,
    Outcome.NOTHING: 3,
}


@dataclass(frozen=True)
class Checked:
    """What a check found. `layers` says of each copied tensor and packed layer how it was made.

    `findings` are violations; `unmodelled` is what could not be held against the base, and why; `notes` are differences
    that accuse nobody. `packed` counts the layers that are not float. `statistics` adds up codes and scales by block
    and projection. `read` of `total` bytes were read, `resumed` of them in an earlier run; `unread` names what a sample
    left out altogether.
    """

    bound: Reach
    findings: tuple[Finding, ...]
    unmodelled: tuple[Finding, ...]
    notes: tuple[Finding, ...]
    packed: int
    layers: Mapping[str, str]
    statistics: Mapping[str, Mapping[str, Counts]]
    counts: Mapping[str, Counts]
    """Of each layer that has any: what `statistics` adds up. It is not printed."""
    total: int
    read: int
    resumed: int
    unread: tuple[str, ...]

    @classmethod
    def of(cls, found: Iterable[Finding], bound: Reach, packed: int, layers: Mapping[str, str], *rest: Any) -> Self:
        """Return a check, its findings sorted into violations, what is not modelled, and notes."""
        told = sorted(found, key=lambda each: (each.tensor, each.kind))
        told += [
            Finding("not modelled", name, detail=way)
            for name, way in layers.items()
            if way in (FAITHFUL, NEAR, SMOOTHED)
        ]
        unmodelled = tuple(each for each in told if each.kind == "not modelled")
        notes = tuple(each for each in told if each.kind in NOTES)
        violations = tuple(each for each in told if each not in {*unmodelled, *notes})
        return cls(bound, violations, unmodelled, notes, packed, layers, *rest)

    @property
    def outcome(self) -> Outcome:
        """What was found in what was read."""
        if self.findings:
            return Outcome.VIOLATIONS
        if self.unmodelled:
            return Outcome.NOT_MODELLED
        return Outcome.CLEAN if self.packed else Outcome.NOTHING

    @property
    def exit_status(self) -> int:
        """What `check` ends with."""
        return EXIT_STATUS[self.outcome]

    @property
    def clean(self) -> bool:
        """Whether everything that is quantized was held against the base, and nothing was found."""
        return self.outcome == Outcome.CLEAN

    @property
    def ways(self) -> dict[str, int]:
        """How many tensors and layers were made in each way."""
        return dict(sorted(Counter(self.layers.values()).items()))

    def tuned(self) -> Counts:
        """Return what was measured on all packed layers that are within reach and not rounded to nearest."""
        return Counts.total(each["tuned"] for each in self.statistics.values() if "tuned" in each)

    def text(self, shown: int) -> list[str]:
        """Return what a person reads: findings, ways, statistics, what was not read."""
        alike = _grouped(self.findings, lambda each: f"{each.kind}{each.count and each.tensor}{_where(each)}")
        lines = [
            f"{same[0].kind}: {_names(each.tensor for each in same)}{_where(same[0])}" for _, same in alike[:shown]
        ]
        if left := sum(len(same) for _, same in alike[shown:]):
            lines.append(f"and {left:,} more: --json names them all")
        for detail, same in _grouped(self.unmodelled, lambda each: each.detail):
            lines.append(f"not modelled: {_names(each.tensor for each in same)}: {detail}")
        for place, same in _grouped(self.notes, lambda each: f"{each.kind}: {each.tensor.rpartition(': ')[0]}"):
            names = _names(each.tensor.rpartition(": ")[2] for each in same)
            lines.append(f"{place}: {names}{_where(same[0]) if same[0].index else ''}".replace(": : ", ": "))
        if not self.packed:
            lines.append("nothing is quantized")
        lines += [f"{count:,} {way}" for way, count in self.ways.items()]
        tuned = self.tuned()
        if tuned.codes:
            fits = tightest(tuned.farthest, tuned.least)
            most = "no number of iterations" if fits is None else f"at most {fits} iterations"
            lines.append(
                f"tuned codes: {tuned.codes:,}, of which {tuned.moved / tuned.codes:.1%} are not the nearest; "
                f"farthest offset {tuned.farthest:.6f} of {self.bound.offset:.6f}, smallest factor {tuned.least:.6f} "
                f"of {self.bound.factor:.6f}: what {most} at AutoRound's default rate can reach"
            )
        near = Counts.total(each["near"] for each in self.statistics.values() if "near" in each)
        if near.whole:
            error = sqrt(near.missed / near.whole)
            share = f", {sqrt(near.missed / near.best):.2f} times what rounding to nearest leaves" if near.best else ""
            lines.append(f"weights near the base: relative error {error:.3f}, the root of the mean square{share}")
            times, output, first = near.worst
            if times:
                layer = next(name for name, each in self.counts.items() if each.worst == near.worst)
                lines.append(f"farthest: {layer}, output {output:,}, inputs from {first:,} on: {times:.2f} times")
        chosen = Counts.total(each for name, each in self.counts.items() if self.layers[name].startswith(CHOSEN))
        if chosen.groups:
            lines.append(
                f"ranges that a search takes: of {chosen.groups:,} groups made again, rounding decides {chosen.ties:,}"
            )
        if self.read < self.total:
            lines.append(
                f"a sample: {self.total - self.read:,} of {self.total:,} bytes were not read, among them all of "
                f"{len(self.unread):,} tensors and layers; nothing is said about them"
            )
        if self.resumed:
            lines.append(f"{self.resumed:,} bytes were read in an earlier run")
        return [*lines, "what each loader makes of it, `requant inspect` says"]

    def judged(self, files: Mapping[str, str], against: Mapping[str, str], asked: Mapping[str, Any]) -> Judged:
        """Return the check as what is signed: of these files, held against base and recipe, as it was `asked` for."""
        return Judged(
            verb="check",
            outcome=self.outcome,
            files=files,
            against=against,
            passed=tuple(sorted(name for name, way in self.layers.items() if way not in (UNKNOWN, FAITHFUL, NEAR))),
            warned=tuple(dict.fromkeys(each.tensor for each in self.unmodelled)),
            failed=tuple(dict.fromkeys(each.tensor for each in self.findings)),
            details={
                **asked,
                "ways": self.ways,
                "findings": dict(sorted(Counter(each.kind for each in self.findings).items())),
                "read": self.read,
                "total": self.total,
            },
        )

    def as_json(self) -> dict[str, Any]:
        """Return the check as `--json` prints it."""
        tuned = self.tuned()
        fits = tightest(tuned.farthest, tuned.least) if tuned.codes else None
        return {
            "outcome": str(self.outcome),
            "bound": {**asdict(self.bound), "fits": {"most_iterations_at_default_rate": fits}},
            "ways": self.ways,
            **{key: value for key, value in asdict(replace(self, counts={})).items() if key not in ("bound", "counts")},
        }


def judge(
    by_piece: Mapping[str, Sequence[Measured]], settled: Mapping[str, tuple[str, tuple[Finding, ...]]]
) -> tuple[list[Finding], dict[str, str], dict[str, dict[str, Counts]], dict[str, Counts]]:
    """Return findings, the way in which each tensor or layer was made, statistics and counts, from all windows of each.

    The way of layers that are `settled`, and what is found in them, is known.
    """
    findings: list[Finding] = []
    layers: dict[str, str] = {}
    counted: dict[str, dict[str, list[Counts]]] = {}
    counts: dict[str, Counts] = {}
    for name, some in by_piece.items():
        whole = merge(some)
        if name in settled:
            way, found = settled[name]
        else:
            way, found = _likeliest(whole)
        findings += found
        layers[name] = UNKNOWN if any(map(accuses, found)) else way
        if whole.counts.codes:
            known = replace(whole.counts, widest=0.0) if isinf(whole.counts.widest) else whole.counts  # as JSON can
            counts[name] = known
            block, projection, _ = position(name)
            kind = {TUNED: "tuned", NEAR: "near", SMOOTHED: "near"}.get(way, "rounded")
            for key in (kind, projection):
                counted.setdefault(block, {}).setdefault(key, []).append(known)
    return (
        findings,
        layers,
        {block: {key: Counts.total(each) for key, each in inside.items()} for block, inside in counted.items()},
        counts,
    )


def _likeliest(whole: Measured) -> tuple[str, tuple[Finding, ...]]:
    """Return the way that explains a tensor or layer best, and what it leaves."""
    floats = ("", SCALED, COPIED, CONVERTED, RETURNED)
    order = (*floats, *rounding.EXACT, TUNED, *rounding.CHOSEN, EXTENDED, FAITHFUL, NEAR)
    way = min(whole.findings, key=lambda each: (*_weight(whole.findings[each]), order.index(each)))
    if NEAR in whole.findings and any(map(accuses, whole.findings[way])):
        way = NEAR  # what AutoRound's ways make of another tool's codes accuses nobody
    return way, tuple(whole.findings[way])


def _grouped(found: Iterable[Finding], by: Callable[[Finding], str]) -> list[tuple[str, list[Finding]]]:
    groups: dict[str, list[Finding]] = {}
    for each in found:
        groups.setdefault(by(each), []).append(each)
    return list(groups.items())


def _names(names: Iterable[str]) -> str:
    """Return the first names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - SHOWN:,} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more


def _where(finding: Finding) -> str:
    first = f", first at {list(finding.index)}" if finding.index else ""
    count = f": {finding.count:,}{first}" if finding.count else ""
    return f"{count} ({finding.detail})" if finding.detail else count


def _weight(findings: Sequence[Finding]) -> tuple[bool, int]:
    """Return how ill a way fits: where scales are not its own, codes were not even counted."""
    serious = [*filter(accuses, findings)]
    return any(each.tensor.endswith(".scales") for each in serious), sum(max(1, each.count) for each in serious)


def position(layer: str) -> tuple[str, str, int | None]:
    """Split `….layers.3.mlp.experts.7.up_proj` into the block, `mlp.experts.up_proj`, and the expert, or None."""
    parts = layer.split(".")
    numbers = [at for at, part in enumerate(parts) if part.isdecimal()]
    cut = numbers[0] + 1 if numbers else 0
    projection = ".".join(part for part in parts[cut:] if not part.isdecimal())
    return ".".join(parts[:cut]), projection, int(parts[numbers[1]]) if numbers[1:] else None
