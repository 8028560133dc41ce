"""A checkpoint under audit, beside what it should be: its form, its journal, its blocks tuned again."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from requant.audit import portable
from requant.audit.distance import Distance, distance
from requant.audit.pool import Setting
from requant.audit.references import Reference
from requant.audit.retuned import Judgement, Retuned, judge
from requant.audit.untuned import NAMED, Untuned, compare, derive, short, tuned
from requant.build import words
from requant.checkpoint.checkpoint import Checkpoint, Tensor, open_checkpoint
from requant.checkpoint.files import folded, listing
from requant.checkpoint.manifest import Manifest, make_manifest
from requant.checkpoint.safetensors import Spec
from requant.digest import strict_json
from requant.errors import CheckpointError, RecipeError
from requant.evidence.journal import Block
from requant.formats import TENSORS
from requant.model.rules import SIZES
from requant.model.target import Target, target_of
from requant.passes import Context
from requant.progress import Tell, counted
from requant.protocol import BLOCK, HINTED, Hinted, Passed, read
from requant.recipe import Recipe

_VERSION = re.compile(r"\d[\w.+!-]{0,63}", re.ASCII)


def _meant(target: Target) -> dict[str, Spec]:
    return {name: spec for name, spec in target.kept.items() if name.endswith(TENSORS)}


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


def confirm_form(
    folder: Path, published: Mapping[str, Tensor], target: Target, recipe: Recipe, tiny: str | None
) -> None:
    """Raise CheckpointError unless a checkpoint's packed tensors are those that a recipe means, and no others."""
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


def confirm_journal(reference: Reference, recipe: Recipe, tiny: str | None, names: Sequence[str]) -> None:
    """Raise CheckpointError where the journal is of another recipe, another size or other blocks."""
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


class Audited:
    """A checkpoint under audit, beside what it should be."""

    def __init__(self, folder: Path, setting: Setting, reference: Reference, hints: Path | None = None) -> None:
        self.folder, self.setting, self.reference, self.hints = folder, setting, reference, hints
        self.base = open_checkpoint(setting.inputs.base)
        self.names = setting.names
        self.checkpoint = open_checkpoint(folder)
        self.published = self.checkpoint.tensors
        self.files = [folder / name for name in self.checkpoint.shards]
        self.paths = tuple(str(path.resolve()) for path in self.files)
        self.folders = sorted({path.resolve().parent for path in self.files})  # in the Hub's cache, the blobs
        self.packed = _meant(setting.target)
        confirm_form(folder, self.published, setting.target, setting.recipe, setting.tiny)
        confirm_journal(reference, setting.recipe, setting.tiny, self.names)
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
            return self.followed(number, answer, hardware, range(number))
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

    def followed(self, number: int, answer: Path, hardware: Mapping[str, Any], behind: Sequence[int]) -> Retuned:
        """Judge a block that was tuned by hints.

        It was given what the build's was where the codes of the blocks `behind` are the journal's.
        """
        name, hinted = self.names[number], read(answer / HINTED, Hinted)
        ended = not (hinted.beyond or hinted.inconclusive)
        before = next((each for each in behind if self._unlike(each)), None)
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
