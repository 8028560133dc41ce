"""ModelOpt: against what its own code made, against the definition, and against damage."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import awkward
from tests.fixture import damaged, load, wrong

from requant.formats import codec
from requant.formats.floats import E2M1, E4M3, halves, rounded
from requant.formats.modelopt import INPUT, SCALE, WHOLE, ModelOptFP8, ModelOptNVFP4, read
from requant.rounding.formulas import formulas

FLOATS = ("BF16", "F16", "F32")


def nearest(values: Any, table: Any) -> Any:
    """Return the codes of the nearest of a table's numbers, the even one of two, by looking at all of them."""
    half = table[: len(table) // 2]
    half = half[~np.isnan(half)]
    far = np.abs(np.abs(values.astype(np.float64))[..., None] - half.astype(np.float64))
    best = far.min(axis=-1, keepdims=True)
    odd = np.arange(len(half)) % 2
    return np.where(far == best, odd, 2).argmin(axis=-1)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_real_tools_tensors_are_recomputed(dtype: str) -> None:
    stored = load(Path(__file__).parent / "fixtures/modelopt/stored.safetensors")
    wide = codec.widen(awkward.bits(48, 96, dtype), dtype)
    form = ModelOptNVFP4(inputs=False)
    parts = form.parts(48, 96, dtype)
    assert not wrong(formulas(form)[0], wide, dtype, stored.layer(f"{dtype}.nvfp4", parts), parts)
    parts = {suffix: part for suffix, part in ModelOptFP8().parts(48, 96, dtype).items() if suffix != INPUT}
    found = stored.layer(f"{dtype}.fp8", parts)
    assert not wrong(formulas(ModelOptFP8())[1], wide, dtype, found, parts)


@pytest.mark.parametrize("dtype", FLOATS)
def test_fp8(dtype: str) -> None:
    form = ModelOptFP8()
    wide = codec.widen(awkward.bits(16, 48, dtype), dtype)
    formula, on_cpu = formulas(form)
    found: dict[str, Any] = {**formula.whole(float(np.abs(wide).max()), dtype), INPUT: np.float32(1)}
    other = on_cpu.encode(wide, dtype, found)["weight"]
    np.testing.assert_array_equal(other & 0x7F, nearest(rounded(wide / found[SCALE], dtype), E4M3))
    found["weight"] = formula.encode(wide, dtype, found)["weight"]
    assert found[SCALE] == np.float32(np.abs(wide).max()) / np.float32(448)
    quotients = rounded(wide / rounded(np.asarray(found[SCALE]).reshape(1), dtype), dtype)
    np.testing.assert_array_equal(found["weight"] & 0x7F, nearest(quotients, E4M3))
    np.testing.assert_array_equal(found["weight"] >> 7, np.signbit(wide))
    np.testing.assert_array_equal(form.decode(found, 48), E4M3[found["weight"]] * found[SCALE])


@pytest.mark.parametrize("dtype", FLOATS)
def test_nvfp4(dtype: str) -> None:
    form = ModelOptNVFP4()
    wide = codec.widen(awkward.bits(16, 48, dtype), dtype)
    (formula,) = formulas(form)
    found: dict[str, Any] = {**formula.whole(float(np.abs(wide).max()), dtype), INPUT: np.float32(1)}
    found |= formula.encode(wide, dtype, found)
    most = np.abs(wide.reshape(16, 3, 16)).max(axis=-1)
    exact = most / (np.float32(6) * found[WHOLE])
    np.testing.assert_array_equal(found[SCALE], nearest(np.where(exact == 0, 1, np.clip(exact, 2.0**-9, 448)), E4M3))
    quotients = wide / (E4M3[found[SCALE]] * found[WHOLE]).repeat(16, axis=1)
    codes = halves(found["weight"])
    np.testing.assert_array_equal(codes & 7, nearest(quotients, E2M1))
    np.testing.assert_array_equal(codes >> 3, wide < 0)
    parts = form.parts(16, 48, dtype)
    for suffix in ("weight", SCALE):
        assert wrong(formula, wide, dtype, damaged(found, suffix, 17), parts) == {suffix: [17]}


def test_what_is_declared() -> None:
    declared = read({"quant_algo": "NVFP4", "ignore": ["lm_head", "model.layers.3.*"], "quant_method": "modelopt"})
    assert declared.codec("model.layers.13.mlp.up_proj") == ModelOptNVFP4()
    assert [declared.codec(name) for name in ("lm_head", "model.layers.3.mlp.up_proj", "visual.a")] == [None] * 3
    old = read({"quantization": {"quant_algo": "fp8", "exclude_modules": None}})
    assert old.codec("a") == ModelOptFP8()
    assert INPUT not in ModelOptNVFP4(inputs=False).parts(16, 32, "BF16")


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"quantization": 3},
        {"quant_algo": "MIXED_PRECISION"},
        {"quant_algo": ["FP8"]},
        {"quant_algo": "NVFP4", "group_size": 32},
        {"quant_algo": "FP8", "ignore": "lm_head"},
        {"quant_algo": "FP8", "ignore": [""]},
    ],
)
def test_what_is_not_modelled(told: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        read(told)


def test_shapes_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="no multiple"):
        ModelOptNVFP4().parts(16, 40, "BF16")


@pytest.mark.parametrize("fill", [np.nan, np.inf, 3e38, 1e-45, 0.0])
def test_numbers_that_are_none_do_no_harm(fill: float) -> None:
    wide = np.full((5, 32), fill, np.float32)
    for form, most in ((ModelOptFP8(), np.uint8(255)), (ModelOptNVFP4(), np.uint8(127))):
        empty = {
            suffix: np.full(part.spec.shape, fill, np.float32)
            if part.spec.dtype == "F32"
            else np.full(part.spec.shape, most)
            for suffix, part in form.parts(5, 32, "F16").items()
        }
        assert form.decode(empty, 32).shape == (5, 32)
        for formula in formulas(form):
            for dtype in FLOATS:
                made = {**formula.whole(fill, dtype), **formula.encode(wide, dtype, empty)}
                assert {key: value.shape for key, value in made.items()} == {key: empty[key].shape for key in made}
