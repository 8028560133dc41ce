"""Codes in words of 32 bits: against compressed-tensors, against GPTQ's words, and back again."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fixture import load

from requant.formats import gptq
from requant.formats.codec import Array
from requant.formats.streams import pack, pack_whole, unpack, unpack_whole

FIXTURES = Path(__file__).parent / "fixtures/compressed_tensors"
LENGTHS = (1, 7, 10, 11, 31, 32, 33, 64, 69)
BITS = st.integers(2, 8)
SIZES = st.tuples(st.integers(0, 5), st.integers(1, 140))
SEEDS = st.integers(0, 2**32 - 1)


def drawn(rows: int, count: int, bits: int, seed: int) -> Array:
    return np.random.default_rng(seed).integers(0, 1 << bits, (rows, count)).astype(np.uint8)


@pytest.mark.parametrize("version", ["0.12.2", "0.17.1", "0.20.1"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_the_real_tools_words_are_ours(version: str, bits: int) -> None:
    stored = load(FIXTURES / f"bits_{version}.safetensors").tensors
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (3, max(LENGTHS))).astype(np.uint8)
    for length in LENGTHS:
        words, some = stored[f"words.{bits}.{length}"], codes[:, :length]
        packed, unpacked = (pack, unpack) if version == "0.20.1" else (pack_whole, unpack_whole)
        np.testing.assert_array_equal(packed(some, bits).view(np.int32), words)
        np.testing.assert_array_equal(unpacked(words, bits, length), some)


@given(BITS, SIZES, SEEDS)
def test_a_stream_is_unpacked(bits: int, size: tuple[int, int], seed: int) -> None:
    codes = drawn(*size, bits, seed)
    words = pack(codes, bits)
    assert words.dtype == np.dtype("<u4") and words.shape == (size[0], -(-size[1] * bits // 32))
    np.testing.assert_array_equal(unpack(words, bits, size[1]), codes)


@given(BITS, SIZES, SEEDS)
def test_whole_codes_are_unpacked(bits: int, size: tuple[int, int], seed: int) -> None:
    codes = drawn(*size, bits, seed)
    words = pack_whole(codes, bits)
    assert words.dtype == np.dtype("<u4") and words.shape == (size[0], -(-size[1] // (32 // bits)))
    np.testing.assert_array_equal(unpack_whole(words, bits, size[1]), codes)
    if 32 % bits == 0:
        np.testing.assert_array_equal(words, pack(codes, bits))


@given(BITS, st.integers(1, 5), st.integers(1, 4), SEEDS)
def test_a_stream_is_that_of_gptqs_words(bits: int, rows: int, words: int, seed: int) -> None:
    codes = drawn(rows, 32 * words, bits, seed)
    np.testing.assert_array_equal(pack(codes, bits).view(np.int32), gptq.pack(codes, bits).T)
