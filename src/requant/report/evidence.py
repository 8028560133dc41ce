"""What a page is made from: the records of a build, and what each verb says of the checkpoint where it is at hand.

A page is made of whatever there is. A record that is missing or cannot be read is a finding, and no error: that is what
its reader wants to know.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from requant.audit.builders import Builder
from requant.audit.confirmed import Confirmed, confirmed
from requant.audit.coverage import Coverage, coverage
from requant.build import RECORDED, beside, compare, stem
from requant.card.compare import Comparison
from requant.card.compare import compare as compare_card
from requant.card.facts import Facts, facts_of, facts_of_record
from requant.card.markdown import read_card
from requant.card.records import Recorded, read_recorded, read_records
from requant.checkpoint.files import SUFFIX
from requant.checkpoint.manifest import Manifest, read_manifest
from requant.diff import Diff, diff
from requant.diff.divergence import Divergence, divergence
from requant.errors import CheckpointError, RequantError
from requant.evidence.journal import Journal, read_journal
from requant.evidence.statements import hardware_of
from requant.hub.pinned import read_pins
from requant.inspect import Inspection, inspect
from requant.inspect.baseline import expected, read_baseline
from requant.inspect.headers import read_headers
from requant.progress import Progress, Tell, silent
from requant.recipe import Recipe
from requant.verdict import Verdict
from requant.verify import verify

if TYPE_CHECKING:  # numba takes half a second to import
    from requant.check.checked import Checked

CARD = "README.md"
Read = TypeVar("Read")


@dataclass(frozen=True)
class Problem:
    """A record, or a part of the checkpoint, that is missing or cannot be read."""

    what: str
    said: str


@dataclass(frozen=True)
class Kept:
    """What a builder left of one build: its records, as far as they are there and can be read.

    `place` is how their files begin, `hardware` and `taints` are the statement's, and `absent` are the names of those
    that are missing.
    """

    place: str
    manifest: Manifest | None = None
    journal: Journal | None = None
    hardware: Mapping[str, Any] | None = None
    taints: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    @property
    def any(self) -> bool:
        """Whether there is a record at all."""
        return len(self.absent) < len(RECORDED)


@dataclass(frozen=True)
class Evidence:
    """Everything that is known of a build when its page is made; what was not asked, or is not there, is None.

    `recorded` stands beside the recipe, `own` beside the checkpoint, whose folder is called `folder`. `covered` is of
    what is recorded, and `confirmed` who of the listed builders, other than its maker, reproduced each block. `other`
    is a second build, whose files `differing` holds against the first's.
    """

    name: str
    recipe: Recipe | None = None
    tiny: str | None = None
    folder: str = ""
    recorded: Kept | None = None
    own: Kept | None = None
    facts: Facts = field(default_factory=dict)
    covered: Coverage | None = None
    confirmed: Confirmed | None = None
    verified: Verdict | None = None
    checked: "Checked | None" = None
    inspected: Inspection | None = None
    compared: Comparison | None = None
    other: str = ""
    differing: Diff | Verdict | None = None
    divergences: tuple[Divergence, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def kept(self) -> Kept | None:
        """The records that the page speaks of: those beside the recipe before those beside the checkpoint."""
        return next((each for each in (self.recorded, self.own) if each and each.any), self.recorded or self.own)

    @property
    def hardware(self) -> Mapping[str, Any] | None:
        """Where this build was made, as its own statement says: another's may be the one that is recorded."""
        return next((each.hardware for each in (self.own, self.recorded) if each and each.hardware), None)


