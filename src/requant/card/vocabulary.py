"""The words under which cards say facts: the whole of what a comparison understands.

A label, a flag or a keyword stands for the first of its keys that a build has a fact for. What is not in these tables
is not compared. A row is added where cards have a word for a fact; a word that means two things is left out.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

Keys = tuple[str, ...]
Named = tuple[tuple[Keys, tuple[str, ...]], ...]

TOTAL: Keys = ("manifest.bytes", "plan.bytes")

_LABELS: Named = (
    (("base.repository",), ("base model", "base", "source model")),
    (("base.revision",), ("base revision", "revision of the base")),
    (("base.files",), ("files of the base",)),
    (("plan.parameters",), ("parameters",)),
    (("plan.base_tensors",), ("tensors of the base",)),
    (("plan.base_bytes",), ("bytes of the base's tensors", "original", "bf16 (original)", "bf16 (base)")),
    (("plan.blocks",), ("blocks", "number of blocks")),
    (("model.class",), ("model class", "architecture")),
    (("model.experts",), ("experts", "number of experts")),
    (("model.experts_per_token",), ("experts per token",)),
    (("model.mtp_blocks",), ("mtp blocks",)),
    (("model.visual_blocks",), ("visual blocks",)),
    (("scheme.name",), ("scheme", "quantization scheme")),
    (("scheme.bits",), ("bits", "weight bits")),
    (("scheme.symmetric",), ("symmetric", "sym")),
    (("scheme.group_size",), ("group size", "group")),
    (("scheme.format",), ("packing format",)),
    (("layers.ignore",), ("ignore layers", "ignored layers")),
    (("mtp.policy",), ("mtp policy",)),
    (("tuning.iterations",), ("iterations", "iters", "calibration iterations", "tuning iterations")),
    (("tuning.batch_size",), ("batch size",)),
    (("tuning.gradient_accumulation",), ("gradient accumulation", "grad accum", "gradient accumulate steps")),
    (("tuning.learning_rate",), ("learning rate", "lr")),
    (("tuning.minmax_learning_rate",), ("learning rate of the ranges", "minmax lr")),
    (("tuning.momentum",), ("momentum",)),
    (("tuning.seed",), ("seed",)),
    (("tuning.precision",), ("tuning precision",)),
    (("calibration.dataset",), ("dataset", "calibration dataset")),
    (("calibration.revision",), ("dataset revision",)),
    (("calibration.samples",), ("samples", "nsamples", "calibration samples")),
    (("calibration.sequence_length",), ("sequence length", "seqlen", "calibration sequence length")),
    (("calibration.tokens",), ("tokens in all", "calibration tokens")),
    (("statement.seconds",), ("quantization time", "seconds of the worker")),
    (("statement.peak_memory",), ("peak ram",)),
    (("statement.peak_device_memory",), ("peak vram",)),
    (("environment.python",), ("python",)),
    (("environment.packages",), ("packages, each by sha-256",)),
    (("hardware.accelerator",), ("hardware", "gpu", "accelerator")),
    (("plan.tensors",), ("tensors of the checkpoint",)),
    (("plan.main_tensors",), ("tensors in the main shards",)),
    (("plan.bytes",), ("bytes of tensors",)),
    (("plan.main_bytes",), ("bytes of tensors in the main shards",)),
    (("plan.extra_bytes",), ("bytes of tensors in model_extra_tensors.safetensors",)),
    (("plan.visual_tensors",), ("visual tensors",)),
    (("plan.mtp_tensors",), ("mtp tensors",)),
    (("layout.shards",), ("shards",)),
    (("manifest.files",), ("files of the checkpoint",)),
    (TOTAL, ("total size", "model size", "int4 (this model)")),
    (("license.name",), ("license",)),
)
_WORDS: Named = (
    (("scheme.name",), ("scheme",)),
    (("scheme.bits",), ("bits",)),
    (("scheme.symmetric",), ("sym",)),
    (("scheme.group_size",), ("group_size",)),
    (("layers.ignore",), ("ignore_layers", "fp_layers")),
    (("tuning.iterations",), ("iters",)),
    (("tuning.batch_size",), ("batch_size", "train_bs")),
    (("tuning.gradient_accumulation",), ("gradient_accumulate_steps",)),
    (("tuning.learning_rate",), ("lr",)),
    (("tuning.minmax_learning_rate",), ("minmax_lr",)),
    (("tuning.seed",), ("seed",)),
    (("calibration.dataset",), ("dataset",)),
    (("calibration.samples",), ("nsamples",)),
    (("calibration.sequence_length",), ("seqlen",)),
)
_METADATA: Named = (
    (("base.repository",), ("base_model",)),
    (("license.name",), ("license",)),
)


def _by_word(named: Named) -> dict[str, Keys]:
    return {word: keys for keys, words in named for word in words}


LABELS, WORDS, METADATA = map(_by_word, (_LABELS, _WORDS, _METADATA))
"""By a table's first cell or the text before a colon; by AutoRound's flags and arguments; by keys of metadata."""


class Phrase(NamedTuple):
    """What stands behind a label: a pattern, and the keys of its groups."""

    labels: tuple[str, ...]
    pattern: re.Pattern[str]
    keys: tuple[Keys, ...]


_COUNT, _SIZE = r"([\d,]+)", r"((?:~ ?|≈ ?|about )?[\d.,]+ ?(?:GB|GiB|MB|MiB))"
PHRASES = (
    Phrase(("layers",), re.compile(rf"^{_COUNT} (?:transformer )?blocks\b"), (("plan.blocks",),)),
    Phrase(("moe",), re.compile(rf"^{_COUNT} experts\b"), (("model.experts",),)),
    Phrase(("visual",), re.compile(rf"^{_COUNT} (?:transformer )?blocks\b"), (("model.visual_blocks",),)),
    Phrase(("mtp",), re.compile(rf"^{_COUNT} multi-token-prediction head"), (("model.mtp_blocks",),)),
    Phrase(
        ("attention",),
        re.compile(r"layers \[([\d, ]+)\] ?are self_attn"),
        (("model.full_attention_layers",),),
    ),
    Phrase(
        ("quantized", "quantized layers"),
        re.compile(rf"^{_COUNT} ?(?:/|of) ?{_COUNT} linear layers"),
        (("plan.quantized_layers",), ("plan.linear_layers",)),
    ),
    Phrase(
        ("layers of mtp rounded to nearest",),
        re.compile(rf"^{_COUNT} of {_COUNT}$"),
        (("plan.mtp_rounded_layers",), ("plan.mtp_layers",)),
    ),
    Phrase(
        ("total size",),
        re.compile(rf"\({_COUNT} shards ?{_SIZE} ?\+ ?extras ?{_SIZE}\)"),
        (("layout.shards",), ("plan.main_bytes",), ("plan.extra_bytes",)),
    ),
)
"""Beside a label's own value. Each is anchored, or bracketed, so that no word before it can turn it round."""

