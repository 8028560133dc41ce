"""`python -m requant.quantizer FOLDER`: tune what `FOLDER/request.json` asks for, write the answer beside it."""

import json
import resource
import sys
import time
from importlib import metadata
from pathlib import Path

from requant.errors import RequantError
from requant.journal import Header, Writer
from requant.quantizer import calibration, determinism, hooks, tuning
from requant.recipe import read_recipe


def main(folder: Path) -> None:
    """Do what the request asks for: `raw/` gets AutoRound's output, `journal.jsonl` a line per block."""
    request = json.loads((folder / "request.json").read_text())
    recipe = read_recipe(folder / "recipe.toml")
    effort = recipe.effort(twin=request["twin"] is not None)
    determinism.prepare(effort.device)
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
    determinism.confirm(autoround, effort.device, effort.precision)
    tuning.confirm(autoround, recipe, effort)
    blocks = sum(len(names) for names in autoround.quant_block_list)
    header = Header(
        recipe=recipe.digest,
        twin=request["twin"],
        environment=request["environment"],
        base=request["base_digest"],
        calibration=tokens.digest,
        blocks=blocks,
    )
    prepared = time.monotonic()
    with (
        Writer(folder / "journal.jsonl", header) as journal,
        hooks.listening(autoround, journal.append) as heard,
    ):
        autoround.quantize_and_save(str(folder / "raw"), format="auto_round")
    determinism.confirm(autoround, effort.device, effort.precision)
    tuning.confirm(autoround, recipe, effort)
    if heard.recorded != blocks:
        raise RequantError(f"AutoRound tuned {heard.recorded} of {blocks} blocks")
    report = {
        "hardware": determinism.hardware_class(effort.device, effort.precision),
        "versions": {name: metadata.version(name) for name in ("auto-round", "torch", "transformers")},
        "absent": list(determinism.AUTOTUNED),
        "seconds": {
            "preparing": round(prepared - started, 3),
            "tuning": [round(seconds, 3) for seconds in heard.tuning],
            "listening": round(heard.listening, 3),
            "total": round(time.monotonic() - started, 3),
        },
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_device_memory_bytes": _peak_device_memory(effort.device),
    }
    (folder / "room.json").write_text(json.dumps(report))


def _peak_device_memory(device: str) -> int:
    if device == "cpu":
        return 0
    import torch

    return int(torch.cuda.max_memory_allocated())


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except RequantError as error:
        Path(sys.argv[1], "error.json").write_text(json.dumps({"message": str(error), "advice": error.advice}))
        raise SystemExit(error.exit_status) from None
