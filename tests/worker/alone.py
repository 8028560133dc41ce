"""`RECIPE BASE FOLDER`: what AutoRound itself makes of a base, left to itself and called as its own users call it."""

from pathlib import Path
from typing import Any

from tests.worker.prepared import TEXT, answer

from requant.recipe import read_recipe
from requant.worker import determinism
from requant.worker.autoround import calibration, tuning
from requant.worker.autoround.series import installed
from requant.worker.resume import digest


def alone(recipe: str, base: str, folder: str) -> dict[str, Any]:
    """Return the digests of all packed tensors that AutoRound writes into the folder."""
    asked = read_recipe(Path(recipe))
    effort, scheme, chosen = asked.effort(tiny=True), asked.scheme, asked.tuning
    determinism.prepare(effort.device)
    determinism.enforce()
    from auto_round import AutoRound
    from auto_round.utils.device import CpuInfo
    from safetensors import safe_open

    CpuInfo.bf16 = property(lambda _: effort.precision == "bfloat16")
    model, tokenizer = tuning.load(Path(base))
    tokens = calibration.choose(
        tokenizer, TEXT, samples=effort.samples, length=effort.sequence_length, seed=chosen.seed
    )
    autoround = AutoRound(
        model,
        tokenizer,
        scheme=scheme.name,
        sym=scheme.symmetric,
        group_size=scheme.group_size,
        layer_config={
            name: {"bits": own.bits, "group_size": own.group_size, "sym": own.symmetric}
            for name, own in asked.layers.schemes.items()
        },
        dataset=calibration.PILE,
        iters=effort.iterations,
        disable_opt_rtn=not chosen.search_scales if asked.rounds else None,
        nsamples=effort.samples,
        seqlen=effort.sequence_length,
        batch_size=chosen.batch_size,
        gradient_accumulate_steps=chosen.gradient_accumulation,
        seed=chosen.seed,
        amp=effort.precision == "bfloat16",
        not_use_best_mse=not chosen.keep_best,
        device_map="cpu",
        enable_deterministic_algorithms=True,
    )
    installed().prepare(autoround)
    tuning._by_name(autoround, tokens.batches(chosen.batch_size))
    autoround.quantize_and_save(folder, format=scheme.format)
    found = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                if name.endswith(("qweight", "qzeros", "scales")):
                    found[name] = digest([file.get_tensor(name)])
    return found


if __name__ == "__main__":
    answer(alone)
