"""`audit CHECKPOINT`: tune chosen blocks again, given what the published blocks before them give, and compare.

One worker goes through the blocks in order, with the base's weights and with the published codes; what each chosen
block is given is handed to a worker pool, which tunes it. No worker judges itself: its tensors are compared here. So
is all that is not tuned, whatever blocks were chosen, and that needs no worker (`audit.untuned`).
"""

import re
import reprlib
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from requant.audit import portable
from requant.audit.challenge import Challenge
from requant.audit.distance import Distance, distance
from requant.audit.pool import Local, Setting, WorkerPool
from requant.audit.retuned import Audit, Judgement, Retuned, judge, settle
from requant.audit.untuned import NAMED, Untuned, compare, derive, short, tuned
from requant.build import beside, recorded, words
from requant.checkpoint.checkpoint import Checkpoint, Tensor, open_checkpoint
from requant.checkpoint.files import folded, listing
from requant.checkpoint.manifest import Manifest, make_manifest
from requant.checkpoint.safetensors import Spec
from requant.digest import sha256_file, strict_json
from requant.errors import BuildError, CheckpointError, RecipeError, UsageError
from requant.evidence.journal import Block, Journal, read_journal
from requant.evidence.statements import differing, environment_of, hardware_of
from requant.formats import TENSORS
from requant.model.rules import SIZES
from requant.model.target import Target, target_of
from requant.passes import Context
from requant.progress import Progress, Tell, counted, silent
from requant.protocol import BLOCK, HINTED, HINTS, INPUTS, REPORT, Hinted, Passed, Replay, Report, label, passed, read
from requant.recipe import Recipe

GLANCE = 0.1
"""Seconds between two looks at the workers."""

WAITING = 2
"""Block inputs that wait on disk for a free worker, at most: 8.6 GB each at full scale."""

_VERSION = re.compile(r"\d[\w.+!-]{0,63}", re.ASCII)

MakePool = Callable[[Setting, Path], WorkerPool]


@dataclass(frozen=True)
class Reference:
    """What is known of the build that is audited: its journal, and the hardware class of its statement."""

    journal: Path | None
    statement: Path | None

    @cached_property
    def lines(self) -> Journal | None:
        """The journal, chain confirmed."""
        return read_journal(self.journal) if self.journal else None

    @cached_property
    def stated(self) -> tuple[str, Mapping[str, Any]] | None:
        """The environment and the hardware class of the statement."""
        return (environment_of(self.statement), hardware_of(self.statement)) if self.statement else None

    def confirm(self) -> None:
        """Raise CheckpointError where one of them cannot be read: before hours of tuning, not after."""
        _ = self.lines, self.stated

    @property
    def environment(self) -> str | None:
        """The digest of the build's environment; None where nothing says."""
        if self.lines:
            return self.lines.header.environment
        return self.stated[0] if self.stated else None

    def doubt(self, setting: Setting, hardware: Mapping[str, Any]) -> str:
        """Say why other codes from the same decisions would prove nothing here; the empty text where they would."""
        if self.environment != setting.environment.digest:
            return "another environment than the build's"
        if self.stated is None:
            return "the build's hardware class is not known: it has no statement"
        return portable.unlike_devices(self.stated[1], hardware)

    def unlike(self, setting: Setting, hardware: Mapping[str, Any]) -> str:
        """Say why other bits would prove nothing here; the empty text where they would."""
        if self.environment not in (None, setting.environment.digest):
            return "another environment than the build's"
        theirs = self.stated[1] if self.stated else None
        if theirs is None:
            return "the build's hardware class is not known: it has no statement"
        for key in differing(theirs, hardware):
            return f"another hardware class than the build's: {reprlib.repr(key)} is {hardware.get(key)!r}"
        return ""


def known(
    recipe: Recipe, tiny: str | None, checkpoint: Path, named: Path | None = None, *, compared: bool = True
) -> Reference:
    """Return what is known of the build that a checkpoint is said to be, as `reference` does.

    What is recorded decides: what a publisher has put beside the checkpoint is looked at only where nothing is. With a
    `named` journal goes the statement beside it, or the recorded one where none is there.
    """
    journals = [named] if named else [recorded(recipe, tiny, "journal.jsonl"), beside(checkpoint, "journal.jsonl")]
    journal = next((path for path in journals if named or path.exists()), None)
    return reference(journal, otherwise=recorded(recipe, tiny, "intoto.jsonl"), compared=compared)


