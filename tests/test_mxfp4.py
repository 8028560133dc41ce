"""MXFP4's layout and roundings, held against triton_kernels and transformers (fixtures/mxfp4)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from requant.formats.codec import Array, widen
from requant.formats.declarations import READERS
from requant.formats.mxfp4 import GptOssMXFP4
from requant.rounding.formula import Formula
from requant.rounding.formulas import formulas

with np.load(Path(__file__).parent / "fixtures" / "mxfp4" / "made.npz") as _arrays:
    RECORDED: dict[str, Array] = dict(_arrays)
DECODED, UP, EVEN, DOWN, MODELOPT = formulas(GptOssMXFP4())
with np.load(Path(__file__).parent / "fixtures" / "mxfp4" / "modelopt.npz") as _arrays:
    BY_MODELOPT: dict[str, Array] = dict(_arrays)


def stored(name: str) -> dict[str, Array]:
    return {suffix: RECORDED[f"{name}/{suffix}"].copy() for suffix in ("_blocks", "_scales")}


def differing(formula: Formula, weights: Array, found: Mapping[str, Array]) -> dict[str, list[int]]:
    made = formula.encode(weights, "BF16", found)
    return {
        suffix: np.flatnonzero(np.ravel(made[suffix]) != found[suffix].reshape(-1)).tolist() for suffix in sorted(made)
    }


NOTHING: dict[str, list[int]] = {"_blocks": [], "_scales": []}


@pytest.mark.parametrize(("name", "formula"), [("ROUND_UP", UP), ("ROUND_DOWN", DOWN)])
def test_what_triton_kernels_made_is_recomputed(name: str, formula: Formula) -> None:
    weights, found = widen(RECORDED["weights"], "BF16"), stored(name)
    assert differing(formula, weights, found) == NOTHING
    rows, columns = weights.shape
    parts = GptOssMXFP4().parts(rows, columns, "BF16")
    assert {suffix: (1, *part.spec.shape) for suffix, part in parts.items()} == {
        suffix: each.shape for suffix, each in found.items()
    }
    assert differing(EVEN, weights, found) != NOTHING


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_what_modelopt_made_is_recomputed_and_damage_is_found(dtype: str) -> None:
    weights = BY_MODELOPT[f"{dtype}/weights"]
    found = {suffix: BY_MODELOPT[f"{dtype}/{suffix}"].copy() for suffix in ("_blocks", "_scales")}
    assert differing(MODELOPT, weights, found) == NOTHING
    for other in (DECODED, DOWN) if dtype == "F32" else (DECODED, UP, EVEN, DOWN):  # which has no zeros and no ties
        assert differing(other, weights, found) != NOTHING
    found["_blocks"][0, 2, 1, 3] ^= 0x20
    found["_scales"][0, 4, 3] += 1
    assert differing(MODELOPT, weights, found) == {"_blocks": [2 * 64 + 16 + 3], "_scales": [4 * 4 + 3]}


@pytest.mark.parametrize("name", ["ROUND_UP", "ROUND_DOWN", "every"])
def test_decoded_as_transformers_does(name: str) -> None:
    wanted = widen(RECORDED[f"{name}/decoded"], "BF16")
    decoded = GptOssMXFP4().decode(stored(name), wanted.shape[1])
    assert np.array_equal(decoded, wanted, equal_nan=True)


@pytest.mark.parametrize("name", ["ROUND_UP", "ROUND_DOWN"])
def test_a_base_that_was_decoded(name: str) -> None:
    found = stored(name)
    base = GptOssMXFP4().decode(found, 128)
    assert differing(DECODED, base, found) == NOTHING
    base[3, 5] = np.nextafter(base[3, 5], np.float32(9))
    assert differing(DECODED, base, found) == {"_blocks": [3 * 64 + 2], "_scales": []}


def test_one_bit_or_one_step_of_a_scale_is_found_where_it_is() -> None:
    weights, found = widen(RECORDED["weights"], "BF16"), stored("ROUND_UP")
    found["_blocks"][0, 2, 1, 3] ^= 0x20
    found["_scales"][0, 4, 3] += 1
    assert differing(UP, weights, found) == {"_blocks": [2 * 64 + 16 + 3], "_scales": [4 * 4 + 3]}


def test_ties() -> None:
    weights = np.array([[6, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -5, -0.25] + [0] * 22], np.float32)
    away, even = (each.encode(weights, "BF16", {})["_blocks"][:5].tolist() for each in (UP, EVEN))
    assert away == [0x17, 0x32, 0x54, 0x76, 0x9F]
    assert even == [0x07, 0x22, 0x44, 0x66, 0x8E]
    assert MODELOPT.encode(weights, "BF16", {})["_blocks"][:6].tolist() == [0x07, 0x21, 0x43, 0x65, 0x8E, 0x88]


@given(st.lists(st.integers(0, 255), min_size=16, max_size=16), st.integers(1, 250))
def test_decoded_and_encoded_again(octets: list[int], scale: int) -> None:
    octets[0] = octets[0] & 0xF0 | 7  # the greatest magnitude, which gives the scale
    found = {"_blocks": np.array(octets, np.uint8).reshape(1, 1, 16), "_scales": np.array([[scale]], np.uint8)}
    base = GptOssMXFP4().decode(found, 32)
    assert all(differing(each, base, found) == NOTHING for each in (DECODED, UP, EVEN))
    for half in (0x08, 0x80):
        found["_blocks"][found["_blocks"] & (half - half // 8) == 0] |= half  # zeros have a sign
    assert differing(MODELOPT, base, found) == NOTHING


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3.4e38])
def test_weights_that_are_no_numbers_end_nothing(bad: float) -> None:
    weights = np.array([[bad, 1.0, -1.0, 0.0] * 32], np.float32)
    found = {suffix: each[0, :1] for suffix, each in stored("ROUND_UP").items()}
    for each in formulas(GptOssMXFP4()):
        GptOssMXFP4().decode(each.encode(weights, "F32", found), 128)


def test_shapes_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="100 inputs, no multiple of 32"):
        GptOssMXFP4().parts(8, 100, "BF16")
    with pytest.raises(ValueError, match="a base in I8"):
        GptOssMXFP4().parts(8, 128, "I8")


def test_a_configuration_says_which_layers_are_stored_so() -> None:
    patterns = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.layers.1", "lm_head"]
    declared = READERS["mxfp4"]({"quant_method": "mxfp4", "modules_to_not_convert": patterns})
    layers = [f"model.layers.{layer}.mlp.experts.{name}" for layer in (0, 1, 11) for name in ("gate_up_proj", "norm")]
    assert [bool(declared.codec(layer)) for layer in layers] == [True, False, False, False, True, False]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"modules_to_not_convert": "lm_head"}, "modules_to_not_convert 'lm_head'"),
        ({"modules_to_not_convert": [1]}, r"modules_to_not_convert \[1\]"),
        ({"group_size": 64}, "'group_size' 64"),
    ],
)
def test_what_is_not_modelled_is_said(value: Mapping[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        READERS["mxfp4"](value)
