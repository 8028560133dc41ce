"""`coverage builds/<name>`: which blocks were reproduced, by how many parties, in which hardware classes.

It merges the audits in `builds/<name>/audits/`. What is audited is the recorded build: its recipe, its base, and its
files by SHA-256; audits of anything else are named and not counted. Equal bits are evidence wherever they come
from; those that were found by hints, or by single steps, are classes of their own. Other bits accuse only in the
environment of the build and, unless hints or steps led to them, in its hardware class, held against its own journal or
none; elsewhere they are shown as open, with the reason. A negative result counts as much as a positive one. Parties are
told apart by what they call themselves: until audits are signed, nothing proves that two are two.
"""

import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from requant.audit.audits import read_audits, same_party
from requant.audit.challenge import draw
from requant.audit.portable import unlike_devices
from requant.audit.retuned import Audit, Judgement
from requant.build import RECORDED, recorded
from requant.checkpoint.manifest import Manifest, read_manifest
from requant.digest import canonical_json, sha256, sha256_file
from requant.evidence.journal import read_journal
from requant.evidence.statements import hardware_of
from requant.recipe import Recipe
from requant.verdict import Outcome

UNTUNED = "not tuned"
"""The row of all that is not tuned: it follows from base and recipe."""


@dataclass(frozen=True)
class Result:
    """What one audit says of one row, where that is not `identical`: by whom, in which class, what."""

    audit: str
    auditor: str
    hardware: str
    what: str


@dataclass(frozen=True)
class Covered:
    """One block, or all that is not tuned: who found it identical, by hardware class; negative results; open ones."""

    block: str
    identical: Mapping[str, tuple[str, ...]]
    different: tuple[Result, ...]
    open: tuple[Result, ...]

    @property
    def parties(self) -> int:
        """How many parties found it identical, in whatever class."""
        return len({same_party(party) for some in self.identical.values() for party in some})


@dataclass(frozen=True)
class Label:
    """Where an audit that counts was made, by whom, and whether by hints.

    `own_environment` and `journal` compare it with the build.
    """

    auditor: str
    hardware: str
    environment: str
    own_environment: bool
    journal: str
    """`recorded`, `another` or `none`."""
    finished: str
    portable: bool


@dataclass(frozen=True)
class Coverage:
    """What all audits of one recorded build say of its blocks and the rest; `stale` says what does not count, and why.

    `own` is the hardware class of the build itself, empty where nothing is recorded; `hardware` spells out those of
    the audits.
    """

    build: str
    tiny: str | None
    own: str
    blocks: tuple[Covered, ...]
    untuned: Covered
    counted: Mapping[str, Label]
    stale: Mapping[str, str]
    hardware: Mapping[str, Mapping[str, Any]]

    @property
    def rows(self) -> tuple[Covered, ...]:
        """The blocks, and all that is not tuned."""
        return (*self.blocks, self.untuned)

    @property
    def negatives(self) -> int:
        """How many times a block, or what is not tuned, came out different."""
        return sum(len(each.different) for each in self.rows)

    @property
    def exit_status(self) -> int:
        """1 where there is a negative result, 3 where no audit counts, else 0."""
        if self.negatives:
            return 1
        return 0 if self.counted else 3

    def as_json(self) -> dict[str, Any]:
        """Return the coverage as `--json` prints it."""
        value = asdict(self)
        for each, row in zip((*value["blocks"], value["untuned"]), self.rows, strict=True):
            each["parties"] = row.parties
        return value


@dataclass(frozen=True)
class _Build:
    """What is recorded, as audits are held against it."""

    recipe: str
    base: str
    environment: str
    journal: str
    hardware: Mapping[str, Any]
    manifest: Manifest
    names: tuple[str, ...]
    iterations: int

    def stale(self, audit: Audit) -> str:
        """Return why an audit is not one of this build; nothing where it is."""
        expected = {"recipe": self.recipe, "base": self.base, "checkpoint": self.manifest.identity}
        if other := [key for key, digest in expected.items() if getattr(audit, key) != digest]:
            return f"another {', '.join(other)} than the recorded one"
        recorded = {path: record.sha256 for path, record in self.manifest.files.items()}
        if files := sorted({path for path, _ in recorded.items() ^ audit.files.items()}):
            return f"of other files than the recorded ones: {reprlib.repr(files)[1:-1]}"
        if audit.count != len(self.names) or any(self.names[each.index] != each.block for each in audit.blocks):
            return "its blocks are not those of the recorded journal"
        if audit.steps and not audit.steps.is_drawn(self.journal, self.names, self.iterations):
            return "its text draws other steps, or those of another journal"
        drawn = draw(self.names, audit.challenge) if audit.challenge else None
        if drawn and not _as_drawn(audit, {*drawn}):
            return f"its text draws other blocks: {', '.join(drawn)}"
        return ""

    def label(self, audit: Audit) -> Label:
        return Label(
            auditor=audit.auditor,
            hardware=_class_of(audit),
            environment=audit.environment,
            own_environment=audit.environment == self.environment,
            journal={None: "none", self.journal: "recorded"}.get(audit.journal, "another"),
            finished=audit.finished,
            portable=audit.portable,
        )

    def doubt(self, audit: Audit) -> str:
        """Return why other bits of a block accuse nobody in this audit; nothing where they do."""
        label = self.label(audit)
        reasons = {
            "another environment than the build's": not label.own_environment,
            f"another hardware class than the build's, {_class(self.hardware)}": audit.hardware != self.hardware
            and not audit.portable,
            "another journal than the recorded one": label.journal == "another",
        }
        found = [reason for reason, holds in reasons.items() if holds]
        if audit.portable and (devices := unlike_devices(audit.hardware, self.hardware)):
            found.append(devices)
        return ", ".join(found)


