"""Runs the released resolver of vLLM or SGLang without torch: whatever it imports is a stand-in.

`answer.py vllm|sglang FOLDER`; reads lines `[quantization_config, [[name, kind, drafter], …]]`, writes lines of
answers: [bits, group_size, sym], "float", "packed" or "conflict". `[quantization_config, null]` asks for the reading of
the whole: "stops" or "reads", "kernel" or "none" for a dense layer on CUDA, and whether desc_act is remembered.
`[null, null]` asks for the methods that the release knows. Standard library only, in a process of its own.
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
        "vllm.model_executor.layers.quantization.inc.inc_linear",
        "vllm.model_executor.layers.quantization.inc.schemes",
        "vllm.model_executor.layers.quantization.inc.schemes.factory",
        *(
            f"vllm.model_executor.layers.quantization.inc.schemes.inc_{name}_scheme"
            for name in ("fp8", "mxfp8", "mxfp4")
        ),
        "vllm.model_executor.layers.quantization.inc.schemes.inc_scheme",
        "vllm.model_executor.layers.quantization.inc.schemes.inc_wna16_scheme",
        "vllm.model_executor.layers.quantization.inc.schemes.inc_wna16_linear",
        "vllm.model_executor.layers.quantization.base_config",
        "vllm.model_executor.layers.quantization.utils.marlin_utils",
        "vllm.model_executor.models.utils",
    ),
    "sglang": (
        "sglang.srt.layers.quantization.auto_round",
        "sglang.srt.layers.quantization.base_config",
        "sglang.srt.layers.quantization.marlin_utils",
        "sglang.srt.layers.quantization.gptq.schemes.gptq_linear",
    ),
}[PROGRAM]


class Meta(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(cls, name, stand_in(name))  # asked twice, it is the same: scalar types are compared
        return cls.__dict__[name]

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


class Cuda(Stub):
    """A recent device, on which every kernel of a release runs."""

    def is_cuda(self) -> bool:
        return True

    def get_device_capability(self) -> Any:
        return type("Capability", (), {"to_int": lambda _: 90})()


SCALARS = stand_in("scalar_types")
GIVEN: dict[str, Any] = {
    "current_platform": Cuda(),
    "scalar_types": SCALARS,
    "get_scalar_types": lambda: (stand_in("ScalarType"), SCALARS),
    "get_device_capability": lambda *_: (9, 0),
    "is_cuda": lambda: True,
    "register_custom_op": lambda **_: lambda function: function,
    **dict.fromkeys(("is_npu", "is_cpu", "is_hip", "is_xpu", "is_musa", "cpu_has_amx_support"), lambda: False),
}


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
            if name in GIVEN:
                return GIVEN[name]
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
LAYERS = f"{PROGRAM}.model_executor.layers" if PROGRAM == "vllm" else f"{PROGRAM}.srt.layers"
MARLIN = importlib.import_module(f"{LAYERS}.quantization{'.utils' * (PROGRAM == 'vllm')}.marlin_utils")
setattr(MARLIN, "check_moe_marlin_supports_layer", lambda *_, **__: True)  # noqa: B010 - it measures layers, of which
# there are none, and a stand-in has no attributes for mypy
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

    made = auto_round.AutoRoundConfig.from_config(config)
    made.packed_modules_mapping = literal(MODELS / "qwen3_5.py", "Qwen3_5ForCausalLM", "packed_modules_mapping")
    layers = {"linear": LinearBase(), "head": ParallelLMHead(), "experts": FusedMoE()}

    def answer(name: str, kind: str, drafted: bool) -> Any:
        try:
            bits, group_size, sym = made.get_layer_config(layers[kind], name)
        except ValueError:
            return "conflict"
        return ["packed" if bits < 16 else "float", bits, group_size, sym]

    return [answer(*module) for module in modules]


def readers() -> dict[str, Any]:
    """The readers of a release by method: AutoRound's own, and those whose demands are modelled."""
    folder = FOLDER.joinpath(*LAYERS.split(".")[1:]) / "quantization"
    if PROGRAM == "sglang":
        own = importlib.import_module(f"{LAYERS}.quantization.auto_round").AutoRoundConfig
        found = {"awq": ("awq/awq.py", "AWQConfig"), "gptq": ("gptq/gptq.py", "GPTQMarlinConfig")}
    else:
        own = importlib.import_module(f"{LAYERS}.quantization.inc").INCConfig
        new = {method: (folder / f"auto_{method}.py").exists() for method in ("awq", "gptq")}
        found = {
            method: (f"{'auto_' * newer}{method}.py", f"{'Auto' * newer}{method.upper()}Config")
            for method, newer in new.items()
        }
    found["fp8"] = ("fp8.py", "Fp8Config")
    return {"auto-round": own} | {
        method: only_from_config(folder / file, name) for method, (file, name) in found.items()
    }


