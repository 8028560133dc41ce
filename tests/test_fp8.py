"""`quant_method: fp8`: against what transformers made, and against damage."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import awkward
from tests.fixture import Stored, damaged, load, wrong

from requant.formats import codec
from requant.formats.fp8 import INVERSE, SCALE, Blocks, PerTensor, read
from requant.formats.grid import Grid
from requant.rounding.formulas import formulas
from requant.rounding.fp8 import Scaled

CASES = {
    "large": (Blocks(Grid(128, 128, exact=False)), 128, 128),
    "small": (Blocks(Grid(2, 16, exact=False)), 48, 64),
}
FLOATS = ("BF16", "F16", "F32")
EVERY = pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name in CASES for dtype in FLOATS])


@pytest.fixture(scope="module")
def stored() -> Stored:
    return load(Path(__file__).parent / "fixtures/fp8/stored.safetensors")


def weights(rows: int, columns: int, dtype: str) -> Any:
    return codec.widen(awkward.bits(rows, columns, dtype), dtype)


@EVERY
def test_transformers_tensors_are_recomputed(stored: Stored, name: str, dtype: str) -> None:
    form, rows, columns = CASES[name]
    parts = form.parts(rows, columns, dtype)
    found = stored.layer(f"{dtype}.{name}", parts)
    assert not wrong(formulas(form)[0], weights(rows, columns, dtype), dtype, found, parts)
    again = stored.tensors[f"{dtype}.{name}.again"]
    np.testing.assert_array_equal(form.decode(found, columns)[: len(again)], again)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_tensors_of_others_are_recomputed(dtype: str) -> None:
    others = load(Path(__file__).parent / "fixtures/fp8/others.safetensors")
    wide = weights(24, 72, dtype)
    for name, form, said in (
        ("auto", PerTensor(static=False), "AutoFP8, absmax"),
        ("gemm", Blocks(Grid(16, 16, exact=False)), "DeepGEMM, absmax"),
    ):
        parts = form.parts(24, 72, dtype)
        found = others.layer(f"{dtype}.{name}", parts)
        exact = [each.name for each in formulas(form) if not wrong(each, wide, dtype, found, parts)]
        assert said in exact


def test_one_bit_is_seen_where_it_is(stored: Stored) -> None:
    form, rows, columns = CASES["small"]
    parts = form.parts(rows, columns, "BF16")
    found, wide = stored.layer("BF16.small", parts), weights(rows, columns, "BF16")
    for suffix, place in (("weight", 100), (INVERSE, 5)):
        assert wrong(Scaled(form), wide, "BF16", damaged(found, suffix, place), parts) == {suffix: [place]}


@pytest.mark.parametrize("fill", [np.nan, np.inf, 3e38, 1e-45, 0.0])
def test_numbers_that_are_none_do_no_harm(fill: float) -> None:
    for form in (CASES["small"][0], PerTensor(static=True)):
        wide = np.full((5, 40), fill, np.float32)
        numpy = {"F32": np.float32, "F8_E4M3": np.uint8}
        empty = {
            suffix: np.full(part.spec.shape, fill).astype(np.float32).view(np.float32)
            if part.spec.dtype == "F32"
            else np.full(part.spec.shape, 255, numpy[part.spec.dtype])
            for suffix, part in form.parts(5, 40, "F16").items()
        }
        assert form.decode(empty, 40).shape == (5, 40)
        for formula in formulas(form):
            for dtype in FLOATS:
                made = {**formula.whole(fill, dtype), **formula.encode(wide, dtype, empty)}
                assert {key: value.shape for key, value in made.items()} == {key: empty[key].shape for key in made}


def test_scales_of_bfloat16() -> None:
    form = Blocks(Grid(16, 16, exact=False), "BF16")
    wide = weights(24, 72, "BF16")
    assert str(form.parts(24, 72, "BF16")[INVERSE].spec) == "BF16 [2, 5]"
    for formula in formulas(form):
        made = formula.encode(wide, "BF16", {})
        assert made[INVERSE].dtype == np.uint16
        assert np.abs(form.decode(made, 72) - wide).max() < 0.05 * np.abs(wide).max()


def test_one_scale_is_of_the_bases_dtype() -> None:
    form = PerTensor(static=False)
    wide = weights(16, 64, "BF16")
    (formula,) = formulas(form)
    whole = formula.whole(float(np.abs(wide).max()), "BF16")
    codes = formula.encode(wide, "BF16", whole)["weight"]
    assert whole[SCALE].shape == () and np.abs(codes & 0x7F).max() == 0x7E
    far = np.abs(form.decode({**whole, "weight": codes}, 64) - wide).max()
    assert far < 1.1 * 32 / 2 * float(whole[SCALE])


def test_what_is_declared() -> None:
    told = {"weight_block_size": [128, 128], "modules_to_not_convert": ["model.layers.0.mlp.gate", "model.visual"]}
    declared = read(told)
    assert declared.codec("model.layers.0.mlp.gate_proj") == CASES["large"][0]
    assert [declared.codec(name) for name in ("lm_head", "model.layers.0.mlp.gate", "model.visual.a.b")] == [None] * 3
    assert read({"activation_scheme": "static"}).codec("a") == PerTensor(static=True)


@pytest.mark.parametrize(
    "told",
    [
        {"modules_to_not_convert": 3},
        {"modules_to_not_convert": [""]},
        {"fmt": "e5m2"},
        {"scale_fmt": "ue8m0"},
        {"activation_scheme": []},
        {"weight_block_size": [128]},
        {"weight_block_size": [0, 128]},
        {"weight_block_size": [True, 128]},
        {"weight_block_size": [128, 128], "activation_scheme": "static"},
    ],
)
def test_what_is_not_modelled(told: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        read(told)
