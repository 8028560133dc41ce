"""compressed-tensors: against what the real tool stored, and against damage."""

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import awkward
from tests.fixture import Stored, damaged, load, wrong

from requant.formats import codec, floats
from requant.formats.compressed_tensors import FLOATS, MX, NVFP4, Packed, Plain, read
from requant.formats.grid import Grid
from requant.formats.targets import targets
from requant.rounding.compressed_tensors import MinMax
from requant.rounding.formulas import formulas
from requant.rounding.mse import CHOSEN

FIXTURE = Path(__file__).parent / "fixtures/compressed_tensors/stored.safetensors"
GROUP, CHANNEL, TENSOR, BLOCK = Grid(1, 32), Grid(1, None), Grid(None, None), Grid(128, 128, exact=False)
CASES: dict[str, tuple[codec.Codec, int, int]] = {
    "pack4group": (Packed(4, GROUP), 16, 96),
    "pack4channel": (Packed(4, CHANNEL), 16, 52),
    "pack4tensor": (Packed(4, TENSOR), 16, 64),
    "pack4loose": (Packed(4, GROUP, symmetric=False), 20, 96),
    "pack2group": (Packed(2, GROUP), 16, 96),
    "pack2loose": (Packed(2, GROUP, symmetric=False), 20, 96),
    "pack8group": (Packed(8, GROUP), 16, 96),
    "pack8loosechannel": (Packed(8, CHANNEL, symmetric=False), 18, 50),
    "int8channel": (Plain("int-quantized", 8, False, CHANNEL), 16, 64),
    "int8loose": (Plain("int-quantized", 8, False, CHANNEL, symmetric=False), 16, 64),
    "fp8tensor": (Plain("float-quantized", 8, True, TENSOR), 16, 64),
    "fp8channel": (Plain("float-quantized", 8, True, CHANNEL), 16, 64),
    "fp8group": (Plain("naive-quantized", 8, True, GROUP), 16, 64),
    "fp8block": (Plain("float-quantized", 8, True, BLOCK), 136, 144),
    "fp8signed": (Plain("float-quantized", 8, True, CHANNEL), 16, 64),
    "nvfp4": (NVFP4(), 16, 64),
    "mxfp4": (MX(4), 16, 64),
    "mxfp8": (MX(8), 16, 64),
    "pack4mse": (Packed(4, GROUP), 16, 96),
    "pack4loosemse": (Packed(4, GROUP, symmetric=False), 20, 96),
    "int8mse": (Plain("int-quantized", 8, False, CHANNEL), 16, 64),
    "fp8mse": (Plain("float-quantized", 8, True, CHANNEL), 16, 64),
}
EVERY = pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name in CASES for dtype in FLOATS])


@pytest.fixture(scope="module")
def stored() -> Stored:
    return load(FIXTURE)


def weights(rows: int, columns: int, dtype: str) -> Any:
    return codec.widen(awkward.bits(rows, columns, dtype), dtype)


@EVERY
def test_the_real_tools_tensors_are_recomputed(stored: Stored, name: str, dtype: str) -> None:
    form, rows, columns = CASES[name]
    parts = form.parts(rows, columns, dtype)
    found = stored.layer(f"{dtype}.{name}", parts)
    wide = weights(rows, columns, dtype)
    exact = [each for each in formulas(form) if not wrong(each, wide, dtype, found, parts)]
    assert exact, [wrong(each, wide, dtype, found, parts) for each in formulas(form)]
    if name == "fp8signed":
        assert all(isinstance(each, MinMax) and each.signed for each in exact)
    elif name.endswith("mse"):
        assert CHOSEN in {each.name for each in exact}  # some ranges were best as they are
    else:
        assert exact[0] == formulas(form)[0]


@EVERY
def test_it_decodes_to_what_the_real_tool_decompresses(stored: Stored, name: str, dtype: str) -> None:
    form, rows, columns = CASES[name]
    found = stored.layer(f"{dtype}.{name}", form.parts(rows, columns, dtype))
    again = floats.widened(stored.tensors[f"{dtype}.{name}.again"])
    decoded = form.decode(found, columns)
    assert decoded.dtype == np.float32 and decoded.shape == (rows, columns)
    np.testing.assert_array_equal(decoded[: len(again)], again)