LOSS = re.compile(r"\blayer (\d{1,4}) loss (\d\.\d{1,12}) ?(?:→|->) ?(\d\.\d{1,12})")
LOSS_LABELS = ("block-wise loss", "block-wise loss (representative)", "loss", "losses")

OWN_COLUMN = ("value", "version", "size", "setting", "details", "this build")
"""Names of the column that speaks of this very model, where a table has several; else `this model` is part of one."""
FILE_COLUMNS = ("path", "file", "filename")
FLOAT_COLUMNS = ("layer pattern", "layers kept float", "kept in bf16")

ELSEWHERE = re.compile(
    r"(?i)\b(?:evaluat|benchmark|result|performance|accuracy|quality|throughput|speed|inference|serv(?:e|ing)|usage|"
    r"how to use|quick ?start|sampling|comparison|limit|require|tested|validated)"
)
"""Headings of sections that speak of something else: the batch of an evaluation, the packages of a server."""
PACKAGES: Mapping[str, str] = {"autoround": "auto-round"}
"""Names of packages as cards have them, and as locks do."""

FORMS: Mapping[str, re.Pattern[str]] = {
    "base.repository": re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+"),
    "calibration.dataset": re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+"),
    "model.class": re.compile(r"[A-Z]\w+For\w+"),
    "scheme.name": re.compile(r"W[0-9]{1,2}A[0-9]{1,2}"),
    "scheme.format": re.compile(r"auto_(?:round|gptq|awq)(?::auto_(?:gptq|awq))?"),
    "mtp.policy": re.compile(r"rtn|bf16|calibrated|none"),
    "tuning.precision": re.compile(r"(?i)bfloat16|float16|float32|bf16|fp16|fp32"),
    "license.name": re.compile(r"[a-z]+-[a-z0-9.-]*[0-9]|mit|[A-Z][a-z]+ [0-9.]+"),
}
"""How a text looks that is a value of a key. Another one says something else, and is not compared."""
SAME: Mapping[str, str] = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
    "apache 2.0": "apache-2.0",
    "auto": "1/iterations",
}
"""Texts that say the same; `auto` is AutoRound's word for its learning rate (compressors/base.py of 0.12.2)."""
