"""What evidence amounts to: a verdict in a sentence, the ladder with the rung that was reached, findings, and the rest.

Each rung is another verb's own outcome; the words are this page's. What one rung has found wrong no other makes good.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from requant.audit.coverage import UNTUNED, Coverage, Result
from requant.counts import several
from requant.report.evidence import Evidence
from requant.report.findings import Finding, State, findings, notes, reproducers, unseen
from requant.verdict import Outcome

NAMED = 200
"""Findings that a page names of one kind; how many there are it always says."""
WORDS = {State.GOOD: "Good", State.BAD: "Bad", State.OPEN: "Not decided", State.FAILED: "Cannot be judged"}


@dataclass(frozen=True)
class Rung:
    """One level of evidence: what it asks, whether it was reached, who says so, and in how many words.

    `state` is None where nobody has looked.
    """

    name: str
    asks: str
    state: State | None
    by: str
    said: str


@dataclass(frozen=True)
class Judgement:
    """What is said of a build: `findings` are the first of each kind, of `found` in all; `unseen` nobody looked at.

    `parties` are the builders who reproduced all of it, `reproduced` how many; `verified` is whether a list of keys
    vouches for them. `notes` are differences that accuse nobody.
    """

    state: State
    sentence: str
    rungs: tuple[Rung, ...]
    findings: tuple[Finding, ...]
    found: int
    notes: tuple[Finding, ...]
    unseen: tuple[str, ...]
    reproduced: int
    parties: tuple[str, ...]
    verified: bool

    @property
    def word(self) -> str:
        """The verdict in a word or two."""
        return WORDS[self.state]

    def as_json(self) -> dict[str, Any]:
        """Return the judgement as `--json` prints it."""
        return {"word": self.word, **asdict(self)}

    @property
    def reached(self) -> Rung | None:
        """The highest rung that was reached."""
        return next((each for each in reversed(self.rungs) if each.state is State.GOOD), None)


def judge(evidence: Evidence) -> Judgement:
    """Say what evidence amounts to."""
    found = [*findings(evidence)]
    bad, failed, left = (
        [each for each in found if each.state is state] for state in (State.BAD, State.FAILED, State.OPEN)
    )
    rungs = tuple(_rungs(evidence))
    reproduced, parties, verified = reproducing(evidence)
    if bad:
        state, sentence = State.BAD, _accused(evidence, bad)
    elif failed:
        state, sentence = State.FAILED, _unjudged(failed)
    else:
        state, sentence = _held(evidence, reproduced, parties, verified)
    return Judgement(
        state=state,
        sentence=sentence,
        rungs=rungs,
        findings=tuple(each for some in (bad, failed, left) for each in some[:NAMED]),
        found=len(found),
        notes=tuple(islice(notes(evidence), NAMED)),
        unseen=tuple(unseen(evidence)),
        reproduced=reproduced,
        parties=parties,
        verified=verified,
    )


def reproducing(evidence: Evidence) -> tuple[int, tuple[str, ...], bool]:
    """Return how many parties reproduced every block and the rest, who did any of it, and whether a list names them.

    The maker never counts. Files that are not the recorded ones were reproduced by nobody.
    """
    rows, verified = reproducers(evidence)
    if not rows or not as_recorded(evidence):
        return 0, (), verified
    names = sorted({name for by in rows.values() for name in by})
    return min(map(len, rows.values())), tuple(names), verified


def as_recorded(evidence: Evidence) -> bool:
    """Whether what is recorded, and was audited, is what the page is about."""
    return evidence.verified is None or evidence.verified.outcome in (Outcome.IDENTICAL, Outcome.EQUIVALENT)


# The sentence


def _accused(evidence: Evidence, bad: Sequence[Finding]) -> str:
    first = bad[0]
    where = f" ({first.where})" if first.where else ""
    more = f" {several(len(bad) - 1, 'more finding')} below." if len(bad) > 1 else ""
    if all(each.by == "card" for each in bad):
        more = f", and {several(len(bad) - 1, 'more statement')}" if len(bad) > 1 else ""
        return f"{_LEADS['card']}{first.what}{where}{more}. Of the checkpoint itself, {_aside(evidence)}"
    return f"{_LEADS[first.by]}{first.what}{f' in {first.where}' if first.where else ''}.{more}"


_LEADS = {
    "verify": "These are not the recorded files: ",
    "check": "It does not follow from its base: ",
    "audit": "Tuned again, it came out otherwise: ",
    "rebuild": "Built again, it came out otherwise: ",
    "inspect": "A loader would misread it: ",
    "card": "Its card says what is not so: ",
}


def _aside(evidence: Evidence) -> str:
    outcome = evidence.verified.outcome if evidence.verified is not None else None
    said = "every file has the recorded bytes" if outcome is Outcome.IDENTICAL else "nothing else was found wrong"
    return f"{said}."


def _unjudged(failed: Sequence[Finding]) -> str:
    first = failed[0]
    more = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
    return (
        f"A record that decides is not there or cannot be read: {first.where} ({first.what}){more}. "
        "That is no accusation, and no evidence either."
    )


def _held(evidence: Evidence, reproduced: int, parties: Sequence[str], verified: bool) -> tuple[State, str]:
    if other := _another_class(evidence):
        return State.OPEN, other
    if evidence.verified is not None and evidence.verified.outcome is Outcome.INCONCLUSIVE:
        return State.OPEN, f"The files are not the recorded ones, and that decides nothing: {_reasons(evidence)}."
    parts = [*_for(evidence)]
    if reproduced:
        who = several(reproduced, "independent party", "independent parties")
        if verified:
            parts.append(f"{who} made all of it again to the same bits")
            return State.GOOD, _joined(parts)
        parts.append(f"{several(reproduced, 'name')} that nobody has verified made all of it again to the same bits")
        return State.OPEN, _joined(parts)
    if evidence.checked and evidence.checked.outcome == "clean":
        rest = f"{_some(evidence)} were made again by others" if parties else "nobody else has made it again"
        return State.GOOD, f"{_joined(parts)} {rest[:1].upper()}{rest[1:]}."
    if evidence.checked:
        return State.OPEN, f"Nothing contradicts its base, and the check ended as {evidence.checked.outcome}."
    if parties:
        return State.OPEN, f"{_joined(parts)} {_some(evidence)} were made again to the same bits: not all of it."
    if not (evidence.kept and evidence.kept.any):
        return State.OPEN, "Nothing is recorded of this build, so there is nothing to hold against anything."
    return State.OPEN, f"{_joined([*parts, 'only its builder says how it was made'])} Nobody has made it again."


def _for(evidence: Evidence) -> Iterator[str]:
    if evidence.verified is not None and evidence.verified.outcome is Outcome.IDENTICAL:
        yield "every file has the recorded bytes"
    elif evidence.verified is not None and evidence.verified.outcome is Outcome.EQUIVALENT:
        yield "every tensor has the recorded bytes, though not every file"
    if evidence.checked and evidence.checked.outcome == "clean":
        yield "every weight follows from its base"


def _joined(parts: Sequence[str]) -> str:
    if not parts:
        return ""
    text = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"
    return f"{text[:1].upper()}{text[1:]}."


def _some(evidence: Evidence) -> str:
    rows, _ = reproducers(evidence)
    blocks = [by for row, by in rows.items() if row != UNTUNED]
    return f"{sum(map(bool, blocks))} of {several(len(blocks), 'block')}"


def _reasons(evidence: Evidence) -> str:
    return "; ".join(evidence.verified.reasons) if evidence.verified is not None else ""


def _another_class(evidence: Evidence) -> str:
    """Return the sentence for a build of another hardware class than the recorded one; nothing for any other."""
    verdict, own, recorded = evidence.verified, evidence.own, evidence.recorded
    if not (verdict is not None and verdict.outcome is Outcome.INCONCLUSIVE and own and recorded):
        return ""
    if not (own.hardware and recorded.hardware and own.hardware != recorded.hardware):
        return ""
    return (
        f"It was built on another class of hardware: {device(own.hardware)}, recorded is {device(recorded.hardware)}. "
        f"{several(len(verdict.differences), 'difference')} from the record accuse nobody there; "
        "only a build or an audit of the same class decides."
    )


def device(hardware: object) -> str:
    """Return a hardware class in a few words."""
    stated = hardware if isinstance(hardware, dict) else {}
    return str(stated.get("model") or stated.get("accelerator") or "unknown")


# The ladder


def _rungs(evidence: Evidence) -> Iterator[Rung]:
    yield _record(evidence)
    yield _verify(evidence)
    yield _check(evidence)
    yield from _others(evidence)


def _record(evidence: Evidence) -> Rung:
    kept, maker = evidence.kept, evidence.covered and evidence.covered.maker
    by = maker.label if maker else "its builder, unsigned"
    asks = "Has the builder left a manifest, a journal and a statement?"
    if kept is None or not kept.any:
        return Rung("Recorded", asks, None, "", "No record is there.")
    if kept.absent:
        return Rung("Recorded", asks, State.FAILED, by, f"Missing: {', '.join(kept.absent)}.")
    if not (kept.manifest and kept.journal and kept.hardware) or evidence.problems:
        return Rung("Recorded", asks, State.FAILED, by, "Not all records can be read, or belong together.")
    blocks, files = len(kept.journal.blocks), len(kept.manifest.files)
    return Rung("Recorded", asks, State.GOOD, by, f"{several(files, 'file')}, {several(blocks, 'tuned block')}.")


def _verify(evidence: Evidence) -> Rung:
    asks, verdict = "Are these the recorded bytes?", evidence.verified
    if verdict is None:
        said = "No manifest to hold it against." if evidence.folder else "No checkpoint was at hand, only its records."
        return Rung("Verified", asks, None, "", said)
    states = {Outcome.IDENTICAL: State.GOOD, Outcome.EQUIVALENT: State.GOOD, Outcome.DIFFERENT: State.BAD}
    counted = several(len(verdict.differences), "file or tensor differs", "files and tensors differ")
    said = "Every file, byte for byte." if verdict.outcome is Outcome.IDENTICAL else f"{counted}."
    return Rung("Verified", asks, states.get(verdict.outcome, State.OPEN), "this report", said)


def _check(evidence: Evidence) -> Rung:
    asks, checked = "Does every weight follow from the base?", evidence.checked
    if checked is None:
        return Rung("Checked", asks, None, "", "The base was not at hand.")
    states = {"clean": State.GOOD, "violations": State.BAD}
    said = f"{several(checked.packed, 'packed layer')}, {checked.read:,} bytes read."
    if checked.findings:
        said = f"{several(len(checked.findings), 'violation')}; {said}"
    return Rung("Checked", asks, states.get(str(checked.outcome), State.OPEN), "this report", said)


def _others(evidence: Evidence) -> Iterator[Rung]:
    asks = "Were blocks tuned again by others, to the same bits?", "Was all of it built again by others?"
    covered, rows = evidence.covered, reproducers(evidence)[0]
    if covered is None and evidence.recipe is not None:
        said = "The records cannot be read, so nobody's results were counted."
        yield Rung("Audited", asks[0], State.FAILED, "", said)
        yield Rung("Rebuilt", asks[1], State.FAILED, "", said)
        return
    if covered is None or not covered.own:
        yield Rung("Audited", asks[0], None, "", "Nothing is recorded that could be audited.")
        yield Rung("Rebuilt", asks[1], None, "", "Nothing is recorded that could be rebuilt.")
        return
    if not as_recorded(evidence):
        said = "What others reproduced are the recorded files, and these are others."
        yield Rung("Audited", asks[0], None, "", said)
        yield Rung("Rebuilt", asks[1], None, "", said)
        return
    audited = [each for each in covered.counted.values() if each.what == "audit"]
    against = sum(len(covered.against(row)) for row in (*covered.blocks, covered.untuned))
    whole, some = all(rows.values()), any(rows.values())
    names = ", ".join(sorted({name for by in rows.values() for name in by}))
    state = State.BAD if against else State.GOOD if rows and whole else State.OPEN if audited or some else None
    unverified = "" if covered.named else " (unverified)"
    found = f"; {several(against, 'negative result')}" if against else ""
    untuned = "and all that is not tuned" if rows.get(UNTUNED) else "and not the rest"
    said = f"{_some(evidence)} {untuned}{found}." if state else ""
    yield Rung("Audited", asks[0], state, f"{names}{unverified}" if names else "", said)
    yield _rebuilt(covered, asks[1])


def _rebuilt(covered: Coverage, asks: str) -> Rung:
    row = covered.rebuilt
    names = ", ".join(sorted({name for by in row.identical.values() for name in by}))
    if row.different:
        return Rung("Rebuilt", asks, State.BAD, _by(row.different), "Other bytes came of it.")
    if names:
        return Rung("Rebuilt", asks, State.GOOD, names, "The same bytes came of it.")
    if row.open:
        return Rung("Rebuilt", asks, State.OPEN, _by(row.open), "Other bytes, where that accuses nobody.")
    return Rung("Rebuilt", asks, None, "", "")


def _by(results: Sequence[Result]) -> str:
    return ", ".join(sorted({each.party.label for each in results}))
