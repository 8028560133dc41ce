"""vLLM, in the four releases that changed what it does with such a checkpoint.

Sources: model_executor/layers/quantization/inc.py (0.19.1, 0.22.1) and inc/ (0.25.1, 0.33.0); models/qwen3_5.py,
qwen3_5_mtp.py, qwen3_vl.py; model_loader/weight_utils.py.
"""

from dataclasses import replace

from requant.inspect.loaders.loader import Loader
from requant.inspect.loaders.modules import BA, GATE_UP, QKV, QKVZ, Names
from requant.inspect.loaders.reading import AWQ_DEMANDS, FP8_DEMANDS, GPTQ_DEMANDS, INT_FORMATS, Demands, Reader
from requant.inspect.loaders.resolver import Dialect

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

_COMMON = (
    "awq fp8 fbgemm_fp8 fp_quant modelopt modelopt_fp4 modelopt_mxfp8 modelopt_mixed gptq gptq_marlin awq_marlin "
    "compressed-tensors experts_int8 quark moe_wna16 torchao mxfp4 mxfp8"
)
_LATER = (
    "auto_gptq humming gpt_oss_mxfp4 deepseek_v4_fp8 online fp8_per_tensor fp8_per_block int8_per_channel_weight_only"
)
_DEMANDS = dict.fromkeys(("gptq", "gptq_marlin", "auto_gptq"), GPTQ_DEMANDS)
_DEMANDS |= {"awq": AWQ_DEMANDS, "auto_awq": AWQ_DEMANDS, "fp8": FP8_DEMANDS}


def _methods(*names: str) -> dict[str, Demands]:
    return {name: _DEMANDS.get(name, ()) for name in " ".join(names).split()}


_READER_19 = Reader(
    own=frozenset({"auto-round", "inc"}),
    # gptq_marlin takes over only where it can run; the reader for plain gptq does not ask for sym.
    others=_methods(_COMMON, "gguf bitsandbytes petit_nvfp4 cpu_awq") | {"gptq": GPTQ_DEMANDS[:3]},
    unknown="stops",
    nameless="float",
    folds_case=True,
    required=("bits", "group_size", "sym"),
    bits=frozenset({2, 3, 4, 8}),
    formats=frozenset(INT_FORMATS),
    backend_keys=("backend", "vllm_backend"),
    floats=False,
    minds_backend=False,
    desc_act="ignored",
    fallback=frozenset({2, 3, 4, 8}),
)
_READER_22 = replace(_READER_19, others=_methods(_COMMON, _LATER, "gguf bitsandbytes cpu_awq"), fallback=frozenset())
_READER_25 = replace(
    _READER_22, others=_methods(_COMMON, _LATER, "bitsandbytes auto_awq fp8_per_channel"), minds_backend=True
)
_READER_33 = replace(
    _READER_25,
    others=_methods(_COMMON, _LATER, "auto_awq fp8_per_channel nvfp4_per_token"),
    required=("bits", "group_size"),
    bits=frozenset(range(2, 9)),
    formats=frozenset((*INT_FORMATS, "auto_round:fp8", "auto_round:llm_compressor")),
    floats=True,
    fallback=frozenset({2, 3, 5, 6, 7}),  # by the humming kernel
)


def _release(version: str, dialect: Dialect, reader: Reader, *, refuses: bool, replicates_ba: bool = True) -> Loader:
    """Return a release; from 0.25.1 on it refuses unknown tensors, pads, gives the head a precision, wants new classes.

    Which transformers it wants: requirements/common.txt, from 0.25.1 on 5.5.3 or later.
    """
    return Loader(
        "vllm",
        version,
        _NAMES,
        dialect,
        unknown="refuses" if refuses else "skips",
        replicates_ba=replicates_ba,
        pads=refuses,
        head_has_precision=refuses,
        reader=reader,
        knows_new_tokenizers=refuses,
    )


VLLM = (
    _release("0.19.1", _OLD, _READER_19, refuses=False, replicates_ba=False),
    _release("0.22.1", _OLD, _READER_22, refuses=False),
    _release("0.25.1", _SPLIT, _READER_25, refuses=True),
    _release("0.33.0", _NEW, _READER_33, refuses=True),
)
