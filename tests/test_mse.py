"""What an MSE observer took, made again: against what the real one took, and against damage."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.checkpoints import shard
from tests.searches import COLUMNS, KINDS, OPTIONS, ROWS, weights

from requant.check import check
from requant.check.checked import Checked
from requant.check.findings import NEAR, Counts, Finding, Measured
from requant.check.reader import open_reader
from requant.check.searches import TIES, Sought, weighed
from requant.formats import floats
from requant.formats.codec import Array, Arrays, narrow
from requant.formats.compressed_tensors import FLOATS, SCALE, SHAPE, ZERO, Packed, Plain, read
from requant.formats.observers import USUAL, Search, search_of
from requant.rounding.compressed_tensors import MinMax
from requant.rounding.mse import CHOSEN, MOST_AT_ONCE, SEARCHED, Chosen, Searched
from requant.rounding.powers import POW, errors, series, table
from requant.rounding.quotients import PLACES

FIXTURE = Path(__file__).parent / "fixtures/compressed_tensors/mse.npz"
FORMS = {"int4": "pack-quantized", "int4loose": "pack-quantized", "int8": "int-quantized"}
LAYERS = [f"model.layers.{number}.mlp.up_proj" for number in range(4)]

STATED = replace(USUAL, stated=True)
SLOW = replace(STATED, steps=40, patience=9)


def declared(kind: str, **observer: Any) -> dict[str, Any]:
    scheme = {"targets": ["Linear"], "weights": {**KINDS[kind], **observer}}
    form = FORMS.get(kind, "float-quantized")
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"a": scheme}, "ignore": []}


def codec_of(kind: str, **observer: Any) -> Packed | Plain:
    codec = read(declared(kind, **observer)).codec("layer")
    assert isinstance(codec, Packed | Plain)
    return codec


def held(kind: str, dtype: str, option: str = "usual") -> Arrays:
    """What the real observer's scales and zero points are stored as."""
    codec, found = codec_of(kind), {}
    with np.load(FIXTURE) as real:
        found[SCALE] = narrow(real[f"{dtype}.{kind}.{option}.scale"], dtype)
        if isinstance(codec, Packed) and not codec.symmetric:
            codes = (real[f"{dtype}.{kind}.{option}.zero"].astype(np.int16) + 8).astype(np.uint8)
            found[ZERO] = np.ascontiguousarray(codec.pack(np.ascontiguousarray(codes.T)).T)
    return found


