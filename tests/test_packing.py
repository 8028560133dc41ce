import math
import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tests.conftest import Refuses
from tests.tiny import tiny

from requant.checkpoint.safetensors import Spec
from requant.formats import Packing, awq, packing_of
from requant.formats.form import Form
from requant.formats.gptq import bfloat16_to_float32, pack, round_to_nearest, unpack
from requant.worker.autoround import retune

SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 5).map(lambda words: 8 * words))
CODES = arrays.arrays(np.uint8, SHAPES, elements=st.integers(0, 15))
WORDS = arrays.arrays(np.int32, st.tuples(st.integers(1, 5), st.integers(1, 5)))


def to_float32(value: Fraction | float) -> Fraction:
    """Round a quotient of float32 numbers to float32; by way of a double, which is wide enough: 53 >= 2 * 24 + 2."""
    return Fraction(struct.unpack("<f", struct.pack("<f", value))[0])


# Packing.


@given(CODES)
def test_unpack_undoes_pack(codes: np.ndarray) -> None:
    assert (unpack(pack(codes)) == codes).all()


@given(WORDS)
def test_pack_undoes_unpack(words: np.ndarray) -> None:
    assert (pack(unpack(words)) == words).all()


def test_a_word_by_hand() -> None:
    """The first input of a row takes the lowest four bits; the eighth gives the word its sign."""
    assert pack(np.array([[1, 2, 3, 4, 5, 6, 7, 8]], np.uint8)).view(np.uint32).item() == 0x87654321
    assert pack(np.array([[1, 2, 3, 4, 5, 6, 7, 8]], np.uint8)).item() == 0x87654321 - 2**32


