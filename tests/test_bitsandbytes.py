"""bitsandbytes' layouts and roundings, held against what bitsandbytes itself wrote (fixtures/bitsandbytes)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from requant.formats import bitsandbytes
from requant.formats.bitsandbytes import MAP, FourBit, Int8
from requant.formats.codec import Array, Arrays, Codec, widen
from requant.formats.declarations import READERS
from requant.rounding.bitsandbytes import looked_up, searched
from requant.rounding.formula import Formula
from requant.rounding.formulas import formulas

with np.load(Path(__file__).parent / "fixtures" / "bitsandbytes" / "0.50.2.npz") as _arrays:
    RECORDED: dict[str, Array] = dict(_arrays)
CODECS: Mapping[str, Codec] = {
    "nf4": FourBit("nf4", False),
    "fp4": FourBit("fp4", False),
    "nf4-nested": FourBit("nf4", True),
    "fp4-nested": FourBit("fp4", True),
    "int8": Int8(),
}
STATE = "weight.quant_state.bitsandbytes__nf4"


def recorded(prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): each for name, each in RECORDED.items() if name.startswith(prefix)}


def formula(codec: Codec, machine: str) -> Formula:
    (found,) = (each for each in formulas(codec) if each.name.endswith(f", {machine}"))
    return found


def differing(made: Arrays, stored: Arrays) -> dict[str, list[int]]:
    found = {}
    for suffix, each in made.items():
        one, other = (np.ascontiguousarray(array).reshape(-1) for array in (each, stored[suffix]))
        assert one.dtype == other.dtype
        apart = one.view(f"u{one.itemsize}") != other.view(f"u{one.itemsize}")
        if apart.any():
            found[suffix] = np.flatnonzero(apart).tolist()
    return found


@pytest.mark.parametrize("kind", CODECS)
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_what_bitsandbytes_wrote_is_recomputed(dtype: str, kind: str) -> None:
    stored, codec = recorded(f"{dtype}/{kind}/"), CODECS[kind]
    decoded, weights = stored.pop("decoded"), widen(RECORDED[dtype], dtype)
    made = formula(codec, "CPU")
    rows, columns = weights.shape
    parts = codec.parts(rows, columns, dtype)
    fixed = {suffix: part.holds for suffix, part in parts.items() if part.holds is not None}
    encoded = {**made.encode(weights, dtype, stored), **made.whole(0, dtype), **fixed}
    assert encoded.keys() == stored.keys()
    assert differing(encoded, stored) == {}
    assert {suffix: part.spec.shape for suffix, part in parts.items() if part.sized} == {
        suffix: stored[suffix].shape for suffix, part in parts.items() if part.sized
    }
    assert parts.keys() == stored.keys()
    wanted = widen(decoded, "F32" if kind == "int8" else dtype)
    assert np.array_equal(codec.decode(stored, columns), wanted)


def test_nested_blocks_go_over_rows() -> None:
    stored, codec = recorded("large/"), CODECS["nf4-nested"]
    weights = widen(RECORDED["large"], "BF16")
    assert codec.parts(150, 192, "BF16")["weight.nested_absmax"].every == 256
    assert stored["weight.nested_absmax"].shape == (2,)
    assert all(differing(each.encode(weights, "BF16", stored), stored) == {} for each in formulas(codec))


def test_nested_blocks_that_windows_would_cut() -> None:
    with pytest.raises(ValueError, match="300 rows, where 256 share nested blocks"):
        CODECS["nf4-nested"].parts(300, 192, "BF16")
    with pytest.raises(ValueError, match="blocks of 64 that cross rows of 100"):
        CODECS["nf4"].parts(8, 100, "BF16")
    with pytest.raises(ValueError, match="a base in F64"):
        CODECS["int8"].parts(8, 128, "F64")


def test_a_weight_that_was_converted_first() -> None:
    weights = widen(RECORDED["F32"], "F32")
    stored = recorded("F16/nf4/")
    assert differing(formula(CODECS["nf4"], "CPU").encode(weights, "F32", stored), stored) == {}


@pytest.mark.parametrize("machine", ["CPU", "CUDA"])
def test_nothing_is_made_in_a_dtype_that_cannot_hold_the_weights(machine: str) -> None:
    stored, weights = recorded("F16/nf4/"), widen(RECORDED["F32"], "F32").copy()
    weights[0, 0] = 70_000
    made = formula(CODECS["nf4"], machine).encode(weights, "F32", stored)
    assert STATE in differing(made, stored)


def test_one_bit_or_one_step_of_a_scale_is_found_where_it_is() -> None:
    stored = {suffix: each.copy() for suffix, each in recorded("BF16/nf4/").items()}
    stored["weight"][77, 0] ^= 0x10
    stored["weight.absmax"].view(np.uint32)[3] += 1
    made = formula(CODECS["nf4"], "CPU").encode(widen(RECORDED["BF16"], "BF16"), "BF16", stored)
    assert differing(made, stored) == {"weight": [77], "weight.absmax": [3]}


def test_codes_by_comparison_as_on_cuda() -> None:
    weights = np.zeros((1, 64), np.float32)
    zeros = formula(CODECS["nf4"], "CUDA").encode(weights, "F32", recorded("F32/nf4/"))
    assert not zeros["weight"].any()  # 0/0 is greater than nothing
    weights[0, :6] = [1, -1, 0.0859375, -0.0859375, -0.001, 0.002]
    made = formula(CODECS["fp4"], "CUDA").encode(weights, "F32", recorded("F32/fp4/"))["weight"]
    assert made[:4].tolist() == [0x3B, 0x19, 0x80, 0x00]


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=50))
def test_both_searches_find_a_nearest_code(values: list[float]) -> None:
    scaled, table = np.array(values, np.float32), bitsandbytes.dynamic_map()
    least = np.abs(scaled[:, None].astype(np.float64) - table).min(axis=1)
    assert np.allclose(np.abs(table[searched(scaled, table)] - scaled), least, atol=1e-7)
    codes = looked_up(scaled, table, np.zeros(len(scaled), bool))
    assert np.allclose(np.abs(table[codes] - scaled), least, atol=2 / 65535)


def test_a_map_may_differ_as_machines_do() -> None:
    stored = {suffix: each.copy() for suffix, each in recorded("BF16/nf4-nested/").items()}
    weights = widen(RECORDED["BF16"], "BF16")
    stored[MAP].view(np.uint32)[18] += 1
    assert differing(formula(CODECS["nf4-nested"], "CPU").encode(weights, "BF16", stored), stored) == {}
    stored[MAP][18] *= 1.01
    assert differing(formula(CODECS["nf4-nested"], "CPU").encode(weights, "BF16", stored), stored) == {MAP: [18]}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[" * 4000,
        b"[" * 5000,
        b'{"shape": [1e999, {}], "dtype": [], "nested_offset": "x"}',
        b'{"nested_offset": 1e300, "shape": [1' + b"0" * 400 + b"]}",
        b'{"nested_offset": NaN}',
        b'{"quant_type": "fp4", "blocksize": 64, "dtype": "bfloat16", "shape": [13, 128]}',
    ],
)
def test_a_strange_state_differs_and_ends_nothing(text: bytes) -> None:
    for kind in ("nf4", "nf4-nested"):
        stored = recorded(f"BF16/{kind}/") | {STATE: np.frombuffer(text, np.uint8)}
        for each in formulas(CODECS[kind]):
            found = differing(each.encode(widen(RECORDED["BF16"], "BF16"), "BF16", stored), stored)
            assert STATE in found or not text
        assert CODECS[kind].decode(stored, 128).shape == (13, 128)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_weights_that_are_no_numbers_end_nothing(bad: float) -> None:
    weights = np.array([[bad, 1.0, -1.0, 0.0] * 32], np.float32)
    for kind, codec in CODECS.items():
        stored = recorded(f"F32/{kind}/")
        for each in formulas(codec):
            codec.decode({**stored, **each.encode(weights, "F32", stored)}, 128)


def test_a_configuration_says_how_each_layer_is_stored() -> None:
    said = {
        "quant_method": "bitsandbytes",
        "_load_in_4bit": True,
        "_load_in_8bit": False,
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": ["lm_head", "model.layers.0", "gate"],
        "llm_int8_threshold": 6.0,
    }
    declared = READERS["bitsandbytes"](said)
    layers = ("lm_head", "model.layers.0.q", "model.layers.00.q", "model.layers.1.gate", "model.layers.1.gate_proj")
    assert [bool(declared.codec(layer)) for layer in layers] == [False, False, True, False, True]
    assert declared.codec("model.layers.1.q") == FourBit("nf4", nested=True)
    assert READERS["bitsandbytes"]({"load_in_8bit": True}).codec("a") == Int8()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({}, "load_in_4bit False, load_in_8bit False"),
        ({"load_in_4bit": 1, "load_in_8bit": 1}, "load_in_4bit 1, load_in_8bit 1"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": ["nf4"]}, r"\['nf4'\]"),
        ({"load_in_4bit": True, "bnb_4bit_use_double_quant": None}, "double quantization None"),
        ({"load_in_4bit": True, "bnb_4bit_quant_storage": "bfloat16"}, "'bnb_4bit_quant_storage' 'bfloat16'"),
        ({"load_in_8bit": True, "llm_int8_has_fp16_weight": True}, "'llm_int8_has_fp16_weight' True"),
        ({"load_in_8bit": True, "llm_int8_skip_modules": [1]}, r"llm_int8_skip_modules \[1\]"),
    ],
)
def test_what_is_not_modelled_is_said(value: Mapping[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        READERS["bitsandbytes"](value)
