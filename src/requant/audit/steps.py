"""Challenge, respond, judge: single steps of a build in bfloat16, opened by its builder, held against own gradients.

A challenge is drawn from a public text and the journal, in which the build has committed to all its steps. The builder
tunes the drawn blocks again, as far as need be, and reveals what the drawn steps begin with and what they decided. The
auditor needs neither that hardware nor the blocks before: what a block is given is revealed too, and follows, but for
rounding, from what the block before is given. docs/portable.md has the proof and what is left to a liar.
"""

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from requant.audit import finished, same_hardware
from requant.audit.audited import Audited
from requant.audit.challenge import MAX_TEXT, STEPS_SCHEMA, StepChallenge, draw_steps
from requant.audit.pool import REPLAY, MakePool, Setting, answers
from requant.audit.references import Reference
from requant.audit.response import CHALLENGE, assemble, confirm
from requant.audit.retuned import Audit, Retuned
from requant.digest import read_whole, sha256_file, strict_json
from requant.errors import BuildError, CheckpointError, UsageError
from requant.evidence.journal import Journal
from requant.progress import Progress, Tell
from requant.protocol import (
    HINTED,
    HINTS,
    REPORT,
    REVEALED,
    STEPS,
    Connect,
    Passed,
    Replay,
    Report,
    Steps,
    label,
    read,
    write,
)
from requant.recipe import Recipe
from requant.records import record

MAX_CHALLENGE = 1 << 24


def challenge(recipe: Recipe, tiny: str | None, reference: Reference, text: str, count: int) -> StepChallenge:
    """Draw steps of the build whose journal this is.

    Raises UsageError where it has not committed to its steps, or nobody can judge them.
    """
    lines, effort = _committed(recipe, tiny, reference), recipe.effort(tiny is not None)
    names = [line.block for line in lines.blocks]
    assert reference.journal  # noqa: S101 (there are lines)
    return draw_steps(text, sha256_file(reference.journal), names, effort.iterations, count)


def _committed(recipe: Recipe, tiny: str | None, reference: Reference) -> Journal:
    lines, effort = reference.lines, recipe.effort(tiny is not None)
    if effort.precision != "bfloat16":
        raise UsageError(
            f"{recipe.path}: builds in {effort.precision}, whose steps are not committed to",
            "Tune whole blocks again, on any hardware: requant audit --portable.",
        )
    if not lines or not all(line.hints and line.loss for line in lines.blocks):
        raise UsageError(
            "there is no journal of a build with hints",
            "A recipe asks for them: hints = true under [tuning]. Without, audit on the build's hardware class.",
        )
    return lines


def read_challenge(path: Path, recipe: Recipe, tiny: str | None, reference: Reference) -> StepChallenge:
    """Read a challenge, and draw it again. Raises CheckpointError where it is none, or not of this journal."""
    try:
        data = read_whole(path, MAX_CHALLENGE)
        value = strict_json(data)
        if not isinstance(value, dict) or value.pop("schema", None) != STEPS_SCHEMA:
            raise ValueError(f"not of the form {STEPS_SCHEMA}")
        found = record(StepChallenge, value)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not a challenge: {str(error)[:MAX_TEXT]}") from None
    try:
        again = challenge(recipe, tiny, reference, found.text, len(found.steps))
    except UsageError as error:
        raise CheckpointError(f"{path}: not a challenge of this build: {error}", error.advice) from None
    if found.journal != again.journal:
        raise CheckpointError(
            f"{path}: a challenge to another journal: {found.journal[:MAX_TEXT]}, here {again.journal}"
        )
    if again.to_json() != data:
        raise CheckpointError(f"{path}: its text does not draw these steps, or it is not in its one form")
    return found


def opened(asked: StepChallenge, lines: Journal) -> dict[int, Steps]:
    """Return what is to be opened of each drawn block: what is drawn, and the best iteration, which gives its codes."""
    losses = {index: line.loss for index, line in enumerate(lines.blocks) if line.loss}
    return {
        index: Steps(tuple(sorted({*drawn, loss.best_iteration})), loss.initial, loss.best)
        for index, drawn in sorted(asked.by_block.items())
        if (loss := losses[index])
    }