@pytest.mark.parametrize("name", ["pack4group", "pack4loose", "int8loose", "fp8channel"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_old_tools_numbers_are_recomputed(name: str, dtype: str) -> None:
    form = CASES[name][0]
    assert isinstance(form, Packed | Plain)
    made = MinMax(form, clamped=True).encode(weights(16, 96, dtype), dtype, {})
    half = 1 << form.bits - 1
    if isinstance(form, Packed):
        codes = form.unpack(made["weight_packed"], 96) - np.uint8(half)
    else:
        codes = made["weight"].view(np.uint8)
    with np.load(FIXTURE.with_name("stored_0.12.2.npz")) as old:
        scales, zeros = old[f"{dtype}.{name}.s"], old[f"{dtype}.{name}.z"]
        np.testing.assert_array_equal(codes, old[f"{dtype}.{name}.q"])
        np.testing.assert_array_equal(floats.widened(made["weight_scale"]), scales)
        if not form.symmetric:
            np.testing.assert_array_equal(form.zeros(made, 16).astype(np.int8).view(np.uint8), zeros)


@EVERY
def test_rows_are_recomputed_alone(stored: Stored, name: str, dtype: str) -> None:
    form, rows, columns = CASES[name]
    parts = form.parts(rows, columns, dtype)
    found = stored.layer(f"{dtype}.{name}", parts)
    wide = weights(rows, columns, dtype)
    formula = next(each for each in formulas(form) if not wrong(each, wide, dtype, found, parts))
    start = form.align
    if start >= rows:
        return
    window = {
        suffix: value if parts[suffix].every == 0 else value[start // parts[suffix].every :]
        for suffix, value in found.items()
    }
    made = formula.encode(wide[start:], dtype, window)
    assert all(made[suffix].tobytes() == window[suffix].tobytes() for suffix in made)


@pytest.mark.parametrize("name", CASES)
def test_one_bit_is_seen_where_it_is(stored: Stored, name: str) -> None:
    form, rows, columns = CASES[name]
    parts = form.parts(rows, columns, "BF16")
    found = stored.layer(f"BF16.{name}", parts)
    wide = weights(rows, columns, "BF16")
    formula = next(each for each in formulas(form) if not wrong(each, wide, "BF16", found, parts))
    for suffix, part in parts.items():
        if part.every:
            place = found[suffix].size // 2
            seen = wrong(formula, wide, "BF16", damaged(found, suffix, place), parts)
            if formula.name == CHOSEN and suffix not in ("weight", "weight_packed"):
                assert seen  # in the scale, or, where it is the one of another range, in the codes
            else:
                assert seen == {suffix: [place]}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("fill", [np.nan, np.inf, -np.inf, 3e38, 1e-45, 0.0])
def test_numbers_that_are_none_do_no_harm(name: str, fill: float) -> None:
    form, rows, columns = CASES[name]
    wide = np.full((rows, columns), fill, np.float32)
    wide[0, 0] = 1
    for dtype in FLOATS:
        empty = {
            suffix: np.full(part.spec.shape, 0xFF, np.uint8).astype(_numpy(part.spec.dtype))
            for suffix, part in form.parts(rows, columns, dtype).items()
        }
        assert form.decode(empty, columns).shape == (rows, columns)
        for formula in formulas(form):
            made = formula.encode(wide, dtype, empty)
            assert {key: value.shape for key, value in made.items()} == {key: empty[key].shape for key in made}
            formula.whole(float(fill), dtype)


def _numpy(dtype: str) -> Any:
    names = {
        "BF16": np.uint16,
        "F16": np.float16,
        "F32": np.float32,
        "I8": np.int8,
        "U8": np.uint8,
        "F8_E4M3": np.uint8,
    }
    return (names | {"I32": np.int32, "I64": np.int64})[dtype]


def config(**own: Any) -> dict[str, Any]:
    scheme = {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 128, "strategy": "group"}}
    return {"config_groups": {"group_0": scheme}, "format": "pack-quantized", "ignore": ["lm_head"]} | own


def scheme(form: str, targets: list[str], inputs: Any = None, **weights: Any) -> dict[str, Any]:
    return {"targets": targets, "weights": weights, "input_activations": inputs, "format": form}


def test_what_is_declared() -> None:
    declared = read(config())
    assert declared.codec("model.layers.0.mlp.up_proj") == Packed(4, Grid(1, 128))
    assert declared.codec("lm_head") is None
    groups = {
        "a": scheme("float-quantized", ["re:.*self_attn.*"], {"dynamic": False}, num_bits=8, type="float"),
        "b": scheme("pack-quantized", ["Linear"], num_bits=8, group_size=-1, symmetric=False),
        "c": scheme("nvfp4-pack-quantized", ["m.special"], {"strategy": "tensor_group", "dynamic": "local"},
                    num_bits=4, type="float", strategy="tensor_group", group_size=16),
    }  # fmt: skip
    mixed = read(config(config_groups=groups, format="mixed-precision", ignore=["re:.*router$"]))
    assert mixed.codec("m.self_attn.q") == Plain("float-quantized", 8, True, TENSOR, inputs=("input_scale",))
    assert mixed.codec("m.mlp.up") == Packed(8, CHANNEL, symmetric=False)
    assert mixed.codec("m.special") == NVFP4(("input_global_scale",))
    assert mixed.codec("m.self_attn.router") is None
    assert read(config(config_groups={"a": {"targets": ["m.only"], "weights": None}})).codec("m.only") is None
    assert read(config(config_groups={"a": scheme("pack-quantized", ["m.only"], num_bits=4)})).codec("m.other") is None


@pytest.mark.parametrize(
    "own",
    [
        {"config_groups": None},
        {"config_groups": {"W4A16": ["Linear"]}},
        {"config_groups": {"a": {"targets": "Linear"}}},
        {"transform_config": {"config_groups": {"a": 1}}},
        {"sparsity_config": {"format": "sparse-24-bitmask"}},
        {"quantization_status": "frozen"},
        {"ignore": 3},
        {"ignore": ["re:("]},
        {"ignore": ["re:(?=m)m"]},
        {"ignore": ["re:^(?!.*proj).*$"]},
        {"ignore": [r"re:(a)\1"]},
        {"ignore": ["re:" + "a" * 5000]},
    ],
)
def test_a_configuration_that_is_not_modelled(own: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        read(config(**own))


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("pack-quantized", {"num_bits": 1}),
        ("pack-quantized", {"num_bits": 9}),
        ("pack-quantized", {"num_bits": "4"}),
        ("pack-quantized", {"num_bits": 4, "group_size": [3]}),
        ("pack-quantized", {"num_bits": 4, "strategy": "group"}),
        ("pack-quantized", {"num_bits": 4, "strategy": {}}),
        ("pack-quantized", {"num_bits": 4, "strategy": "block", "block_structure": [128, 128]}),
        ("float-quantized", {"num_bits": 8, "type": "float", "symmetric": False}),
        ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": "x"}),
        ("float-quantized", {"num_bits": 8, "type": "float", "scale_dtype": "torch.uint8"}),
        ("mxfp6-pack-quantized", {"num_bits": 6, "type": "float", "group_size": 16}),
        ("mxfp6-pack-quantized", {"num_bits": 4, "type": "float", "group_size": 32}),
        ("dense", {"num_bits": 8}),
        (None, {"num_bits": 8}),
        ({}, {"num_bits": 8}),
        ("pack-quantized", 7),
    ],
)
def test_a_scheme_that_is_not_modelled(form: Any, said: Any) -> None:
    declared = read(config(config_groups={"a": {"targets": ["Linear"], "weights": said, "format": form}}, format=None))
    with pytest.raises(ValueError, match=r"."):
        declared.codec("model.layers.0.mlp.up_proj")


def test_shapes_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="100 inputs are no multiple of the group size 32"):
        Packed(4, GROUP).parts(8, 100, "BF16")
    with pytest.raises(ValueError, match="a base in F8_E4M3"):
        NVFP4().parts(8, 32, "F8_E4M3")


