"""What llm-compressor's MSE observer made of NVFP4, MX formats and layers with one scale: real files, and damage."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from tests.checkpoints import shard
from tests.searches import FILES, INNER, LINEARS, linears, weights

from requant.check import check
from requant.check.checked import Checked
from requant.check.findings import CLEARLY, FAITHFUL, NEAR
from requant.check.makers import made_again
from requant.check.reader import open_reader
from requant.check.searches import TIES
from requant.formats import floats
from requant.formats.codec import Array, narrow
from requant.formats.compressed_tensors import FLOATS, GLOBAL, MX, NVFP4, PACKED, SCALE, Plain, read
from requant.formats.grid import Grid
from requant.formats.observers import USUAL, Search
from requant.rounding.compressed_tensors import MinMax, MinMaxMX, MinMaxNVFP4
from requant.rounding.formulas import formulas
from requant.rounding.intervals import E2M1, E2M3, E4M3, added, bounds, possible
from requant.rounding.mse import CHOSEN, MOST_AT_ONCE
from requant.rounding.mse_floats import ChosenFloats, SearchedFloats
from requant.rounding.mse_single import PARTED, OneScale, one_scale

FIXTURE = Path(__file__).parent / "fixtures/compressed_tensors/mse_files.npz"
DOWN, UP, Q = "model.layers.0.mlp.down_proj", "model.layers.0.mlp.up_proj", "model.layers.0.self_attn.q_proj"
STATED = Search(stated=True)
Tensors = dict[str, Array]
NONE: Mapping[str, Array] = MappingProxyType({})


def real(name: str) -> tuple[dict[str, Any], Tensors]:
    """The configuration and the tensors of a file that the real tool made."""
    with np.load(FIXTURE) as found:
        tensors = {key.removeprefix(f"{name}."): found[key].copy() for key in found.files if key.startswith(name)}
    return json.loads(tensors.pop("config").tobytes()), tensors


def checked(
    folder: Path, dtype: str, config: Mapping[str, Any], tensors: Tensors, base: Mapping[str, Array] = NONE
) -> Checked:
    """Check a file of a Qwen3's layers, whose weights are those of `base` where it has them."""
    declaration = read(config)
    sides: dict[str, dict[str, Any]] = {"base": {}, "made": {}}
    for layer, wide in {**linears(), **base}.items():
        mine = {key: value for key, value in tensors.items() if key.startswith(f"{layer}.")}
        if not mine:
            continue
        codec = declaration.codec(layer)
        assert codec
        rows, columns = wide.shape
        sides["base"][f"{layer}.weight"] = dtype, [*wide.shape], narrow(wide, dtype).tobytes()
        for suffix, part in codec.parts(rows, columns, dtype).items():
            value = np.ascontiguousarray(mine[f"{layer}.{suffix}"])
            assert value.nbytes == part.spec.nbytes
            sides["made"][f"{layer}.{suffix}"] = part.spec.dtype, [*part.spec.shape], value.tobytes()
    for side, said in (("base", {}), ("made", {"quantization_config": config})):
        (folder / side).mkdir()
        (folder / side / "model.safetensors").write_bytes(shard(sides[side]))
        (folder / side / "config.json").write_text(json.dumps({"model_type": "qwen3"} | said))
    with open_reader(str(folder / "made")) as theirs, open_reader(str(folder / "base")) as ours:
        return check(theirs, ours, threads=1)


