"""The outcome of an audit as data: what tuning chosen blocks again gave, held against what was published.

A block is judged only where its inputs are the journal's. Where they are not, something before it has changed, and
it is not accused of that. Without a journal nothing says what a block's inputs were: then no block after the first
different one is accused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from requant.digest import canonical_json, sha256
from requant.manifest import Manifest
from requant.retuning.apart import Apart
from requant.retuning.challenge import Challenge, odds
from requant.verdict import EXIT_STATUS, Outcome


class Judgement(StrEnum):
    """What tuning one block again says of it."""

    IDENTICAL = "identical"
    """Every tensor has the published bytes, and with a journal losses and outputs are the journal's."""
    DIFFERENT = "different"
    INCONCLUSIVE = "inconclusive"
    """Other bits, from another hardware class or environment."""
    UNJUDGED = "unjudged"
    """Its inputs are not the journal's, or not known to be: a block before it is where to look."""


@dataclass(frozen=True)
class Retuned:
    """One block that was tuned again; `index` is its place among all blocks of the journal, from 0."""

    block: str
    index: int
    judgement: Judgement
    reason: str = ""
    apart: Apart | None = None

    def line(self) -> str:
        """Return what a person reads of this block."""
        text = f"{self.block}: {self.judgement}"
        if self.apart:
            text += f", {self.apart}"
        return f"{text}; {self.reason}" if self.reason else text


@dataclass(frozen=True)
class Audit:
    """What was tuned again, of what, where and by whom.

    `checkpoint` is `checkpoint_digest` of what was audited, and `files` its files by SHA-256; `journal` is the
    SHA-256 of the journal's file, None where there was none. `count` is the number of blocks of the model. `auditor`
    is what the person calls themselves: nothing here proves it. `finished` is UTC, as 2026-04-24T00:00:09Z.
    """

    recipe: str
    twin: str | None
    environment: str
    base: str
    journal: str | None
    checkpoint: str
    files: Mapping[str, str]
    hardware: Mapping[str, Any]
    challenge: Challenge | None
    count: int
    blocks: tuple[Retuned, ...]
    auditor: str
    finished: str
    requant: str

    @property
    def outcome(self) -> Outcome:
        """`different` where one block is, `identical` where all are, else `inconclusive`."""
        judgements = {each.judgement for each in self.blocks}
        if Judgement.DIFFERENT in judgements:
            return Outcome.DIFFERENT
        return Outcome.IDENTICAL if judgements == {Judgement.IDENTICAL} else Outcome.INCONCLUSIVE

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
            "twin": self.twin,
            "environment": self.environment,
            "base": self.base,
            "journal": self.journal,
            "checkpoint": self.checkpoint,
            "hardware": dict(self.hardware),
            "challenge": self.challenge and {"text": self.challenge.text, "drawn": self.challenge.drawn},
            "count": self.count,
            "blocks": [_block(each) for each in self.blocks],
            "auditor": self.auditor,
            "finished": self.finished,
            "requant": self.requant,
        }

    def text(self) -> list[str]:
        """Return what a person reads: each block, what the draw was worth, and what to do next."""
        lines = [each.line() for each in self.blocks]
        lines.append(f"{len(self.blocks)} of {self.count} blocks tuned again")
        if self.challenge:
            chance = odds(self.count, self.challenge.drawn, 1)
            lines[-1] += f", drawn from {self.challenge.text!r}: one bad block is found with {chance:.0%}"
        if self.first_divergence:
            lines.append(f"first divergence: {self.first_divergence}; what comes after it is not accused")
        elif astray := [each for each in self.blocks if each.judgement is Judgement.UNJUDGED]:
            lines.append(f"next: audit the blocks before {min(astray, key=lambda each: each.index).block}")
        elif self.outcome is Outcome.INCONCLUSIVE:
            lines.append("next: audit on the hardware class that the build's statement names")
        return lines


def checkpoint_digest(manifest: Manifest) -> str:
    """Return what a checkpoint's tensors are, in one SHA-256: of canonical JSON of all, by name, without their files.

    However they are spread over files, equal tensors give one digest, so a new tokenizer makes no audit stale.
    """
    tensors = {
        name: {"dtype": each.dtype, "shape": each.shape, "sha256": each.sha256}
        for name, each in manifest.tensors.items()
    }
    return sha256(canonical_json(tensors))


def judge(
    block: str,
    index: int,
    *,
    inputs_agree: bool | None,
    outputs_agree: bool | None,
    apart: Apart | None,
    unlike: str,
) -> Retuned:
    """Judge one block. Without a journal `inputs_agree` and `outputs_agree` are None; see `settle` then.

    `unlike` says why other bits would prove nothing here, such as another hardware class than the build's; empty where
    they would. Equal bits are identical whatever it says.
    """

    def judged(judgement: Judgement, reason: str = "") -> Retuned:
        return Retuned(block, index, judgement, reason, apart)

    if apart is None and inputs_agree is not False and outputs_agree is not False:
        return judged(Judgement.IDENTICAL)
    if unlike:
        return judged(Judgement.INCONCLUSIVE, unlike)
    if inputs_agree is False:
        where = "a block before it is where to look" if index else "so base, text or model code are not the build's"
        return judged(Judgement.UNJUDGED, f"its inputs are not the journal's: {where}")
    if apart is None:
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


def _block(each: Retuned) -> dict[str, Any]:
    value = {"block": each.block, "index": each.index, "judgement": str(each.judgement), "reason": each.reason}
    if each.apart is None:
        return {**value, "apart": None}
    return {**value, "apart": {**vars(each.apart), "steps": {str(k): v for k, v in each.apart.steps.items()}}}