def reference(journal: Path | None, *, otherwise: Path | None = None, compared: bool = True) -> Reference:
    """Return what a journal and the statement beside it say: `x.journal.jsonl`, `x.intoto.jsonl`.

    `otherwise` is the statement where none stands beside it. Where the journal is not to be `compared`, the statement
    alone: it names environment and hardware class.
    """
    statements = [journal.with_name(journal.name.replace("journal.jsonl", "intoto.jsonl"))] if journal else []
    statements += [otherwise] if otherwise else []
    statement = next((path for path in statements if path.exists() and path != journal), None)
    return Reference(journal if compared else None, statement)


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
    _confirm_form(checkpoint, open_checkpoint(checkpoint).tensors, target, recipe, tiny)
    _confirm_journal(reference, recipe, tiny, list(target.plan.blocks))


def _confirm_chosen(recipe: Recipe, names: Sequence[str], chosen: tuple[int, ...]) -> None:
    if not chosen or not all(0 <= number < len(names) for number in chosen):
        raise UsageError(f"there are blocks 0 to {len(names) - 1}", "Name some of them, or --all.")
    if recipe.tuning.patience != -1:
        raise RecipeError(
            f"{recipe.path}: tuning.patience is {recipe.tuning.patience}: what a block draws then "
            "depends on the losses of all before it, and only a rebuild can repeat it"
        )


def _meant(target: Target) -> dict[str, Spec]:
    return {name: spec for name, spec in target.main.items() if name.endswith(TENSORS)}


def _fault(published: Mapping[str, Tensor], target: Target) -> str:
    """Say which tensor is not of the form that a recipe means, "" where all are.

    A replay takes the codes of every layer of a block that has some, so there must be no more of them either.
    """
    packed, inside = _meant(target), tuple(f"{block}." for block in target.plan.blocks)
    codes = {name for name in published if name.startswith(inside) and name.endswith(".qweight")}
    for name in sorted(packed.keys() | codes):
        spec, found = packed.get(name), published[name].spec if name in published else None
        if found != spec:
            return f"{name} is {found or 'not there'}, the recipe means {spec or 'no such tensor'}"
    return ""


def _confirm_form(
    folder: Path, published: Mapping[str, Tensor], target: Target, recipe: Recipe, tiny: str | None
) -> None:
    if not (fault := _fault(published, target)):
        return
    advice = "Only a checkpoint of this recipe's form can be tuned again: requant inspect, requant check."
    for size in (None, *SIZES):
        if size != tiny and (other := _planned(recipe, size)) and not _fault(published, other):
            form = f"the recipe's tiny model {size}: add{words(size)}" if size else "the full build: leave --tiny out"
            advice = f"It has the form of {form}."
    raise CheckpointError(f"{folder}: {fault}", advice)


def _planned(recipe: Recipe, tiny: str | None) -> Target | None:
    try:
        return target_of(recipe, tiny)
    except RecipeError:
        return None  # there is no plan of this size


def _confirm_journal(reference: Reference, recipe: Recipe, tiny: str | None, names: Sequence[str]) -> None:
    if not (journal := reference.lines):
        return
    header = journal.header
    for what, theirs, ours in (
        ("recipe", header.recipe, recipe.digest),
        ("tiny", header.tiny, tiny),
        ("blocks", header.blocks, len(names)),
        ("names", [line.block for line in journal.blocks], names),
    ):
        if theirs != ours:
            raise CheckpointError(f"{reference.journal}: is of another {what}: {theirs}, expected {ours}")


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
    audited = _Audited(checkpoint, setting, reference, hints)
    _confirm_chosen(setting.recipe, audited.names, chosen)
    manifest, companions = audited.manifest(tell), audited.companions()
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work, prefix="audit-") as name:
        found, worker = _tune(audited, chosen, make_pool, Path(name), tell)
    return Audit(
        recipe=setting.recipe.digest,
        tiny=setting.tiny,
        environment=setting.environment.digest,
        base=setting.inputs.base_digest,
        journal=sha256_file(reference.journal) if reference.journal else None,
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
        portable=hints is not None,
    )