def found_in(result: Checked) -> list[tuple[str, int, tuple[int, ...]]]:
    return [(each.tensor, each.count, each.index) for each in result.findings]


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_real_tool_is_exact(name: str, tmp_path: Path) -> None:
    result = checked(tmp_path, name.partition(".")[0], *real(name))
    assert result.outcome == "clean" and not result.notes
    assert set(result.layers.values()) <= {CHOSEN, CHOSEN + TIES}
    groups, ties = (sum(getattr(each, key) for each in result.counts.values()) for key in ("groups", "ties"))
    sizes = {"nvfp4": 16, "mxfp4": 32}
    kind = name.partition(".")[2]
    assert groups == (sum(rows * columns for rows, columns in LINEARS.values()) // sizes[kind] if kind in sizes else 0)
    assert ties <= groups / 500
    with open_reader(str(tmp_path / "made")) as theirs, open_reader(str(tmp_path / "base")) as ours:
        ((made,), _) = made_again(theirs, ours)
    assert made.gave[CHOSEN] == made.layers and set(made.ways) == set(result.layers.values())


@pytest.mark.parametrize(("name", "tensor", "at", "by"), [
    ("BF16.nvfp4", f"{DOWN}.{PACKED}", (9, 9), 1),
    ("BF16.nvfp4", f"{DOWN}.{SCALE}", (9, 3), 1),
    ("BF16.nvfp4", f"{DOWN}.{SCALE}", (9, 3), -1),
    ("BF16.nvfp4", f"{DOWN}.{GLOBAL}", (), 1 << 23),
    ("BF16.nvfp4", f"{UP}.{GLOBAL}", (), 1 << 23),
    ("BF16.nvfp4", f"{UP}.{GLOBAL}", (), 1),
    ("F32.mxfp4", f"{DOWN}.{PACKED}", (9, 9), 1),
    ("F32.mxfp4", f"{DOWN}.{SCALE}", (9, 2), 1),
    ("F32.mxfp4", f"{DOWN}.{SCALE}", (9, 2), -1),
    ("BF16.fp8", f"{Q}.weight", (9, 9), 1),
    ("BF16.fp8", f"{Q}.{SCALE}", (0,), 1),
    ("BF16.fp8", f"{Q}.{SCALE}", (0,), -1),
    ("F32.int8", f"{Q}.{PACKED}", (9, 9), 1),
    ("F32.int8", f"{Q}.{SCALE}", (0,), 1),
    ("F32.int8", f"{Q}.{SCALE}", (0,), -1),
])  # fmt: skip
def test_one_number_that_is_off_is_named_and_no_other(
    name: str, tensor: str, at: tuple[int, ...], by: int, tmp_path: Path
) -> None:
    config, tensors = real(name)
    flat = tensors[tensor].reshape(-1)
    place = int(np.ravel_multi_index(at, tensors[tensor].shape)) if at else 0
    flat[place] = flat[place] ^ 1 if tensor.endswith((PACKED, "weight")) else int(flat[place]) + by
    result = checked(tmp_path, name.partition(".")[0], config, tensors)
    assert (result.outcome, found_in(result)) == ("violations", [(tensor, 1, at)])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", FILES)
def test_a_base_that_has_no_number_somewhere_is_said_to(name: str, bad: float, tmp_path: Path) -> None:
    """No formula is left then, so that none is asked what it makes of the layer as a whole.

    What is fused with it has its global scale from numbers that are not known.
    """
    wide = linears()[Q]
    wide[3, 5] = bad
    result = checked(tmp_path, name.partition(".")[0], *real(name), {Q: wide})
    assert result.outcome == "not modelled" and not result.findings
    said = {each.tensor: each.detail for each in result.unmodelled}
    assert said.pop(Q).startswith(f"{bad} in the base's {Q}.weight")
    fused = {Q.replace("q_proj", each) for each in ("k_proj", "v_proj")} if "nvfp4" in name else set()
    assert said == dict.fromkeys(fused, FAITHFUL)


@pytest.mark.parametrize("name", ["BF16.nvfp4", "F32.mxfp4"])
def test_scales_that_leave_nothing_of_a_layer_are_named(name: str, tmp_path: Path) -> None:
    """Zeros are no farther from the base than zeros are."""
    config, tensors = real(name)
    tensors[f"{UP}.{SCALE}"] = np.zeros_like(tensors[f"{UP}.{SCALE}"])
    result = checked(tmp_path, name.partition(".")[0], config, tensors)
    assert result.outcome == "violations"
    kinds = {(each.kind, each.tensor, each.index) for each in result.findings}
    assert ("scale out of reach", f"{UP}.{SCALE}", (0, 0)) in kinds


def test_fused_layers_have_the_global_scale_of_all_of_them(tmp_path: Path) -> None:
    """Of q, k and v the greatest range decides, after the search: with that of one alone the others differ."""
    config, tensors = real("BF16.nvfp4")
    scales = {name: tensors[f"{name}.{GLOBAL}"].view(np.float32)[0] for name in LINEARS}
    assert len({scales[name] for name in LINEARS if name[-6] in "qkv"}) == 1
    formula = ChosenFloats(MinMaxNVFP4(NVFP4()), STATED)
    own = {name: formula.whole(formula.greatest(wide, "BF16"), "BF16")[GLOBAL][0] for name, wide in linears().items()}
    plain = {name: formula.whole(float(np.abs(wide).max()), "BF16")[GLOBAL][0] for name, wide in linears().items()}
    assert scales[DOWN] == own[DOWN] and scales[UP] == min(own[UP], own["model.layers.0.mlp.gate_proj"])
    assert any(own[name] != plain[name] for name in LINEARS)
    assert checked(tmp_path, "BF16", config, tensors).outcome == "clean"


def moved(name: str, layer: str, clearly: bool) -> tuple[dict[str, Any], Tensors, tuple[int, int]]:
    """A real file in which one group has the range beside its own, and the codes of it."""
    config, tensors = real(name)
    dtype, codec = name.partition(".")[0], read(config).codec(layer)
    assert isinstance(codec, MX | NVFP4)
    formula = formulas(codec)[0]
    assert isinstance(formula, ChosenFloats)
    wide = linears()[layer]
    stored = {suffix: tensors[f"{layer}.{suffix}"] for suffix in (SCALE, GLOBAL) if f"{layer}.{suffix}" in tensors}
    stored = {suffix: each.view(np.float32) if suffix == GLOBAL else each for suffix, each in stored.items()}
    ranges = formula._ranges(wide, dtype)
    scales = formula.plain.scales(ranges, dtype, stored)
    least, greatest = formula._errors(wide, dtype, formula._steps(ranges, dtype))
    worse = np.where(scales != stored[SCALE], least, np.inf).min(axis=0) / greatest.min(axis=0)
    sound = np.isfinite(worse) & (greatest.min(axis=0) > 0)
    sound &= (worse > 1.1) if clearly else (worse > 1) & (worse < 1.001)
    row, group = (int(each) for each in np.argwhere(sound)[0])
    place = np.where(scales != stored[SCALE], least, np.inf).argmin(axis=0)[row, group]
    stored[SCALE][row, group] = scales[place, row, group]
    for suffix, value in formula.plain.tensors(wide, dtype, stored[SCALE], stored).items():
        tensors[f"{layer}.{suffix}"] = value
    return config, tensors, (row, group)


@pytest.mark.parametrize("name", ["BF16.nvfp4", "F32.mxfp4"])
def test_a_group_of_the_range_beside_its_own_is_named(name: str, tmp_path: Path) -> None:
    config, tensors, at = moved(name, DOWN, clearly=True)
    result = checked(tmp_path, name.partition(".")[0], config, tensors)
    assert result.outcome == "violations"
    assert (f"{DOWN}.{SCALE}", 1, at) in found_in(result)
    assert {each.tensor for each in result.findings} <= {f"{DOWN}.{SCALE}", f"{DOWN}.{PACKED}"}


@pytest.mark.parametrize("name", ["BF16.fp8", "F32.int8"])
def test_a_layer_of_another_range_than_errs_least_is_not_exact(name: str, tmp_path: Path) -> None:
    """Its one scale is of a range, and all codes follow from it; who has so few scales is not accused of one."""
    config, tensors = real(name)
    dtype, codec, wide = name.partition(".")[0], read(config).codec(Q), linears()[Q]
    search = one_scale(codec)
    assert search
    choice = search.choose([wide[:40], wide[40:]], dtype, float(np.abs(wide).max()))
    told = choice.scales[choice.worse][:1]
    tensors |= {f"{Q}.{key}": value for key, value in MinMax(search.codec).encode(wide, dtype, {SCALE: told}).items()}
    tensors[f"{Q}.{SCALE}"] = told
    result = checked(tmp_path, dtype, config, tensors)
    said = [(each.kind, each.tensor, each.count, each.index) for each in result.notes]
    assert said == [(CLEARLY, f"{Q}.{SCALE}", 1, (0,))] and not result.findings
    assert (result.outcome, result.layers[Q]) == ("not modelled", NEAR)


@pytest.mark.parametrize("name", FILES)
def test_a_search_that_nobody_states_is_found_all_the_same(name: str, tmp_path: Path) -> None:
    config, tensors = real(name)
    for group in config["config_groups"].values():
        group["weights"].pop("observer")
    result = checked(tmp_path, name.partition(".")[0], config, tensors)
    assert result.outcome == "clean" and any(way.startswith(CHOSEN) for way in result.layers.values())


def test_scales_that_follow_from_no_search_are_not_within_reach_of_one_that_nobody_states(tmp_path: Path) -> None:
    """A scale of few bits is that of some range in files of other tools too: here all exponents are one less."""
    config, tensors = real("F32.mxfp4")
    formula = MinMaxMX(MX(4))
    for layer, wide in linears().items():
        less = formula.encode(wide, "F32", {})[SCALE] - np.uint8(1)
        for suffix, value in formula.tensors(wide, "F32", less, {}).items():
            tensors[f"{layer}.{suffix}"] = value
    for group in config["config_groups"].values():
        group["weights"].pop("observer")
    result = checked(tmp_path, "F32", config, tensors)
    assert result.outcome == "not modelled" and set(result.layers.values()) == {NEAR}


def test_ranges_of_rows_that_min_max_gives_too_count_for_the_global_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first window all of a group is 0 or 1, so that the whole range errs by nothing, and min-max fits."""
    config, tensors = real("BF16.nvfp4")
    for group in config["config_groups"].values():
        group["weights"].pop("observer")
    wide = linears()
    wide[DOWN][:32] = np.arange(INNER) % 2
    formula = ChosenFloats(MinMaxNVFP4(NVFP4()), STATED)
    whole = formula.whole(formula.greatest(wide[DOWN], "BF16"), "BF16")
    assert formula.greatest(wide[DOWN][32:], "BF16") < 1 == formula.greatest(wide[DOWN][:32], "BF16")
    for suffix, value in {**whole, **formula.encode(wide[DOWN], "BF16", whole)}.items():
        tensors[f"{DOWN}.{suffix}"] = value
    monkeypatch.setattr("tests.test_mse_floats.linears", lambda: wide)
    monkeypatch.setattr("requant.check.CODED", 32 * INNER)
    result = checked(tmp_path, "BF16", config, tensors)
    assert result.outcome == "clean" and result.layers[DOWN].startswith(CHOSEN)


@pytest.mark.parametrize("codec", [NVFP4(), MX(4)])
def test_which_forms_are_tried_and_in_which_order(codec: NVFP4 | MX) -> None:
    def kinds(search: Search) -> list[type]:
        return [type(each) for each in formulas(replace(codec, search=search))]

    plain = MinMaxMX if isinstance(codec, MX) else MinMaxNVFP4
    assert kinds(USUAL) == [plain, ChosenFloats]
    assert kinds(STATED) == [ChosenFloats, plain, SearchedFloats]
    assert kinds(replace(STATED, strange="odd")) == [plain, SearchedFloats]


GRIDS: dict[str, tuple[Any, Array]] = {
    "E2M1": (E2M1, floats.E2M1),
    "E2M3": (E2M3, floats.E2M3),
    "E4M3": (E4M3, np.nan_to_num(floats.E4M3, nan=1e9)),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", GRIDS)
def test_errors_of_floats_are_those_of_the_nearest_ones(kind: str, dtype: str) -> None:
    """Each step written out in numpy: of two that are as near, the even code."""
    levels, values = GRIDS[kind]
    odd = np.arange(len(values)) % 2
    wide = floats.rounded(weights()[:8, :32], dtype)
    steps = floats.rounded(np.abs(wide).max(axis=1, keepdims=True) / np.float32(levels[1]) * np.float32(0.9), dtype)
    sums, more = added(wide, dtype, steps[None], np.zeros_like(steps)[None], (1, 32), 2.0, levels)
    quotients = np.clip(floats.rounded(wide / steps, dtype), *levels)
    near = values[(np.abs(quotients[..., None].astype(np.float64) - values) + 1e-12 * odd).argmin(axis=-1)]
    off = floats.rounded(floats.rounded(near * steps, dtype) - wide, dtype)
    squares = floats.rounded(off * off, dtype).astype(np.float64).sum(axis=1)
    np.testing.assert_allclose(sums[0, :, 0], squares, rtol=1e-6)
    assert not more.any()


def test_a_range_with_the_scale_of_the_one_before_errs_as_much() -> None:
    wide = weights()[:4, :32]
    steps = np.full((3, 4, 1), 2.0**-6, np.float32)
    steps[2] *= 2
    sums, _ = added(wide, "F32", steps, np.zeros_like(steps), (1, 32), 2.4, E2M1)
    np.testing.assert_array_equal(sums[0], sums[1])
    assert (sums[1] != sums[2]).all()


def test_what_may_be_the_first_of_the_least() -> None:
    """Behind those that were surely tried, a range counts only if it was better than all before it."""
    least, greatest = (np.array(each, np.float64).reshape(-1, 1, 1) for each in ((4, 2, 3, 1), (4, 3, 3, 1)))
    assert possible(least, greatest)[:, 0, 0].tolist() == [False, False, False, True]
    assert possible(least, greatest, 3)[:, 0, 0].tolist() == [False, True, False, True]


@pytest.mark.parametrize("dtype", FLOATS)
def test_sums_of_parts_that_threads_round_stay_in_their_interval(dtype: str) -> None:
    """As a CPU with several threads adds up a whole layer: each part's sum is rounded, and then their sum."""
    rng = np.random.default_rng(0)
    for threads in (1, 2, 3, 7, 64):
        powers = floats.rounded(rng.random((1 << 16) // threads * threads, np.float32), dtype)
        parts = [floats.rounded(each.sum(dtype=np.float32, keepdims=True), dtype) for each in np.split(powers, threads)]
        whole = floats.rounded(np.concatenate(parts).sum(dtype=np.float32, keepdims=True), dtype)[0]
        exact = np.array([powers.sum(dtype=np.float64)])
        least, greatest = bounds(exact, np.zeros(1), dtype, 2.0, powers.size, 1 << 13, PARTED[dtype])
        assert least[0] <= whole <= greatest[0]


@pytest.mark.parametrize("windows", [1, 3])
def test_one_scale_is_chosen_alike_from_any_windows(windows: int) -> None:
    codec = Plain("float-quantized", 8, True, Grid(None, None))
    wide = floats.rounded(weights(), "BF16")
    widest = float(np.abs(wide).max())
    one = OneScale(codec).choose([wide], "BF16", widest)
    other = OneScale(codec).choose(np.array_split(wide, windows), "BF16", widest)
    assert one.can.any() and not one.can.all()
    np.testing.assert_array_equal(one.can, other.can)


def test_a_search_stops_behind_as_many_ranges_as_it_waits() -> None:
    """Whatever errs less behind them was never tried."""
    codec, wide = Plain("int-quantized", 2, False, Grid(None, None)), np.ones((4, 4), np.float32)
    wide[0, 0] = 2
    patient, hasty = (OneScale(codec, Search(patience=each)).choose([wide], "F32", 2.0).can for each in (20, 1))
    assert np.count_nonzero(hasty) == 1 and int(hasty.argmax()) <= int(patient.argmax())


def test_asymmetric_layers_with_one_scale_are_not_searched() -> None:
    assert one_scale(Plain("int-quantized", 8, False, Grid(None, None), symmetric=False)) is None
    assert one_scale(Plain("int-quantized", 8, False, Grid(1, None))) is None
    assert one_scale(NVFP4()) is None


@pytest.mark.parametrize("codec", [NVFP4(), MX(4)])
def test_a_row_of_so_many_ranges_that_they_do_not_fit_in_memory_is_not_searched(codec: NVFP4 | MX) -> None:
    """One of a few MB, of which a configuration states 256 ranges, took gigabytes."""
    (plain,) = (MinMaxNVFP4(codec),) if isinstance(codec, NVFP4) else (MinMaxMX(codec),)
    search, width = replace(STATED, grid=256.0, steps=256, patience=256), codec.grid.steps(1, 32)[1]
    wide = np.full((1, (MOST_AT_ONCE // 256 + 1) * width), np.float32(3))
    wide[0, 0] = 100
    stored = {GLOBAL: plain.whole(100.0, "BF16")[GLOBAL]} if isinstance(codec, NVFP4) else {}
    stored |= plain.encode(wide, "BF16", stored)
    choice = ChosenFloats(plain, search).choose(wide, "BF16", stored)
    assert choice.groups == 0 and ChosenFloats(plain, search).greatest(wide, "BF16") == 0
    np.testing.assert_array_equal(choice.tensors[SCALE], stored[SCALE])
    some = wide[:, width:]
    assert ChosenFloats(plain, search).choose(some, "BF16", {**stored, SCALE: stored[SCALE][:, 1:]}).groups > 0
