"""`python -m requant.worker FOLDER`: do what `FOLDER/request.json` asks for, and answer there: `requant.protocol`."""

import os
import resource
import sys
import threading
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from requant import protocol
from requant.errors import BuildError, RequantError
from requant.evidence.journal import Header
from requant.protocol import Answers, Build, Connect, Ended, Evaluate, Replay, Report, Seconds, Spent, Survey, Tune
from requant.recipe import FILE, Recipe, read_recipe
from requant.worker import determinism, evaluate, mtp
from requant.worker.autoround import caching, calibration, hooks, mtp_block, retune, survey, tuning
from requant.worker.autoround.hints import Written
from requant.worker.autoround.series import installed
from requant.worker.resume import ResumeState


def main(folder: Path) -> None:
    """Do the task."""
    task = protocol.asked(folder)
    if isinstance(task, Evaluate):
        evaluate.score(folder, task)
        return
    recipe = read_recipe(folder / FILE)
    if isinstance(task, Survey):
        determinism.prepare("cpu")
        protocol.write(folder / protocol.SURVEY, Answers(_versions(), survey.ask(task, recipe, folder / "counted")))
    else:
        tune(folder, task, recipe)


def tune(folder: Path, task: Build | Tune | Replay | Connect, recipe: Recipe) -> None:
    """Prepare AutoRound as the recipe says and do a task that runs the model."""
    given = task.tuning
    effort = recipe.effort(tiny=given.tiny is not None)
    portable = not isinstance(task, Build) and task.portable
    determinism.prepare(effort.device, capped=not portable)
    determinism.confirm_accelerator(effort.device, given.accelerator)
    determinism.enforce()

    started = time.monotonic()
    model, tokenizer = tuning.load(Path(given.base))
    if recipe.mtp.policy == "calibrated":
        mtp.attach(model, Path(given.base))
    tokens = calibration.choose(
        tokenizer,
        Path(given.text),
        samples=effort.samples,
        length=effort.sequence_length,
        seed=recipe.tuning.seed,
    )
    batches = tokens.batches(recipe.tuning.batch_size)
    autoround = tuning.tuner(model, tokenizer, batches, recipe, effort)
    if recipe.mtp.policy == "calibrated":
        mtp_block.install(autoround, batches)

    def confirm() -> None:
        determinism.confirm(autoround, effort.device, effort.precision, capped=not portable)
        tuning.confirm(autoround, recipe, effort)

    confirm()
    header = Header(
        recipe=recipe.digest,
        tiny=given.tiny,
        environment=given.environment,
        base=given.base_digest,
        calibration=tokens.digest,
        blocks=len(given.blocks),
    )
    report = Report(
        hardware=determinism.hardware_class(effort.device, effort.precision, capped=not portable),
        versions=_versions(),
        absent=determinism.AUTOTUNED,
        autoround_version=tuning.stated_version(),
    )
    protocol.write(folder / protocol.REPORT, report)
    seconds = Seconds(preparing=_since(started), total=0.0)
    with caching.confirmed(autoround), hooks.planned(autoround, given, recipe.scheme):
        match task:
            case Build():
                resume_state = ResumeState(folder / protocol.RESUME, header, report.hardware)
                seconds = build(autoround, recipe, resume_state, folder, effort.precision, seconds)
            case Replay():
                retune.replay(autoround, recipe, effort, task, folder)
            case Connect():
                retune.connect(autoround, recipe, effort, task, folder)
            case Tune():
                retune.tune(autoround, recipe, effort, task, confirm, folder)
    confirm()
    spent = Spent(replace(seconds, total=_since(started)), _peak_memory(), _peak_device_memory(effort.device))
    protocol.write(folder / protocol.REPORT, replace(report, spent=spent))


def build(
    autoround: Any, recipe: Recipe, resume_state: ResumeState, folder: Path, precision: str, seconds: Seconds
) -> Seconds:
    """Tune all blocks that the resume state has not; `raw/` gets AutoRound's output. Return seconds spent."""
    resumed = len(resume_state.done)
    written = Written(precision) if recipe.tuning.hints else None
    with (
        hooks.listening(autoround, resume_state, written=written) as heard,
        hooks.resuming(autoround, resume_state, heard),
    ):
        autoround.quantize_and_save(str(folder / protocol.RAW), format=recipe.scheme.format)
    resume_state.close()
    blocks = len(installed().blocks(autoround))
    if len(resume_state.done) != blocks:
        raise BuildError(f"AutoRound tuned {len(resume_state.done)} of {blocks} blocks", "Report this with the log.")
    return replace(
        seconds,
        resumed=resumed,
        tuning=tuple(round(each, 3) for each in heard.tuning),
        iterations=tuple(round(each, 3) for each in heard.iterations),
        listening=round(heard.listening, 3),
    )


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("auto-round", "torch", "transformers")}


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _peak_device_memory(device: str) -> int:
    if device == "cpu":
        return 0
    import torch

    return int(torch.cuda.max_memory_allocated())


def _end_with_host() -> None:
    """End this process when its standard input ends, which the host holds open as long as it lives."""
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    if os.environ.get(protocol.LEASH) == "1":
        threading.Thread(target=_end_with_host, daemon=True).start()
    try:
        main(Path(sys.argv[1]))
    except RequantError as error:
        protocol.write(Path(sys.argv[1], protocol.ERROR), Ended(str(error), error.advice))
        raise SystemExit(error.exit_status) from None
