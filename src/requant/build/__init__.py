"""`build RECIPE`: make a checkpoint, hash it, and hold it against what was recorded for this recipe.

Nothing appears under the final name before it is complete: everything happens in a folder beside it, and what is
finished is renamed at the end. The worker tunes; what it leaves is examined, finished and hashed here, with the code
that anybody runs who verifies the result.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from requant import passes
from requant.build.inputs import inputs_for
from requant.build.log import publish
from requant.build.workplace import kept, set_up, workplace
from requant.checkpoint.checkpoint import open_checkpoint, write_checkpoint
from requant.checkpoint.manifest import Manifest, make_manifest, read_manifest
from requant.digest import sha256_file
from requant.environment import Environment
from requant.environment.install import cache
from requant.errors import BuildError, CheckpointError, UsageError
from requant.evidence.journal import Follower, Loss
from requant.evidence.statements import Provenance, differing, hardware_of, statement
from requant.model.rules import SIZES
from requant.model.target import target_of
from requant.progress import Progress, Tell, counted, silent
from requant.protocol import HINTS, JOURNAL, RAW, REPORT, RESUME, Build, Report, Spent, read
from requant.recipe import Recipe
from requant.sandbox.choice import choose
from requant.sandbox.running import run_worker
from requant.verdict import Outcome, Verdict
from requant.verify import verify

RECORDED = ("manifest.json", "journal.jsonl", "intoto.jsonl")
"""What stands beside a checkpoint, and beside its recipe once it is recorded: `<stem>.<each>`."""


@dataclass(frozen=True)
class Built:
    """A finished build: the checkpoint's folder, its manifest, and how it compares with the record."""

    folder: Path
    manifest: Manifest
    verdict: Verdict
    taints: tuple[str, ...]
    seconds: dict[str, float]
    worker: Spent
    """What the worker took."""


def beside(folder: Path, name: str) -> Path:
    """Return the path of what is written beside a checkpoint: `ec-demo.manifest.json` beside `ec-tiny`."""
    return folder.with_name(f"{folder.name}.{name}")


def recorded(recipe: Recipe, tiny: str | None, name: str) -> Path:
    """Return where a build's manifest, journal or statement is recorded, in the recipe's folder."""
    return recipe.beside(f"{stem(tiny)}.{name}")


def stem(tiny: str | None) -> str:
    """Return how the files begin that record a full build, or that of a tiny model's size."""
    return tiny or "checkpoint"


def words(tiny: str | None) -> str:
    """Return how a tiny model's size is asked for on the command line: ` --tiny --size mini`; "" is the base itself."""
    return {None: "", "demo": " --tiny"}.get(tiny, f" --tiny --size {tiny}")


def build(
    recipe: Recipe,
    *,
    tiny: str | None,
    out: Path,
    replace_existing: bool = False,
    keep_raw: bool = False,
    fresh: bool = False,
    sandbox: str = "venv",
    endpoint: str | None = None,
    base: Path | None = None,
    text: bytes | None = None,
    instead: str = "",
    tell: Tell = silent,
) -> Built:
    """Build the recipe, or its tiny model of a size in `SIZES`, into the new folder `out`.

    Beside it appear its manifest, journal, statement and log, and with `keep_raw` AutoRound's own output. A build
    that was stopped goes on behind its last whole block, unless it is to be a `fresh` one. `sandbox` is one of
    `sandbox.choice.SANDBOXES`. `base` is the folder where the base stands already. `text` is what a tiny model is tuned
    on in place of its own text: JSON lines. `instead` is advice for a machine that cannot do the full build; without
    it, to build the tiny model.

    Raises UsageError where `out` exists or another build is making it, RecipeError where the recipe does not fit its
    base (before anything is fetched or written), NotAvailableError for what is missing here,
    BuildError where the worker or a pass fails; then `out` does not exist, and the log stands beside it.
    """
    if tiny is not None and tiny not in SIZES:
        raise UsageError(f"--size {tiny}: no such tiny model; there are {', '.join(SIZES)}")
    if out.exists() and not replace_existing:
        raise UsageError(f"{out}: already exists", "Name another folder with --out, or remove this one.")
    if tiny and base:
        raise UsageError("--base names the base of a full build", "A tiny model is made, not taken: leave --base out.")
    target = target_of(recipe, tiny)
    started = datetime.now(UTC)
    effort = recipe.effort(tiny is not None)
    environment = Environment.load(recipe.lockfiles, effort.environment)
    with workplace(out, fresh=fresh) as work:
        inputs = inputs_for(recipe, tiny, base, work, tell, instead, text=text, endpoint=endpoint)
        chosen = choose(recipe, tiny, environment, sandbox, tell)
        unused = recipe.unused() if tiny else ""
        replaced = (f"not used by the tiny model: {unused}",) if unused else ()
        taints = kept(work, (*inputs.taints, *replaced, *chosen.sandbox.taints))
        set_up(work, recipe, Build(inputs.tuning(tiny, environment, chosen.sandbox.accelerator, target.plan)))
        tuning = _timed()
        try:
            run_worker(chosen.sandbox, work, (inputs.base, inputs.text), _watching(work / JOURNAL, tell))
        finally:
            if (work / "log").exists():
                folders = {"work": work, "out": out.resolve().parent, "base": inputs.base, "cache": cache()}
                publish(work / "log", beside(out, "log"), folders)
        report = read(work / REPORT, Report)
        if report.spent is None:
            raise BuildError(f"{work / REPORT}: the worker has ended without saying what it took", "Report this.")
        seconds = {"worker": tuning()}

        finishing = _timed()
        raw = open_checkpoint(work / RAW)
        version_of_autoround = json.loads(raw.file("quantization_config.json"))["autoround_version"]
        context = passes.Context(open_checkpoint(inputs.base), target, recipe, effort, version_of_autoround)
        finished = passes.apply(raw, context)
        write_checkpoint(finished, work / "checkpoint", lambda file: tell(Progress("passes", note=file)))
        seconds["passes"] = finishing()
        hashing = _timed()
        total = sum(tensor.spec.nbytes for shard in finished.shards.values() for tensor in shard.values())
        manifest = make_manifest(work / "checkpoint", counted(tell, "manifest", total))
        seconds["manifest"] = hashing()

        built = Provenance(
            recipe=recipe.digest,
            tiny=tiny,
            environment=environment.digest,
            lock=environment.lock.digest,
            hardware=report.hardware,
            versions=report.versions,
            taints=taints,
            dependencies=inputs.digests,
            journal=sha256_file(work / JOURNAL),
            log=sha256_file(beside(out, "log")),
            started=f"{started:%Y-%m-%dT%H:%M:%SZ}",
            finished=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            worker={"absent": report.absent, **asdict(report.spent)},
            sandbox=chosen.evidence,
            requant=version("requant"),
        )
        subjects = {path: record.sha256 for path, record in manifest.files.items()}
        if keep_raw:
            shutil.rmtree(beside(out, "raw"), ignore_errors=True)
            (work / RAW).rename(beside(out, "raw"))
        if out.exists():
            shutil.rmtree(out)
        beside(out, "manifest.json").write_bytes(manifest.to_json())
        beside(out, "intoto.jsonl").write_bytes(statement(subjects, built))
        shutil.copyfile(work / JOURNAL, beside(out, "journal.jsonl"))
        shutil.rmtree(beside(out, HINTS), ignore_errors=True)
        if recipe.tuning.hints:
            (work / RESUME / HINTS).rename(beside(out, HINTS))
        (work / "checkpoint").rename(out)  # last: what stands under the final name has all its records
        shutil.rmtree(work / RESUME)
    return Built(out, manifest, compare(recipe, tiny, out), taints, seconds, report.spent)


