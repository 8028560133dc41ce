"""What a check finds, and what it measures on its way: values that add up, and that JSON can hold."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Kind = Literal[
    "missing tensor",
    "no origin",
    "wrong shape",
    "used twice",
    "tensor twice",
    "not in the checkpoint",
    "not as the recipe says",
    "could be loaded",
    "not the base's bytes",
    "code out of reach",
    "scale out of reach",
    "not rounded to nearest",
    "wrong zero point",
    "not the base's weights",
    "declared otherwise",
    "differs from the base",
    "not modelled",
    "zero points off by one",
    "rewritten by a tool",
    "stated by the checkpoint alone",
    "stated by the base alone",
    "a range errs less",
    "a range clearly errs less",
    "farther from the base than zeros",
    "unrelated to the base",
]
NOTES: tuple[Kind, ...] = (
    "zero points off by one",
    "rewritten by a tool",
    "stated by the checkpoint alone",
    "stated by the base alone",
    "a range errs less",
    "a range clearly errs less",
    "farther from the base than zeros",
    "unrelated to the base",
)
"""Kinds that are named and accuse nobody."""
COPIED, CONVERTED, TUNED = "the base's bytes", "the base's numbers in another dtype", "within reach"
EXTENDED = "within reach of a scale that was searched"
FAITHFUL, NEAR = "nearest to a scale that is not modelled", "near the base, by a rounding that is not modelled"
SMOOTHED = "nearest to a scale that is not modelled, of channels that were scaled"
SCALED = "the base's numbers, scaled by channel"
RETURNED = "the base's numbers, 1 added and taken off again"
"""Ways in which a tensor can have been made; `rounding` has the others."""
ROUNDED: Kind = "not rounded to nearest"
LESS: Kind = "a range errs less"
CLEARLY: Kind = "a range clearly errs less"
"""By more than what another machine rounds otherwise."""
FAR: Kind = "farther from the base than zeros"
"""In some stretches of a layer, which a calibration may leave so."""
STRAY: Kind = "unrelated to the base"
"""In some outputs of a layer: in as many as no calibration leaves so, they are none of the base's."""
STRANGE: Kind = "not the base's weights"
OFF_BY_ONE: Kind = "zero points off by one"
BINS = 64
"""Bins of a scale's share of the widest it could be, from 0 to 1; one more for what is above."""


@dataclass(frozen=True)
class Finding:
    """What is wrong with a tensor: how many elements, and the first of them.

    Of a side file, `tensor` is its name and the key that is meant. `index` is that of the element in the tensor's
    shape; for codes, [output, input] of the weight.
    """

    kind: Kind
    tensor: str
    count: int = 0
    index: tuple[int, ...] = ()
    detail: str = ""


def accuses(finding: Finding) -> bool:
    """Say whether a finding is more than a note."""
    return finding.kind not in NOTES


@dataclass(frozen=True)
class Counts:
    """What was measured on codes and scales; counts of the same layer, block or projection add up.

    `moved` codes are not nearest to weight/scale, `farthest` is the largest |v| that any code needs, in steps;
    `shrunk` counts groups by |scale| / (largest |weight| on its side / 8), in `BINS` bins and one for more than 1;
    `least` is the smallest such share. `missed` and `whole` are sums of squares, of decoded weights less the base's and
    of the base's, where the way of rounding is not modelled. `widest` is the greatest magnitude of the
    base's, where something that is stored follows from it; `best` is what rounding to nearest would leave of `missed`.
    `worst` is by how many times more, by the root, some inputs of one output are off, that output, and the first input.
    Of `groups` the choice of a range was made again; of `ties` rounding decides it, and `worse` clearly do not have the
    one that errs least. The greatest range that was taken is `low` at least and `high` at most.
    """

    codes: int = 0
    moved: int = 0
    farthest: float = 0.0
    least: float = 1.0
    shrunk: tuple[int, ...] = (0,) * (BINS + 1)
    missed: float = 0.0
    whole: float = 0.0
    widest: float = 0.0
    best: float = 0.0
    groups: int = 0
    ties: int = 0
    worse: int = 0
    low: float = 0.0
    high: float = 0.0
    worst: tuple[float, int, int] = (0.0, 0, 0)

    @classmethod
    def total(cls, some: Iterable["Counts"]) -> "Counts":
        """Return what several add up to; of none, nothing."""
        each = [*some]
        return cls(
            sum(one.codes for one in each),
            sum(one.moved for one in each),
            max((one.farthest for one in each), default=cls.farthest),
            min((one.least for one in each), default=cls.least),
            tuple(map(sum, zip(*(one.shrunk for one in each), strict=True))) or cls.shrunk,
            sum(one.missed for one in each),
            sum(one.whole for one in each),
            max((one.widest for one in each), default=cls.widest),
            sum(one.best for one in each),
            sum(one.groups for one in each),
            sum(one.ties for one in each),
            sum(one.worse for one in each),
            max((one.low for one in each), default=cls.low),
            max((one.high for one in each), default=cls.high),
            max((one.worst for one in each), default=cls.worst),
        )


@dataclass(frozen=True)
class Measured:
    """What one window of rows gave: findings by the way in which the tensor could have been made, and counts."""

    findings: Mapping[str, tuple[Finding, ...]]
    counts: Counts = field(default_factory=Counts)

    def as_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> "Measured":
        """Return what was written; raise TypeError, KeyError or ValueError for anything else."""
        stored = value["counts"]
        counts = Counts(**{**stored, "shrunk": tuple(stored["shrunk"]), "worst": tuple(stored["worst"])})
        findings = {
            way: tuple(Finding(**{**each, "index": tuple(each["index"])}) for each in some)
            for way, some in value["findings"].items()
        }
        return cls(findings, counts)


def merge(windows: Iterable[Measured]) -> Measured:
    """Add up the windows of one tensor: of findings of one kind in one tensor, the first index, and all counts."""
    windows = [*windows]
    if len(windows) == 1:  # most tensors are experts, of one window each
        return windows[0]
    findings: dict[str, dict[tuple[str, str], Finding]] = {}
    ways: set[str] | None = None
    for window in windows:
        ways = {*window.findings} if ways is None else ways & {*window.findings}
        for way, some in window.findings.items():
            for each in some:
                seen = findings.setdefault(way, {}).get((each.kind, each.tensor))
                count = each.count + (seen.count if seen else 0)
                first = min(filter(None, (seen, each)), key=lambda one: one.index)
                findings[way][each.kind, each.tensor] = Finding(
                    each.kind, each.tensor, count, first.index, first.detail
                )
    return Measured(
        {way: tuple(findings.get(way, {}).values()) for way in sorted(ways or ())},
        Counts.total(each.counts for each in windows),
    )
