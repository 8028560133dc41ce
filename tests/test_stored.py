"""Formats that lie row by row, as `inspect` sees them: what is declared of layers, and what their headers show."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.checkpoints import BITS, shard
from tests.formats import integers

from requant.checkpoint.safetensors import Spec
from requant.formats.codec import Array, Arrays, Part
from requant.formats.declarations import READERS
from requant.inspect import inspect
from requant.inspect.headers import read_headers


@dataclass(frozen=True)
class Toy:
    """Codes of eight bits, and a scale per output."""

    name: str = "toy"
    align: int = 1

    def parts(self, rows: int, columns: int, dtype: str) -> Mapping[str, Part]:
        return {"weight": Part(Spec("F8_E4M3", (rows, columns))), "weight_scale": Part(Spec(dtype, (rows, 1)))}

    def decode(self, stored: Arrays, columns: int) -> Array:
        raise NotImplementedError


@dataclass(frozen=True)
class Declared:
    """All layers but the head and the router."""

    def codec(self, layer: str) -> Toy | None:
        if layer.endswith("strange"):
            raise ValueError("stranger than that")
        return None if layer.endswith(("head", "gate")) else Toy()


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READERS, "toy", lambda value: Declared())


def found(
    folder: Path, tensors: Mapping[str, tuple[str, list[int]]], **config: Any
) -> list[tuple[str, tuple[str, ...]]]:
    held = {}
    for name, (dtype, shape) in tensors.items():
        size = BITS[dtype] // 8
        for side in shape:
            size *= side
        held[name] = (dtype, shape, bytes(size))
    (folder / "model.safetensors").write_bytes(shard(held))
    said = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **config}
    said["quantization_config"] = {"quant_method": "toy"}
    (folder / "config.json").write_text(json.dumps(said))
    report = inspect(read_headers(folder))
    return [(each.rule, each.subjects) for each in report.findings if each.rule in ("D31", "D32", "D33")]


HEALTHY: dict[str, tuple[str, list[int]]] = {
    "lm_head.weight": ("BF16", [8, 8]),
    "model.embed_tokens.weight": ("BF16", [8, 8]),
    "model.layers.0.input_layernorm.weight": ("BF16", [8]),
} | {
    f"model.layers.{block}.mlp.up_proj.{name}": spec
    for block in range(3)
    for name, spec in {"weight": ("F8_E4M3", [8, 8]), "weight_scale": ("F32", [8, 1])}.items()
}
UP = "model.layers.1.mlp.up_proj"


def test_what_is_declared_is_there(tmp_path: Path) -> None:
    assert found(tmp_path, HEALTHY) == []


@pytest.mark.parametrize(
    ("change", "rule", "subject"),
    [
        ({f"{UP}.weight": ("U8", [8, 8])}, "D31", f"{UP}.weight"),
        ({f"{UP}.weight_scale": ("F8_E8M0", [8, 1])}, "D31", f"{UP}.weight_scale"),
        ({f"{UP}.weight_scale": None}, "D31", f"{UP}.weight_scale"),
        ({f"{UP}.weight": ("BF16", [8, 8]), f"{UP}.weight_scale": None}, "D31", f"{UP}.weight"),
        ({"lm_head.weight": ("F8_E4M3", [8, 8])}, "D32", "lm_head.weight"),
    ],
)
def test_what_is_stored_otherwise_is_named(change: dict[str, Any], rule: str, subject: str, tmp_path: Path) -> None:
    tensors = {name: spec for name, spec in (HEALTHY | change).items() if spec}
    assert found(tmp_path, tensors) == [(rule, (subject,))]


@pytest.mark.parametrize("key", ["num_nextn_predict_layers", "mtp_num_hidden_layers"])
@pytest.mark.parametrize(
    ("name", "missed"),
    [("", True), ("model.layers.3.mlp.up_proj.weight", False), ("mtp.fc.weight", False)],
)
def test_a_promised_block_is_missed(key: str, name: str, missed: bool, tmp_path: Path) -> None:
    tensors = HEALTHY | ({name: ("BF16", [8, 8])} if name else {})
    rules = [rule for rule, _ in found(tmp_path, tensors, num_hidden_layers=3, **{key: 1})]
    assert ("D33" in rules) is missed
    assert "D33" not in [rule for rule, _ in found(tmp_path, tensors, num_hidden_layers=3, **{key: 0})]


def test_what_is_not_modelled_accuses_nobody(tmp_path: Path) -> None:
    assert found(tmp_path, HEALTHY | {"model.layers.0.strange.weight": ("U8", [8, 8])}) == []


def routers(
    folder: Path, block: str, gate: str, expert: str, ignore: list[str], *, coded: bool
) -> list[tuple[str, str]]:
    """Inspect a checkpoint of compressed-tensors, int8, whose router is in codes or a float."""
    layers = [f"model.layers.0.{block}.{gate}", *(f"model.layers.0.{block}.experts.{n}.{expert}" for n in range(2))]
    held: dict[str, tuple[str, list[int], bytes]] = {}
    for layer in layers:
        if layer.endswith(gate) and not coded:
            held[f"{layer}.weight"] = ("BF16", [8, 8], bytes(128))
        else:
            held |= {f"{layer}.weight": ("I8", [8, 8], bytes(64)), f"{layer}.weight_scale": ("BF16", [8, 1], bytes(16))}
    (folder / "model.safetensors").write_bytes(shard(held))
    said = {**integers("int-quantized", 8, strategy="channel"), "ignore": ignore}
    (folder / "config.json").write_text(json.dumps({"model_type": "x", "quantization_config": said}))
    rules = ("D31", "D32")
    shown = [
        each for each in inspect(read_headers(folder)).findings if each.rule in rules or "router" in each.consequence
    ]
    return [(each.rule, subject) for each in shown for subject in each.subjects]


@pytest.mark.parametrize(
    ("block", "gate", "expert"),
    [("block_sparse_moe", "gate", "w1"), ("mlp", "gate", "gate_proj"), ("mlp", "router", "up_proj")],
)
def test_routers(block: str, gate: str, expert: str, tmp_path: Path) -> None:
    """Like Mixtral's, Qwen3-MoE's, gpt-oss's: stored as declared, against `ignore`, and forgotten by it."""
    name = f"model.layers.0.{block}.{gate}"
    listed = [f"re:.*{block}.{gate}$"]
    for ignore, coded, expected in (
        (listed, False, []),
        (listed, True, [("D32", f"{name}.weight"), ("N01", name)]),
        ([], False, [("N01", f"{name}.weight")]),
        ([], True, [("N01", name)]),
    ):
        assert routers(tmp_path, block, gate, expert, ignore, coded=coded) == expected