def compare(recipe: Recipe, tiny: str | None, folder: Path, against: Path | None = None) -> Verdict:
    """Hold a build against the recorded one; other bits from another hardware class are inconclusive.

    `against` names another one than the recipe's own: its files stand beside this path.
    """
    against = against or recipe.beside(stem(tiny))
    reference = beside(against, "manifest.json")
    if not reference.exists():
        reason = f"nothing is recorded to compare with: no {reference}"
        if against == recipe.beside(stem(tiny)):
            reason += f"; `requant build {recipe.path.parent}{words(tiny)} --record` records a build as the first"
        return Verdict(Outcome.INCONCLUSIVE, reasons=(reason,))
    verdict = verify(folder, read_manifest(reference))
    if verdict.outcome is not Outcome.DIFFERENT:
        return verdict
    ours = hardware_of(beside(folder, "intoto.jsonl"))
    try:
        theirs = hardware_of(beside(against, "intoto.jsonl"))
    except CheckpointError as error:
        return replace(verdict, outcome=Outcome.INCONCLUSIVE, reasons=(f"no hardware class is recorded: {error}",))
    if ours == theirs:
        return verdict
    reasons = tuple(
        f"another hardware class: {key} is {ours.get(key)!r}, recorded {theirs.get(key)!r}"
        for key in differing(ours, theirs)
    )
    return replace(verdict, outcome=Outcome.INCONCLUSIVE, reasons=reasons)


def record(recipe: Recipe, tiny: str | None, folder: Path) -> tuple[Path, ...]:
    """Record what a build wrote beside its checkpoint; return the files written."""
    written = []
    for name in RECORDED:
        target = recorded(recipe, tiny, name)
        shutil.copyfile(beside(folder, name), target)
        written.append(target)
    return tuple(written)


def _watching(path: Path, tell: Tell) -> Callable[[], None]:
    """Return what tells how far a journal has come; it is called several times a second, for hours.

    Of the blocks that are there already, from which a stopped build goes on, their number is told at once and no more.
    """
    journal = Follower(path)
    journal.read()
    before = len(journal.blocks)
    if journal.header and before:
        tell(Progress(f"resuming after block {before} of {journal.header.blocks}"))

    def watch() -> None:
        journal.read()
        if journal.header is None:
            return tell(Progress("tuning", note="loading model and text"))
        note = ""
        if len(journal.blocks) > before:
            last = journal.blocks[-1]
            note = f"{last.block}: {_loss(last.loss)}"
        return tell(Progress("tuning", len(journal.blocks), journal.header.blocks, note))

    return watch


def _loss(loss: Loss | None) -> str:
    if loss is None:
        return "rounded"
    initial, best = float.fromhex(loss.initial), float.fromhex(loss.best)
    return f"loss {initial:.6f} -> {best:.6f}, best of iteration {loss.best_iteration}"


def _timed() -> Callable[[], float]:
    begin = datetime.now(UTC)
    return lambda: (datetime.now(UTC) - begin).total_seconds()
