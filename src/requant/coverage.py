"""`coverage builds/<name>`: which blocks were reproduced, by how many parties, in which hardware classes.

It merges the audits in `builds/<name>/audits/`. What is audited is the recorded build: audits of another recipe,
environment, base, journal or checkpoint are named and not counted. A negative result counts as much as a positive
one. Parties are told apart by what they call themselves: until audits are signed, nothing proves that two are two.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from requant.attestation import hardware_of
from requant.build import RECORDED, recorded
from requant.digest import canonical_json, sha256, sha256_file
from requant.journal import read_journal
from requant.manifest import read_manifest
from requant.recipe import Recipe
from requant.retuning.audits import read_audits
from requant.retuning.challenge import draw
from requant.retuning.retuned import Audit, Judgement, checkpoint_digest


@dataclass(frozen=True)
class Negative:
    """A block that came out different: in which audit, by whom, in which class, and how."""

    audit: str
    auditor: str
    hardware: str
    what: str


@dataclass(frozen=True)
class Covered:
    """One block: hardware classes in which it was identical, with their parties; negative results; open ones."""

    block: str
    identical: Mapping[str, tuple[str, ...]]
    different: tuple[Negative, ...]
    open: int

    @property
    def parties(self) -> int:
        """How many parties found it identical, in whatever class."""
        return len({party.casefold() for some in self.identical.values() for party in some})


@dataclass(frozen=True)
class Coverage:
    """What all audits of one recorded build say of its blocks; `stale` names what was not counted, and why.

    `own` is the hardware class of the build itself, empty where nothing is recorded; `hardware` spells out those of
    the audits.
    """

    build: str
    twin: str | None
    own: str
    blocks: tuple[Covered, ...]
    counted: tuple[str, ...]
    stale: Mapping[str, str]
    hardware: Mapping[str, Mapping[str, Any]]

    @property
    def negatives(self) -> int:
        """How many times a block came out different."""
        return sum(len(each.different) for each in self.blocks)

    @property
    def exit_status(self) -> int:
        """1 where there is a negative result, 3 where no audit counts, else 0."""
        if self.negatives:
            return 1
        return 0 if self.counted else 3

    def as_json(self) -> dict[str, Any]:
        """Return the coverage as `--json` prints it."""
        value = asdict(self)
        for each, block in zip(value["blocks"], self.blocks, strict=True):
            each["parties"] = block.parties
        return value


def coverage(recipe: Recipe, twin: str | None) -> Coverage:
    """Merge the audits of what is recorded for a recipe, or for its twin of a size.

    Raises CheckpointError where a record cannot be read, or a file in `audits/` is no audit.
    """
    build = f"{recipe.name}, twin {twin}" if twin else recipe.name
    found = {file: audit for file, audit in read_audits(recipe).items() if audit.twin == twin}
    records = [recorded(recipe, twin, name) for name in RECORDED]
    if absent := [path for path in records if not path.exists()]:
        return Coverage(build, twin, "", (), (), dict.fromkeys(found, f"nothing is recorded: no {absent[0]}"), {})
    manifest_path, journal_path, statement_path = records
    own = _label(hardware_of(statement_path))
    journal = read_journal(journal_path)
    expected = {
        "recipe": journal.header.recipe,
        "environment": journal.header.environment,
        "base": journal.header.base,
        "checkpoint": checkpoint_digest(read_manifest(manifest_path)),
        "journal": sha256_file(journal_path),
    }
    names = tuple(each.block for each in journal.blocks)
    stale = {file: reason for file, audit in found.items() if (reason := _stale(audit, expected, names, own))}
    audits = {file: audit for file, audit in found.items() if file not in stale}
    hardware = {_label(audit.hardware): audit.hardware for audit in audits.values()}
    return Coverage(build, twin, own, tuple(_covered(name, audits) for name in names), tuple(audits), stale, hardware)


def _stale(audit: Audit, expected: Mapping[str, str], names: tuple[str, ...], own: str) -> str:
    """Return why an audit is not one of the recorded build; nothing where it is."""
    other = [key for key, digest in expected.items() if getattr(audit, key) != digest]
    if audit.journal is None:
        other.remove("journal")  # without one, tensors alone were compared
    if other:
        return f"another {', '.join(other)} than the recorded one"
    if audit.count != len(names) or any(names[each.index] != each.block for each in audit.blocks):
        return "its blocks are not those of the recorded journal"
    drawn = draw(names, audit.challenge) if audit.challenge else None
    if drawn and not _as_drawn(audit, {*drawn}):
        return f"its text draws other blocks: {', '.join(drawn)}"
    if audit.first_divergence and _label(audit.hardware) != own:
        return f"it calls {audit.first_divergence} different on another hardware class than the build's, {own}"
    return ""


def _as_drawn(audit: Audit, drawn: set[str]) -> bool:
    """Whether all drawn blocks were audited, and others only where something came to light on the way to them."""
    identical = {each.block for each in audit.blocks if each.judgement is Judgement.IDENTICAL}
    return drawn <= {each.block for each in audit.blocks} and identical <= drawn


def _covered(name: str, audits: Mapping[str, Audit]) -> Covered:
    identical: dict[str, dict[str, str]] = {}
    different = []
    other = 0
    for file, audit in audits.items():
        for each in audit.blocks:
            if each.block != name:
                continue
            hardware = _label(audit.hardware)
            if each.judgement is Judgement.IDENTICAL:
                spelled = identical.setdefault(hardware, {})  # one party, by the first of its spellings
                party = audit.auditor.casefold()
                spelled[party] = min(audit.auditor, spelled.get(party, audit.auditor))
            elif each.judgement is Judgement.DIFFERENT:
                different.append(Negative(file, audit.auditor, hardware, each.line()))
            else:
                other += 1
    parties = {hardware: tuple(sorted(some.values())) for hardware, some in sorted(identical.items())}
    return Covered(name, parties, tuple(different), other)


def _label(hardware: Mapping[str, Any]) -> str:
    """Return a hardware class in a few words: the device, and the digest of all that makes the class."""
    name = hardware.get("model") or hardware.get("accelerator") or "unknown"
    return f"{name} [{sha256(canonical_json(hardware))[:8]}]"
