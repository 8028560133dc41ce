"""What `inspect` found, as data: a rule, the tensors it concerns, whom it hits, what follows and what mends it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from requant.inspecting.defects import DEFECTS


class Severity(StrEnum):
    """How bad it is. An error makes the exit status 1; what is not modelled is no error, and makes it 3."""

    ERROR = "error"
    UNMODELLED = "not modelled"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Target:
    """A loader's release and a degree of tensor parallelism."""

    loader: str
    tensor_parallel: int


@dataclass(frozen=True)
class Finding:
    """One rule that a checkpoint breaks; `subjects` are tensors, keys or files, `consequence` one sentence.

    `targets` are those of the inspected ones that it hits. `known` marks what a recipe's baseline expects.
    """

    rule: str
    severity: Severity
    subjects: tuple[str, ...]
    consequence: str
    targets: tuple[Target, ...] = ()
    known: bool = False

    @property
    def repair(self) -> str:
        """What mends it: passes of `requant repair`, or advice."""
        return DEFECTS[self.rule].repair

    def as_json(self) -> dict[str, Any]:
        """Return the finding as `--json` prints it."""
        hit: dict[str, list[int]] = {}
        for target in self.targets:
            hit.setdefault(target.loader, []).append(target.tensor_parallel)
        return {
            "rule": self.rule,
            "severity": str(self.severity),
            "known": self.known,
            "subjects": list(self.subjects),
            "hits": hit,
            "consequence": self.consequence,
            "repair": self.repair,
        }


def merge(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Join findings that differ in their subjects or in whom they hit only; errors first, then by rule."""
    joined: dict[tuple[str, Severity, str], dict[str, None]] = {}
    targets: dict[tuple[str, Severity, str], dict[Target, None]] = {}
    for each in findings:
        key = (each.rule, each.severity, each.consequence)
        joined.setdefault(key, {}).update(dict.fromkeys(each.subjects))
        targets.setdefault(key, {}).update(dict.fromkeys(each.targets))
    made = [
        Finding(rule, severity, tuple(subjects), consequence, tuple(targets[rule, severity, consequence]))
        for (rule, severity, consequence), subjects in joined.items()
    ]
    order = list(Severity)
    return tuple(sorted(made, key=lambda each: (order.index(each.severity), each.rule)))


Expected = Mapping[tuple[str, Target], Severity]
"""The worst severity with which a healthy checkpoint breaks a rule for a target."""


def mark_known(findings: Iterable[Finding], expected: Expected) -> tuple[Finding, ...]:
    """Mark findings of which everything is expected."""
    order = list(Severity)

    def covered(finding: Finding) -> bool:
        worst = [expected.get((finding.rule, target)) for target in finding.targets]
        return all(each is not None and order.index(each) <= order.index(finding.severity) for each in worst)

    return tuple(replace(each, known=covered(each)) for each in findings)


_EXPERT = re.compile(r"\.experts\.\d+\.")
_LAYER = re.compile(r"\.(layers|blocks)\.(\d+)\.")


def fold(names: Iterable[str]) -> list[tuple[str, int]]:
    """Fold names that differ in an expert's or a layer's number: `…layers.*.mlp.experts.*.up_proj.qweight`, count."""
    folded: dict[str, list[str]] = {}
    for name in names:
        star = _LAYER.sub(r".\1.*.", _EXPERT.sub(".experts.*.", name))
        folded.setdefault(star, []).append(name)
    return [(same[0] if len(same) == 1 else star, len(same)) for star, same in folded.items()]
