"""vLLM, in the four releases that changed what it does with such a checkpoint.

Sources: model_executor/layers/quantization/inc.py (0.19.1, 0.22.1) and inc/ (0.25.1, 0.33.0); models/qwen3_5.py,
qwen3_5_mtp.py, qwen3_vl.py; model_loader/weight_utils.py.
"""

from requant.loaders.loader import Loader
from requant.loaders.modules import BA, GATE_UP, QKV, QKVZ, Names
from requant.loaders.resolver import Dialect

_RENAMES = (
    ("model.visual.", "visual."),
    ("lm_head.", "language_model.lm_head."),
    ("model.language_model.", "language_model.model."),
)
_NAMES = Names(
    language_model="language_model.model.",
    visual="visual.",
    head="language_model.lm_head",
    main=(QKV, GATE_UP, ("qkv", ("qkv",)), QKVZ, BA),
    drafter=(QKV, GATE_UP),
)


def _dialect(*, suffix_keys: bool, fused_by_entry: bool, expert_keys: bool) -> Dialect:
    return Dialect(_RENAMES, suffix_keys, fused_by_entry, expert_keys, whole_regex=False, float_first=True)


# The expert layer's class is FusedMoE up to 0.22.1, where RoutedExperts is only another name for it; the class
# of that name, from 0.25.1 on, is not recognised where overrides of single experts are looked for.
_OLD = _dialect(suffix_keys=False, fused_by_entry=False, expert_keys=True)
_SPLIT = _dialect(suffix_keys=False, fused_by_entry=True, expert_keys=False)
_NEW = _dialect(suffix_keys=True, fused_by_entry=True, expert_keys=False)

VLLM = (
    Loader("vllm", "0.19.1", _NAMES, _OLD, unknown="skips", replicates_ba=False, pads=False, head_has_precision=False),
    Loader("vllm", "0.22.1", _NAMES, _OLD, unknown="skips", replicates_ba=True, pads=False, head_has_precision=False),
    Loader("vllm", "0.25.1", _NAMES, _SPLIT, unknown="refuses", replicates_ba=True, pads=True, head_has_precision=True),
    Loader("vllm", "0.33.0", _NAMES, _NEW, unknown="refuses", replicates_ba=True, pads=True, head_has_precision=True),
)
