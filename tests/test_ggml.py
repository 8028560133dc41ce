import gguf as package
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fixtures.ggml.make import FILE, weights

from requant.checkpoint.gguf import BLOCKS
from requant.checkpoint.safetensors import Spec
from requant.formats.codec import Array, Part
from requant.formats.ggml import LAYOUTS, Ggml, pack, unpack
from requant.rounding.blocks import ACROSS, STRICT, WITHIN
from requant.rounding.formulas import formulas
from requant.rounding.ggml import FORMS, LINES, Reference

few = settings(max_examples=20)
"""Every example is compared for a dozen types."""
SUPER = (*LINES, "Q3_K", "Q6_K")
BUILDS = {STRICT: "", ACROSS: ".gcc", WITHIN: ".clang"}


def real(kind: str, fused: int) -> Array:
    """What ggml made of `weights`, uint8 [72, bytes of a row]."""
    with np.load(FILE) as made:
        plain = np.asarray(made[kind])
        return plain ^ made[kind + BUILDS[fused]] if fused else plain


@pytest.mark.parametrize(("kind", "fused"), [(kind, fused) for kind in LAYOUTS for fused in BUILDS])
def test_blocks_are_those_of_ggml(kind: str, fused: int) -> None:
    form = fused if fused in FORMS[kind] else STRICT
    made = Reference(kind, form).encode(weights(), "F32", {})["weight"]
    assert made.dtype == np.uint8
    assert np.array_equal(made, real(kind, fused))


def test_contraction_shows() -> None:
    shown = {kind for kind in LAYOUTS for fused in (ACROSS, WITHIN) if np.any(real(kind, fused) != real(kind, STRICT))}
    assert shown >= set(SUPER)
    assert all(ACROSS in FORMS[kind] for kind in shown)


@pytest.mark.parametrize("kind", LAYOUTS)
@few
@given(data=st.data())
def test_blocks_are_taken_apart_and_put_together(kind: str, data: st.DataObject) -> None:
    size = BLOCKS[kind].nbytes
    blocks = np.frombuffer(data.draw(st.binary(min_size=2 * size, max_size=2 * size)), np.uint8).reshape(2, size)
    fields = unpack(kind, blocks)
    assert fields.codes.shape == (2, BLOCKS[kind].elements)
    assert np.array_equal(pack(kind, fields), blocks)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_blocks_mean_what_the_package_says(kind: str) -> None:
    blocks = np.random.default_rng(1).integers(0, 256, (64, 2 * BLOCKS[kind].nbytes), np.uint8)
    found = Ggml(kind).decode({"weight": blocks}, 2 * BLOCKS[kind].elements)
    with np.errstate(all="ignore"):
        wanted = package.quants.dequantize(blocks, package.GGMLQuantizationType[kind])
    assert found.dtype == np.float32
    assert np.array_equal(found, wanted, equal_nan=True)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "MXFP4"])
def test_the_package_rounds_alike(kind: str) -> None:
    x = weights() + np.float32(0)  # blocks of negative zeros keep another sign in numpy than in C
    with np.errstate(all="ignore"):
        wanted = package.quants.quantize(x, package.GGMLQuantizationType[kind]).view(np.uint8)
    assert np.array_equal(Reference(kind).encode(x, "F32", {})["weight"].view(np.uint8), wanted)


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q4_K", "Q6_K"])
def test_a_file_between_is_another_formula(kind: str) -> None:
    x = weights()[:24]
    between = np.asarray(x.astype(np.float16), np.float32)
    by_way = Reference(kind, by="F16").encode(x, "F32", {})["weight"]
    assert np.array_equal(by_way, Reference(kind).encode(between, "F16", {})["weight"])
    assert not np.array_equal(by_way, Reference(kind).encode(x, "F32", {})["weight"])


@pytest.mark.parametrize("kind", [*LAYOUTS, "F32", "F16", "BF16"])
@few
@given(drawn=st.binary(min_size=1024, max_size=1024))
def test_any_weights_can_be_encoded(kind: str, drawn: bytes) -> None:
    x = np.frombuffer(drawn, np.float32)[None]
    for formula in formulas(Ggml(kind)):
        made = formula.encode(x, "F32", {})["weight"]
        assert made.nbytes == Ggml(kind).parts(1, 256, "F32")["weight"].spec.nbytes
        Ggml(kind).decode({"weight": made.view(np.uint16) if kind == "BF16" else made}, 256)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_rows_stand_for_themselves(kind: str) -> None:
    x = weights()
    made = Reference(kind).encode(x, "F32", {})["weight"]
    assert np.array_equal(Reference(kind).encode(x[30:33], "F32", {})["weight"], made[30:33])
    moved = x.copy()
    moved[31, 7] += 8 * np.abs(moved[31]).max()
    wrong = (Reference(kind).encode(moved, "F32", {})["weight"] != made).any(axis=1)
    assert np.flatnonzero(wrong).tolist() == [31]


def test_what_a_layer_has() -> None:
    assert Ggml("Q4_K").parts(3, 512, "BF16") == {"weight": Part(Spec("U8", (3, 288)))}
    assert Ggml("F16").parts(3, 5, "BF16") == {"weight": Part(Spec("F16", (3, 5)))}
    assert Ggml("Q4_K").name == "ggml Q4_K"
    with pytest.raises(ValueError, match="320 columns are no multiple of 256"):
        Ggml("Q4_K").parts(3, 320, "BF16")
    with pytest.raises(ValueError, match="blocks of IQ2_XS"):
        Ggml("IQ2_XS").parts(3, 512, "BF16")
    assert formulas(Ggml("IQ2_XS")) == ()


def test_formulas_have_names() -> None:
    names = [each.name for each in formulas(Ggml("Q6_K"))]
    assert len(set(names)) == len(names) == 9
    assert names[:3] == ["ggml, reference", "ggml, reference, by way of F16", "ggml, reference, by way of BF16"]
    assert names[3] == "ggml, reference, multiply-add fused across statements (gcc)"
    assert formulas(Ggml("Q6_K"))[0].whole(1, "BF16") == {}
