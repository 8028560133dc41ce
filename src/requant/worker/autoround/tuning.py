"""Calls AutoRound through its API, with every argument that can change a byte written out."""

import json
from pathlib import Path
from typing import Any

from requant.errors import BuildError
from requant.recipe import DATA_TYPE, SCALE_DTYPE, Effort, LayerScheme, Recipe
from requant.worker.autoround import head, rounding
from requant.worker.autoround.calibration import PILE
from requant.worker.autoround.series import installed


def load(base: Path) -> tuple[Any, Any]:
    """Return model and tokenizer of the base, the model in the precision of its files, on the CPU.

    The whole class from `config.json` is loaded, visual tower and all: `AutoModelForCausalLM` would take the
    text model only, whose tensor names differ from the base's (defect D01).
    """
    import transformers

    return load_model(base, "auto"), transformers.AutoTokenizer.from_pretrained(base, local_files_only=True)


def load_model(base: Path, dtype: Any) -> Any:
    """Return the model of the base in a dtype of torch, or with `auto` in that of its files."""
    import transformers

    architecture = json.loads((base / "config.json").read_text())["architectures"][0]
    return getattr(transformers, architecture).from_pretrained(base, dtype=dtype, local_files_only=True)


def stated_version() -> str:
    """Return AutoRound's version as it states it in `quantization_config`, without its package's local label."""
    from auto_round.version import __version__

    return str(__version__)


def tuner(model: Any, tokenizer: Any, batches: Any, recipe: Recipe, effort: Effort) -> Any:
    """Return AutoRound, ready to tune; nothing is left to its defaults or to what it finds on the machine."""
    from auto_round import AutoRound
    from auto_round.utils.device import CpuInfo

    series = installed()
    tuning, scheme = recipe.tuning, recipe.scheme
    recipe.confirm_export(stated_version())
    half = effort.precision == "bfloat16"
    # On a CPU the precision would follow CPUID, silently (`_set_amp_dtype`).
    CpuInfo.bf16 = property(lambda _: half)

    iterations = loops(effort)

    def rate(value: float | str) -> float:
        return 1.0 / iterations if value == "1/iterations" else float(value)

    autoround = AutoRound(
        model,
        tokenizer,
        platform="hf",
        scheme=scheme.name,
        layer_config={name: _config(each) for name, each in recipe.layers.schemes.items()} or None,
        dataset=batches,
        iters=iterations,
        seqlen=effort.sequence_length,
        nsamples=effort.samples,
        batch_size=tuning.batch_size,
        gradient_accumulate_steps=tuning.gradient_accumulation,
        low_gpu_mem_usage=tuning.low_gpu_memory,
        device_map="cpu" if effort.device == "cpu" else 0,
        enable_torch_compile=False,
        seed=tuning.seed,
        enable_adam=False,
        extra_config=None,
        enable_alg_ext=False,
        low_cpu_mem_usage=True,
        bits=scheme.bits,
        group_size=scheme.group_size,
        sym=scheme.symmetric,
        data_type=DATA_TYPE,
        act_bits=16,
        scale_dtype={"float16": "fp16"}[SCALE_DTYPE],
        amp=half,
        lr=rate(tuning.learning_rate),
        minmax_lr=rate(tuning.minmax_learning_rate),
        lr_scheduler=None,
        momentum=tuning.momentum,
        enable_minmax_tuning=tuning.tune_minmax,
        enable_norm_bias_tuning=False,
        enable_quanted_input=True,
        not_use_best_mse=not tuning.keep_best,
        dynamic_max_gap=tuning.patience,
        nblocks=1,
        to_quant_block_names=None,
        quant_lm_head=False,
        ignore_layers=",".join(recipe.layers.ignore),
        enable_deterministic_algorithms=True,
    )
    series.prepare(autoround)
    if series.is_text(autoround):
        _by_name(autoround, batches)
    if recipe.layers.schemes:
        _beside_blocks(autoround, recipe)
    if recipe.rounds:
        rounding.install(autoround, search=bool(tuning.search_scales))
    elif recipe.layers.schemes:
        head.install(autoround, batches)
    return autoround


def _config(scheme: LayerScheme) -> dict[str, Any]:
    return {"bits": scheme.bits, "group_size": scheme.group_size, "sym": scheme.symmetric, "data_type": DATA_TYPE}


def _beside_blocks(autoround: Any, recipe: Recipe) -> None:
    """Let packed layers beside the blocks, such as `lm_head`, be blocks themselves, behind all others.

    Otherwise AutoRound would write nothing before all is tuned. Tuned can be the one that all blocks lead to.
    """
    compressor = type(autoround)
    decide = compressor.configure_layer_config

    def configure(self: Any, *args: Any, **kwargs: Any) -> None:
        decide(self, *args, **kwargs)
        if outside := installed().beside(self):
            head_alone = self.model.get_output_embeddings()
            other = next((each for each in outside if self.model.get_submodule(each) is not head_alone), "")
            if other and not recipe.rounds:
                pattern = next(each for each in recipe.layers.schemes if each in other)
                allowed = f"no part of {other}: of what lies beside the blocks only the model's head is tuned"
                raise recipe.refusal("layers.schemes", pattern, allowed)
            *groups, last = self.quant_block_list
            self.quant_block_list = [*groups, [*last, *outside]]
            self.has_qlayer_outside_block = False

    compressor.configure_layer_config = configure


def loops(effort: Effort) -> int:
    """Return how many iterations AutoRound is told: at 0 it would leave its loop over blocks (`rounding`)."""
    return max(1, effort.iterations)


def _by_name(autoround: Any, batches: Any) -> None:
    """Let the class for text models find the batches under a data set's name.

    Given a DataLoader it masks the last token of each sample (`calib`, compressors/base.py); under a name it does not,
    and that is how AutoRound's command line calls it.
    """
    from auto_round import calib_dataset

    autoround.dataset = PILE
    calib_dataset.get_dataloader = lambda *_, **__: batches


def confirm(autoround: Any, recipe: Recipe, effort: Effort) -> None:
    """Raise BuildError where AutoRound tunes with another number than the recipe's; it would only warn.

    It caps the sequence length at what the tokenizer states, and lowers batches that the samples do not fill.
    """
    asked = {
        "iters": loops(effort),
        "nsamples": effort.samples,
        "seqlen": effort.sequence_length,
        "batch_size": recipe.tuning.batch_size,
        "gradient_accumulate_steps": recipe.tuning.gradient_accumulation,
        "seed": recipe.tuning.seed,
    }
    numbers = installed().numbers(autoround)
    for name, value in asked.items():
        if (found := numbers[name]) != value:
            raise BuildError(f"AutoRound takes {found!r} for {name}, the recipe asks for {value!r}")
    if getattr(autoround, "attention_mask", None):
        # Then each loss leaves a token out.
        raise BuildError("AutoRound masks tokens of the calibration", "Report this with the log.")
