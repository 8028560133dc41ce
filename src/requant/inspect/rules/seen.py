"""What the rules look at: one checkpoint, taken apart, and the targets that it is held against."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from requant.checkpoint.safetensors import Spec
from requant.inspect.anatomy import Anatomy, Build, Packing
from requant.inspect.findings import Finding, Severity, Target
from requant.inspect.headers import Headers
from requant.inspect.loaders import Loader
from requant.inspect.loaders.declared import Declared
from requant.inspect.loaders.reading import Reading
from requant.model.skeleton import Skeleton


@dataclass(frozen=True)
class Seen:
    """`builds` are the examined blocks; `model` is what the checkpoint's own config means.

    Both are empty for an `architecture` whose modules are not modelled. `declared` is None where nothing is declared,
    where another tool did, or where AutoRound's fields hold something else: then `malformed` says what. `readings` say
    for each loader by name what it makes of the declaration.
    """

    headers: Headers
    config: Mapping[str, Any]
    declared: Declared | None
    model: Skeleton
    anatomy: Anatomy
    builds: Mapping[str, Build]
    loaders: tuple[Loader, ...]
    degrees: tuple[int, ...]
    architecture: str
    modelled: bool
    readings: Mapping[str, Reading]
    malformed: str

    @property
    def expected(self) -> Mapping[str, Spec]:
        """The tensors that the base has after the checkpoint's own config."""
        return self.model.tensors

    @cached_property
    def tensors(self) -> Mapping[str, Spec]:
        """All tensors of the checkpoint, by name."""
        return {name: spec for file in self.headers.shards.values() for name, spec in file.items()}

    @property
    def another(self) -> bool:
        """Whether a loader hands the declaration to another tool's reader: then the tensors are not AutoRound's."""
        return any(each.outcome == "another" for each in self.readings.values())

    @property
    def targets(self) -> tuple[Target, ...]:
        """Every inspected release at every inspected degree."""
        return tuple(Target(loader.name, degree) for loader in self.loaders for degree in self.degrees)

    def packings(self, layer: str) -> frozenset[Packing]:
        """Return what the tensors of a layer in a block, or of the experts as one, say of their packing."""
        block = next((block for block in self.builds if layer.startswith(f"{block}.")), "")
        return self.builds[block].packings.get(layer.removeprefix(f"{block}."), frozenset()) if block else frozenset()

    def error(self, rule: str, subjects: Iterable[str], consequence: str) -> Finding:
        """Return an error that hits every target."""
        return Finding(rule, Severity.ERROR, tuple(subjects), consequence, self.targets)

    def unmodelled(self, rule: str, subjects: Iterable[str], consequence: str) -> Finding:
        """Return a finding that nothing is said about something, by any target."""
        return Finding(rule, Severity.UNMODELLED, tuple(subjects), consequence, self.targets)

    def warning(self, rule: str, subjects: Iterable[str], consequence: str) -> Finding:
        """Return a warning that hits every target."""
        return Finding(rule, Severity.WARNING, tuple(subjects), consequence, self.targets)

    def note(self, rule: str, subjects: Iterable[str], consequence: str) -> Finding:
        """Return a note that concerns every target."""
        return Finding(rule, Severity.NOTE, tuple(subjects), consequence, self.targets)
