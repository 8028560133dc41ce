"""SGLang 0.5.23: vLLM's older resolver, taken over and changed in two places.

Source: srt/layers/quantization/auto_round.py, srt/models/qwen3_5.py, qwen3_5_mtp.py and qwen3_vl.py. Modules keep the
names of the checkpoint (`hf_to_sglang_mapper` is None), and an expression must match a whole name.
"""

from requant.inspect.loaders.loader import Loader
from requant.inspect.loaders.modules import BA, GATE_UP, QKV, QKVZ, Names
from requant.inspect.loaders.reading import AWQ_DEMANDS, FP8_DEMANDS, GPTQ_DEMANDS, INT_FORMATS, Reader
from requant.inspect.loaders.resolver import Dialect

_NAMES = Names(
    language_model="model.language_model.",
    visual="model.visual.",
    head="lm_head",
    main=(QKV, GATE_UP, QKVZ, BA),
    drafter=(QKV, GATE_UP, QKVZ, BA),
)
_DIALECT = Dialect((), False, False, True, whole_regex=True, float_first=False)

_METHODS = (
    "fp8 mxfp8 minimax_m3_nvfp4 blockwise_int8 modelopt modelopt_fp8 modelopt_fp4 nvfp4_online modelopt_mixed "
    "w8a8_int8 w8a8_fp8 awq awq_marlin bitsandbytes gguf gptq_marlin moe_wna16 compressed-tensors w4afp8 "
    "petit_nvfp4 quark quark_mxfp4 auto-round-int8 modelslim quark_int4fp8_moe humming mxfp_w4a8 mxfp4"
)
_DEMANDS = {"gptq": GPTQ_DEMANDS, "gptq_marlin": GPTQ_DEMANDS, "awq": AWQ_DEMANDS, "fp8": FP8_DEMANDS}
"""Plain `gptq` is no method of its own on CUDA: it is taken for gptq_marlin where it has these keys."""
_READER = Reader(
    own=frozenset({"auto-round"}),
    others=dict.fromkeys(_METHODS.split(), ()) | _DEMANDS,
    unknown="stops",
    nameless="stops",
    folds_case=True,
    required=("bits", "group_size", "sym"),
    bits=frozenset({2, 3, 4, 8}),
    formats=frozenset(INT_FORMATS),
    backend_keys=("backend", "vllm_backend", "sglang_backend"),
    floats=False,
    minds_backend=True,
    desc_act="reorders",
    fallback=frozenset(),
)

SGLANG = Loader(
    "sglang",
    "0.5.23",
    _NAMES,
    _DIALECT,
    unknown="skips",
    replicates_ba=False,
    pads=False,
    head_has_precision=True,
    reader=_READER,
    knows_new_tokenizers=True,
)