def test_inputs_in_an_order_of_their_own() -> None:
    form = Packed(4, GROUP, ordered=True)
    assert formulas(form) == ()
    assert str(form.parts(8, 64, "F32")["weight_g_idx"].spec) == "I32 [64]"
    found = {
        "weight_packed": form.pack(np.full((1, 64), 9, np.uint8)),
        "weight_scale": np.array([[1, 2]], np.float32),
        "weight_g_idx": np.array([1] * 32 + [0] * 31 + [99], np.int32),
    }
    np.testing.assert_array_equal(form.decode(found, 64)[0], [2] * 32 + [1] * 31 + [2])


EXPRESSIONS = [
    *(".*", ".*mlp.*", r"model\.layers\.(0|1[0-9]?)\..*", "(?:.*_)?proj$", "[^.]+", r"\w+\.\d{1,2}"),
    *(".*(q|k|v)_proj", "a|b", "m.+?s", r".*\bup", "lm_head$", "[a-mx]*x", ".{3,5}l"),
]
NAMES = ["", "lm_head", "model.layers.1.mlp.up_proj", "model.layers.12.self_attn.q_proj", "model.norm", "a", "x.1.gate"]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_means_what_python_means(expression: str) -> None:
    read_one = targets([f"re:{expression}"])
    for name in NAMES:
        assert bool(read_one.first(name)) == bool(re.match(expression, name)), name


@given(st.from_regex(r"([ab.]|[ab]\*|\(a\|b\)\?|a\{1,2\}){0,6}\$?", fullmatch=True), st.text("ab", max_size=8))
def test_any_expression_means_what_python_means(expression: str, name: str) -> None:
    assert bool(targets([f"re:{expression}"]).first(name)) == bool(re.match(expression, name))


def test_an_expression_takes_no_unbounded_time() -> None:
    started = time.monotonic()
    assert targets(["re:(a*)*b", "re:" + "a*" * 200 + "b"]).first("a" * 200) is None
    assert time.monotonic() - started < 20


def test_a_declaration_of_the_real_tool_is_read() -> None:
    text = '{"actorder": null, "block_structure": null, "dynamic": false, "group_size": null, "num_bits": 8, "observer": "memoryless_minmax", "observer_kwargs": {}, "scale_dtype": null, "strategy": "channel", "symmetric": true, "type": "float", "zp_dtype": null}'  # noqa: E501
    group = scheme("float-quantized", ["Linear"], {"dynamic": True, "strategy": "token"}, **json.loads(text))
    assert read(config(config_groups={"group_0": group})).codec("x") == Plain("float-quantized", 8, True, CHANNEL)


@pytest.mark.parametrize("bits", [5, 6, 7])
def test_no_form_is_stated_and_none_is_meant(bits: int) -> None:
    weight = {"num_bits": bits, "type": "float", "strategy": "group", "group_size": 32}
    said = read({"config_groups": {"a": {"targets": ["Linear"], "weights": weight}}, "format": None})
    with pytest.raises(ValueError, match="the format None"):
        said.codec("layer")