def _tune(
    audited: "_Audited", chosen: tuple[int, ...], make_pool: MakePool, work: Path, tell: Tell
) -> tuple[tuple[Retuned, ...], Report]:
    found: dict[int, Retuned] = {}
    left = set(chosen)
    given: set[int] = set()
    with make_pool(audited.setting, work / "pool") as pool:
        files = tuple(str(path.resolve()) for path in audited.files)
        hints = audited.hints.resolve() if audited.hints else None
        task = Replay(audited.setting.tuning, files, tuple(sorted(chosen)), WAITING, str(hints) if hints else None)
        readable = sorted({path.resolve().parent for path in audited.files})  # in the Hub's cache, the blobs
        readable += [hints] if hints else []
        with audited.setting.start(work / "replay", task, *readable) as chain:
            while left:
                running = chain.poll()
                lines = passed(chain.folder)
                if (astray := audited.astray(lines)) is not None:
                    hardware = read(chain.folder / REPORT, Report).hardware
                    for each in audited.unjudged(astray, lines[astray], left, hardware):
                        found.setdefault(each.index, each)
                    left = {number for number in left if number < astray}
                for number in sorted(number for number in left - given if number < len(lines)):
                    block_inputs = chain.folder / INPUTS / label(number)
                    if not pool.free() or not block_inputs.exists():
                        break
                    if hints:
                        shutil.copyfile(hints / label(number), block_inputs / HINTS)
                    pool.give(number, block_inputs)
                    given.add(number)
                for number, answer in pool.take():
                    if number not in left:  # given before it was known that its inputs are not the journal's
                        continue
                    found[number] = audited.judged(number, answer, _same_hardware(chain.folder, answer))
                    shutil.rmtree(answer)
                    left.discard(number)
                tell(Progress("audit", len(set(chosen) & found.keys()), len(chosen)))
                if not running:
                    chain.confirm()
                    if not all((chain.folder / INPUTS / label(number)).exists() for number in left - given):
                        raise BuildError("the replaying worker has ended before all chosen blocks", "Report this.")
                time.sleep(GLANCE)
            report = read(chain.folder / REPORT, Report)
    judged = tuple(found[number] for number in sorted(found))
    return (judged if audited.lines else settle(judged)), report


def _same_hardware(chain: Path, answer: Path) -> Mapping[str, Any]:
    """Return the hardware class of both; an audit speaks of one, so another one is a BuildError, and no verdict."""
    expected, found = (read(folder / REPORT, Report).hardware for folder in (chain, answer))
    for key in differing(expected, found):
        raise BuildError(
            f"a block was tuned on another hardware class than its inputs were made on: {key} is "
            f"{found.get(key)!r}, here {expected.get(key)!r}",
            "Audit on machines of one class.",
        )
    return expected


