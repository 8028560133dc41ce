"""The loops that numba compiles, held against numpy where they could part: at no numbers, at ends, and at ties."""

import numpy as np
import pytest

from requant.formats import gptq
from requant.formats.codec import Array, narrow, rounded, widen
from requant.formats.floats import E2M1, looked_up
from requant.rounding.kernels import absmax, along_inputs, full_range
from requant.rounding.levels import whole
from requant.rounding.quotients import PLACES, ends
from requant.rounding.reach import SIGN, SMALLEST, half
from requant.rounding.squares import sums_of_squares

F32 = np.float32
AWKWARD = np.array([0, -0.0, 1, -1, 1e-10, -1e-10, 3e38, 6e-8, 0.5, np.inf, -np.inf, np.nan], F32)
DRAWN = np.random.default_rng(1)


@pytest.mark.parametrize(("rows", "words"), [(1, 1), (64, 64), (70, 65), (130, 7)])
def test_codes_of_four_bits_change_places(rows: int, words: int) -> None:
    some = DRAWN.integers(0, 1 << 32, (words, rows), dtype=np.uint32)
    codes = np.empty((rows, 8 * words), np.uint8)
    along_inputs(some, 4, codes)
    assert np.array_equal(codes, gptq.unpack(some))


@pytest.mark.parametrize("columns", [1, 100, 128, 300])
def test_sums_of_squares(columns: int) -> None:
    decoded, weights = DRAWN.normal(0, 1, (2, 3, columns)).astype(F32)
    missed, found = np.empty((2, 3, -(-columns // 128)))
    sums_of_squares(decoded, weights, 128, missed, found)
    starts = np.arange(0, columns, 128)
    for told, values in ((missed, decoded - weights), (found, weights)):
        wanted = np.add.reduceat(np.square(values, dtype=np.float64), starts, axis=1)
        np.testing.assert_allclose(told, wanted, rtol=1e-12)
    sums_of_squares(np.zeros_like(weights), weights, 128, missed, found)
    assert np.array_equal(missed, found)  # zeros are as far as zeros are


@pytest.mark.parametrize("shift", [-10, 0, 10])
def test_ends_of_groups_on_one_side_of_zero(shift: float) -> None:
    weights = (DRAWN.normal(0, 1, (4, 64)) + shift).astype(F32)
    low, high = np.full((4, 4), np.inf, F32), np.full((4, 4), -np.inf, F32)
    ends(weights.view(np.int32), 1, 16, low.view(np.int32), high.view(np.int32))
    grouped = weights.reshape(4, 4, 16)
    assert np.array_equal(low, grouped.min(axis=2)) and np.array_equal(high, grouped.max(axis=2))


def pairs() -> tuple[Array, Array]:
    """Every awkward least weight beside every greatest one: [groups, rows], zero or no number among them."""
    low, high = np.meshgrid(AWKWARD, AWKWARD)
    low, high = (np.ascontiguousarray(each) for each in (np.minimum(low, 0), np.maximum(high, 0)))
    return low, high


def test_scales_of_symmetric_codes() -> None:
    low, high = pairs()
    with np.errstate(all="ignore"):
        widest = np.maximum(-low, high)
        exact = np.maximum(widest, F32(1e-10)) / F32(7)
        bits = half(widest / F32(8))
        full = np.where((high >= -low) & (bits > 0), SIGN, np.uint16(0)) | np.maximum(bits, SMALLEST)
    divisors, scales = np.empty(low.shape, F32), np.empty(low.shape, np.uint16)
    absmax(low, high, F32(1e-10), F32(7), divisors, scales)
    assert np.array_equal(divisors, exact, equal_nan=True) and np.array_equal(scales, half(exact))
    full_range(low, high, F32(8), SMALLEST, scales)
    assert np.array_equal(scales, full)


@pytest.mark.parametrize("reciprocal", [True, False])
def test_rows_of_bytes(reciprocal: bool) -> None:
    weights = DRAWN.normal(0, 0.02, (4, 64)).astype(F32)
    weights[1], weights[2, 3], weights[3, 5] = 0, 1e-7, np.nan
    with np.errstate(all="ignore"):
        halves = widen(narrow(weights, "F16"), "F16")
        wide = np.abs(halves).max(axis=1)
        factors = F32(127) * (F32(1) / wide) if reciprocal else F32(127) / wide
        wanted = np.nan_to_num(np.clip(np.rint(halves * factors[:, None]), -128, 127))
    widest, codes = np.empty(4, F32), np.empty((4, 64), np.int8)
    whole(weights, PLACES["F16"], reciprocal, widest, codes)
    assert np.array_equal(widest, wide, equal_nan=True) and np.array_equal(codes, wanted)


def test_bfloat16() -> None:
    values = np.concatenate([AWKWARD, AWKWARD.view(np.int32).view(F32), np.array([1 + 2**-8, 1 + 3 * 2**-8], F32)])
    assert np.array_equal(rounded(values, "BF16"), widen(narrow(values, "BF16"), "BF16"), equal_nan=True)
    assert rounded(values, "BF16")[-2:].tolist() == [1, 1 + 2**-6]
    assert narrow(np.array([np.nan, -np.nan], F32), "BF16").tolist() == [0x7FC0, 0x7FC0]


@pytest.mark.parametrize("upper_first", [True, False])
def test_both_codes_of_a_byte_are_looked_up(upper_first: bool) -> None:
    octets = np.arange(256, dtype=np.uint8).reshape(2, 128)
    codes = [octets & 15, octets >> 4]
    wanted = E2M1[np.stack(codes[::-1] if upper_first else codes, axis=-1).reshape(2, -1)]
    assert np.array_equal(looked_up(E2M1, octets, upper_first=upper_first).view(np.uint32), wanted.view(np.uint32))
