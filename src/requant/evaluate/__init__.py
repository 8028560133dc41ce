"""`evaluate CHECKPOINT --base BASE`: how far the model is from its base's, on text that neither was made with.

The worker runs the base and keeps its logits, then the checkpoint's weights, decoded, in the class of the base. What
is measured, and what it does not show: docs/evaluate.md.
"""

import math
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from requant.build.workplace import alone, set_up
from requant.check.reader import Folder, Reader
from requant.checkpoint.files import SUFFIX
from requant.digest import canonical_json, sha256, sha256_file
from requant.environment import Environment
from requant.environment.image.engine import Limits
from requant.environment.install import cache
from requant.environment.syntax import meaning
from requant.errors import CheckpointError, NotAvailableError, UsageError
from requant.evaluate.evaluation import Digests, Evaluation, Precision, Settings
from requant.evaluate.measures import MEASURES, measured, measures
from requant.evaluate.opened import Arranged, arrange, of_mtp
from requant.evidence.outcomes import identity
from requant.hub.pinned import pins_for
from requant.model.tiny import calibration_text
from requant.progress import Progress, Tell, silent
from requant.protocol import LOGITS, REPORT, SCORED, TOKENS, Evaluate, Report, Scored, Sequences, label, read
from requant.recipe import Hardware, Recipe
from requant.sandbox.choice import Chosen, choose_for
from requant.sandbox.running import run_worker

HELD_OUT = "held_out.jsonl"
OWN = (32, 256)
"""Sequences of requant's own text, and tokens of each: enough for tiny models, whose tokens are bytes."""
USUAL = (64, 512)
"""Sequences of another text, and tokens of each."""
GIB = 1 << 30
HARNESS = ("check", "checkpoint", "evaluate", "formats", "model/gguf.py", "rounding/kernels.py")
"""What of the host has a part in a result: it reads, decodes and computes."""
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Text:
    """The held-out text: where it lies, and its SHA-256."""

    path: Path
    sha256: str


def held_out(path: Path | None, recipe: Recipe | None = None) -> Text:
    """Return a text, requant's own without a path.

    Raises UsageError for one that the recipe, or any tiny model, is calibrated on; CheckpointError where there is none.
    """
    found = path or Path(str(resources.files(__name__).joinpath(HELD_OUT)))
    if found.exists() and not found.is_file():
        raise CheckpointError(f"{found}: no regular file", "Name a text: JSON lines or Parquet.")  # nor wait for a pipe
    try:
        text = Text(found.resolve(), sha256_file(found))
    except OSError as error:
        raise CheckpointError(f"{found}: {error.strerror}", "Name a text: JSON lines or Parquet.") from None
    known = {sha256(calibration_text()): "the text that tiny models are calibrated on"}
    if recipe:
        asked = recipe.calibration
        pins = pins_for(recipe.beside(asked.files), asked.dataset, asked.revision, recipe.path)
        known[str(pins.files[asked.file].sha256)] = f"the text that {recipe.path} calibrates on"
    if said := known.get(text.sha256):
        raise UsageError(f"{found}: {said}, and so not held out", "Name another one with --text.")
    return text