def test_where_a_code_goes() -> None:
    """Code [out, in] lies in word [in // 8, out], in the bits from 4 * (in % 8) on."""
    codes = np.random.default_rng(0).integers(0, 16, (3, 24), np.uint8)
    words = pack(codes)
    assert words.shape == (3, 3)
    assert words.dtype == np.int32
    for (row, column), code in np.ndenumerate(codes):
        assert int(words[column // 8, row]) >> 4 * (column % 8) & 15 == code


def test_what_does_not_fill_words_is_refused(refuses: Refuses) -> None:
    with refuses(ValueError):
        pack(np.zeros((2, 12), np.uint8))


@pytest.mark.parametrize(
    ("packing_format", "bits", "words"),
    [
        ("auto_round:auto_gptq", 4, [0x77777777]),
        ("auto_round:auto_awq", 4, [0x88888888]),
        ("auto_round:auto_gptq", 2, [0x55555555]),
        ("auto_round:auto_gptq", 8, [0x7F7F7F7F]),
        ("auto_round:auto_gptq", 3, [0xDB6DB6DB, 0xB6DB6DB6, 0x6DB6DB6D]),
    ],
)
def test_zero_points_of_symmetric_codes(packing_format: str, bits: int, words: list[int]) -> None:
    """The middle, 2^(b-1): GPTQ's first version stores it less one, AWQ as it is."""
    form = Form(packing_format, bits, 128, symmetric=True)
    spec = form.specs((32, 256))["qzeros"]
    assert spec.shape == (2, bits)
    assert np.frombuffer(form.zeros(spec), "<u4").tolist() == words * (spec.size // len(words))
    less = 1 if "gptq" in packing_format else 0
    number = int.from_bytes(form.zeros(spec)[: 4 * bits], "little")
    assert {number >> bits * k & (1 << bits) - 1 for k in range(32)} == {(1 << bits - 1) - less}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_three_tensors_hold_a_layer_in_groups_or_in_one(bits: int) -> None:
    for size, groups in ((128, 3), (-1, 1), (512, 1)):
        form = Form("auto_round", bits, size, symmetric=False)
        specs = form.specs((64, 320))
        assert packing_of(specs, 64, 320) == Packing("gptq", bits, groups)
    assert packing_of(Form("auto_round:auto_awq", 4, 32, symmetric=False).specs((64, 320)), 64, 320) == Packing(
        "awq", 4, 10
    )


# bfloat16.


def test_an_export_to_gptq_numbers_the_groups_of_inputs() -> None:
    for size, last in ((128, 2), (-1, 0)):
        form = Form("auto_gptq", 4, size, symmetric=True)
        specs = form.specs((64, 320))
        assert packing_of(specs, 64, 320) == Packing("gptq", 4, last + 1)
        assert specs["g_idx"] == Spec("I32", (320,))
        groups = np.frombuffer(form.fixed("g_idx", specs["g_idx"]) or b"", "<i4")
        assert (groups[0], groups[127], groups[-1]) == (0, 0, last)
        assert form.fixed("qzeros", specs["qzeros"]) == form.zeros(specs["qzeros"])
        assert form.fixed("qweight", specs["qweight"]) is None
    assert Form("auto_awq", 4, 64, symmetric=False).fixed("qzeros", Spec("I32", (5, 8))) is None


def test_every_bfloat16_is_exact() -> None:
    """By IEEE 754: sign, eight bits of exponent, seven of fraction."""
    found = bfloat16_to_float32(np.arange(2**16, dtype="<u2").tobytes()).tolist()
    for bits, value in enumerate(found):
        exponent, fraction = bits >> 7 & 255, bits & 127
        if exponent == 255:
            assert math.isnan(value) if fraction else math.isinf(value)
            assert fraction or (value < 0) == bool(bits >> 15)
            continue
        size = math.ldexp(fraction + 128 * (exponent > 0), max(exponent, 1) - 127 - 7)
        assert value == size * (-1) ** (bits >> 15)
        assert math.copysign(1, value) == (-1) ** (bits >> 15)


# Rounding to nearest, against fractions: each step of AutoRound's quantize_weight_rtn, rounded once, as IEEE 754 says.


def slowly(group: list[float]) -> tuple[list[int], bytes]:
    scale = to_float32(max(*(abs(Fraction(value)) for value in group), to_float32(1e-10)) / 7)
    codes = []
    for value in group:
        quotient = to_float32(Fraction(value) / scale)
        codes.append(min(max(round(quotient), -8), 7) + 8)  # Python rounds fractions to nearest, ties to even
    return codes, struct.pack("<e", scale)


NUMBERS = st.integers(0, 2**16 - 1).map(lambda bits: float(bfloat16_to_float32(struct.pack("<H", bits))[0]))
WEIGHTS = NUMBERS.filter(lambda value: math.isfinite(value) and abs(value) < 2**15)


@given(st.lists(st.lists(WEIGHTS, min_size=24, max_size=24), min_size=1, max_size=3))
def test_rounding_follows_its_definition(rows: list[list[float]]) -> None:
    codes, scales = round_to_nearest(np.array(rows, np.float32), 8)
    assert codes.shape == (len(rows), 24)
    assert scales.shape == (3, len(rows))
    assert (codes.dtype.name, scales.dtype.name) == ("uint8", "float16")
    for row, values in enumerate(rows):
        for group in range(3):
            expected, scale = slowly(values[8 * group : 8 * group + 8])
            assert codes[row, 8 * group : 8 * group + 8].tolist() == expected
            assert scales[group, row].astype("<f2").tobytes() == scale


def test_a_tiny_models_weights_are_rounded_by_definition() -> None:
    """Bell-shaped, as weights are: here a division is seldom exact."""
    weight = bfloat16_to_float32(tiny("mini").tensors["mtp.fc.weight"].read()).reshape(256, 512)[:4, :256]
    codes, scales = round_to_nearest(weight, 128)
    for row in range(4):
        for group in range(2):
            expected, scale = slowly(weight[row, 128 * group : 128 * group + 128].tolist())
            assert codes[row, 128 * group : 128 * group + 128].tolist() == expected
            assert scales[group, row].astype("<f2").tobytes() == scale


def test_ties_go_to_even_and_the_range_is_used_to_minus_seven() -> None:
    """The scale is 1; -8 is never reached, since the largest weight takes 7 or -7."""
    codes, scales = round_to_nearest(np.array([[7, -7, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]], np.float32), 8)
    assert (codes.astype(int) - 8).tolist() == [[7, -7, 0, 2, 2, 0, -2, -2]]
    assert scales.tolist() == [[1.0]]


def test_codes_come_from_the_scale_before_it_is_float16() -> None:
    """With max|w| = 4.1796875 the scale 0.59709823 is stored as 0.59716797, and 3.8814 lies on the edge."""
    greatest = np.float32(4.1796875)
    scale = greatest / np.float32(7)
    edge = np.float32(6.5) * np.float32((float(scale) + float(np.float16(scale))) / 2)
    codes, scales = round_to_nearest(np.array([[greatest, edge, 0, 0, 0, 0, 0, 0]], np.float32), 8)
    assert scales[0, 0] > scale
    assert codes[0, 1] == 7 + 8
    assert np.rint(edge / np.float32(scales[0, 0])) == 6


def test_a_group_of_zeros() -> None:
    """Its scale is too small for float16 and becomes 0; its codes mean 0 with any scale."""
    codes, scales = round_to_nearest(np.zeros((2, 16), np.float32), 8)
    assert (codes == 8).all()
    assert (scales == 0).all()


def test_a_group_that_does_not_fit_is_refused(refuses: Refuses) -> None:
    with refuses(ValueError):
        round_to_nearest(np.zeros((1, 192), np.float32), 128)


def test_the_worker_knows_awqs_order_too() -> None:
    assert retune.AWQ_ORDER == awq.ORDER
