"""transformers 5.5.1, which reads files in sorted order and drops `mtp.*`; AutoRound's own classes do the rest.

Sources: utils/hub.py:867 (`sorted(set(weight_map.values()))`), modeling_utils.py:4241 (the last file wins),
models/qwen3_5_moe/modeling_qwen3_5_moe.py:881. Which layers become quantized ones is decided by auto_round's
inference code; it is modelled by exact names only, so no precision is resolved here.
"""

from requant.inspect.loaders.loader import Loader
from requant.inspect.loaders.modules import Names
from requant.inspect.loaders.reading import Reader

_NAMES = Names("model.language_model.", "model.visual.", "lm_head", (), ())

_METHODS = (
    "awq bitsandbytes_4bit bitsandbytes_8bit eetq gptq aqlm quanto quark fouroversix fp_quant hqq compressed-tensors "
    "fbgemm_fp8 higgs torchao bitnet vptq spqr fp8 mxfp4 metal sinq"
)
_READER = Reader(
    own=frozenset({"auto-round"}),
    others=dict.fromkeys(_METHODS.split(), ()),
    unknown="float",
    nameless="stops",
    folds_case=False,
    required=(),
    bits=frozenset({2, 3, 4, 8}),
    formats=None,
    backend_keys=("backend",),
    floats=False,
    minds_backend=False,
    desc_act="stops",
    fallback=None,
)

TRANSFORMERS = Loader(
    "transformers",
    "5.5.1",
    _NAMES,
    None,
    unknown="lists",
    replicates_ba=True,
    pads=True,
    head_has_precision=False,
    reader=_READER,
    knows_new_tokenizers=True,
)
