"""The bound is what AutoRound can reach: no less, and not a step more."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import ROOT

from requant.formats import Packing, awq, gptq
from requant.formats.gptq import bfloat16_to_float32, round_to_nearest
from requant.recipe import read_recipe
from requant.rounding.kernels import along_inputs, along_outputs, distances, error, extremes, halves, steps, unlike
from requant.rounding.reach import (
    Array,
    Reach,
    codes_within,
    half,
    loosest,
    range_possible,
    reach,
    reach_of,
    scale_possible,
    tightest,
)
from requant.rounding.ways import ABSMAX, FULL, bfloat16, rounded

F32 = np.float32


def f32(values: Any) -> Array:
    return np.array(values, F32)


def weights(seed: int, rows: int = 4, columns: int = 256) -> Array:
    """BF16 weights as float32 [rows, columns]: bell-shaped, some groups with one side only, some of zeros."""
    random = np.random.default_rng(seed)
    drawn = random.normal(0, 0.02, (rows, columns)).astype(F32)
    drawn[0, :128] = np.abs(drawn[0, :128])
    drawn[1, :128] = 0
    drawn[2, :128] *= F32(1e-5)
    return bfloat16_to_float32((drawn.view(np.uint32) >> 16).astype("<u2").tobytes()).reshape(rows, columns)


def tuned(values: Array, v: Any, low_factor: Any, high_factor: Any) -> tuple[Array, Array]:
    """`quant_tensor_sym` in numpy, from its source: float16 scales [rows, groups] and codes of `values`, grouped."""
    low, high = np.minimum(values.min(-1), 0) * low_factor, np.maximum(values.max(-1), 0) * high_factor
    wide = np.where(high < -low, 1, -1).astype(F32) * np.maximum(high, -low)
    scales = (wide / F32(8)).astype(np.float16)
    limit = np.float16(1e-5)
    scales = np.where(scales < 0, np.minimum(scales, -limit), np.maximum(scales, limit))
    return scales, np.clip(np.rint(values / scales.astype(F32)[..., None] + v), -8, 7)


def walk(random: np.random.Generator, shape: tuple[int, ...], iterations: int, bias: float) -> tuple[Array, Array]:
    """Offsets and factors after a random number of sign steps, drawn towards up and down by `bias`."""
    v, factor = np.zeros(shape, F32), np.ones(shape[:-1], F32)
    rate = F32(1 / iterations)
    for i in range(int(random.integers(0, iterations))):
        v += rate * np.where(random.random(shape) < bias, F32(1), F32(-1))
        factor = np.clip(factor - rate * np.where(random.random(shape[:-1]) < bias, F32(1), F32(-1)), 0, 1)
        rate *= F32(1.0 - 1.0 / (iterations - i))
    return v, factor.astype(F32)


@given(st.integers(0, 2**32), st.integers(1, 40), st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]))
def test_whatever_is_tuned_is_within_reach(seed: int, iterations: int, bias: float) -> None:
    random, bound = np.random.default_rng(seed), reach(iterations, 1 / iterations, 1 / iterations)
    values = weights(seed % 1000).reshape(4, 2, 128)
    v, low_factor = walk(random, values.shape, iterations, bias)
    _, high_factor = walk(random, values.shape, iterations, bias)
    scales, codes = tuned(values, v, low_factor, high_factor)
    ends = np.minimum(values.min(-1), 0), np.maximum(values.max(-1), 0)
    assert scale_possible(scales.view(np.uint16), *ends, bound).all()
    least, greatest = codes_within(values, scales.astype(F32)[..., None], bound)
    assert ((least <= codes) & (codes <= greatest)).all()


@pytest.mark.parametrize("iterations", [2, 3, 4, 8, 50, 200, 400])
def test_the_ends_of_the_reach_are_reached_and_one_step_beyond_is_not(iterations: int) -> None:
    bound = reach(iterations, 1 / iterations, 1 / iterations)
    values = weights(iterations).reshape(4, 2, 128)
    ends = np.minimum(values.min(-1), 0), np.maximum(values.max(-1), 0)
    for side in (-1, 1):
        for factor in (1.0, bound.factor):
            scales, codes = tuned(values, F32(side * bound.offset), F32(factor), F32(factor))
            least, greatest = codes_within(values, scales.astype(F32)[..., None], bound)
            assert (codes == (least if side < 0 else greatest)).all()
            beyond = codes + side
            assert not ((least <= beyond) & (beyond <= greatest))[(beyond >= -8) & (beyond <= 7)].any()
            bits = scales.view(np.uint16)
            assert scale_possible(bits, *ends, bound).all()
            alive = (bits & 0x7FFF) > 168
            further = (bits.astype(int) + (1 if factor == 1.0 else -1)).astype(np.uint16)
            assert not scale_possible(further, *ends, bound)[alive].any()


def test_the_sign_of_a_scale_is_that_of_the_end_that_can_be_wider() -> None:
    bound = Reach(0.5, 0.5)
    low, high = f32([-1.0, -1.0, -1.0, 0.0, 0.0]), f32([0.4, 0.6, 0.5, 1.0, 0.0])
    signs = [scale_possible(f32([s] * 5).astype(np.float16).view(np.uint16), low, high, bound) for s in (0.07, -0.07)]
    assert signs[0].tolist() == [True, True, True, False, False]
    assert signs[1].tolist() == [False, True, False, True, False]
    smallest = np.full(5, 168, np.uint16)
    assert scale_possible(smallest, low, high, bound).tolist() == [False] * 4 + [True]


def test_what_is_not_finite_is_never_possible() -> None:
    values = f32([np.inf, np.nan, 1, 1])
    scales = np.array([0x2C00, 0x2C00, 0x7C00, 0x7E00], np.uint16)
    assert not scale_possible(scales, -values, f32([0, 0, 0, 0]), loosest()).any()
    least, greatest = codes_within(f32([np.nan]), f32([1]), loosest())
    assert not (least <= 0).any()
    assert not (greatest >= 0).any()


def test_without_a_recipe_four_iterations_are_the_loosest() -> None:
    every = [reach(i, 1 / i, 1 / i) for i in range(1, 300)]
    assert max(each.offset for each in every) == loosest().offset == 0.5625
    assert min(each.factor for each in every) == loosest().factor == 0.4375
    assert tightest(0.0, 1.0) == 4000
    assert tightest(reach(8, 1 / 8, 1 / 8).offset, 1.0) == 8
    assert tightest(0.6, 1.0) is None


def test_a_recipe_says_how_far_its_tuning_reaches() -> None:
    for name, iterations in (("ec", 400), ("gb10", 400), ("intel", 200)):
        recipe = read_recipe(ROOT / "builds" / name)
        assert reach_of(recipe, False) == reach(iterations, 1 / iterations, 1 / iterations)
        few = recipe.tiny.iterations
        assert reach_of(recipe, True) == reach(few, 1 / few, 1 / few)


SCRIPT = """
import json, sys, torch
from auto_round.data_type.int import quant_tensor_sym
from auto_round.sign_sgd import SignSGD
told = []
for iterations in (1, 2, 4, 8, 200, 400):
    v, f = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.ones(1))
    rate = torch.tensor(1.0 / iterations)
    optimizer = SignSGD([{"params": [v]}, {"params": [f], "lr": rate}], lr=rate, weight_decay=0, momentum=0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=iterations)
    for _ in range(iterations):
        best = v.detach().clone(), f.detach().clamp(0, 1).clone()
        v.grad, f.grad = -torch.ones(1), torch.ones(1)
        optimizer.step(), optimizer.zero_grad(), schedule.step()
    weights = torch.frombuffer(bytearray.fromhex(sys.argv[1]), dtype=torch.bfloat16).reshape(-1, 256)
    made = []
    for dtype in (torch.bfloat16, torch.float32):
        for side in (-1, 1):
            for factor in (torch.ones(1), best[1]):
                w = weights.to(dtype)
                v = (side * best[0]).expand(w.numel() // 128, 128)
                qdq, scale, _ = quant_tensor_sym(w, 4, 128, v, min_scale=factor, max_scale=factor)
                codes = torch.round(qdq.reshape(-1, 128) / scale)
                made.append([side, factor.item(), scale.view(torch.int16).flatten().tolist(), codes.int().tolist()])
    told.append([iterations, best[0].item(), best[1].item(), made])
print(json.dumps(told))
"""


@pytest.mark.worker
def test_autoround_itself_reaches_exactly_these_ends(worker: Path) -> None:
    """Its optimizer, torch's schedule and `quant_tensor_sym`, in BF16 and float32, after every step went one way."""
    values = weights(7)
    stored = (values.view(np.uint32) >> 16).astype("<u2").tobytes().hex()
    done = subprocess.run([worker, "-c", SCRIPT, stored], capture_output=True, text=True, check=True)
    grouped = values.reshape(-1, 128)
    ends = np.minimum(grouped.min(-1), 0), np.maximum(grouped.max(-1), 0)
    for iterations, offset, factor, made in json.loads(done.stdout.splitlines()[-1]):
        bound = reach(iterations, 1 / iterations, 1 / iterations)
        assert (bound.offset, bound.factor) == (offset, factor)
        for side, _, bits, codes in made:
            scales = np.array(bits, np.int16).view(np.uint16)
            assert scale_possible(scales, *ends, bound).all()
            least, greatest = codes_within(grouped, scales.view(np.float16).astype(F32)[:, None], bound)
            assert (np.array(codes) == (least if side < 0 else greatest)).all()


SCHEMES = """
import json, sys, torch
from auto_round.data_type.int import quant_tensor_asym, quant_tensor_sym
offset, factor = float(sys.argv[2]), torch.tensor(float(sys.argv[3]))
weights = torch.frombuffer(bytearray.fromhex(sys.argv[1]), dtype=torch.bfloat16).reshape(-1, 256)
told = []
for bits in (2, 3, 4, 8):
    for make in (quant_tensor_sym, quant_tensor_asym):
        for side in (-1, 1):
            for low, high in ((1, 1), (1, factor), (factor, 1), (factor, factor)):
                groups = weights.numel() // 64
                v = torch.full((groups, 64), side * offset)
                ends = (torch.ones(groups) * each for each in (low, high))
                # In float32: of BF16 numbers, a product of 255 steps is rounded by half a step, before it is asked for.
                qdq, scale, zero = make(weights.float(), bits, 64, v, *ends)
                zero = torch.as_tensor(zero).expand(groups, 1)
                codes = torch.round(qdq.float().reshape(-1, 64) / scale)
                told.append([bits, make is quant_tensor_sym, side, scale.view(torch.int16).flatten().tolist(),
                             zero.flatten().int().tolist(), codes.int().tolist()])
print(json.dumps(told))
"""


@pytest.mark.worker
def test_autoround_itself_stays_within_reach_in_every_scheme(worker: Path) -> None:
    """`quant_tensor_sym` and `quant_tensor_asym` at the ends of the reach, which they reach exactly."""
    values, bound = weights(9), reach(6, 1 / 6, 1 / 6)
    stored = (values.view(np.uint32) >> 16).astype("<u2").tobytes().hex()
    ends = str(bound.offset), str(bound.factor)
    done = subprocess.run([worker, "-c", SCHEMES, stored, *ends], capture_output=True, text=True, check=True)
    grouped = values.reshape(-1, 64)
    low, high = np.minimum(grouped.min(-1), 0), np.maximum(grouped.max(-1), 0)
    tighter = Reach(bound.offset, bound.factor + 0.02)
    seen = []
    for bits, symmetric, side, scales, zeros, codes in json.loads(done.stdout.splitlines()[-1]):
        stored_scales, points = np.array(scales, np.int16).view(np.uint16), np.array(zeros, np.int32)
        middle, top = 1 << (bits - 1), (1 << bits) - 1

        for within in (bound, tighter):
            if symmetric:
                possible = scale_possible(stored_scales, low, high, within, middle)
            else:
                possible = range_possible(stored_scales, points, low, high, within, top)
            seen.append((within is bound, bool(possible.all())))
        signed = -points[:, None].astype(F32), top - points[:, None].astype(F32)
        steps = stored_scales.view(np.float16).astype(F32)[:, None]
        least, greatest = codes_within(grouped, steps, bound, *signed)
        assert (np.array(codes) == (least if side < 0 else greatest)).all()
    assert set(seen) == {(True, True), (False, True), (False, False)}


@given(st.integers(0, 2**32), st.sampled_from([2, 3, 4, 8]), st.floats(0.4375, 1), st.floats(0.4375, 1))
def test_a_zero_point_or_a_scale_beyond_is_out_of_reach(seed: int, bits: int, down: float, up: float) -> None:
    values, top, bound = weights(seed % 1000).reshape(8, 128)[4:], (1 << bits) - 1, loosest()
    low, high = np.minimum(values.min(-1), 0), np.maximum(values.max(-1), 0)
    ends = low * F32(down), high * F32(up)
    scales = np.maximum(((ends[1] - ends[0]) / F32(top)).astype(np.float16), np.float16(1e-5))
    zeros = np.rint(-ends[0] / scales.astype(F32)).astype(np.int32)
    assert range_possible(scales.view(np.uint16), zeros, low, high, bound, top).all()
    wide = (F32(1.01) * (high - low) / F32(top)).astype(np.float16).view(np.uint16)
    assert not range_possible(wide, zeros, low, high, bound, top).any()
    for beyond in (-1, top + 2):
        assert not range_possible(scales.view(np.uint16), np.full(4, beyond), low, high, bound, top).any()


def test_float16_is_rounded_as_numpy_rounds_it() -> None:
    exact = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(F32)
    between = (exact[:-1] + exact[1:]) / 2
    random = np.random.default_rng(0).integers(0, 0x7F800001, 100_000, dtype=np.uint32).view(F32)
    near = [np.nextafter(between, F32(side)) for side in (0, np.inf)]
    values = np.concatenate([exact, between, *near, random, f32([65519, 65520, 65536, np.inf])])
    with np.errstate(over="ignore"):
        assert (halves(values) == values.astype(np.float16).view(np.uint16)).all()


@given(
    st.integers(0, 2**32),
    st.sampled_from([(8, 128, 128), (16, 256, 128), (8, 192, 128), (24, 64, 32)]),
    st.sampled_from([2, 3, 4, 8]),
    st.booleans(),
)
def test_the_kernels_do_what_numpy_does(seed: int, shape: tuple[int, int, int], bits: int, narrow: bool) -> None:
    rows, columns, group = shape
    random = np.random.default_rng(seed)
    values = (random.normal(0, 0.02, (rows, columns)).astype(F32).view(np.uint32) >> 16 << 16).view(F32)
    top = (1 << bits) - 1
    codes = random.integers(0, top + 1, (rows, columns)).astype(np.uint8)
    stored, groups = (values.view(np.uint32) >> 16).astype(np.uint16), -(-columns // group)
    scales = random.choice(f32([0.003, -0.002, 0.01]), (groups, rows))
    zeros = random.integers(0, top + 1, (groups, rows)).astype(np.int32)
    low, high, far, moved, wrong = (np.empty((groups, rows), np.int32) for _ in range(5))
    extremes(stored, group, low, high)
    distances(stored, codes, zeros, top, scales, group, far, moved)
    unlike(stored, codes, zeros, top, scales, narrow, group, wrong)
    for g in range(groups):
        part = slice(g * group, min(columns, (g + 1) * group))
        zero = zeros[g][:, None].astype(F32)
        some, signed = values[:, part], codes[:, part].astype(F32) - zero
        assert (low.view(F32)[g] == np.minimum(some.min(1), 0)).all()
        assert (high.view(F32)[g] == np.maximum(some.max(1), 0)).all()
        ratio = some / scales[g][:, None]
        assert np.abs(ratio).max() < 128
        clamped = (signed == top - zero) & (ratio > signed) | (signed == -zero) & (ratio < signed)
        away = np.where(clamped, 0, np.abs(signed - ratio))
        assert (np.abs(far.view(F32)[g] - away.max(1)) < error(bits) * np.maximum(1, away.max(1) / 2**bits)).all()
        near = error(8)  # of the widest ratio here
        assert (moved[g] >= (away > 0.5 + near).sum(1)).all()
        assert (moved[g] <= (away > 0.5 - near).sum(1)).all()
        nearest = np.rint(bfloat16(ratio) if narrow else ratio)
        assert (wrong[g] == (signed != np.clip(nearest, -zero, top - zero)).sum(1)).all()


@given(st.integers(0, 2**32), st.sampled_from([2, 3, 4, 8]), st.integers(1, 3), st.integers(1, 5))
def test_words_are_decoded_as_the_formats_say(seed: int, bits: int, rows: int, columns: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (32 * rows, 32 * columns)).astype(np.uint8)
    words = gptq.pack(codes, bits)
    assert words.shape == (columns * bits, 32 * rows)
    assert (gptq.unpack(words, bits) == codes).all()
    found = np.empty_like(codes)
    along_inputs(words.view(np.uint32), bits, found)
    assert (found == codes).all()
    codes &= 15
    words = awq.pack(codes)
    assert (awq.unpack(words) == codes).all()
    along_outputs(words.view(np.uint32), awq.ORDER, found)
    assert (found == codes).all()


@given(st.integers(0, 2**32), st.integers(1, 50))
def test_steps_are_counted(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    first = random.integers(0, 2**32, count, dtype=np.uint32)
    second = np.where(random.random(count) < 0.5, first, random.integers(0, 2**32, count, dtype=np.uint32))
    histogram = np.zeros((8, 31), np.int64)
    found = steps(first, second, histogram)
    codes = [np.stack([(words >> np.uint32(4 * k)) & 15 for k in range(8)]).astype(int) for words in (first, second)]
    assert (histogram.sum(0) == np.bincount((codes[1] - codes[0]).ravel() + 15, minlength=31)).all()
    assert found == next((at for at in range(count) if first[at] != second[at]), -1)


@given(st.integers(0, 2**32))
def test_rounding_to_nearest_is_that_of_the_passes(seed: int) -> None:
    values = weights(seed % 1000)
    _, scales = round_to_nearest(values, 128)
    grouped = values.reshape(4, 2, 128)
    low, high = np.minimum(grouped.min(-1), 0), np.maximum(grouped.max(-1), 0)
    packing = Packing("gptq", 4, 2)
    assert (rounded(ABSMAX, low, high, scales.T, packing, True).scales == scales.T.view(np.uint16)).all()
    expected, _ = tuned(grouped, F32(0), F32(1), F32(1))
    assert (rounded(FULL, low, high, scales.T, packing, True).scales == expected.view(np.uint16)).all()
    assert (half(-low) == np.abs(low).astype(np.float16).view(np.uint16)).all()


def test_without_iterations_nothing_is_reached() -> None:
    ec = read_recipe(ROOT / "builds" / "ec")
    rounds = replace(ec, tuning=replace(ec.tuning, iterations=0))
    assert reach_of(rounds, False) == reach(0, 1.0, 1.0) == Reach(0.0, 1.0)
