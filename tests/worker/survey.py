"""Answer what AutoRound says of the bases of other architectures: `survey FOLDER NAME...`; their weights are zero."""

import json
from pathlib import Path
from typing import Any

from tests.corpus import on_disk
from tests.worker.prepared import ROOT, answer

from requant.model.tiny import tiny
from requant.recipe import read_recipe
from requant.worker.autoround import calibration, survey, tuning


def main(folder: str, *names: str) -> dict[str, Any]:
    """Ask of each in turn, with the recipe EC."""
    import torch

    recipe = read_recipe(ROOT / "builds" / "ec")
    effort = recipe.effort(tiny=True)
    found = {}
    for name in names:
        base = on_disk(name, Path(folder, name))
        for side in ("tokenizer.json", "tokenizer_config.json"):
            (base / side).write_bytes(tiny("mini").file(side))
        model, tokenizer = tuning.load(base)
        tokens = calibration.Tokens([torch.arange(effort.sequence_length) for _ in range(effort.samples)])
        batches = tokens.batches(recipe.tuning.batch_size)
        asked = Path(folder, f"{name}-asked")
        asked.mkdir()
        survey.ask(tuning.tuner(model, tokenizer, batches, recipe, effort), base, asked)
        found[name] = json.loads((asked / "survey.json").read_text())
    return found


if __name__ == "__main__":
    answer(main)
