"""`coverage builds/<name>`: which blocks were reproduced, by how many parties, in which hardware classes.

It merges the audits in `builds/<name>/audits/`, and the rebuilds that known builders signed in `rebuilds/`. What is
audited is the recorded build: its recipe, its base, and its files by SHA-256; audits of anything else are named and not
counted. Equal bits are evidence wherever they come from; those that were found by hints are a class of their own, and
single steps that follow leave their block open: nobody has computed the others. Other bits accuse only in the
environment of the build and, unless hints or steps led to them, in its hardware class, held against its own journal or
none; elsewhere they are shown as open, with the reason. A negative result counts as much as a positive one.

A party is a key of `builders.toml`, and its name there a label. What is not signed, or with a key that is not in that
list, is shown apart, by what its author calls themselves: nothing proves that two of those are two. Where the list
names anybody, only what they signed decides, for and against: else whoever can write a file could accuse or acquit.
"""

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from requant.audit.audits import FOLDER, read_audits, same_party, statement
from requant.audit.builders import Builder
from requant.audit.challenge import draw
from requant.audit.parties import Party, Rebuild, party_of, read_rebuilds
from requant.audit.portable import unlike_devices
from requant.audit.retuned import Audit, Judgement
from requant.build import RECORDED, recorded
from requant.checkpoint.manifest import Manifest, read_manifest
from requant.digest import MAX_STATEMENT, canonical_json, read_whole, sha256, sha256_file
from requant.errors import CheckpointError
from requant.evidence.journal import read_journal
from requant.evidence.signatures import Fault, SignatureError, bundle_path, parse_statement
from requant.evidence.statements import hardware_of
from requant.recipe import Recipe
from requant.verdict import Outcome

UNTUNED = "not tuned"
"""The row of all that is not tuned: it follows from base and recipe."""
REBUILT = "rebuilt"
"""The row of rebuilds; one that is identical counts in every other row too."""


@dataclass(frozen=True)
class Result:
    """What one audit says of one row, where that is not `identical`: by whom, in which class, what."""

    audit: str
    party: Party
    hardware: str
    what: str


@dataclass(frozen=True)
class Covered:
    """One block, or all that is not tuned: who found it identical, by hardware class; negative results; open ones.

    `identical` and `different` are of those whose signature was verified, `claimed` and `disputed` of the others.
    """

    block: str
    identical: Mapping[str, tuple[str, ...]]
    claimed: Mapping[str, tuple[str, ...]]
    different: tuple[Result, ...]
    disputed: tuple[Result, ...]
    open: tuple[Result, ...]

    @property
    def parties(self) -> int:
        """How many verified parties found it identical, in whatever class."""
        return len({name for some in self.identical.values() for name in some})

    @property
    def claims(self) -> int:
        """How many names besides say that they found it identical, in whatever class."""
        return len({same_party(name) for some in self.claimed.values() for name in some})