def respond(
    checkpoint: Path,
    setting: Setting,
    reference: Reference,
    asked: StepChallenge,
    *,
    out: Path,
    make_pool: MakePool,
    work: Path,
    tell: Tell,
) -> tuple[str, ...]:
    """Tune the drawn blocks again, on the build's hardware class, and reveal what is asked for; return the blocks.

    A response that was begun in `out` is gone on with.

    Raises UsageError where `out` is something else, BuildError where a worker fails or this is not the build's class.
    """
    lines = _committed(setting.recipe, setting.tiny, reference)
    audited = Audited(checkpoint, setting, reference)
    wanted = opened(asked, lines)
    if out.exists() and (not (out / CHALLENGE).is_file() or (out / CHALLENGE).read_bytes() != asked.to_json()):
        raise UsageError(f"{out}: is there, and no response to this challenge", "Name another --out.")
    out.mkdir(parents=True, exist_ok=True)
    (out / CHALLENGE).write_bytes(asked.to_json())
    left = {number for number in wanted if not (out / label(number)).exists()}
    done = len(wanted) - len(left)
    if left:
        inputs = left | {number - 1 for number in left if number}
        with tempfile.TemporaryDirectory(dir=work, prefix="respond-") as name:
            parts = Path(name) / "parts"

            def dress(number: int, block_inputs: Path) -> bool:
                shutil.copytree(block_inputs, parts / label(number), copy_function=os.link)
                if number in left:
                    write(block_inputs / STEPS, wanted[number])
                return number in left

            def watch(chain: Path, passed: Sequence[Passed], _: set[int]) -> set[int]:
                tell(Progress("respond", done, len(wanted)))
                if (chain / REPORT).exists():
                    hardware = read(chain / REPORT, Report).hardware
                    if unlike := reference.unlike(setting, hardware):
                        raise BuildError(f"only the build's own numerics repeat its bits: {unlike}", "Respond there.")
                if (astray := audited.astray(passed)) is not None:
                    raise BuildError(
                        f"{audited.names[astray]}: is not given here what the journal says", "Is this its checkpoint?"
                    )
                return set()

            task = Replay(setting.tuning, audited.paths, tuple(sorted(inputs)), 2, reveal=True)
            for number, answer in answers(setting, task, audited.folders, make_pool, Path(name), dress, watch):
                assemble(out, number, parts, answer, Path(name) / REPLAY / REVEALED)
                done += 1
                tell(Progress("respond", done, len(wanted)))
    return tuple(audited.names[number] for number in wanted)


def confirm_response(
    response: Path, recipe: Recipe, tiny: str | None, reference: Reference, asked: StepChallenge
) -> None:
    """Raise CheckpointError unless a folder holds a response to a challenge, in its form: see `response`."""
    lines = _committed(recipe, tiny, reference)
    iterations = {number: each.opened for number, each in opened(asked, lines).items()}
    confirm(response, asked.to_json(), recipe.effort(tiny is not None), lines, iterations)


def judge(
    checkpoint: Path,
    setting: Setting,
    reference: Reference,
    asked: StepChallenge,
    response: Path,
    *,
    hints: Path,
    auditor: str,
    make_pool: MakePool,
    work: Path,
    tell: Tell,
) -> Audit:
    """Compute the drawn steps from what was revealed, on whatever hardware this is, and judge the drawn blocks.

    Raises CheckpointError where the response is none to this challenge, or its files are not of the form that they must
    have; BuildError where a worker fails.
    """
    lines = _committed(setting.recipe, setting.tiny, reference)
    audited = Audited(checkpoint, setting, reference, hints)
    wanted = opened(asked, lines)
    response = response.resolve()
    confirm_response(response, setting.recipe, setting.tiny, reference, asked)
    found: dict[int, Retuned] = {}
    manifest, companions = audited.manifest(tell), audited.companions()

    def dress(number: int, block_inputs: Path) -> bool:
        if (block_inputs / HINTED).exists():
            judged(number, block_inputs, read(place / REPLAY / REPORT, Report).hardware)
            return False
        shutil.copytree(response / label(number) / REVEALED, block_inputs / REVEALED)
        shutil.copyfile(hints / label(number), block_inputs / HINTS)
        write(block_inputs / STEPS, wanted[number])
        return True

    def watch(*_: object) -> set[int]:
        tell(Progress("judge", len(found), len(wanted)))
        return set()

    def judged(number: int, answer: Path, hardware: Mapping[str, Any]) -> None:
        found[number] = audited.followed(number, answer, hardware, (number - 1,) if number else ())

    with tempfile.TemporaryDirectory(dir=work, prefix="judge-") as name:
        place = Path(name)
        task = Connect(setting.tuning, audited.paths, tuple(wanted), 2, str(hints.resolve()), str(response))
        readable = [*audited.folders, hints.resolve(), response]
        for number, answer in answers(setting, task, readable, make_pool, place, dress, watch):
            judged(number, answer, same_hardware(place / REPLAY, answer))
        report = read(place / REPLAY / REPORT, Report)
    blocks = tuple(found[number] for number in sorted(found))
    return finished(audited, manifest, companions, report, blocks, auditor=auditor, challenge=None, steps=asked)
