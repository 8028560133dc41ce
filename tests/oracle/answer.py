"""Runs the released resolver of vLLM or SGLang without torch: whatever it imports is a stand-in.

`answer.py vllm|sglang FOLDER`; reads lines `[quantization_config, [[name, kind, drafter], …]]`, writes lines of
answers: [bits, group_size, sym], "float", "packed" or "conflict". Standard library only, in a process of its own.
"""

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

PROGRAM, FOLDER = sys.argv[1], Path(sys.argv[2])
TOPS = (PROGRAM, "torch", "transformers", "compressed_tensors", "safetensors", "gguf", "triton", "numpy")
REAL = {
    "vllm": (
        "vllm.model_executor.layers.quantization.inc",
        "vllm.model_executor.layers.quantization.inc.inc",
        "vllm.model_executor.layers.quantization.inc.config_parser",
        "vllm.model_executor.layers.quantization.base_config",
        "vllm.model_executor.models.utils",
    ),
    "sglang": ("sglang.srt.layers.quantization.auto_round",),
}[PROGRAM]


class Meta(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return stand_in(name)

    def __or__(cls, other: Any) -> Any:
        return cls

    __ror__ = __or__


class Stub(metaclass=Meta):
    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __init_subclass__(cls, **_: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return (lambda *_, **__: False) if name.startswith("is_") else (lambda *_, **__: Stub())

    def __iter__(self) -> Any:
        return iter((self, self))

    def __class_getitem__(cls, _: Any) -> Any:
        return cls


def stand_in(name: str) -> Any:
    return Meta(name, (Stub,), {})


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name in REAL:
            file = FOLDER.joinpath(*name.split(".")[1:])
            file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
            if file.exists():
                inside = [str(file.parent)] if file.name == "__init__.py" else None
                return importlib.util.spec_from_file_location(name, file, submodule_search_locations=inside)
        if name.partition(".")[0] in TOPS:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> Any:
        return None

    def exec_module(self, module: Any) -> None:
        cached: dict[str, Any] = {}

        def attribute(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            if f"{module.__name__}.{name}" in REAL:
                return importlib.import_module(f"{module.__name__}.{name}")
            if name == "QuantizationConfig" and PROGRAM == "vllm":
                return importlib.import_module("vllm.model_executor.layers.quantization.base_config").QuantizationConfig
            if name == "current_platform":
                return Stub()
            return cached.setdefault(name, stand_in(name))

        module.__getattr__ = attribute


def literal(path: Path, owner: str, name: str) -> Any:
    """The dictionary given to `name` in a class body, or as an argument of that name in it."""
    tree = ast.parse(path.read_text())
    body = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == owner)
    for node in ast.walk(body):
        target = getattr(node, "target", None) or next(iter(getattr(node, "targets", [])), None)
        if isinstance(node, ast.Assign | ast.AnnAssign) and getattr(target, "id", "") == name and node.value:
            found: dict[str, Any] = {}
            for part in ast.walk(node.value):
                if isinstance(part, ast.Attribute) and part.attr == name:
                    found |= literal(path.with_name("qwen3_vl.py"), part.value.id, name)  # type: ignore[attr-defined]
            for part in ast.walk(node.value):
                if isinstance(part, ast.Dict):
                    found |= ast.literal_eval(part)
            return found
        if isinstance(node, ast.keyword) and node.arg == name:
            return ast.literal_eval(node.value)
    raise LookupError(name)


sys.modules["regex"] = re
sys.meta_path.insert(0, Finder())
MODELS = FOLDER / ("model_executor/models" if PROGRAM == "vllm" else "srt/models")


def vllm(config: dict[str, Any], modules: list[tuple[str, str, bool]]) -> list[Any]:
    fused_moe = importlib.import_module("vllm.model_executor.layers.fused_moe")
    linear = importlib.import_module("vllm.model_executor.layers.linear")
    from vllm.model_executor.layers.quantization import inc  # type: ignore[import-not-found]
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead  # type: ignore[import-not-found]
    from vllm.model_executor.models.utils import WeightsMapper  # type: ignore[import-not-found]

    made = inc.INCConfig.from_config(config)
    prefixes = literal(MODELS / "qwen3_vl.py", "Qwen3VLForConditionalGeneration", "orig_to_new_prefix")
    made.apply_vllm_mapper(WeightsMapper(orig_to_new_prefix=prefixes))
    packed = literal(MODELS / "qwen3_5.py", "Qwen3_5ForConditionalGeneration", "packed_modules_mapping")
    drafter = literal(MODELS / "qwen3_5_mtp.py", "Qwen3_5MTP", "packed_modules_mapping")
    if (FOLDER / "model_executor/layers/quantization/inc").is_dir():
        experts = getattr(fused_moe, "RoutedExperts")  # noqa: B009
    else:
        source = (FOLDER / "model_executor/layers/quantization/inc.py").read_text()
        if "RoutedExperts" in source:  # 0.22.1: the name is an alias
            setattr(fused_moe, "RoutedExperts", fused_moe.FusedMoE)  # noqa: B010 - a stand-in has no attributes for mypy
            inc.RoutedExperts = fused_moe.FusedMoE
        experts = fused_moe.FusedMoE
    layers = {"linear": linear.LinearBase(), "head": ParallelLMHead(), "experts": experts()}

    def answer(name: str, kind: str, drafted: bool) -> Any:
        made.packed_modules_mapping = drafter if drafted else packed
        layer = layers[kind]
        try:
            bits, group_size, sym = made.get_layer_config(layer, name)
        except ValueError:
            bits, group_size, sym = "conflict", 0, False
        try:
            method = made.get_quant_method(layer, name)
        except ValueError:
            return "conflict"
        except NotImplementedError:  # packed, and no kernel for it
            return ["packed", bits, group_size, sym]
        floats = ("UnquantizedLinearMethod", "UnquantizedFusedMoEMethod")
        form = "float" if method is None or type(method).__name__ in floats else "packed"
        return [form, bits, group_size, sym]

    return [answer(*module) for module in modules]


def sglang(config: dict[str, Any], modules: list[tuple[str, str, bool]]) -> list[Any]:
    from sglang.srt.layers.linear import LinearBase  # type: ignore[import-not-found]
    from sglang.srt.layers.moe.fused_moe_triton import FusedMoE  # type: ignore[import-not-found]
    from sglang.srt.layers.quantization import auto_round  # type: ignore[import-not-found]
    from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead  # type: ignore[import-not-found]

    keys = ("group_size", "sym", "packing_format", "block_name_to_quantize", "extra_config", "data_type")
    made = auto_round.AutoRoundConfig(weight_bits=config["bits"], **{key: config[key] for key in keys if key in config})
    made.packed_modules_mapping = literal(MODELS / "qwen3_5.py", "Qwen3_5ForCausalLM", "packed_modules_mapping")
    layers = {"linear": LinearBase(), "head": ParallelLMHead(), "experts": FusedMoE()}

    def answer(name: str, kind: str, drafted: bool) -> Any:
        try:
            bits, group_size, sym = made.get_layer_config(layers[kind], name)
        except ValueError:
            return "conflict"
        return ["packed" if bits < 16 else "float", bits, group_size, sym]

    return [answer(*module) for module in modules]


for line in sys.stdin:
    result = {"vllm": vllm, "sglang": sglang}[PROGRAM](*json.loads(line))
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()