@dataclass(frozen=True)
class Label:
    """Where an audit or a rebuild that counts was made, by whom, what came of it, and whether by hints.

    `auditor` is what they call themselves, nothing for a rebuild. `own_environment` and `journal` compare it with the
    build.
    """

    what: Literal["audit", "rebuild"]
    outcome: Outcome
    auditor: str
    party: Party
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
    the audits. `named` is how many builders the list names, `maker` who signed the build's own statement, and
    `statement` the SHA-256 of that.
    """

    build: str
    tiny: str | None
    own: str
    blocks: tuple[Covered, ...]
    untuned: Covered
    rebuilt: Covered
    counted: Mapping[str, Label]
    stale: Mapping[str, str]
    hardware: Mapping[str, Mapping[str, Any]]
    named: int
    maker: Party | None
    statement: str

    @property
    def rows(self) -> tuple[Covered, ...]:
        """The blocks, all that is not tuned, and rebuilds."""
        return (*self.blocks, self.untuned, self.rebuilt)

    @property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of what counts, by file: an audit, or the bundle of a rebuild, is named by its own."""
        return {file: file.rpartition("/")[2].partition(".")[0] for file in self.counted}

    @property
    def rebuilding(self) -> int:
        """How many rebuilds count."""
        return sum(each.what == "rebuild" for each in self.counted.values())

    @property
    def negatives(self) -> int:
        """How many times a block, or what is not tuned, came out different, as those say who decide."""
        return sum(len(self.against(each)) for each in self.rows)

    @property
    def disputes(self) -> int:
        """How many times one came out different, as only somebody says whom the list does not name."""
        return sum(len(each.disputed) for each in self.rows) if self.named else 0

    @property
    def decided(self) -> bool:
        """Whether anybody counts who decides: a builder of the list, and anybody where it names nobody."""
        return any(map(self.decides, self.counted.values()))

    def decides(self, label: Label) -> bool:
        """Whether what is counted is of a builder of the list, or of anybody where it names nobody."""
        return bool(label.party.key or not self.named)

    def against(self, row: Covered) -> tuple[Result, ...]:
        """Return the negative results of a row, as those say who decide."""
        return row.different if self.named else row.disputed

    @property
    def exit_status(self) -> int:
        """1 where there is a negative result of those who decide, 3 where none of them has audited, else 0."""
        if self.negatives:
            return 1
        return 0 if self.decided else 3

    def as_json(self) -> dict[str, Any]:
        """Return the coverage as `--json` prints it."""
        value = asdict(self)
        for each, row in zip((*value["blocks"], value["untuned"], value["rebuilt"]), self.rows, strict=True):
            each |= {"parties": row.parties, "claims": row.claims}
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

    def label(self, audit: Audit, party: Party) -> Label:
        return Label(
            what="audit",
            outcome=audit.outcome,
            auditor=audit.auditor,
            party=party,
            hardware=_class_of(audit),
            environment=audit.environment,
            own_environment=audit.environment == self.environment,
            journal={None: "none", self.journal: "recorded"}.get(audit.journal, "another"),
            finished=audit.finished,
            portable=audit.portable,
        )

    def label_of(self, rebuild: Rebuild) -> Label:
        return Label(
            what="rebuild",
            outcome=rebuild.outcome,
            auditor="",
            party=rebuild.party,
            hardware=_class(rebuild.hardware),
            environment=rebuild.environment,
            own_environment=rebuild.environment == self.environment,
            journal="recorded",
            finished="",
            portable=False,
        )

    def doubt_of(self, rebuild: Rebuild) -> str:
        """Return why other bytes of a rebuild accuse nobody; nothing where they do."""
        if rebuild.environment != self.environment:
            return "another environment than the build's"
        return "" if rebuild.hardware == self.hardware else "another hardware class than the build's"

    def doubt(self, audit: Audit) -> str:
        """Return why other bits of a block accuse nobody in this audit; nothing where they do."""
        reasons = {
            "another environment than the build's": audit.environment != self.environment,
            f"another hardware class than the build's, {_class(self.hardware)}": audit.hardware != self.hardware
            and not audit.portable,
            "another journal than the recorded one": audit.journal not in (None, self.journal),
        }
        found = [reason for reason, holds in reasons.items() if holds]
        if audit.portable and (devices := unlike_devices(audit.hardware, self.hardware)):
            found.append(devices)
        return ", ".join(found)


def coverage(recipe: Recipe, tiny: str | None, known: Mapping[str, Builder]) -> Coverage:
    """Merge the audits and rebuilds of what is recorded for a recipe, or for its tiny model of a size.

    `known` are the builders whose word decides, by the id of their key. Raises CheckpointError where a record cannot be
    read, or a file in `audits/` is no audit.
    """
    name = f"{recipe.name}, tiny model {tiny}" if tiny else recipe.name
    found = {file: audit for file, audit in read_audits(recipe).items() if audit.tiny == tiny}
    records = [recorded(recipe, tiny, each) for each in RECORDED]
    if absent := [path for path in records if not path.exists()]:
        stale = dict.fromkeys(found, f"nothing is recorded: no {absent[0]}")
        untuned, rebuilt = (Covered(each, {}, {}, (), (), ()) for each in (UNTUNED, REBUILT))
        return Coverage(name, tiny, "", (), untuned, rebuilt, {}, stale, {}, len(known), None, "")
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
    parties: dict[str, Party] = {}
    for file, audit in found.items():
        if file not in stale:
            bundle = bundle_path(recipe.beside(FOLDER) / file)
            try:
                parties[file] = party_of(bundle, statement(audit), known, audit.auditor)
            except SignatureError as error:
                stale[file] = error.said
    audits = {
        file: found[file] for file in sorted(parties, key=lambda each: (parties[each].label, found[each].finished))
    }
    rebuilds, refused = read_rebuilds(recipe, tiny, build.manifest, known, build.recipe)
    counted = {file: build.label(audit, parties[file]) for file, audit in audits.items()}
    counted |= {file: build.label_of(each) for file, each in rebuilds.items()}
    maker, why = _maker(statement_path, build.manifest, known)
    hardware = {_class_of(audit): audit.hardware for audit in audits.values()}
    hardware |= {_class(each.hardware): each.hardware for each in rebuilds.values()}
    own = _class(build.hardware)
    of_rebuilds = [*_of_rebuilds(build, rebuilds)]
    whole = [each for each in of_rebuilds if each[1] is Outcome.IDENTICAL]
    return Coverage(
        build=name,
        tiny=tiny,
        own=own,
        blocks=tuple(_covered(each, counted, (*_of_block(build, each, audits), *whole)) for each in build.names),
        untuned=_covered(UNTUNED, counted, (*_of_the_rest(audits), *whole)),
        rebuilt=_covered(REBUILT, counted, of_rebuilds),
        counted=counted,
        stale=stale | refused | why,
        hardware={each: hardware[each] for each in sorted(hardware, key=lambda each: (each != own, each))},
        named=len(known),
        maker=maker,
        statement=sha256_file(statement_path),
    )