def test_a_router_in_the_words_of_gptq(tmp_path: Path) -> None:
    gate = "model.layers.0.mlp.gate"
    held = {f"{gate}.qweight": ("I32", [8, 64], bytes(2048)), f"{gate}.qzeros": ("I32", [1, 8], bytes(32))}
    held[f"{gate}.scales"] = ("F16", [1, 64], bytes(128))
    (tmp_path / "model.safetensors").write_bytes(shard(held))
    said = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": True}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_moe", "quantization_config": said}))
    named = [each for each in inspect(read_headers(tmp_path)).findings if "router" in each.consequence]
    assert [(each.rule, each.subjects) for each in named] == [("N01", (gate,))]


MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"], "kv_cache_scheme": None}
PRODUCED: dict[str, Any] = {
    "producer": {"name": "modelopt"},
    "quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]},
}
EXCLUDED = {"quant_algo": "FP8", "exclude_modules": ["lm_head", "model.layers.0.b"]}


@pytest.mark.parametrize(
    ("config", "side", "wanted"),
    [
        (MODELOPT, PRODUCED, set()),
        (None, PRODUCED, set()),
        (MODELOPT, {"quantization": EXCLUDED}, {("D04", ("model.layers.0.b",))}),
        (None, {"quantization": EXCLUDED}, {("D32", ("model.layers.0.b.weight",))}),
        (
            MODELOPT,
            {"quantization": {**PRODUCED["quantization"], "quant_algo": "NVFP4"}},
            {("D04", ("model.layers.0.a", "model.layers.0.b"))},
        ),
        (
            MODELOPT,
            {"quantization": {**PRODUCED["quantization"], "kv_cache_quant_algo": "FP8"}},
            {("D04", ("hf_quant_config.json",))},
        ),
        (MODELOPT, {"quantization": {"quant_algo": "MIXED_PRECISION"}}, {("N01", ("hf_quant_config.json",))}),
    ],
)
def test_modelopts_own_file_says_what_config_json_does(
    config: dict[str, Any] | None, side: Any, wanted: set[tuple[str, tuple[str, ...]]], tmp_path: Path
) -> None:
    tensors: dict[str, tuple[str, list[int], bytes]] = {"lm_head.weight": ("BF16", [4, 4], bytes(32))}
    for layer in ("model.layers.0.a", "model.layers.0.b"):
        tensors[f"{layer}.weight"] = ("F8_E4M3", [4, 4], bytes(16))
        tensors |= {f"{layer}.{name}": ("F32", [], bytes(4)) for name in ("weight_scale", "input_scale")}
    (tmp_path / "model.safetensors").write_bytes(shard(tensors))
    stated = {"model_type": "llama", **({"quantization_config": config} if config else {})}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(side))
    rules = {"D04", "D31", "D32", "D34"}
    shown = {(each.rule, each.subjects) for each in inspect(read_headers(tmp_path)).findings}
    told = {each for each in shown if each[0] in rules or each[1] == ("hf_quant_config.json",)}
    assert told == wanted
