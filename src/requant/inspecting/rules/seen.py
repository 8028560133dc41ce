"""What the rules look at: one checkpoint, taken apart, and the targets that it is held against."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from requant.inspecting.anatomy import Anatomy, Build
from requant.inspecting.findings import Finding, Severity, Target
from requant.inspecting.headers import Headers
from requant.loaders import Loader
from requant.loaders.declared import Declared
from requant.safetensors import Spec


@dataclass(frozen=True)
class Seen:
    """`builds` are the examined blocks; `expected` is the base's inventory after the checkpoint's own config."""

    headers: Headers
    config: Mapping[str, Any]
    declared: Declared | None
    expected: Mapping[str, Spec]
    anatomy: Anatomy
    builds: Mapping[str, Build]
    loaders: tuple[Loader, ...]
    degrees: tuple[int, ...]

    @property
    def targets(self) -> tuple[Target, ...]:
        """Every inspected release at every inspected degree."""
        return tuple(Target(loader.name, degree) for loader in self.loaders for degree in self.degrees)

    def error(self, rule: str, subjects: Iterable[str], consequence: str) -> Finding:
        """Return an error that hits every target."""
        return Finding(rule, Severity.ERROR, tuple(subjects), consequence, self.targets)

    def warning(self, rule: str, subjects: Iterable[str], consequence: str) -> Finding:
        """Return a warning that hits every target."""
        return Finding(rule, Severity.WARNING, tuple(subjects), consequence, self.targets)

    def note(self, rule: str, subjects: Iterable[str], consequence: str) -> Finding:
        """Return a note that concerns every target."""
        return Finding(rule, Severity.NOTE, tuple(subjects), consequence, self.targets)