def coverage(recipe: Recipe, tiny: str | None) -> Coverage:
    """Merge the audits of what is recorded for a recipe, or for its tiny model of a size.

    Raises CheckpointError where a record cannot be read, or a file in `audits/` is no audit.
    """
    name = f"{recipe.name}, tiny model {tiny}" if tiny else recipe.name
    found = {file: audit for file, audit in read_audits(recipe).items() if audit.tiny == tiny}
    records = [recorded(recipe, tiny, each) for each in RECORDED]
    if absent := [path for path in records if not path.exists()]:
        stale = dict.fromkeys(found, f"nothing is recorded: no {absent[0]}")
        return Coverage(name, tiny, "", (), Covered(UNTUNED, {}, (), ()), {}, stale, {})
    manifest_path, journal_path, statement_path = records
    journal = read_journal(journal_path)
    build = _Build(
        recipe=journal.header.recipe,
        base=journal.header.base,
        environment=journal.header.environment,
        journal=sha256_file(journal_path),
        hardware=hardware_of(statement_path),
        manifest=read_manifest(manifest_path),
        names=tuple(each.block for each in journal.blocks),
        iterations=recipe.effort(tiny is not None).iterations,
    )
    stale = {file: reason for file, audit in found.items() if (reason := build.stale(audit))}
    audits = {file: audit for file, audit in found.items() if file not in stale}
    hardware = {_class_of(audit): audit.hardware for audit in audits.values()}
    own = _class(build.hardware)
    return Coverage(
        build=name,
        tiny=tiny,
        own=own,
        blocks=tuple(_covered(each, audits, _of_block(build, each, audits)) for each in build.names),
        untuned=_covered(UNTUNED, audits, _of_the_rest(audits)),
        counted={file: build.label(audit) for file, audit in audits.items()},
        stale=stale,
        hardware={each: hardware[each] for each in sorted(hardware, key=lambda each: (each != own, each))},
    )


def _as_drawn(audit: Audit, drawn: set[str]) -> bool:
    """Whether all drawn blocks were audited, and others only where something came to light on the way to them."""
    identical = {each.block for each in audit.blocks if each.judgement is Judgement.IDENTICAL}
    return drawn <= {each.block for each in audit.blocks} and identical <= drawn


Said = Iterator[tuple[str, Outcome, str]]
"""File of an audit, what it says of a row, and the words for it."""


def _of_block(build: _Build, name: str, audits: Mapping[str, Audit]) -> Said:
    for file, audit in audits.items():
        for each in audit.blocks:
            if each.block != name:
                continue
            if each.judgement is Judgement.IDENTICAL:
                yield file, Outcome.IDENTICAL, ""
            elif each.judgement is Judgement.DIFFERENT and not build.doubt(audit):
                yield file, Outcome.DIFFERENT, each.line()
            elif each.judgement is Judgement.DIFFERENT:
                yield file, Outcome.INCONCLUSIVE, f"{each.line()}; no accusation: {build.doubt(audit)}"
            else:
                yield file, Outcome.INCONCLUSIVE, each.line()


def _of_the_rest(audits: Mapping[str, Audit]) -> Said:
    """Say it of all that is not tuned: no environment and no hardware decides that, so other bytes always accuse."""
    for file, audit in audits.items():
        yield file, audit.untuned.outcome, "; ".join(line.strip() for line in audit.untuned.text())


def _covered(name: str, audits: Mapping[str, Audit], said: Said) -> Covered:
    identical: dict[str, dict[str, str]] = {}
    others: dict[Outcome, list[Result]] = {Outcome.DIFFERENT: [], Outcome.INCONCLUSIVE: []}
    for file, outcome, what in said:
        audit = audits[file]
        hardware = _class_of(audit)
        if outcome is Outcome.IDENTICAL:
            spelled = identical.setdefault(hardware, {})  # one party, by the first of its spellings
            party = same_party(audit.auditor)
            spelled[party] = min(audit.auditor, spelled.get(party, audit.auditor))
        else:
            others[outcome].append(Result(file, audit.auditor, hardware, what))
    parties = {hardware: tuple(sorted(some.values())) for hardware, some in sorted(identical.items())}
    return Covered(name, parties, tuple(others[Outcome.DIFFERENT]), tuple(others[Outcome.INCONCLUSIVE]))


def _class_of(audit: Audit) -> str:
    """Return the class of an audit; what was found by hints or by steps stands apart, for it is another proof."""
    means = ", by steps" if audit.steps else ", by hints" if audit.portable else ""
    return f"{_class(audit.hardware)}{means}"


def _class(hardware: Mapping[str, Any]) -> str:
    """Return a hardware class in a few words: the device, and the digest of all that makes the class."""
    name = hardware.get("model") or hardware.get("accelerator") or "unknown"
    return f"{name} [{sha256(canonical_json(hardware))[:8]}]"
