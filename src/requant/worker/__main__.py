"""`python -m requant.worker FOLDER`: do what `FOLDER/request.json` asks for, write the answer beside it.

The request's `task` is `build` (tune all blocks; what was begun in `resume/` is gone on with), `replay`, `tune`, or
`survey` (say what would be tuned).
"""

import json
import os
import resource
import sys
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from requant.errors import BuildError, RequantError
from requant.evidence.journal import Header
from requant.recipe import Effort, Recipe, read_recipe
from requant.worker import determinism
from requant.worker.autoround import caching, calibration, hooks, retune, survey, tuning
from requant.worker.resume import ResumeState


def main(folder: Path) -> None:
    """Do the task; report in `worker.json`."""
    request = json.loads((folder / "request.json").read_text())
    recipe = read_recipe(folder / "recipe.toml")
    effort = recipe.effort(tiny=request["tiny"] is not None)
    determinism.prepare(effort.device)
    if request["task"] == "survey":
        started = time.monotonic()
        survey.ask(folder, recipe)
        seconds = {"total": round(time.monotonic() - started, 3)}
        _report(folder, {"versions": _versions(), "seconds": seconds, "peak_memory_bytes": _peak_memory()})
    else:
        tune(folder, request, recipe, effort)


def tune(folder: Path, request: dict[str, Any], recipe: Recipe, effort: Effort) -> None:
    """Prepare AutoRound as the recipe says and do a task that tunes or replays."""
    determinism.confirm_accelerator(effort.device, request["accelerator"])
    determinism.enforce()

    started = time.monotonic()
    model, tokenizer = tuning.load(Path(request["base"]))
    tokens = calibration.choose(
        tokenizer,
        Path(request["text"]),
        samples=effort.samples,
        length=effort.sequence_length,
        seed=recipe.tuning.seed,
    )
    autoround = tuning.tuner(model, tokenizer, tokens.batches(recipe.tuning.batch_size), recipe, effort)

    def confirm() -> None:
        determinism.confirm(autoround, effort.device, effort.precision)
        tuning.confirm(autoround, recipe, effort)

    confirm()
    header = Header(
        recipe=recipe.digest,
        tiny=request["tiny"],
        environment=request["environment"],
        base=request["base_digest"],
        calibration=tokens.digest,
        blocks=sum(len(names) for names in autoround.quant_block_list),
    )
    report: dict[str, Any] = {
        "hardware": determinism.hardware_class(effort.device, effort.precision),
        "versions": _versions(),
        "absent": list(determinism.AUTOTUNED),
        "autoround_version": tuning.stated_version(),
    }
    _report(folder, report)
    prepared = time.monotonic()
    seconds: dict[str, Any] = {"preparing": round(prepared - started, 3)}
    plan = request["plan"]
    with caching.confirmed(autoround), hooks.planned(autoround, plan["blocks"], plan["packed"]):
        if request["task"] == "build":
            seconds |= build(autoround, ResumeState(folder / "resume", header, report["hardware"]), folder)
        elif request["task"] == "replay":
            retune.replay(autoround, recipe, request, folder)
        else:
            retune.tune(autoround, confirm, folder)
    confirm()
    seconds["total"] = round(time.monotonic() - started, 3)
    report["seconds"] = seconds
    report["peak_memory_bytes"] = _peak_memory()
    report["peak_device_memory_bytes"] = _peak_device_memory(effort.device)
    _report(folder, report)


def build(autoround: Any, resume_state: ResumeState, folder: Path) -> dict[str, Any]:
    """Tune all blocks that the resume state has not; `raw/` gets AutoRound's output. Return seconds spent."""
    resumed = len(resume_state.done)
    with hooks.listening(autoround, resume_state) as heard, hooks.resuming(autoround, resume_state):
        autoround.quantize_and_save(str(folder / "raw"), format="auto_round")
    resume_state.close()
    blocks = sum(len(names) for names in autoround.quant_block_list)
    if len(resume_state.done) != blocks:
        raise BuildError(f"AutoRound tuned {len(resume_state.done)} of {blocks} blocks", "Report this with the log.")
    return {
        "resumed": resumed,
        "tuning": [round(seconds, 3) for seconds in heard.tuning],
        "iterations": [round(seconds, 3) for seconds in heard.iterations],
        "listening": round(heard.listening, 3),
    }


def _report(folder: Path, report: dict[str, Any]) -> None:
    part = folder / ".worker.json"
    part.write_text(json.dumps(report))
    part.rename(folder / "worker.json")


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
    if os.environ.get("REQUANT_LEASH") == "1":
        threading.Thread(target=_end_with_host, daemon=True).start()
    try:
        main(Path(sys.argv[1]))
    except RequantError as error:
        Path(sys.argv[1], "error.json").write_text(json.dumps({"message": str(error), "advice": error.advice}))
        raise SystemExit(error.exit_status) from None
