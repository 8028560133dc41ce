"""The outcome of an audit as data: what tuning chosen blocks again gave, held against what was published.

A block's tuned tensors are judged only where its inputs are the journal's. Where they are not, something before it has
changed, and it is not accused of that. Without a journal nothing says what a block's inputs were: then no block after
the first different one is accused. All that is not tuned needs neither: untuned.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from requant.audit.challenge import Challenge, StepChallenge, odds
from requant.audit.distance import Distance
from requant.audit.untuned import Untuned
from requant.checkpoint.files import SUFFIX
from requant.digest import canonical_json, sha256
from requant.evidence.outcomes import Judged
from requant.protocol import Hinted
from requant.verdict import EXIT_STATUS, Outcome


class Judgement(StrEnum):
    """What tuning one block again says of it."""

    IDENTICAL = "identical"
    """Every tuned tensor has the published bytes, and with a journal losses and outputs are the journal's."""
    DIFFERENT = "different"
    INCONCLUSIVE = "inconclusive"
    """Other bits, from another hardware class or environment."""
    UNJUDGED = "unjudged"
    """Its inputs are not the journal's, or not known to be: a block before it is where to look."""


@dataclass(frozen=True)
class Retuned:
    """One block that was tuned again; `index` is its place among all blocks of the journal, from 0.

    `hinted` says what came of the hints, where it was tuned by them.
    """

    block: str
    index: int
    judgement: Judgement
    reason: str = ""
    distance: Distance | None = None
    hinted: Hinted | None = None

    def line(self) -> str:
        """Return what a person reads of this block."""
        text = f"{self.block}: {self.judgement}"
        if self.distance:
            text += f", {self.distance}"
        if self.hinted and self.hinted.decided:
            text += f", {self.hinted.signs:,} of {self.hinted.decided:,} signs taken from the build"
        return f"{text}; {self.reason}" if self.reason else text


@dataclass(frozen=True)
class Audit:
    """What was tuned again and compared, of what, where and by whom.

    `files` are those that were audited, by SHA-256; `companions` lay beside them, and no loader reads them; `journal`
    is the SHA-256 of the journal's file, None where there was none. `count` is the number of blocks of the model.
    `auditor` is what the person calls themselves: nothing here proves it. `finished` is UTC, as 2026-04-24T00:00:09Z.
    A `portable` audit tuned by hints: `hardware` need not be of the build's class. Where single `steps` were computed
    from what the builder has revealed, these were asked for.
    """

    recipe: str
    tiny: str | None
    environment: str
    base: str
    journal: str | None
    files: Mapping[str, str]
    companions: tuple[str, ...]
    hardware: Mapping[str, Any]
    challenge: Challenge | None
    count: int
    blocks: tuple[Retuned, ...]
    untuned: Untuned
    auditor: str
    finished: str
    requant: str
    portable: bool = False
    steps: StepChallenge | None = None

    @property
    def checkpoint(self) -> str:
        """The identity of what was audited, as `Manifest.identity`: it follows from its weight files alone."""
        weights = {path: digest for path, digest in self.files.items() if path.endswith(SUFFIX)}
        return sha256(canonical_json(weights))

    @property
    def outcome(self) -> Outcome:
        """Of the blocks and of all that is not tuned: `different` where one is, `identical` where all are.

        Else `inconclusive`.
        """
        found = {str(each.judgement) for each in self.blocks} | {str(self.untuned.outcome)}
        if Outcome.DIFFERENT in found:
            return Outcome.DIFFERENT
        return Outcome.IDENTICAL if self.blocks and found == {Outcome.IDENTICAL} else Outcome.INCONCLUSIVE

    @property
    def exit_status(self) -> int:
        """0 identical, 1 different, 3 inconclusive."""
        return EXIT_STATUS[self.outcome]

    @property
    def first_divergence(self) -> str | None:
        """The first audited block whose inputs agree, and whose tensors or outputs do not."""
        different = [each for each in self.blocks if each.judgement is Judgement.DIFFERENT]
        return min(different, key=lambda each: each.index).block if different else None

    def as_json(self) -> dict[str, Any]:
        """Return the audit as `--json` prints it, and the predicate of its statement; `files` are its subjects."""
        return {
            "outcome": str(self.outcome),
            "first_divergence": self.first_divergence,
            "recipe": self.recipe,
            "tiny": self.tiny,
            "environment": self.environment,
            "base": self.base,
            "journal": self.journal,
            "checkpoint": self.checkpoint,
            "companions": list(self.companions),
            "hardware": dict(self.hardware),
            "challenge": self.challenge and {"text": self.challenge.text, "drawn": self.challenge.drawn},
            "count": self.count,
            "blocks": [_block(each) for each in self.blocks],
            "untuned": self.untuned.as_json(),
            "auditor": self.auditor,
            "finished": self.finished,
            "requant": self.requant,
            "portable": self.portable,
            **({"steps": asdict(self.steps)} if self.steps else {}),
        }

    def judged(self) -> Judged:
        """Return the audit as a test result: its tests are the blocks, and all that is not tuned."""
        said = {each.block: str(each.judgement) for each in self.blocks} | {"not tuned": str(self.untuned.outcome)}
        against = {"recipe": self.recipe, "environment": self.environment, "base": self.base}
        drawn = self.steps or self.challenge
        return Judged(
            verb="judge" if self.steps else "audit",
            outcome=self.outcome,
            files=self.files,
            against=against | ({"journal": self.journal} if self.journal else {}),
            passed=tuple(name for name, each in said.items() if each == Judgement.IDENTICAL),
            warned=tuple(name for name, each in said.items() if each in (Judgement.INCONCLUSIVE, Judgement.UNJUDGED)),
            failed=tuple(name for name, each in said.items() if each == Judgement.DIFFERENT),
            details={
                "tiny": self.tiny,
                "hardware": self.hardware,
                "blocks": self.count,
                "portable": self.portable,
                "challenge": drawn and drawn.text,
            },
            requant=self.requant,
        )

    def text(self) -> list[str]:
        """Return what a person reads: each block, the rest, what the draw was worth, what is open, what to do next."""
        lines = [*(each.line() for each in self.blocks), *self.untuned.text()]
        lines.append(f"{len(self.blocks)} of {self.count} blocks tuned again")
        if self.steps:
            every = self.steps.iterations * self.count
            lines[-1] = (
                f"{len(self.steps.steps)} of {every:,} steps judged, in {len(self.blocks)} of {self.count} blocks"
            )
        if self.challenge:
            chance = odds(self.count, self.challenge.drawn, 1)
            lines[-1] += f", drawn from {self.challenge.text!r}: one bad block is found with {chance:.0%}"
        left = sorted({*range(self.count)} - {each.index for each in self.blocks})
        beside = [f"files that no loader reads: {', '.join(self.companions)}"] if self.companions else []
        if unjudged := ([f"blocks {_ranges(left)}"] if left else []) + beside:
            lines.append(f"not judged: {'; '.join(unjudged)}")
        if self.first_divergence:
            lines.append(f"first divergence: {self.first_divergence}; what comes after it is not accused")
        elif astray := [each for each in self.blocks if each.judgement is Judgement.UNJUDGED]:
            lines.append(f"next: audit the blocks before {min(astray, key=lambda each: each.index).block}")
        elif not self.portable and any(each.judgement is Judgement.INCONCLUSIVE for each in self.blocks):
            lines.append("next: audit on the hardware class that the build's statement names")
        return lines