def drawn(dtype: str, seed: int = 0) -> Array:
    return floats.rounded(weights(seed), dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_real_observer_took_is_taken_again(kind: str, dtype: str) -> None:
    """Of F16, whose powers are mostly nothing, many ranges err alike; the first of them is taken all the same."""
    stored = held(kind, dtype)
    choice = Chosen(codec_of(kind)).choose(drawn(dtype), dtype, stored)
    for suffix, found in stored.items():
        np.testing.assert_array_equal(choice.tensors[suffix], found)
    assert choice.groups == stored[SCALE].size and choice.worse == 0
    assert choice.ties <= (choice.groups / 50 if kind.startswith("int4") else choice.groups / 2)
    plain = MinMax(codec_of(kind)).encode(drawn(dtype), dtype, {})[SCALE]
    assert dtype == "F16" or np.count_nonzero(plain != stored[SCALE]) > plain.size / 8


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize("option", OPTIONS)
def test_other_options_are_searched_by_as_they_are_declared(option: str, dtype: str) -> None:
    stored, codec = held("int4", dtype, option), codec_of("int4", observer="mse", observer_kwargs=OPTIONS[option])
    if option in ("cube", "expand"):
        assert codec.search is None
        return
    assert codec.search
    choice = Chosen(codec, search=codec.search).choose(drawn(dtype), dtype, stored)
    np.testing.assert_array_equal(choice.tensors[SCALE], stored[SCALE])
    assert (choice.groups, choice.worse) == (stored[SCALE].size, 0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_order_of_a_sum_leaves_its_interval(kind: str, dtype: str) -> None:
    """Against numpy: each step written out, `pow` off by as much as it may be, and sums in orders that are drawn."""
    codec, wide, rng = codec_of(kind), drawn(dtype), np.random.default_rng(0)
    formula = Chosen(codec)
    scales, zeros, _ = formula._candidates(wide, dtype, {})
    least, greatest = formula._errors(wide, dtype, scales[::7], zeros[::7])
    norm = float(floats.rounded(np.array([2.4], np.float32), dtype)[0])
    height, width = codec.grid.steps(*wide.shape)
    for each, zero, low, high in zip(scales[::7], zeros[::7], least, greatest, strict=True):
        tensors = {**formula._tensors(wide, dtype, each, zero)}
        off = np.abs(floats.rounded(codec.decode(tensors, COLUMNS) - wide, dtype)).astype(np.float64)
        powers = off ** (2.4 if dtype == "F32" else norm) * (1 + POW * rng.uniform(-1, 1, off.shape))
        terms = floats.rounded(powers.astype(np.float32), dtype)
        blocks = terms.reshape(len(terms) // height, height, -1, width).transpose(0, 2, 1, 3).reshape(*low.shape, -1)
        for order in (slice(None), slice(None, None, -1), rng.permutation(blocks.shape[-1])):
            total = np.cumsum(blocks[..., order], axis=-1, dtype=np.float32)[..., -1]
            total = floats.rounded(total, dtype)
            assert (low <= total).all() and (total <= high).all()
    assert (greatest <= least * (1 + 2.0**-6) + 2.0**-23).all()


def test_a_power_of_float32_is_what_its_table_and_the_series_make_of_it() -> None:
    rng = np.random.default_rng(0)
    wide = np.abs(rng.normal(size=(1, 4096)) * np.exp2(rng.uniform(-30, 0, (1, 4096)))).astype(np.float32)
    for norm in (1.0, 2.4, 8.0):
        sums = np.zeros((1, 1, 4096))
        one, none = np.full((1, 1, 4096), np.float32(2.0**30)), np.zeros((1, 1, 4096), np.float32)
        half = np.float32(-2), np.float32(1)  # all become 0, and are off by themselves
        errors(
            wide, one, none, 1, 1, PLACES["F32"], half, *table(norm, "F32"), 16, series(norm), sums, none.astype(float)
        )
        np.testing.assert_allclose(sums[0], wide.astype(np.float64) ** norm, rtol=2.0**-35)


@pytest.mark.parametrize(
    ("said", "search"),
    [
        ({}, USUAL),
        ({"observer": "minmax", "observer_kwargs": {"norm": 7}}, USUAL),
        ({"observer": "mse", "observer_kwargs": None}, STATED),
        ({"observer": "mse", "observer_kwargs": {"averaging_constant": 0.5, "chunk_size": 3}}, STATED),
        ({"observer": "mse", "observer_kwargs": {"norm": 2, "grid": 50}}, Search(2.0, 50.0, 10, stated=True)),
        ({"observer": "mse", "observer_kwargs": {"maxshrink": 0.4, "patience": 9}}, SLOW),
        ({"observer": "mse", "observer_kwargs": {"expand": 1.0}}, STATED),
    ],
)  # fmt: skip
def test_what_is_declared_of_a_search(said: Any, search: Search) -> None:
    assert search_of(said) == search


@pytest.mark.parametrize(
    "said",
    [
        *({"norm": 3}, {"norm": 0.5}, {"norm": "2"}, {"norm": float("nan")}, {"norm": 99}, {"patience": 0}),
        *({"patience": 1.5}, {"grid": 0}, {"grid": 1e9}, {"maxshrink": 1}, {"maxshrink": 0.001}, {"maxshrink": True}),
        *({"expand": 1.8}, {"unheard": 1}, [], "norm"),
    ],
)
def test_a_search_that_is_not_modelled(said: Any) -> None:
    assert search_of({"observer": "mse", "observer_kwargs": said or [1]}) is None


def made_by(formula: MinMax, wide: Array, dtype: str, told: Arrays | None = None) -> dict[str, Array]:
    """Return the tensors of a layer by a formula, with the scales that are told."""
    codec = formula.codec
    shape = {SHAPE: np.array(wide.shape)} if isinstance(codec, Packed) else {}
    return dict(formula.encode(wide, dtype, told or {})) | shape


def moved(codec: Packed | Plain, wide: Array, dtype: str, group: tuple[int, int], by: float) -> dict[str, Array]:
    """Return a layer of the search, but for one group that has the range that errs more by so much at least."""
    formula = Chosen(codec)
    scales, zeros, _ = formula._candidates(wide, dtype, {})
    least, greatest = (each[:, *group] for each in formula._errors(wide, dtype, scales, zeros))
    best = int(least.argmin())
    near = sorted((place for place in range(best + 6) if place < len(least)), key=lambda place: abs(place - best))
    other = next(place for place in near if least[place] > greatest[best] * (1 + by))
    stored = made_by(formula, wide, dtype)
    told = stored[SCALE].copy()
    told[group] = narrow(scales[other], dtype)[group]
    return made_by(Searched(codec), wide, dtype, {**stored, SCALE: told})


def checked(folder: Path, kind: str, dtype: str, layers: Mapping[str, Any], **observer: Any) -> Checked:
    """Check a file of layers, each with weights of its own."""
    tensors: dict[str, dict[str, Any]] = {"base": {}, "made": {}}
    codec = codec_of(kind)
    for seed, (name, stored) in enumerate(layers.items()):
        wide = drawn(dtype, seed)
        tensors["base"][f"{name}.weight"] = dtype, [ROWS, COLUMNS], narrow(wide, dtype).tobytes()
        for suffix, part in codec.parts(ROWS, COLUMNS, dtype).items():
            tensors["made"][f"{name}.{suffix}"] = part.spec.dtype, [*part.spec.shape], stored[suffix].tobytes()
    for side, said in (("base", {}), ("made", {"quantization_config": declared(kind, **observer)})):
        (folder / side).mkdir()
        (folder / side / "model.safetensors").write_bytes(shard(tensors[side]))
        (folder / side / "config.json").write_text(json.dumps({"model_type": "llama"} | said))
    with open_reader(str(folder / "made")) as theirs, open_reader(str(folder / "base")) as ours:
        return check(theirs, ours, threads=1)


def file_of(kind: str, dtype: str, formula: MinMax | None = None) -> dict[str, dict[str, Array]]:
    return {
        name: made_by(formula or Chosen(codec_of(kind)), drawn(dtype, seed), dtype) for seed, name in enumerate(LAYERS)
    }


@pytest.mark.parametrize(("kind", "dtype"), [("int4", "BF16"), ("int4loose", "F32"), ("int8", "F32"), ("fp8", "BF16")])
def test_a_file_of_the_search_is_exact_but_for_ties(kind: str, dtype: str, tmp_path: Path) -> None:
    found = checked(tmp_path, kind, dtype, file_of(kind, dtype), observer="memoryless_mse")
    assert found.outcome == "clean" and not found.notes
    assert set(found.layers.values()) <= {CHOSEN, CHOSEN + TIES}
    counts = [found.counts[name] for name in LAYERS]
    assert [each.ties > 0 for each in counts] == [found.layers[name] != CHOSEN for name in LAYERS]
    assert all(each.groups == codec_of(kind).grid.shape(ROWS, COLUMNS)[1] * ROWS for each in counts)
    said = f"of {sum(each.groups for each in counts):,} groups made again, rounding decides "
    assert any(line.endswith(f"{said}{sum(each.ties for each in counts):,}") for line in found.text(6))


@pytest.mark.parametrize(("kind", "dtype"), [("int4", "BF16"), ("int4", "F32"), ("int4loose", "BF16")])
def test_a_group_that_clearly_errs_more_is_named(kind: str, dtype: str, tmp_path: Path) -> None:
    layers = file_of(kind, dtype)
    layers[LAYERS[2]] = moved(codec_of(kind), drawn(dtype, 2), dtype, (77, 5), 0.05)
    found = checked(tmp_path, kind, dtype, layers)
    assert found.outcome == "violations"
    (scale,) = [each for each in found.findings if each.tensor.endswith(SCALE)]
    assert (scale.tensor, scale.count, scale.index) == (f"{LAYERS[2]}.{SCALE}", 1, (77, 5))
    assert ", recomputed " in scale.detail
    assert {each.tensor.rpartition(".")[0] for each in found.findings} == {LAYERS[2]}


@pytest.mark.parametrize("observer", [{}, {"observer": "mse"}, {"observer": "mse", "observer_kwargs": {"norm": 3.0}}])
def test_a_file_of_ranges_by_which_all_of_it_errs_far_more_is_not_clean(
    observer: dict[str, Any], tmp_path: Path
) -> None:
    """Each scale is one of 80 ranges, a fifth of the whole one, which no search takes."""
    layers = file_of("int4", "BF16")
    for seed, name in enumerate(LAYERS):
        scales = Searched(codec_of("int4"))._candidates(drawn("BF16", seed), "BF16", {})[0][79]
        told = {**layers[name], SCALE: narrow(scales, "BF16")}
        layers[name] = made_by(Searched(codec_of("int4")), drawn("BF16", seed), "BF16", told)
    found = checked(tmp_path, "int4", "BF16", layers, **observer)
    assert found.outcome == "not modelled" and set(found.layers.values()) == {NEAR}


def test_groups_of_one_weight_are_not_searched() -> None:
    """Of so many ranges nothing is kept in memory."""
    codec = codec_of("int4", strategy="group", group_size=1)
    wide = np.ones((1, MOST_AT_ONCE // 20 + 32), np.float32)
    stored = MinMax(codec).encode(wide, "BF16", {})
    choice = Chosen(codec).choose(wide, "BF16", stored)
    assert choice.groups == 0
    np.testing.assert_array_equal(choice.tensors[SCALE], stored[SCALE])


def test_patience_of_any_size_is_that_of_all_ranges() -> None:
    search = codec_of("int4", observer="mse", observer_kwargs={"patience": 10**30}).search
    assert search and search.patience <= 256


def test_a_group_that_errs_hardly_more_is_noted(tmp_path: Path) -> None:
    """By less than another order of roundings might explain: nobody is accused, and the place is there."""
    layers, codec, dtype = file_of("int4", "F32"), codec_of("int4"), "F32"
    wide = drawn(dtype)
    scales, zeros, _ = Chosen(codec)._candidates(wide, dtype, {})
    least, greatest = Chosen(codec)._errors(wide, dtype, scales, zeros)
    best, second = np.sort(greatest, axis=0)[0], np.sort(least, axis=0)[1]
    row, group = np.argwhere((second > best) & (second < best * 1.0005))[0].tolist()
    layers[LAYERS[0]] = moved(codec, wide, dtype, (row, group), 0)
    found = checked(tmp_path, "int4", dtype, layers)
    assert found.outcome == "clean"
    assert [(each.kind, each.tensor, each.count, each.index) for each in found.notes] == [
        ("a range errs less", f"{LAYERS[0]}.{SCALE}", 1, (row, group))
    ]
    assert found.layers[LAYERS[0]] == SEARCHED


def test_ties_are_free(tmp_path: Path) -> None:
    """The other range of a tie is as good: which one a machine takes, its order of adding decides."""
    layers, codec, dtype = file_of("int4", "F32"), codec_of("int4"), "F32"
    wide, formula = drawn(dtype), Chosen(codec)
    scales, zeros, _ = formula._candidates(wide, dtype, {})
    least, greatest = formula._errors(wide, dtype, scales, zeros)
    first, second = np.argsort(least, axis=0)[:2]
    tied = np.take_along_axis(least, second[None], 0)[0] < np.take_along_axis(greatest, first[None], 0)[0]
    assert 0 < tied.sum() < tied.size / 50
    told = np.take_along_axis(scales, np.where(tied, second, first)[None], 0)[0]
    layers[LAYERS[0]] = made_by(Searched(codec), wide, dtype, {SCALE: told})
    assert (layers[LAYERS[0]][SCALE] != file_of("int4", "F32")[LAYERS[0]][SCALE]).sum() == tied.sum()
    found = checked(tmp_path, "int4", dtype, layers)
    assert (found.outcome, found.layers[LAYERS[0]]) == ("clean", CHOSEN + TIES)
    assert found.counts[LAYERS[0]].ties == tied.sum()


@pytest.mark.parametrize(
    ("option", "dtype"), [*((each, "F32") for each in OPTIONS), ("norm", "BF16"), ("near", "BF16")]
)
def test_no_healthy_file_is_accused_whatever_it_was_searched_by(option: str, dtype: str, tmp_path: Path) -> None:
    """A file of the real observer by other options, which it does not state; of one that does, `Chosen` knows."""
    codec = codec_of("int4", observer="mse", observer_kwargs=OPTIONS[option])
    formula = Searched(codec, search=codec.search or USUAL)
    layers = file_of("int4", dtype, Chosen(codec, search=codec.search) if codec.search else None)
    layers[LAYERS[0]] = made_by(formula, drawn(dtype), dtype, held("int4", dtype, option))
    if option == "expand":  # its ranges are none of the usual ones
        layers = {
            name: made_by(formula, drawn(dtype, seed) * np.float32(1.125), dtype) for seed, name in enumerate(LAYERS)
        }
    found = checked(tmp_path, "int4", dtype, layers)
    assert not found.findings


@pytest.mark.parametrize("kind", ["int4", "int8", "fp8"])
def test_a_machine_that_rounds_otherwise_is_not_accused(kind: str, tmp_path: Path) -> None:
    """As a GPU's kernel for channels does: BF16's errors, to the power of 2.4, are added up without rounding again."""
    codec, layers = codec_of(kind), {}
    for seed, name in enumerate(LAYERS):
        wide, formula = drawn("BF16", seed), Chosen(codec)
        scales, zeros, _ = formula._candidates(wide, "BF16", {})
        height, width = codec.grid.steps(ROWS, COLUMNS)
        sums, none = np.zeros(scales.shape), np.zeros(scales.shape)
        half = 448 if kind == "fp8" else 1 << codec.bits - 1
        levels = np.float32(-half), np.float32(half - (kind != "fp8"))
        exact = table(2.4, "F32")[0], np.zeros(1 << 15)
        errors(wide, scales, zeros, height, width, PLACES["BF16"], levels, *exact, 16, series(2.4), sums, none)
        told = np.take_along_axis(scales, sums.argmin(axis=0)[None], 0)[0]
        layers[name] = made_by(Searched(codec), wide, "BF16", {SCALE: narrow(told, "BF16")})
    found = checked(tmp_path, kind, "BF16", layers, observer="mse")
    assert not found.findings and CHOSEN not in found.ways


@pytest.mark.parametrize(("columns", "exact", "groups", "accused"), [
    (256, 3, 2048, True), (256, 2, 2048, False), (256, 9, 64, False), (1024, 9, 2048, False),
])  # fmt: skip
def test_a_group_accuses_only_beside_enough_of_its_kind(columns: int, exact: int, groups: int, accused: bool) -> None:
    """Of channels: those of other lengths a GPU searches by another kernel, and few say nothing."""
    codec, found = codec_of("int8"), (Finding("not rounded to nearest", f"odd.{SCALE}", 1, (7, 0), "1, recomputed 2"),)
    sought = {
        f"{number}": Sought(codec, 256, (CHOSEN, ()), Measured({CHOSEN: ()}, Counts(groups=groups)))
        for number in range(exact)
    }
    measured = Measured({CHOSEN: found, SEARCHED: ()}, Counts(groups=groups, worse=1))
    sought["odd"] = Sought(codec, columns, (SEARCHED, ()), measured)
    made = weighed(sought, dict.fromkeys(sought, codec), lambda _, each: next(iter(each.findings.items())))
    way, said = made["odd"]
    assert (way, said) == ((CHOSEN, found) if accused else (SEARCHED, (replace(found[0], kind="a range errs less"),)))
    assert made.keys() == {"odd"}


def test_a_search_that_is_not_modelled_says_what_it_said(tmp_path: Path) -> None:
    codec = codec_of("int4")
    layers = {
        name: made_by(Searched(codec), drawn("BF16", seed), "BF16", made_by(Chosen(codec), drawn("BF16", seed), "BF16"))
        for seed, name in enumerate(LAYERS)
    }
    found = checked(tmp_path, "int4", "BF16", layers, observer="mse", observer_kwargs={"norm": 3.0})
    assert found.outcome == "clean" and set(found.layers.values()) == {SEARCHED}


@pytest.mark.parametrize(("searched", "outcome"), [(1, "violations"), (4, "clean")])
def test_a_search_explains_most_layers_of_a_file_or_none(searched: int, outcome: str, tmp_path: Path) -> None:
    """Where most layers need none, a scale that is off by some hundredths is damage, though a search tries it."""
    codec = codec_of("int4")
    layers = file_of("int4", "BF16", MinMax(codec))
    for seed, name in enumerate(LAYERS[:searched]):
        told = layers[name][SCALE].copy()
        scales, _, _ = Searched(codec)._candidates(drawn("BF16", seed), "BF16", {})
        told[3, 1] = narrow(scales[2], "BF16")[3, 1]
        layers[name] = made_by(Searched(codec), drawn("BF16", seed), "BF16", {**layers[name], SCALE: told})
    found = checked(tmp_path, "int4", "BF16", layers)
    assert found.outcome == outcome
    assert {each.tensor.rpartition(".")[0] for each in found.findings} <= {LAYERS[0]}


def test_a_file_that_states_a_search_may_have_needed_it_in_one_layer(tmp_path: Path) -> None:
    """The whole range may be the best one in all groups of the others."""
    layers = file_of("int4", "BF16", MinMax(codec_of("int4")))
    layers[LAYERS[2]] = file_of("int4", "BF16")[LAYERS[2]]
    found = checked(tmp_path, "int4", "BF16", layers, observer="mse")
    assert found.outcome == "clean"
    assert found.layers[LAYERS[2]] in (CHOSEN, CHOSEN + TIES)


def test_a_flipped_code_is_named(tmp_path: Path) -> None:
    layers = file_of("int4", "BF16")
    layers[LAYERS[1]]["weight_packed"] = layers[LAYERS[1]]["weight_packed"].copy()
    layers[LAYERS[1]]["weight_packed"][9, 9] ^= 1 << 4
    found = checked(tmp_path, "int4", "BF16", layers)
    assert [(each.tensor, each.count, each.index) for each in found.findings] == [
        (f"{LAYERS[1]}.weight_packed", 1, (9, 9))
    ]


def test_a_scale_of_no_range_is_named(tmp_path: Path) -> None:
    layers = file_of("int4", "BF16")
    layers[LAYERS[3]][SCALE] = layers[LAYERS[3]][SCALE].copy()
    layers[LAYERS[3]][SCALE][200, 6] += 128  # twice as much
    found = checked(tmp_path, "int4", "BF16", layers)
    assert {each.tensor.rpartition(".")[0] for each in found.findings} == {LAYERS[3]}
    assert [each.index for each in found.findings if each.tensor.endswith(SCALE)] == [(200, 6)]


def test_what_a_search_does_not_explain_is_named_all_the_same(tmp_path: Path) -> None:
    """A layer with many such scales, where no other has any, is near the base; and its shape is wrong."""
    layers = file_of("int4", "BF16", MinMax(codec_of("int4")))
    layers[LAYERS[0]] = {**file_of("int4", "BF16")[LAYERS[0]], SHAPE: np.array([COLUMNS, COLUMNS + 1])}
    found = checked(tmp_path, "int4", "BF16", layers)
    assert [(each.kind, each.tensor) for each in found.findings] == [("declared otherwise", f"{LAYERS[0]}.{SHAPE}")]