def _maker(path: Path, manifest: Manifest, known: Mapping[str, Builder]) -> tuple[Party | None, dict[str, str]]:
    """Return who signed the recorded statement, None where nobody did; and why its bundle is refused."""
    bundle = bundle_path(path)
    try:
        data = read_whole(path, MAX_STATEMENT)
        party = party_of(bundle, data, known, "whoever built it")
        if party.key and parse_statement(data)[1] != {name: each.sha256 for name, each in manifest.files.items()}:
            raise SignatureError(Fault.OTHER_SUBJECTS, str(bundle), "")
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except SignatureError as error:
        return None, {bundle.name: error.said}
    return (party, {}) if party.key else (None, {bundle.name: party.why} if bundle.exists() else {})


def _as_drawn(audit: Audit, drawn: set[str]) -> bool:
    """Whether all drawn blocks were audited, and others only where something came to light on the way to them."""
    identical = {each.block for each in audit.blocks if each.judgement is Judgement.IDENTICAL}
    return drawn <= {each.block for each in audit.blocks} and identical <= drawn


Said = Iterable[tuple[str, Outcome, str]]
"""File of an audit or a rebuild, what it says of a row, and the words for it."""


def _of_block(build: _Build, name: str, audits: Mapping[str, Audit]) -> Said:
    for file, audit in audits.items():
        for each in audit.blocks:
            if each.block != name:
                continue
            if audit.steps and each.judgement is Judgement.IDENTICAL:
                drawn, every = len(audit.steps.by_block[each.index]), audit.steps.iterations
                yield file, Outcome.INCONCLUSIVE, f"{name}: {drawn} of its {every} steps follow, drawn and revealed"
            elif each.judgement is Judgement.IDENTICAL:
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


def _of_rebuilds(build: _Build, rebuilds: Mapping[str, Rebuild]) -> Said:
    for file, each in rebuilds.items():
        if each.outcome is Outcome.IDENTICAL:
            yield file, Outcome.IDENTICAL, ""
        elif each.outcome is Outcome.DIFFERENT and not build.doubt_of(each):
            yield file, Outcome.DIFFERENT, "rebuilt: different"
        else:
            doubt = build.doubt_of(each)
            yield file, Outcome.INCONCLUSIVE, f"rebuilt: {each.outcome}{f'; no accusation: {doubt}' if doubt else ''}"


def _covered(name: str, counted: Mapping[str, Label], said: Said) -> Covered:
    identical: dict[str, set[str]] = {}
    claimed: dict[str, dict[str, str]] = {}
    different: list[Result] = []
    disputed: list[Result] = []
    open_ones: list[Result] = []
    for file, outcome, what in said:
        hardware, party = counted[file].hardware, counted[file].party
        if outcome is not Outcome.IDENTICAL:
            against = different if party.key else disputed
            (against if outcome is Outcome.DIFFERENT else open_ones).append(Result(file, party, hardware, what))
        elif party.key:
            identical.setdefault(hardware, set()).add(party.name)
        else:
            spelled = claimed.setdefault(hardware, {})  # one party, by the first of its spellings
            same = same_party(party.name)
            spelled[same] = min(party.name, spelled.get(same, party.name))
    verified = {hardware: tuple(sorted(some)) for hardware, some in sorted(identical.items())}
    unverified = {hardware: tuple(sorted(some.values())) for hardware, some in sorted(claimed.items())}
    return Covered(name, verified, unverified, tuple(different), tuple(disputed), tuple(open_ones))


def _class_of(audit: Audit) -> str:
    """Return the class of an audit; what was found by hints or by steps stands apart, for it is another proof."""
    means = ", by steps" if audit.steps else ", by hints" if audit.portable else ""
    return f"{_class(audit.hardware)}{means}"


def _class(hardware: Mapping[str, Any]) -> str:
    """Return a hardware class in a few words: the device, and the digest of all that makes the class."""
    name = hardware.get("model") or hardware.get("accelerator") or "unknown"
    return f"{name} [{sha256(canonical_json(hardware))[:8]}]"