class _Gathering:
    """Collects what can be read, and the words for what cannot."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def tried(self, what: str, read: Callable[[], Read]) -> Read | None:
        """Return what is read, None where it cannot be."""
        try:
            return read()
        except RequantError as error:
            self.problems.append(Problem(what, str(error)))
        except OSError as error:
            self.problems.append(Problem(what, error.strerror or type(error).__name__))
        return None

    def kept(self, place: Path) -> Kept:
        """Read the records of a build beside a place."""
        paths = {name: beside(place, name) for name in RECORDED}
        absent = tuple(name for name, path in paths.items() if not path.is_file())
        kept = Kept(place.name, absent=absent)
        if not kept.any:
            return kept
        self.problems += [Problem(f"{place.name}.{name}", "missing") for name in absent]
        manifest, journal, statement = paths.values()
        there = {path for path in paths.values() if path.is_file()}
        return replace(
            kept,
            manifest=self.tried(manifest.name, lambda: read_manifest(manifest)) if manifest in there else None,
            journal=self.tried(journal.name, lambda: read_journal(journal)) if journal in there else None,
            hardware=self.tried(statement.name, lambda: hardware_of(statement)) if statement in there else None,
        )


def of_build(recipe: Recipe, tiny: str | None, known: Mapping[str, Builder]) -> Evidence:
    """Return what is known of a recorded build, of a recipe or of its tiny model of a size, from its records alone."""
    gathering = _Gathering()
    place = recipe.beside(stem(tiny))
    recorded = None
    if all(beside(place, name).is_file() for name in RECORDED):
        base, text = (read_pins(recipe.beside(each.files)) for each in (recipe.base, recipe.calibration))
        recorded = gathering.tried(place.name, lambda: read_recorded(recipe, tiny, place, base, text))
    kept = _kept(recorded) if recorded else gathering.kept(place)
    covered = None
    if not gathering.problems:
        covered = gathering.tried("audits and rebuilds", lambda: coverage(recipe, tiny, known))
    return Evidence(
        name=recipe.name,
        recipe=recipe,
        tiny=tiny,
        recorded=kept,
        facts=facts_of_record(recipe, tiny, recorded),
        covered=covered,
        confirmed=confirmed(covered, known, 1, frozenset()) if covered else None,
        problems=tuple(gathering.problems),
    )


def _kept(recorded: Recorded) -> Kept:
    stated = recorded.stated
    return Kept(recorded.name, recorded.manifest, recorded.journal, stated.hardware, stated.taints)


def of_checkpoint(
    folder: Path,
    recipe: Recipe | None,
    tiny: str | None,
    known: Mapping[str, Builder],
    *,
    base: str = "",
    card: Path | None = None,
    threads: int = 1,
    tell: Tell = silent,
) -> Evidence:
    """Return what is known of a checkpoint: by its own records, those of its recipe, its base, and its loader.

    Raises CheckpointError where it is no folder of safetensors, and what `open_reader` raises for a base.
    """
    if not any(folder.glob(f"*{SUFFIX}")):
        raise CheckpointError(f"{folder}: has no {SUFFIX} file", "Name a checkpoint's folder, or a recipe's.")
    gathering = _Gathering()
    own = gathering.kept(folder)
    found = of_build(recipe, tiny, known) if recipe else Evidence(folder.name)
    manifest = next((each.manifest for each in (found.recorded, own) if each and each.manifest), None)
    tell(Progress("verify"))
    card = card or next((path for path in (folder / CARD,) if recipe and path.is_file()), None)
    return replace(
        found,
        folder=folder.name,
        own=own,
        verified=gathering.tried("files", lambda: _verified(folder, manifest, found, own)) if manifest else None,
        checked=_checked(folder, base, recipe, tiny, threads, tell) if base else None,
        inspected=gathering.tried("headers", lambda: _inspected(folder, recipe)),
        compared=gathering.tried(card.name, lambda: _compared(card, recipe, tiny)) if card and recipe else None,
        divergences=_divergences(own, found.recorded),
        problems=(*found.problems, *gathering.problems),
    )


def beside_another(found: Evidence, folder: Path | None, other: Path) -> Evidence:
    """Return the evidence with a second build held against it: tensor by tensor where both are here, else by digests.

    `other` is a checkpoint's folder, or how the files of its records begin. Raises CheckpointError where neither says
    anything of the other.
    """
    gathering = _Gathering()
    theirs = gathering.kept(other)
    manifest = found.kept.manifest if found.kept else None
    differing: Diff | Verdict | None
    if folder and any(other.glob(f"*{SUFFIX}")):
        differing = gathering.tried("both builds", lambda: diff(folder, other))
    elif folder and theirs.manifest:
        recorded = theirs.manifest
        differing = gathering.tried("files", lambda: verify(folder, recorded))
    elif manifest and any(other.glob(f"*{SUFFIX}")):
        differing = gathering.tried("files", lambda: verify(other, manifest))
    else:
        advice = "The files of one of both builds must be here, and the other's files or its manifest."
        raise CheckpointError(f"{other}: nothing to hold against it", advice)
    return replace(
        found,
        other=other.name,
        differing=differing,
        divergences=_divergences(found.own or found.recorded, theirs) or found.divergences,
        problems=(*found.problems, *gathering.problems),
    )


def _verified(folder: Path, manifest: Manifest, found: Evidence, own: Kept) -> Verdict:
    """Hold a folder against a manifest; where both builds name their hardware class, as builds are compared."""
    if found.recipe and found.recorded and found.recorded.manifest and own.hardware:
        return compare(found.recipe, found.tiny, folder)
    return verify(folder, manifest)


def _checked(folder: Path, base: str, recipe: Recipe | None, tiny: str | None, threads: int, tell: Tell) -> "Checked":
    from requant.check import check
    from requant.check.reader import open_reader

    with open_reader(str(folder)) as theirs, open_reader(base) as ours:
        return check(theirs, ours, recipe=recipe, tiny=tiny is not None, threads=threads, tell=tell)


def _inspected(folder: Path, recipe: Recipe | None) -> Inspection:
    known = expected(read_baseline(recipe)) if recipe else {}
    return inspect(read_headers(folder), look_at_values=True, known=known)


def _compared(card: Path, recipe: Recipe, tiny: str | None) -> Comparison:
    records = read_records(recipe, tiny)
    return compare_card(read_card(card), records, facts_of(records))


def _divergences(own: Kept | None, recorded: Kept | None) -> tuple[Divergence, ...]:
    if own and recorded and own.journal and recorded.journal:
        return divergence(own.journal, recorded.journal)
    return ()