def only_from_config(path: Path, name: str) -> Any:
    """A class with one method of a released one, whose module imports kernels; its constructor takes anything."""
    tree = ast.parse(path.read_text())
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    method = next(node for node in body if isinstance(node, ast.FunctionDef) and node.name == "from_config")
    scope: dict[str, Any] = {
        node.id: stand_in(node.id) for node in ast.walk(method) if isinstance(node, ast.Name) and node.id[0].isupper()
    }
    exec(f"from __future__ import annotations\n{ast.unparse(method)}", scope)  # noqa: S102 - released code
    config = importlib.import_module(f"{LAYERS}.quantization.base_config").QuantizationConfig
    members = {key: vars(config)[key] for key in ("get_from_keys", "get_from_keys_or")}
    return type(name, (Stub,), {**members, "from_config": scope["from_config"]})


def stops(call: Any) -> bool:
    try:
        call()
    except Exception:  # whatever it is: the loader does not go on
        return True
    return False


def reading(config: dict[str, Any]) -> list[Any]:
    reader = readers()[config["quant_method"]]
    if stops(lambda: reader.from_config(dict(config))):
        return ["stops", ""]
    made = reader.from_config(dict(config))
    if config["quant_method"] != "auto-round":
        return ["reads", ""]
    if PROGRAM == "vllm":
        from vllm.model_executor.models.utils import WeightsMapper

        if stops(lambda: made.apply_vllm_mapper(WeightsMapper(orig_to_new_prefix={"a": "b"}))):
            return ["stops", ""]
    layer = importlib.import_module(f"{LAYERS}.linear").LinearBase()
    made.packed_modules_mapping = {}
    ordered = bool(vars(made).get("desc_act"))
    if stops(lambda: made.get_quant_method(layer, "model.layers.0.mlp.down_proj")):
        return ["reads", "none", ordered]
    method = made.get_quant_method(layer, "model.layers.0.mlp.down_proj")
    if (
        PROGRAM == "sglang" and type(method).__name__ == "GPTQLinearMethod"
    ):  # which asks for its scheme when it is built
        schemes = importlib.import_module(f"{LAYERS}.quantization.gptq.schemes.gptq_linear")
        return ["reads", "none" if stops(lambda: schemes.GPTQLinearScheme(made)) else "kernel", ordered]
    return ["reads", "kernel", ordered]


def methods() -> list[str]:
    """The names in the released table of methods."""
    tree = ast.parse((FOLDER / "/".join(LAYERS.split(".")[1:]) / "quantization/__init__.py").read_text())
    found: set[str] = set()
    for node in tree.body:
        target = getattr(node, "target", None) or next(iter(getattr(node, "targets", [])), None)
        if getattr(target, "id", "") in ("QuantizationMethods", "BASE_QUANTIZATION_METHODS"):
            value = node.value  # type: ignore[attr-defined]
            names = value.keys if isinstance(value, ast.Dict) else ast.walk(value.slice)
            found |= {str(each.value) for each in names if isinstance(each, ast.Constant)}
    return sorted(found)


def answer_line(config: Any, modules: Any) -> Any:
    if modules is not None:
        return {"vllm": vllm, "sglang": sglang}[PROGRAM](config, modules)
    return methods() if config is None else reading(config)


for line in sys.stdin:
    result = answer_line(*json.loads(line))
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()
