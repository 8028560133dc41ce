"""`coverage builds/<name>`: which blocks were reproduced, by how many parties, in which hardware classes.

It merges the audits in `builds/<name>/audits/`. What is audited is the recorded build: audits of another recipe,
environment, base, journal or checkpoint are named and not counted. A negative result counts as much as a positive
one. Parties are told apart by what they call themselves: until audits are signed, nothing proves that two are two.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from requant.audits import read_audits
from requant.build import recorded
from requant.challenge import draw
from requant.digest import canonical_json, sha256, sha256_file
from requant.errors import CheckpointError
from requant.journal import read_journal
from requant.manifest import read_manifest
from requant.recipe import Recipe
from requant.retuned import Audit, Judgement, checkpoint_digest


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
    """What all audits of one recorded build say of its blocks; `stale` names what was not counted, and why."""

    build: str
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
        return asdict(self)


def coverage(recipe: Recipe, twin: str | None) -> Coverage:
    """Merge the audits of what is recorded for a recipe, or for its twin of a size.

    Raises CheckpointError where nothing is recorded, or a file in `audits/` is no audit.
    """
    journal_path = recorded(recipe, twin, "journal.jsonl")
    if not journal_path.exists():
        raise CheckpointError(f"{journal_path}: nothing is recorded that could have been audited")
    journal = read_journal(journal_path)
    expected = {
        "recipe": journal.header.recipe,
        "environment": journal.header.environment,
        "base": journal.header.base,
        "checkpoint": checkpoint_digest(read_manifest(recorded(recipe, twin, "manifest.json"))),
        "journal": sha256_file(journal_path),
    }
    names = tuple(each.block for each in journal.blocks)
    audits, stale = {}, {}
    for file, audit in read_audits(recipe).items():
        if audit.twin != twin:
            continue
        if reason := _stale(audit, expected, names):
            stale[file] = reason
        else:
            audits[file] = audit
    classes = {_label(audit.hardware): audit.hardware for audit in audits.values()}
    build = f"{recipe.name}, twin {twin}" if twin else recipe.name
    return Coverage(build, tuple(_covered(name, audits) for name in names), tuple(audits), stale, classes)


def _stale(audit: Audit, expected: Mapping[str, str], names: tuple[str, ...]) -> str:
    """Return why an audit is not one of the recorded build; nothing where it is."""
    other = [key for key, digest in expected.items() if getattr(audit, key) != digest]
    if audit.journal is None:  # it compared tensors alone
        other.remove("journal")
    if other:
        return f"another {', '.join(other)} than the recorded one"
    if audit.count != len(names) or any(names[each.index] != each.block for each in audit.blocks):
        return "its blocks are not those of the recorded journal"
    drawn = draw(names, audit.challenge) if audit.challenge else None
    if drawn and drawn != tuple(each.block for each in audit.blocks):
        return f"its text draws other blocks: {', '.join(drawn)}"
    return ""


def _covered(name: str, audits: Mapping[str, Audit]) -> Covered:
    identical: dict[str, set[str]] = {}
    different = []
    other = 0
    for file, audit in audits.items():
        for each in audit.blocks:
            if each.block != name:
                continue
            hardware = _label(audit.hardware)
            if each.judgement is Judgement.IDENTICAL:
                identical.setdefault(hardware, set()).add(audit.auditor)
            elif each.judgement is Judgement.DIFFERENT:
                different.append(Negative(file, audit.auditor, hardware, each.line()))
            else:
                other += 1
    parties = {hardware: tuple(sorted(some)) for hardware, some in sorted(identical.items())}
    return Covered(name, parties, tuple(different), other)


def _label(hardware: Mapping[str, Any]) -> str:
    """Return a hardware class in a few words: the device, and the digest of all that makes the class."""
    name = hardware.get("model") or hardware.get("accelerator") or "unknown"
    return f"{name} [{sha256(canonical_json(hardware))[:8]}]"
