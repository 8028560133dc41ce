"""What was found of a build, by whom and where; and what nobody has looked at.

Every verb's own findings in one form. A finding accuses, or leaves something open, or is a record that cannot be read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from requant.audit.confirmed import Confirmed
from requant.audit.coverage import REBUILT, UNTUNED
from requant.check.findings import Finding as Checking
from requant.counts import several
from requant.diff import Diff
from requant.diff.difference import Steps
from requant.inspect.findings import Severity, fold
from requant.report.evidence import Evidence
from requant.verdict import Outcome, Verdict

SUBJECTS = 4
"""Kinds of names that a finding shows."""


class State(StrEnum):
    """What a page says in a word, and in a colour and a shape."""

    GOOD = "good"
    BAD = "bad"
    OPEN = "open"
    """Nothing speaks against it, and not enough for it."""
    FAILED = "failed"
    """Something that decides is missing or cannot be read."""


@dataclass(frozen=True)
class Finding:
    """Something that was found, by whom, and where: a tensor, a key, a block, a line."""

    state: State
    by: str
    what: str
    where: str = ""
    detail: str = ""


def findings(evidence: Evidence) -> Iterator[Finding]:
    """Yield what speaks against a build, what is left open, and what cannot be read; what weighs most comes first."""
    for each in evidence.problems:
        yield Finding(State.FAILED, "records", each.said, each.what)
    if evidence.checked:
        yield from (_of_check(each, State.BAD) for each in evidence.checked.findings)
        yield from (_of_check(each, State.OPEN) for each in evidence.checked.unmodelled)
    if evidence.verified is not None:
        yield from _of_verify(evidence.verified)
    yield from _of_coverage(evidence)
    if evidence.inspected:
        for found in evidence.inspected.findings:
            if found.severity is not Severity.NOTE and not found.known:
                state = State.BAD if found.severity is Severity.ERROR else State.OPEN
                yield Finding(state, "inspect", found.consequence.rstrip("."), _subjects(found.subjects), found.repair)
    if evidence.compared:
        for line in evidence.compared.statements:
            if line.verdict == "wrong":
                said = f"{line.key}: the card says {line.stated}, recorded is {line.recorded}"
                yield Finding(State.BAD, "card", said, f"line {line.line}", line.source)


def _of_check(found: Checking, state: State) -> Finding:
    count = f"{found.count:,} times " if found.count > 1 else ""
    index = f", first at {list(found.index)}" if found.index and found.count > 1 else ""
    at = f" {list(found.index)}" if found.index and found.count <= 1 else ""
    return Finding(state, "check", f"{count}{found.kind}{index}", f"{found.tensor}{at}", found.detail)


def _of_verify(verdict: Verdict) -> Iterator[Finding]:
    state: State = State.BAD if verdict.outcome is Outcome.DIFFERENT else State.OPEN
    order = ("changed tensor", "missing tensor", "extra tensor")
    found = sorted(verdict.differences, key=lambda each: each.kind not in order)  # what is in a file before the file
    for each in found:
        yield Finding(state, "verify", each.kind, each.name, each.file if each.file != each.name else "")


def _of_coverage(evidence: Evidence) -> Iterator[Finding]:
    covered = evidence.covered
    if covered is None:
        return
    for row in covered.rows:
        by = "rebuild" if row is covered.rebuilt else "audit"
        where = {UNTUNED: "what is not tuned", REBUILT: ""}.get(row.block, row.block)
        against = covered.against(row)
        for each in against:
            detail = each.what.removeprefix(f"{row.block}: ")
            yield Finding(State.BAD, by, f"{each.party.label} got other bits", where, detail)
        for each in (*row.open, *(row.disputed if covered.named else ())):
            detail = each.what.removeprefix(f"{row.block}: ")
            yield Finding(State.OPEN, by, f"{each.party.label} could not decide", where, detail)
    for file, why in covered.stale.items():
        yield Finding(State.OPEN, "audit", f"not counted: {why}", file)


def notes(evidence: Evidence) -> Iterator[Finding]:
    """Yield differences that accuse nobody."""
    if evidence.checked:
        yield from (_of_check(each, State.OPEN) for each in evidence.checked.notes)
    if evidence.inspected:
        for found in evidence.inspected.findings:
            if found.known or found.severity is Severity.NOTE:
                yield Finding(State.OPEN, "inspect", found.consequence.rstrip("."), _subjects(found.subjects))
    for each in evidence.divergences:
        yield Finding(State.OPEN, "journal", str(each), each.block or "header")


def _subjects(names: Sequence[str]) -> str:
    folded = fold(names)
    shown = ", ".join(f"{each} ({count:,})" if count > 1 else each for each, count in folded[:SUBJECTS])
    left = sum(count for _, count in folded[SUBJECTS:])
    return f"{shown} and {left:,} more" if left else shown


def reproducers(evidence: Evidence) -> tuple[dict[str, tuple[str, ...]], bool]:
    """Return who reproduced each block, and the rest: those whom a list names, or where there is none anybody."""
    covered, found = evidence.covered, evidence.confirmed
    if covered is None or found is None or not covered.own:
        return {}, False
    if covered.named:
        return dict(found.rows), True
    rows = (*covered.blocks, covered.untuned)
    return {each.block: tuple(sorted({name for by in each.claimed.values() for name in by})) for each in rows}, False


def unseen(evidence: Evidence) -> Iterator[str]:
    """Yield what nobody has looked at, a sentence each."""
    if not evidence.folder:
        yield "The checkpoint itself: this page is made of records alone, and no byte of a weight was read for it."
    if evidence.checked is None:
        yield "Whether every weight follows from the base: add --base to a checkpoint."
    elif evidence.checked.unread:
        yield f"{several(len(evidence.checked.unread), 'tensor or layer', 'tensors and layers')} outside the sample."
    yield from _unaudited(evidence.confirmed, evidence)
    if evidence.inspected:
        looked = ", ".join(evidence.inspected.loaders)
        degrees = ", ".join(map(str, evidence.inspected.degrees))
        yield f"Other loaders than {looked}, and other degrees of tensor parallelism than {degrees}."
    elif evidence.folder:
        yield "What a loader makes of it."
    else:
        yield "What any loader makes of it."
    if evidence.compared:
        left = len({each.line for each in evidence.compared.uncompared})
        yield f"{several(left, 'line')} of the card that state nothing which a record has."
    else:
        yield "What its published card says."
    kept = evidence.kept
    if kept and kept.taints:
        yield f"The base itself: this build is no evidence about it ({'; '.join(kept.taints)})."
    yield "How well the model answers: nothing here measures that."


def _unaudited(found: Confirmed | None, evidence: Evidence) -> Iterator[str]:
    if found is None or not found.rows:
        return
    rows, _ = reproducers(evidence)
    blocks = [row for row, by in rows.items() if not by and row != UNTUNED]
    if len(blocks) == len(rows) - 1:
        yield f"Every tuned block: none of {several(len(blocks), 'block')} was tuned again by anybody but its maker."
    elif blocks:
        yield f"{several(len(blocks), 'block')} that nobody but its maker has tuned: {ranges(evidence, blocks)}."
    if not rows.get(UNTUNED):
        yield "All that is not tuned: nobody has compared it with what base and recipe give."


def ranges(evidence: Evidence, blocks: Sequence[str]) -> str:
    """Return the places of blocks among all, from 0, in a few words: `0 to 3, 7`."""
    places = {each.block: number for number, each in enumerate(evidence.covered.blocks)} if evidence.covered else {}
    runs: list[list[int]] = []
    for number in sorted(places[each] for each in blocks):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def differences(differing: Diff | Verdict) -> tuple[str, list[tuple[str, str]]]:
    """Return the outcome of holding two builds against each other, and each difference: what, and where."""
    if isinstance(differing, Verdict):
        return differing.outcome, [(each.name, each.kind) for each in differing.differences]
    found = [(name, str(each) if isinstance(each, str) else _steps(each)) for name, each in differing.tensors.items()]
    found += [(name, "in the first only") for name in differing.only_first]
    found += [(name, "in the second only") for name in differing.only_second]
    found += [(name, each) for name, some in differing.files.items() for each in some]
    return differing.outcome, found + [("arrangement", each) for each in differing.arrangement]


def _steps(each: object) -> str:
    from requant.diff.difference import Numbers

    if isinstance(each, Steps):
        steps = ", ".join(f"{step:+d}: {count:,}" for step, count in each.histogram.items())
        return f"{each.differ:,} of {each.total:,} codes differ; steps {steps}"
    assert isinstance(each, Numbers)  # noqa: S101
    return f"{each.differ:,} of {each.total:,} numbers differ, by {each.largest:.6g} at most"
