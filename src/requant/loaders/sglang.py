"""SGLang 0.5.23: vLLM's older resolver, taken over and changed in two places.

Source: srt/layers/quantization/auto_round.py, srt/models/qwen3_5.py, qwen3_5_mtp.py and qwen3_vl.py. Modules keep the
names of the checkpoint (`hf_to_sglang_mapper` is None), and an expression must match a whole name.
"""

from requant.loaders.loader import Loader
from requant.loaders.modules import BA, GATE_UP, QKV, QKVZ, Names
from requant.loaders.resolver import Dialect

_NAMES = Names(
    language_model="model.language_model.",
    visual="model.visual.",
    head="lm_head",
    main=(QKV, GATE_UP, QKVZ, BA),
    drafter=(QKV, GATE_UP, QKVZ, BA),
)
_DIALECT = Dialect((), False, False, True, whole_regex=True, float_first=False)

SGLANG = Loader(
    "sglang", "0.5.23", _NAMES, _DIALECT, unknown="skips", replicates_ba=False, pads=False, head_has_precision=True
)