class _Audited:
    """A checkpoint under audit, beside what it should be."""

    def __init__(self, folder: Path, setting: Setting, reference: Reference, hints: Path | None = None) -> None:
        self.folder, self.setting, self.reference, self.hints = folder, setting, reference, hints
        self.base = open_checkpoint(setting.inputs.base)
        self.names = setting.names
        self.checkpoint = open_checkpoint(folder)
        self.published = self.checkpoint.tensors
        self.files = [folder / name for name in self.checkpoint.shards]
        self.packed = _meant(setting.target)
        _confirm_form(folder, self.published, setting.target, setting.recipe, setting.tiny)
        _confirm_journal(reference, setting.recipe, setting.tiny, self.names)
        self._compared: dict[int, str] = {}
        self.lines: tuple[Block, ...] = reference.lines.blocks if reference.lines else ()
        if reference.lines and reference.lines.header.base != setting.inputs.base_digest:
            raise CheckpointError(
                f"{reference.journal}: is of another base: {reference.lines.header.base}, "
                f"expected {setting.inputs.base_digest}"
            )

    def manifest(self, tell: Tell) -> Manifest:
        """Hash the checkpoint."""
        total = sum(tensor.spec.nbytes for tensor in self.published.values())
        return make_manifest(self.folder, counted(tell, "hash", total))

    def companions(self) -> tuple[str, ...]:
        """Return what lies in the folder and is no file of the checkpoint, as a statement can hold it."""
        names = [short(name) for name in folded(listing(self.folder).companions)]
        return tuple(names if len(names) <= NAMED else [*names[:NAMED], f"and {len(names) - NAMED:,} more"])

    def untuned(self, manifest: Manifest, autoround: str) -> Untuned:
        """Compare all that is not tuned; `autoround` is what AutoRound here would state as its version.

        It is the one thing of the checkpoint that the environment decides. So in another one than the build's it cannot
        be judged: then it stays open.
        """
        stated, unsure = self._stated(), ""
        if self.reference.environment != self.setting.environment.digest and stated not in (None, autoround):
            unsure = f"it states AutoRound {stated}, here it is {autoround}: only the build's environment can tell"
            autoround = str(stated)
        recipe = self.setting.recipe
        context = Context(
            self.base, self.setting.target, recipe, recipe.effort(self.setting.tiny is not None), autoround
        )
        return compare(self.folder, manifest, derive(context), tuned(context), unsure=unsure)

    def _stated(self) -> str | None:
        try:
            version = strict_json(self.checkpoint.file("quantization_config.json"))["autoround_version"]
        except (CheckpointError, ValueError, KeyError, TypeError):
            return None  # and whatever stands there instead is a deviation
        return version if isinstance(version, str) and _VERSION.fullmatch(version) else None

    def astray(self, lines: Sequence[Passed]) -> int | None:
        """Return the first block whose inputs, as they were replayed, are not the journal's, or not known."""
        if self.hints:
            return next((number for number, line in enumerate(lines) if line.lost), None)
        for number, (line, expected) in enumerate(zip(lines, self.lines, strict=False)):
            if line.inputs != expected.inputs or line.random_state != expected.random_state:
                return number
        return None

    def unjudged(self, number: int, line: Passed, left: set[int], hardware: Mapping[str, Any]) -> list[Retuned]:
        """Judge what block `number` leaves open: nothing of the blocks from it on, and of the one before it this much.

        Where of all that it is given the quantized stream alone is not the journal's, the published codes of the block
        before do not give what the journal's did: that block has changed, and needs no tuning to be judged.
        """
        if line.lost:
            reason = f"what it is given is not known: {line.lost}"
            return [Retuned(self.names[each], each, Judgement.INCONCLUSIVE, reason) for each in left if each >= number]
        unlike = self.reference.unlike(self.setting, hardware)
        expected = self.lines[number].inputs
        found = []
        ours = line.inputs
        unequal = {key for key in ours.keys() | expected.keys() if ours.get(key) != expected.get(key)}
        if number and number - 1 not in left and unequal == {"quantized"}:
            judgement = Judgement.INCONCLUSIVE if unlike else Judgement.DIFFERENT
            reason = "its published codes do not give the journal's outputs" + (f"; {unlike}" if unlike else "")
            found.append(Retuned(self.names[number - 1], number - 1, judgement, reason))
        found += [
            judge(self.names[each], each, inputs_agree=False, outputs_agree=None, distance=None, unlike=unlike)
            for each in left
            if each >= number
        ]
        return found

    def judged(self, number: int, answer: Path, hardware: Mapping[str, Any]) -> Retuned:
        """Compare a block's packed tensors, tuned again, with the published ones, and its record with the journal's."""
        name = self.names[number]
        if self.hints:
            return self._followed(number, answer, hardware)
        record = read(answer / BLOCK, Block)
        inputs_agree = outputs_agree = None
        if self.lines:
            line = self.lines[number]
            inputs_agree = record.inputs == line.inputs and record.random_state == line.random_state
            ours = record.outputs, record.loss, record.tensors
            outputs_agree = ours == (line.outputs, line.loss, line.tensors)
        return judge(
            name,
            number,
            inputs_agree=inputs_agree,
            outputs_agree=outputs_agree,
            distance=self._distance(name, answer),
            unlike=self.reference.unlike(self.setting, hardware),
        )

    def _distance(self, block: str, answer: Path) -> Distance | None:
        again = _packed(answer)
        mine = [each for each in self.packed if each.startswith(f"{block}.")]
        return distance(
            {each: again[each] for each in mine},
            {each: self.published[each] for each in mine},
            lambda name: self.setting.target.form_at(name).bits,
        )

    def _followed(self, number: int, answer: Path, hardware: Mapping[str, Any]) -> Retuned:
        """Judge a block that was tuned by hints: what it was given is the build's where all codes before it are."""
        name, hinted = self.names[number], read(answer / HINTED, Hinted)
        ended = not (hinted.beyond or hinted.inconclusive)
        before = next((each for each in range(number) if self._unlike(each)), None)
        doubt = self.reference.doubt(self.setting, hardware)
        if before is not None:
            doubt = f"{self.names[before]}, before it, has not the codes of the journal"
        return portable.judge(
            name,
            number,
            hinted,
            self._distance(name, answer) if ended else None,
            unlike=self._unlike(number),
            doubt=doubt,
        )

    def _unlike(self, number: int) -> str:
        if number not in self._compared:
            self._compared[number] = portable.unlike(self.lines[number], self.published)
        return self._compared[number]


def _packed(answer: Path) -> Mapping[str, Tensor]:
    found: Checkpoint = open_checkpoint(answer)
    return found.tensors
