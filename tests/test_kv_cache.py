"""Scales of a KV cache, and what a tokenizer was last called with, as `inspect` sees them."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from tests.checkpoints import shard
from tests.formats import integers

from requant.inspect import inspect
from requant.inspect.findings import Severity
from requant.inspect.headers import read_headers

FP8 = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
COMPRESSED = integers("int-quantized", 8, strategy="channel")
SCHEME = {**COMPRESSED, "kv_cache_scheme": FP8}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}
ATTENTION = "model.layers.{}.self_attn"
GOOD = struct.pack("<f", 0.5)
Scales = dict[str, bytes]


def scales(place: str = ATTENTION, /, **change: bytes | None) -> Scales:
    """Scales of two layers, `k0` and so on changed or left out."""
    held = {f"{half}{block}": GOOD for half in ("k", "v") for block in range(2)} | change
    where = {"k": place.replace("X", "k"), "v": place.replace("X", "v")}
    return {f"{where[key[0]].format(key[1])}.{key[0]}_scale": each for key, each in held.items() if each}


def found(
    folder: Path, said: Any, held: Scales, tokenizer: Any = None, **config: Any
) -> list[tuple[str, str, tuple[str, ...]]]:
    tensors: dict[str, tuple[str, list[int], bytes]] = {name: ("F32", [], data) for name, data in held.items()}
    for block in range(2):
        for half in ("k", "v", "q"):
            layer = f"{ATTENTION.format(block)}.{half}_proj"
            tensors |= {
                f"{layer}.weight": ("I8", [2, 2], bytes(4)),
                f"{layer}.weight_scale": ("BF16", [2, 1], bytes(4)),
            }
    (folder / "model.safetensors").write_bytes(shard(tensors))
    stated = {"model_type": "llama", "quantization_config": said, **config}
    (folder / "config.json").write_text(json.dumps(stated))
    (folder / "tokenizer.json").write_text(json.dumps({"truncation": None, "padding": None, **(tokenizer or {})}))
    report = inspect(read_headers(folder), look_at_values=True)
    rules = ("D34", "D35")
    shown = [each for each in report.findings if each.rule in rules or "KV cache" in each.consequence]
    return [(each.rule, str(each.severity), each.subjects) for each in shown]


@pytest.mark.parametrize("said", [SCHEME, MODELOPT, {**MODELOPT, "kv_cache_quant_algo": None, "kv_cache_scheme": FP8}])
@pytest.mark.parametrize("place", [ATTENTION, f"{ATTENTION}.X_proj"])
def test_what_is_declared_and_there_is_not_named(said: Any, place: str, tmp_path: Path) -> None:
    assert found(tmp_path, said, scales(place)) == []


@pytest.mark.parametrize(
    "said", [COMPRESSED, {**COMPRESSED, "kv_cache_scheme": None}, {"quant_method": "modelopt", "quant_algo": "FP8"}]
)
def test_no_cache_is_declared(said: Any, tmp_path: Path) -> None:
    assert found(tmp_path, said, {}) == []
    ((rule, severity, subjects),) = found(tmp_path, said, scales())
    assert (rule, severity) == ("D34", Severity.NOTE) and {*subjects} == scales().keys()


@pytest.mark.parametrize(("said", "key"), [(SCHEME, "kv_cache_scheme"), (MODELOPT, "kv_cache_quant_algo")])
def test_declared_and_absent(said: Any, key: str, tmp_path: Path) -> None:
    assert found(tmp_path, said, {}) == [("D34", Severity.WARNING, (f"config.json: quantization_config.{key}",))]


@pytest.mark.parametrize("half", ["k1", "v1"])
def test_a_scale_that_was_lost_is_named(half: str, tmp_path: Path) -> None:
    lost = f"{ATTENTION.format(1)}.{half[0]}_scale"
    assert found(tmp_path, SCHEME, scales(ATTENTION, **{half: None})) == [("D34", Severity.ERROR, (lost,))]


def test_a_layer_without_scales_is_named_unless_layers_share_caches(tmp_path: Path) -> None:
    held = scales(k1=None, v1=None)
    lost = tuple(f"{ATTENTION.format(1)}.{half}_scale" for half in ("k", "v"))
    assert found(tmp_path, SCHEME, held) == [("D34", Severity.ERROR, lost)]
    assert found(tmp_path, SCHEME, held, text_config={"num_kv_shared_layers": 1}) == []


@pytest.mark.parametrize("said", [SCHEME, MODELOPT, COMPRESSED])
@pytest.mark.parametrize("value", [0.0, -0.5, float("nan"), float("inf")])
def test_what_is_no_scale_is_named(value: float, said: Any, tmp_path: Path) -> None:
    named = found(tmp_path, said, scales(v1=struct.pack("<f", value)))
    assert ("D34", Severity.ERROR, (f"{ATTENTION.format(1)}.v_scale",)) in named


@pytest.mark.parametrize(
    "said",
    [
        {**COMPRESSED, "kv_cache_scheme": {**FP8, "num_bits": 4}},
        {**COMPRESSED, "kv_cache_scheme": {**FP8, "dynamic": True}},
        {**MODELOPT, "kv_cache_quant_algo": "NVFP4"},
        {**COMPRESSED, "kv_cache_scheme": "fp8"},
    ],
)
def test_other_caches_are_not_modelled(said: Any, tmp_path: Path) -> None:
    assert [each[:2] for each in found(tmp_path, said, {})] == [("N01", Severity.UNMODELLED)]


CUT = {"max_length": 2048, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}
FILLED = {"strategy": {"Fixed": 2048}, "pad_id": 0}


@pytest.mark.parametrize(("key", "value"), [("truncation", CUT), ("padding", FILLED)])
def test_what_cuts_or_fills_prompts_is_named(key: str, value: Any, tmp_path: Path) -> None:
    named = found(tmp_path, COMPRESSED, {}, {key: value})
    assert named == [("D35", Severity.WARNING, (f"tokenizer.json: {key}",))]
