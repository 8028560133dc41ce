"""What `inspect` found, as data: a rule, the tensors it concerns, whom it hits, what follows and what mends it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from requant.inspect.defects import DEFECTS


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
    advice: str = ""
    """What to do where the defect's own repair does not apply."""

    @property
    def repair(self) -> str:
        """What mends it: passes of `requant repair`, or advice."""
        return self.advice or DEFECTS[self.rule].repair

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
    """Join findings that differ only in their subjects or in whom they hit; errors first, then by rule.

    Targets are sorted by degree, within each loader.
    """
    alike: dict[tuple[str, Severity, str, str], list[Finding]] = {}
    for each in findings:
        alike.setdefault((each.rule, each.severity, each.consequence, each.advice), []).append(each)
    made = [
        replace(
            same[0],
            subjects=tuple(dict.fromkeys(name for each in same for name in each.subjects)),
            targets=_sorted(target for each in same for target in each.targets),
        )
        for same in alike.values()
    ]
    order = list(Severity)
    return tuple(sorted(made, key=lambda each: (order.index(each.severity), each.rule)))


def _sorted(targets: Iterable[Target]) -> tuple[Target, ...]:
    degrees: dict[str, set[int]] = {}
    for each in targets:
        degrees.setdefault(each.loader, set()).add(each.tensor_parallel)
    return tuple(Target(loader, degree) for loader, some in degrees.items() for degree in sorted(some))


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


_VALUE = re.compile(r"'[^']*'|0x[0-9a-f]+|[0-9]+(?:[.,][0-9]+)*%?")


def alike(findings: Iterable[Finding]) -> list[tuple[Finding, int]]:
    """Join findings whose sentences differ only in their values, for a person: the first, with all subjects, a count.

    Two stay two: only a third makes it worth hiding the other values.
    """
    same: dict[tuple[object, ...], list[Finding]] = {}
    for each in findings:
        key = (each.rule, each.severity, each.known, each.targets, each.repair, _VALUE.sub("*", each.consequence))
        same.setdefault(key, []).append(each)
    joined: list[tuple[Finding, int]] = []
    for some in same.values():
        if len(some) > FEW:
            names = (name for each in some for name in each.subjects)
            joined.append((replace(some[0], subjects=tuple(dict.fromkeys(names))), len(some)))
        else:
            joined += [(each, 1) for each in some]
    return joined


FEW = 2
"""Findings with the same sentence that are printed one by one."""