def evaluate(
    checkpoint: Reader,
    base: Reader,
    text: Text,
    environment: Environment,
    *,
    samples: int,
    length: int,
    precision: Precision = "float32",
    device: Device = "cpu",
    sandbox: str = "auto",
    tell: Tell = silent,
) -> Evaluation:
    """Measure a checkpoint that is here against its base, in an environment's worker.

    The base's logits are kept in the cache for other checkpoints; what was stopped is gone on with. Raises
    NotModelledError and CheckpointError as `arrange` does, CheckpointError for logits that are no numbers,
    NotAvailableError where the disk is too small, BuildError where the worker fails.
    """
    tell(Progress("read both"))
    arranged = arrange(checkpoint, base)
    (theirs, weights), (ours, _) = _digests(checkpoint), _digests(base)
    settings = Settings(samples, length, precision, device, environment.name)
    key = sha256(canonical_json([ours, text.sha256, *vars(settings).values(), environment.digest]))
    place = cache() / "evaluations" / key
    with alone(place):
        reference, work = place / "reference", place / theirs
        work.mkdir(exist_ok=True)
        tell(Progress("held-out text", note=_costs(arranged, base, settings, reference)))
        gpu = Hardware("cuda", "", 1 + arranged.nbytes(precision) // GIB, 1, 0.0) if device == "cuda" else None
        memory = 8 + 2 * arranged.nbytes(precision) // GIB
        chosen = choose_for(environment, Limits(memory, 8, 8), gpu, sandbox, tell)
        try:
            drafts = bool(of_mtp(base))
            run = _Run(chosen, text, settings, tell)
            known = run.score("run the base", reference, Path(base.name), mtp=drafts)
            arranged.write(work / "opened", precision, tell)
            found = run.score("run the checkpoint", work, work / "opened", mtp=arranged.mtp, held_against=reference)
            sequences = read(reference / TOKENS, Sequences)
            reports = [read(each / REPORT, Report) for each in (reference, work)]
        except CheckpointError:
            shutil.rmtree(work)  # what was opened is no use to anybody
            raise
        shutil.rmtree(work)
    rows = measured(sequences.texts, known, found)
    values = measures(rows, length - 1)
    for name, each in values.items():
        if not math.isfinite(each.value + each.low + each.high):
            told = f"{checkpoint.name}: {MEASURES[name].label}: {each.value}, from {each.low} to {each.high}"
            raise CheckpointError(told, "A model that is so far off is damaged: `requant check` says where.")
    return Evaluation(
        requant=version("requant"),
        digests=Digests(
            base=ours,
            checkpoint=weights,
            checkpoint_files=theirs,
            text=text.sha256,
            tokens=sha256(canonical_json(sequences.tokens)),
            reference=sha256(canonical_json([each.logits for each in known])),
            harness=harness(environment),
        ),
        settings=settings,
        versions=reports[1].versions,
        hardware={"base": reports[0].hardware, "checkpoint": reports[1].hardware},
        taints=chosen.sandbox.taints,
        activations=arranged.activations,
        unread=arranged.unread,
        mtp="both" if arranged.mtp else "base" if drafts else "none",
        measures=values,
        sequences=rows,
    )


def harness(environment: Environment) -> str:
    """Return the digest of what measures: the environment, and what the host's code does, whatever its comments."""
    package = Path(str(resources.files("requant")))
    files = [
        file for name in HARNESS for file in ((package / name).rglob("*.py") if "." not in name else [package / name])
    ]
    host = {file.relative_to(package).as_posix(): sha256(meaning(file.read_bytes())) for file in sorted(files)}
    return sha256(canonical_json({"environment": environment.digest, "host": host}))


def _digests(reader: Reader) -> tuple[str, str]:
    """Return the digest of all files, and that of the files of weights as a manifest has it."""
    if not isinstance(reader.files, Folder):
        raise UsageError(f"{reader.name}: not here, and this reads all of it", "Download it and name the folder.")
    files = reader.files.digests()
    kept = {name: each for name, each in sorted(files.items()) if name.endswith((SUFFIX, ".gguf"))}
    return identity(files), identity(kept)


def _costs(arranged: Arranged, base: Reader, settings: Settings, reference: Path) -> str:
    """Return what will be written, in a line. Raises NotAvailableError where it does not fit."""
    vocabulary = max(
        (place.spec.shape[0] for name, place in base.tensors.items() if name.endswith(VOCABULARY) and place.spec.shape),
        default=0,
    )
    logits = settings.samples * (settings.length - 1) * vocabulary * 4
    opened = arranged.nbytes(settings.precision)
    there = sum(each.stat().st_size for each in (reference / LOGITS).glob("*.safetensors"))
    wanted, free = logits - there + opened, shutil.disk_usage(reference.parent).free
    said = (
        f"logits of the base: {logits / GIB:.2f} GiB, kept in {reference.parent}; "
        f"the checkpoint, opened: {opened / GIB:.2f} GiB, removed in the end"
    )
    if wanted > free:
        told = f"{reference.parent}: {wanted / GIB:.1f} GiB are needed, {free / GIB:.1f} GiB are free"
        raise NotAvailableError(told, f"{said}. Fewer --samples, or a shorter --length, take less.")
    return said


VOCABULARY = ("lm_head.weight", "embed_tokens.weight")


@dataclass(frozen=True)
class _Run:
    """What all runs of an evaluation have in common."""

    chosen: Chosen
    text: Text
    settings: Settings
    tell: Tell

    def score(
        self, stage: str, work: Path, model: Path, *, mtp: bool, held_against: Path | None = None
    ) -> Sequence[Scored]:
        """Return what a model makes of each sequence; those that were scored before are read."""
        total = self.settings.samples
        files = [work / SCORED / f"{label(number)}.json" for number in range(total)]
        seen: dict[int, Scored] = {}

        def watch() -> None:
            for number in range(len(seen), total):
                if not files[number].exists():
                    break
                seen[number] = _finite(read(files[number], Scored), number, stage)
                self.tell(Progress(stage, len(seen), total))

        with suppress(FileNotFoundError):
            watch()
        if len(seen) < total:
            work.mkdir(exist_ok=True)
            asked = Evaluate(
                model=str(model.resolve()),
                text=str(self.text.path),
                samples=total,
                length=self.settings.length,
                precision=self.settings.precision,
                device=self.settings.device,
                accelerator=self.chosen.sandbox.accelerator,
                mtp=mtp,
                reference=str(held_against.resolve()) if held_against else None,
            )
            set_up(work, None, asked)
            self.tell(Progress(stage, len(seen), total))
            readable = [model.resolve(), self.text.path, *([held_against.resolve()] if held_against else [])]
            run_worker(self.chosen.sandbox, work, readable, watch)
        return [seen[number] for number in range(total)]


def _finite(scored: Scored, number: int, stage: str) -> Scored:
    if scored.unbounded:
        told = f"{stage}: sequence {number}: {scored.unbounded:,} logits are no finite numbers"
        raise CheckpointError(told, "Nothing is measured with such a model.")
    return scored