def judge(
    block: str,
    index: int,
    *,
    inputs_agree: bool | None,
    outputs_agree: bool | None,
    distance: Distance | None,
    unlike: str,
) -> Retuned:
    """Judge one block. Without a journal `inputs_agree` and `outputs_agree` are None; see `settle` then.

    `unlike` says why other bits would prove nothing here, such as another hardware class than the build's; empty where
    they would. Equal bits are identical whatever it says.
    """

    def judged(judgement: Judgement, reason: str = "") -> Retuned:
        return Retuned(block, index, judgement, reason, distance)

    if distance is None and inputs_agree is not False and outputs_agree is not False:
        return judged(Judgement.IDENTICAL)
    if unlike:
        return judged(Judgement.INCONCLUSIVE, unlike)
    if inputs_agree is False:
        where = "a block before it is where to look" if index else "so base, text or model code are not the build's"
        return judged(Judgement.UNJUDGED, f"its inputs are not the journal's: {where}")
    if distance is None:
        return judged(Judgement.DIFFERENT, "every tensor agrees, but its losses or outputs are not the journal's")
    return judged(Judgement.DIFFERENT)


def settle(blocks: Sequence[Retuned]) -> tuple[Retuned, ...]:
    """Return what judgements are worth without a journal, where nothing is known of a block's inputs.

    The first different block is so itself, or one before it is that did not come out identical: its reason says so.
    Different ones after it become unjudged, for their inputs have changed. Identical ones stay so.
    """
    first = min((each.index for each in blocks if each.judgement is Judgement.DIFFERENT), default=-1)
    before = {each.index for each in blocks if each.judgement is Judgement.IDENTICAL and each.index < first}

    def settled(each: Retuned) -> Retuned:
        if each.judgement is not Judgement.DIFFERENT:
            return each
        if each.index == first:
            return each if len(before) == first else replace(each, reason="or a block before it: there is no journal")
        reason = "without a journal nothing is known of its inputs, and a block before it is different"
        return replace(each, judgement=Judgement.UNJUDGED, reason=reason)

    return tuple(settled(each) for each in blocks)


def _ranges(numbers: Sequence[int]) -> str:
    """Return numbers in order as 0, 2-5."""
    ends = [number for number in numbers if number + 1 not in numbers]
    starts = [number for number in numbers if number - 1 not in numbers]
    return ", ".join(f"{a}-{b}" if a < b else f"{a}" for a, b in zip(starts, ends, strict=True))


def _block(each: Retuned) -> dict[str, Any]:
    value = {
        "block": each.block,
        "index": each.index,
        "judgement": str(each.judgement),
        "reason": each.reason,
        "hinted": each.hinted and asdict(each.hinted),
    }
    if each.distance is None:
        return {**value, "distance": None}
    return {**value, "distance": {**vars(each.distance), "steps": {str(k): v for k, v in each.distance.steps.items()}}}
