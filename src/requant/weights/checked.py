"""The outcome of a check, as data and in words."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from requant.weights import rounding
from requant.weights.reach import Reach, tightest
from requant.weights.tally import COPIED, TUNED, Finding, Measured, Tally, merge


@dataclass(frozen=True)
class Checked:
    """What a check found. `layers` says of each copied tensor and packed layer how it was made.

    `statistics` adds up codes and scales by block and projection. `read` of `total` bytes were read, `resumed` of
    them in an earlier run; `unread` names what a sample left out altogether.
    """

    bound: Reach
    findings: tuple[Finding, ...]
    layers: Mapping[str, str]
    statistics: Mapping[str, Mapping[str, Tally]]
    total: int
    read: int
    resumed: int
    unread: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Whether nothing was found in what was read."""
        return not self.findings

    @property
    def ways(self) -> dict[str, int]:
        """How many tensors and layers were made in each way."""
        return dict(sorted(Counter(self.layers.values()).items()))

    def tuned(self) -> Tally:
        """Return what was measured on all packed layers that are within reach and not rounded to nearest."""
        return sum((each["tuned"] for each in self.statistics.values() if "tuned" in each), Tally())

    def text(self, shown: int) -> list[str]:
        """Return what a person reads: findings, ways, statistics, what was not read."""
        lines = [f"{each.kind}: {each.tensor}{_where(each)}" for each in self.findings[:shown]]
        if len(self.findings) > shown:
            lines.append(f"and {len(self.findings) - shown} more: --json names them all")
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
        if self.read < self.total:
            lines.append(
                f"a sample: {self.total - self.read:,} of {self.total:,} bytes were not read, among them all of "
                f"{len(self.unread):,} tensors and layers; nothing is said about them"
            )
        if self.resumed:
            lines.append(f"{self.resumed:,} bytes were read in an earlier run")
        return [*lines, "weights only: what config.json and the index make of them, `requant inspect` says"]

    def as_json(self) -> dict[str, Any]:
        """Return the check as `--json` prints it."""
        tuned = self.tuned()
        fits = tightest(tuned.farthest, tuned.least) if tuned.codes else None
        return {
            "outcome": "clean" if self.clean else "violations",
            "bound": {**asdict(self.bound), "fits": {"most_iterations_at_default_rate": fits}},
            "ways": self.ways,
            **{key: value for key, value in asdict(self).items() if key != "bound"},
        }


def judge(
    by_piece: Mapping[str, Sequence[Measured]],
) -> tuple[list[Finding], dict[str, str], dict[str, dict[str, Tally]]]:
    """Return findings, the way in which each tensor or layer was made, and statistics, from all windows of each."""
    findings: list[Finding] = []
    layers: dict[str, str] = {}
    statistics: dict[str, dict[str, Tally]] = {}
    for name, some in by_piece.items():
        whole = merge(some)
        order = ("", COPIED, rounding.ABSMAX, rounding.FULL, TUNED, rounding.SEARCHED)
        way = min(whole.findings, key=lambda each: (*_weight(whole.findings[each]), order.index(each)))
        findings += whole.findings[way]
        layers[name] = way if not whole.findings[way] else "in no known way"
        if whole.tally.codes:
            block, projection = _position(name)
            kind = "tuned" if way == TUNED else "rounded"
            for key in (kind, projection):
                of_block = statistics.setdefault(block, {})
                of_block[key] = of_block.get(key, Tally()) + whole.tally
    return findings, layers, statistics


def sort(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return findings in the order in which they are told."""
    return tuple(sorted(findings, key=lambda each: (each.tensor, each.kind)))


def _where(finding: Finding) -> str:
    first = f", first at {list(finding.index)}" if finding.index else ""
    count = f": {finding.count:,}{first}" if finding.count else ""
    return f"{count} ({finding.detail})" if finding.detail else count


def _weight(findings: Sequence[Finding]) -> tuple[bool, int]:
    """Return how ill a way fits: where scales are not its own, codes were not even counted."""
    return any(each.tensor.endswith(".scales") for each in findings), sum(max(1, each.count) for each in findings)


def _position(layer: str) -> tuple[str, str]:
    """Split `….layers.3.mlp.experts.7.up_proj` into the block and `mlp.experts.up_proj`."""
    parts = layer.split(".")
    numbers = [at for at, part in enumerate(parts) if part.isdigit()]
    cut = numbers[0] + 1 if numbers else 0
    return ".".join(parts[:cut]), ".".join(part for part in parts[cut:] if not part.isdigit())
