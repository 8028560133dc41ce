"""`audit CHECKPOINT`: tune chosen blocks again, given what the published blocks before them give, and compare.

One worker goes through the blocks in order, with the base's weights and with the published codes; what each chosen
block is given is handed to a worker pool, which tunes it. No worker judges itself: its tensors are compared here. So
is all that is not tuned, whatever blocks were chosen, and that needs no worker (`audit.untuned`).
"""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from requant.audit.audited import Audited, confirm_form, confirm_journal
from requant.audit.challenge import Challenge, StepChallenge
from requant.audit.pool import REPLAY, Local, MakePool, Setting, answers
from requant.audit.references import Reference
from requant.audit.retuned import Audit, Retuned, settle
from requant.checkpoint.checkpoint import open_checkpoint
from requant.checkpoint.manifest import Manifest
from requant.digest import sha256_file
from requant.errors import BuildError, RecipeError, UsageError
from requant.evidence.statements import differing
from requant.model.target import target_of
from requant.progress import Progress, Tell, silent
from requant.protocol import HINTS, REPORT, Passed, Replay, Report, label, read
from requant.recipe import Recipe

WAITING = 2
"""Block inputs that wait on disk for a free worker, at most: 8.6 GB each at full scale."""


def names(recipe: Recipe, tiny: str | None) -> list[str]:
    """Return the names of all tuned blocks of a recipe's base, or of its tiny model, in the order of tuning."""
    return list(target_of(recipe, tiny).plan.blocks)


def confirm(recipe: Recipe, tiny: str | None, checkpoint: Path, reference: Reference, chosen: tuple[int, ...]) -> None:
    """Raise all that `audit` would raise and that is known without a worker, a download or an installation.

    Only whether the journal is of this very base is not: that is known once the base is here.
    """
    target = target_of(recipe, tiny)
    _confirm_chosen(recipe, target.plan.blocks, chosen)
    reference.confirm()
    confirm_form(checkpoint, open_checkpoint(checkpoint).tensors, target, recipe, tiny)
    confirm_journal(reference, recipe, tiny, list(target.plan.blocks))


def _confirm_chosen(recipe: Recipe, names: Sequence[str], chosen: tuple[int, ...]) -> None:
    if not chosen or not all(0 <= number < len(names) for number in chosen):
        raise UsageError(f"there are blocks 0 to {len(names) - 1}", "Name some of them, or --all.")
    if recipe.tuning.patience != -1:
        raise RecipeError(
            f"{recipe.path}: tuning.patience is {recipe.tuning.patience}: what a block draws then "
            "depends on the losses of all before it, and only a rebuild can repeat it"
        )


def local(size: int) -> MakePool:
    """Return what makes `size` workers on this machine."""
    return lambda setting, folder: Local(setting, folder, size)


def audit(
    checkpoint: Path,
    setting: Setting,
    reference: Reference,
    *,
    chosen: tuple[int, ...],
    challenge: Challenge | None,
    auditor: str,
    make_pool: MakePool,
    work: Path,
    hints: Path | None = None,
    tell: Tell = silent,
) -> Audit:
    """Tune the `chosen` blocks again, by number from 0, and judge each, and all that is not tuned.

    `work` is a folder for what is on the way; `hints` those of the build, where the setting is a portable one.

    Raises UsageError for a block that there is not, CheckpointError where checkpoint or journal cannot be what they
    are said to be, BuildError where a worker fails.
    """
    audited = Audited(checkpoint, setting, reference, hints)
    _confirm_chosen(setting.recipe, audited.names, chosen)
    manifest, companions = audited.manifest(tell), audited.companions()
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work, prefix="audit-") as name:
        found, worker = _tune(audited, chosen, make_pool, Path(name), tell)
    return finished(audited, manifest, companions, worker, found, auditor=auditor, challenge=challenge)


def finished(
    audited: Audited,
    manifest: Manifest,
    companions: tuple[str, ...],
    worker: Report,
    found: tuple[Retuned, ...],
    *,
    auditor: str,
    challenge: Challenge | None,
    steps: StepChallenge | None = None,
) -> Audit:
    """Return what came of an audit, its blocks being judged; all that is not tuned is compared here."""
    setting, journal = audited.setting, audited.reference.journal
    return Audit(
        recipe=setting.recipe.digest,
        tiny=setting.tiny,
        environment=setting.environment.digest,
        base=setting.inputs.base_digest,
        journal=sha256_file(journal) if journal else None,
        files={path: record.sha256 for path, record in manifest.files.items()},
        companions=companions,
        hardware=worker.hardware,
        challenge=challenge,
        count=len(audited.names),
        blocks=found,
        untuned=audited.untuned(manifest, worker.autoround_version),
        auditor=auditor,
        finished=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        requant=version("requant"),
        portable=audited.hints is not None,
        steps=steps,
    )


def _tune(
    audited: Audited, chosen: tuple[int, ...], make_pool: MakePool, work: Path, tell: Tell
) -> tuple[tuple[Retuned, ...], Report]:
    found: dict[int, Retuned] = {}
    files = audited.paths
    hints = audited.hints.resolve() if audited.hints else None
    task = Replay(audited.setting.tuning, files, tuple(sorted(chosen)), WAITING, str(hints) if hints else None)
    readable = [*audited.folders, *([hints] if hints else [])]

    def dress(number: int, block_inputs: Path) -> bool:
        if hints:
            shutil.copyfile(hints / label(number), block_inputs / HINTS)
        return True

    def watch(chain: Path, lines: Sequence[Passed], left: set[int]) -> set[int]:
        tell(Progress("audit", len(set(chosen) & found.keys()), len(chosen)))
        if (astray := audited.astray(lines)) is None:
            return set()
        hardware = read(chain / REPORT, Report).hardware
        for each in audited.unjudged(astray, lines[astray], left, hardware):
            found.setdefault(each.index, each)
        return {number for number in left if number >= astray}

    for number, answer in answers(audited.setting, task, readable, make_pool, work, dress, watch):
        found[number] = audited.judged(number, answer, same_hardware(work / REPLAY, answer))
    report = read(work / REPLAY / REPORT, Report)
    judged = tuple(found[number] for number in sorted(found))
    return (judged if audited.lines else settle(judged)), report


def same_hardware(chain: Path, answer: Path) -> Mapping[str, Any]:
    """Return the hardware class of two workers' folders.

    An audit speaks of one, so another one is a BuildError, and no verdict.
    """
    expected, found = (read(folder / REPORT, Report).hardware for folder in (chain, answer))
    for key in differing(expected, found):
        raise BuildError(
            f"a block was tuned on another hardware class than its inputs were made on: {key} is "
            f"{found.get(key)!r}, here {expected.get(key)!r}",
            "Audit on machines of one class.",
        )
    return expected
