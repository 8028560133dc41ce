"""What an MSE observer took, made again: against what the real one took, and against damage."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from syrupy.assertion import SnapshotAssertion
from tests.checkpoints import shard
from tests.searches import COLUMNS, KINDS, OPTIONS, ROWS, weights

from requant.check import check
from requant.check.checked import Checked
from requant.check.findings import CLEARLY, FAR, NEAR, STRAY, Counts, Finding, Measured
from requant.check.reader import open_reader
from requant.check.searches import TIES, Sought, weighed
from requant.formats import floats
from requant.formats.codec import Array, Arrays, narrow
from requant.formats.compressed_tensors import FLOATS, PACKED, SCALE, SHAPE, ZERO, Packed, Plain, read
from requant.formats.observers import MOST, OLDEST, USUAL, Search, search_of
from requant.rounding.compressed_tensors import MinMax
from requant.rounding.intervals import possible
from requant.rounding.mse import CHOSEN, LIFTED, MOST_AT_ONCE, SEARCHED, Chosen, Searched
from requant.rounding.powers import POW, errors, series, table
from requant.rounding.quotients import PLACES

FIXTURE = Path(__file__).parent / "fixtures/compressed_tensors/mse.npz"
FORMS = {"int4": "pack-quantized", "int4loose": "pack-quantized", "int8": "int-quantized"}
LAYERS = [f"model.layers.{number}.mlp.up_proj" for number in range(4)]

STATED = replace(USUAL, stated=True)
WHOLE = replace(STATED, steps=1)
SLOW = replace(STATED, steps=40, patience=9, hundredths=40)
WIDE = replace(STATED, grid=200.0, steps=111, patience=MOST, expand=1.8, hundredths=55)


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
    assert choice.groups == stored[SCALE].size and not choice.worse.any()
    assert choice.ties <= (choice.groups / 50 if kind.startswith("int4") else choice.groups / 2)
    plain = MinMax(codec_of(kind)).encode(drawn(dtype), dtype, {})[SCALE]
    assert dtype == "F16" or np.count_nonzero(plain != stored[SCALE]) > plain.size / 8


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize("option", OPTIONS)
def test_other_options_are_searched_by_as_they_are_declared(option: str, dtype: str) -> None:
    stored, codec = held("int4", dtype, option), codec_of("int4", observer="mse", observer_kwargs=OPTIONS[option])
    choice = Chosen(codec, search=codec.search).choose(drawn(dtype), dtype, stored)
    np.testing.assert_array_equal(choice.tensors[SCALE], stored[SCALE])
    assert choice.groups == stored[SCALE].size and not choice.worse.any()


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
        ({"observer": "mse", "observer_kwargs": {"expand": 1.8}}, replace(STATED, expand=1.8)),
        ({"observer": "nvfp4_expanded_mse"}, WIDE),
        ({"observer": "fouroversix", "observer_kwargs": {"maxshrink": 0.01}}, replace(WIDE, steps=2, hundredths=1)),
        ({"observer": ["mse"]}, USUAL),
        ({"observer": "mse", "observer_kwargs": {"norm": 1, "patience": 1.5}}, replace(STATED, norm=1.0, patience=2)),
        ({"observer": "mse", "observer_kwargs": {"patience": -3}}, replace(STATED, patience=1)),
        ({"observer": "mse", "observer_kwargs": {"patience": 10**400}}, replace(STATED, patience=MOST)),
        ({"observer": "mse", "observer_kwargs": {"maxshrink": 1}}, replace(STATED, steps=100, hundredths=100)),
        ({"observer": "mse", "observer_kwargs": {"maxshrink": -1}}, replace(WHOLE, hundredths=1)),
        ({"observer": "mse", "observer_kwargs": {"maxshrink": -1e308, "grid": 1}}, replace(WHOLE, hundredths=1)),
        ({"observer": "mse", "observer_kwargs": {"maxshrink": 0.001}}, replace(WHOLE, hundredths=1)),
        ({"observer": "mse", "observer_kwargs": {"grid": 0}}, WHOLE),
        ({"observer": "mse", "observer_kwargs": {"grid": 0, "maxshrink": 10**400}}, replace(WHOLE, hundredths=100)),
        ({"observer": "mse", "observer_kwargs": {"norm": float("nan")}}, WHOLE),
    ],
)  # fmt: skip
def test_what_is_declared_of_a_search(said: Any, search: Search) -> None:
    assert search_of(said) == search


@pytest.mark.parametrize(
    "said",
    [
        *(
            {"norm": "2"},
            {"norm": -1},
            {"norm": 0.5},
            {"norm": 99},
            {"norm": 10**400},
            {"norm": None},
            {"patience": "5"},
        ),
        *({"grid": 1e9}, {"grid": 10**400}, {"grid": [1]}, {"grid": -10, "maxshrink": -1}, {"maxshrink": 1.5}),
        *({"maxshrink": 10**400, "grid": 10**400}, {"expand": 0.5}, {"expand": 256}, {"unheard": 1}),
        *([], "norm", 0),
    ],
)
def test_a_search_that_is_not_modelled_is_said(said: Any, snapshot: SnapshotAssertion, tmp_path: Path) -> None:
    """Whatever the layers are: such a configuration no version reads, or none as it is known here."""
    assert search_of({"observer": "mse", "observer_kwargs": said}).strange == snapshot
    layers = file_of("int4", "BF16", MinMax(codec_of("int4")))
    found = checked(tmp_path, "int4", "BF16", layers, observer="mse", observer_kwargs=said)
    assert found.outcome == "not modelled" and not found.findings
    assert [(each.tensor, each.count) for each in found.unmodelled] == [("quantization_config: observer_kwargs", 4)]


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


def checked(
    folder: Path,
    kind: str,
    dtype: str,
    layers: Mapping[str, Any],
    replaced: Mapping[str, Array] = MappingProxyType({}),
    **observer: Any,
) -> Checked:
    """Check a file of layers, each with weights of its own, but for those that are `replaced`."""
    tensors: dict[str, dict[str, Any]] = {"base": {}, "made": {}}
    codec = codec_of(kind, **observer)
    for seed, (name, stored) in enumerate(layers.items()):
        wide = replaced.get(name, drawn(dtype, seed))
        tensors["base"][f"{name}.weight"] = dtype, [ROWS, COLUMNS], narrow(wide, dtype).tobytes()
        for suffix, part in codec.parts(ROWS, COLUMNS, dtype).items():
            tensors["made"][f"{name}.{suffix}"] = part.spec.dtype, [*part.spec.shape], stored[suffix].tobytes()
    for side, said in (("base", {}), ("made", {"quantization_config": declared(kind, **observer)})):
        (folder / side).mkdir(parents=True)
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


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_ranges_of_rounded_shares_are_within_reach(dtype: str) -> None:
    """llm-compressor 0.13's compiled form rounds shares to the dtype, which moves some scales by a last place."""
    codec, wide = codec_of("int4"), drawn(dtype)
    shares = floats.rounded(np.array(USUAL.shares), dtype).reshape(-1, 1, 1)
    scales = MinMax(codec)._ranges(wide, dtype)(shares)[0]
    plain = Chosen(codec)._candidates(wide, dtype, {})[0]
    odd = (scales[:, None] != plain).all(axis=1)
    told = np.where(odd.any(axis=0), scales[odd.argmax(axis=0), *np.indices(odd.shape[1:])], scales[0])
    assert odd.any()
    stored = {SCALE: narrow(told, dtype)}
    np.testing.assert_array_equal(Searched(codec).encode(wide, dtype, stored)[SCALE], stored[SCALE])


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


@pytest.mark.parametrize(
    ("columns", "groups", "own", "others", "accused"),
    [
        (256, 2048, 1, [0] * 9, True),
        (256, 2048, 1, [1] * 9, True),  # whoever moves a group in every layer disarms nothing
        (256, 2048, 32, [], True),
        (256, 2048, 33, [], False),
        (256, 2048, 33, [32] * 9, True),
        (256, 2048, 33, [2048, *[0] * 8], True),
        (256, 2048, 33, [2048, 2048, 2048, *[0] * 6], False),
        (256, 128, 1, [0] * 9, True),
        (256, 128, 1, [0] * 6, False),  # too few of them
        (256, 128, 1, [7] * 40, False),  # as a form that is not known does
        (256, 16, 1, [*[1] * 32, *[0] * 99], True),
        (256, 16, 1, [*[1] * 40, *[0] * 92], False),
        (1024, 128, 1, [0] * 9, False),  # of other lengths a GPU searches by another kernel
    ],
)
def test_a_group_accuses_where_nearly_all_others_are_the_form_s(
    columns: int, groups: int, own: int, others: Sequence[int], accused: bool
) -> None:
    """Of `groups` channels, so many of each layer are moved."""
    codec = codec_of("int8")

    def layer(moved: int, columns: int) -> Sought:
        found = Finding("not rounded to nearest", f"odd.{SCALE}", moved, (7, 0), "1, recomputed 2")
        by_form = (found, replace(found, kind=CLEARLY)) if moved else ()
        measured = Measured({CHOSEN: by_form, SEARCHED: ()}, Counts(codes=groups * columns))
        return Sought(codec, columns, (SEARCHED if moved else CHOSEN, ()), measured)

    sought = {f"{number}": layer(moved, 256) for number, moved in enumerate(others)} | {"odd": layer(own, columns)}
    made = weighed(sought, dict.fromkeys(sought, codec), lambda _, each: (CHOSEN, each.findings[CHOSEN][:1]))
    way, said = made["odd"]
    assert way == (CHOSEN if accused else NEAR)
    assert [each.kind for each in said] == ["not rounded to nearest" if accused else CLEARLY]
    assert made.keys() == {"odd", *(name for name in sought if sought[name].settled[0] == SEARCHED)}


def by_release(search: Search, dtype: str, **observer: Any) -> dict[str, dict[str, Array]]:
    """Return a file as a release makes it by its own search, each layer with weights of its own."""
    formula = Chosen(codec_of("int4", **observer), search=search, clamped=True)
    return {name: made_by(formula, drawn(dtype, seed), dtype) for seed, name in enumerate(LAYERS)}


def at_two_fifths(layers: dict[str, dict[str, Array]], name: str, **observer: Any) -> None:
    """Move one group of a layer to .40 of its range."""
    formula, wide = Searched(codec_of("int4", **observer)), drawn("BF16", LAYERS.index(name))
    told = layers[name][SCALE].copy()
    told[77, 1] = narrow(formula._candidates(wide, "BF16", {})[0][60], "BF16")[77, 1]
    layers[name] = made_by(formula, wide, "BF16", {**layers[name], SCALE: told})


def names_of(found: Checked) -> set[str]:
    return {way.removesuffix(TIES) for way in found.layers.values()}


def scales_of(found: Checked) -> list[tuple[str, int, tuple[int, ...]]]:
    return [(each.tensor, each.count, each.index) for each in found.findings if each.tensor.endswith(SCALE)]


@pytest.mark.parametrize("said", [{}, {"norm": 2.0}, {"norm": 3.0}, {"grid": 200.0}, {"expand": 1.5}, {"unheard": 1}])
def test_what_the_oldest_release_took_is_exact_whatever_is_stated(said: dict[str, Any], tmp_path: Path) -> None:
    """llm-compressor 0.3.1 tries 80 ranges, and is handed no argument; nobody can hide a group behind that."""
    args: dict[str, Any] = {"group_size": 128, "observer": "mse", "observer_kwargs": said}
    layers, formula = by_release(OLDEST, "BF16", group_size=128), Searched(codec_of("int4", group_size=128))
    told = [formula._candidates(drawn("BF16", at), "BF16", layers[name])[2] for at, name in enumerate(LAYERS)]
    assert sum(int((each.argmax(axis=0) >= USUAL.steps).sum()) for each in told) > 8  # none of these is tried later
    found = checked(tmp_path / "healthy", "int4", "BF16", layers, **args)
    assert not found.findings and found.outcome == ("not modelled" if "unheard" in said else "clean")
    assert names_of(found) == {f"{CHOSEN} of llm-compressor 0.3"}
    at_two_fifths(layers, LAYERS[2], group_size=128)
    found = checked(tmp_path / "moved", "int4", "BF16", layers, **args)
    assert scales_of(found) == [(f"{LAYERS[2]}.{SCALE}", 1, (77, 1))]


@pytest.mark.parametrize(
    ("said", "search", "release"),
    [
        ({"norm": 2.0}, USUAL, "0.6"),
        ({"norm": 3.0, "maxshrink": 0.3}, replace(USUAL, steps=30), "0.6"),
        ({"grid": 50.0, "patience": 9}, replace(USUAL, patience=9), "0.6"),
        ({"grid": 10, "maxshrink": 0.05}, replace(USUAL, steps=5), "0.6"),  # of a grid of 10 that is none
        ({"norm": 0}, USUAL, "0.6"),
        ({"norm": 2.0, "expand": 1.5}, replace(USUAL, norm=2.0), "0.13"),
    ],
)
def test_a_release_that_does_not_take_all_arguments(
    said: dict[str, Any], search: Search, release: str, tmp_path: Path
) -> None:
    args: dict[str, Any] = {"observer": "mse", "observer_kwargs": said}
    layers = by_release(search, "BF16")
    found = checked(tmp_path / "healthy", "int4", "BF16", layers, **args)
    assert found.outcome == "clean" and names_of(found) == {f"{CHOSEN} of llm-compressor {release}"}
    at_two_fifths(layers, LAYERS[2])
    found = checked(tmp_path / "moved", "int4", "BF16", layers, **args)
    assert scales_of(found) == [(f"{LAYERS[2]}.{SCALE}", 1, (77, 1))]


@pytest.mark.parametrize("clamped", [False, True])
def test_groups_of_zeros_have_the_least_scale_of_their_version(clamped: bool, tmp_path: Path) -> None:
    """Up to compressed-tensors 0.12 it is 2^-23, in BF16 too, where it became 2^-7."""
    layers, wide = file_of("int4", "BF16"), drawn("BF16")
    wide[5, 32:64] = 0
    layers[LAYERS[0]] = made_by(Chosen(codec_of("int4"), clamped=clamped), wide, "BF16")
    found = checked(tmp_path, "int4", "BF16", layers, replaced={LAYERS[0]: wide}, observer="mse")
    assert found.outcome == "clean" and names_of(found) == {f"{CHOSEN}{LIFTED if clamped else ''}"}


def test_a_file_that_was_searched_otherwise_than_is_stated_is_not_clean(tmp_path: Path) -> None:
    """By the power of 3.5, which no release takes where 2 is stated: nobody is accused, and places are there."""
    layers = by_release(replace(USUAL, norm=3.5), "BF16")
    found = checked(tmp_path, "int4", "BF16", layers, observer="mse", observer_kwargs={"norm": 2.0})
    assert found.outcome == "not modelled" and set(found.layers.values()) == {NEAR}
    assert {each.kind for each in found.notes} == {CLEARLY} and len(found.notes) == len(LAYERS)
    assert all(each.count and each.index and ", recomputed " in each.detail for each in found.notes)


@pytest.mark.parametrize("step", [0, 19])
def test_a_tenth_of_a_layer_at_other_ranges_is_more_than_a_note(step: int, tmp_path: Path) -> None:
    """It is also more than damage: the layer was made in another way, and where is named."""
    layers, codec, wide = file_of("int4", "BF16"), codec_of("int4"), drawn("BF16", 2)
    scales = narrow(Searched(codec)._candidates(wide, "BF16", {})[0][step], "BF16")
    told = layers[LAYERS[2]][SCALE]
    told = np.where(np.random.default_rng(0).random(told.shape) < 0.15, scales, told)
    layers[LAYERS[2]] = made_by(Searched(codec), wide, "BF16", {**layers[LAYERS[2]], SCALE: told})
    found = checked(tmp_path, "int4", "BF16", layers, observer="mse")
    assert found.outcome == "not modelled" and found.layers[LAYERS[2]] == NEAR
    (note,) = found.notes
    assert (note.kind, note.tensor) == (CLEARLY, f"{LAYERS[2]}.{SCALE}")
    assert note.index and told[note.index] == scales[note.index]


def test_whoever_moves_a_group_in_every_layer_disarms_nothing(tmp_path: Path) -> None:
    layers = {
        name: moved(codec_of("int4"), drawn("BF16", seed), "BF16", (77, 5), 0.05) for seed, name in enumerate(LAYERS)
    }
    found = checked(tmp_path, "int4", "BF16", layers, observer="mse")
    assert scales_of(found) == [(f"{name}.{SCALE}", 1, (77, 5)) for name in LAYERS]


@pytest.mark.parametrize("norm", [1.0, 2.0, 3.0])
def test_powers_that_torch_multiplies_leave_ties_free(norm: float, tmp_path: Path) -> None:
    """Of ranges that err alike as far as additions go, a layer may have the narrowest in every group."""
    args: dict[str, Any] = {"observer": "mse", "observer_kwargs": {"norm": norm}}
    codec, wide = codec_of("int4", **args), drawn("F32")
    formula = Chosen(codec, search=codec.search)
    scales, zeros, _ = formula._candidates(wide, "F32", {})
    can = possible(*formula._errors(wide, "F32", scales, zeros))
    last = np.where(can, np.arange(len(scales))[:, None, None], 0).max(axis=0)
    assert (can.sum(axis=0) > 1).any()
    layers = {name: made_by(formula, drawn("F32", seed), "F32") for seed, name in enumerate(LAYERS)}
    told = np.take_along_axis(scales, last[None], 0)[0]
    layers[LAYERS[0]] = made_by(Searched(codec), wide, "F32", {SCALE: told})
    found = checked(tmp_path, "int4", "F32", layers, **args)
    assert found.outcome == "clean" and found.counts[LAYERS[0]].ties > 0 and names_of(found) == {CHOSEN}


@pytest.mark.parametrize("bits", [0x0000, 0x0001])
def test_scales_that_reach_nothing_are_named(bits: int, tmp_path: Path) -> None:
    """Half of a layer decodes to zeros, which are as near as zeros are: no tool writes 0, or a scale of 2^-133."""
    layers = file_of("int4", "BF16")
    told = layers[LAYERS[1]][SCALE].copy()
    told[100:228] = bits
    layers[LAYERS[1]][SCALE] = told
    found = checked(tmp_path, "int4", "BF16", layers, observer="mse")
    (finding,) = found.findings
    assert (finding.kind, finding.tensor, finding.count) == ("scale out of reach", f"{LAYERS[1]}.{SCALE}", 128 * 8)
    assert finding.index == (100, 0) and finding.detail.endswith(
        f"for weights up to {abs(drawn('BF16', 1)[100, :32]).max():g}"
    )


@pytest.mark.parametrize("kind", ["int4", "int8", "fp8block"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_base_that_has_no_number_somewhere_is_said_to(bad: float, kind: str, tmp_path: Path) -> None:
    """What a tool makes of it is not defined, so that nothing accuses that has part in its scale; all else does."""
    layers, wide = file_of(kind, "BF16"), drawn("BF16", 1)
    wide[9, 40] = bad
    height, width = codec_of(kind).grid.steps(ROWS, COLUMNS)
    told = layers[LAYERS[1]][SCALE].copy()
    told[9 // height, 40 // width] = 0x7FC0  # as of torch, whose codes depend on the machine
    layers[LAYERS[1]][SCALE] = told
    found = checked(tmp_path / "healthy", kind, "BF16", layers, replaced={LAYERS[1]: wide}, observer="mse")
    assert not found.findings and found.outcome == "not modelled"
    (said,) = found.unmodelled
    assert said.tensor == LAYERS[1]
    assert said.detail.startswith(f"{bad} in the base's {LAYERS[1]}.weight, for output 9 and input 40: ")
    json.dumps(found.as_json(), allow_nan=False)
    told[-1, 0] = 0x7FC0
    found = checked(tmp_path / "damaged", kind, "BF16", layers, replaced={LAYERS[1]: wide}, observer="mse")
    assert [(each.kind, each.index) for each in found.findings] == [("not the base's weights", (ROWS - height, 0))]


def calibrated(seed: int) -> Array:
    """Weights as a calibration of few bits moves them: they go with the base's, and zeros are nearer to these."""
    wide = drawn("BF16", seed)
    noise = np.random.default_rng(99 + seed).normal(0, 1.1, wide.shape).astype(np.float32)
    return floats.rounded(wide + noise * np.sqrt((wide**2).mean(axis=1, keepdims=True)), "BF16")


@pytest.mark.parametrize(("swapped", "outcome"), [(0, "not modelled"), (2, "not modelled"), (16, "violations")])
def test_what_a_calibration_moved_is_the_base_s_and_other_outputs_are_not(
    swapped: int, outcome: str, tmp_path: Path
) -> None:
    """GPTQ of 2 bits leaves stretches so, and of 4 bits where few tokens calibrated."""
    layers = {name: made_by(MinMax(codec_of("int4")), calibrated(seed), "BF16") for seed, name in enumerate(LAYERS)}
    order = np.arange(ROWS)
    order[:swapped] = order[:swapped][::-1]
    for suffix in (PACKED, SCALE):
        layers[LAYERS[1]][suffix] = layers[LAYERS[1]][suffix][order]
    found = checked(tmp_path, "int4", "BF16", layers)
    assert found.outcome == outcome
    assert {each.tensor for each in found.findings} == ({f"{LAYERS[1]}.{PACKED}"} if swapped == 16 else set())
    assert f"{LAYERS[0]}.{PACKED}" in {each.tensor for each in found.notes if each.kind == FAR}
    assert [each.index for each in found.notes if each.kind == STRAY] == ([(0, 0)] if swapped == 2 else [])


@pytest.mark.parametrize(("searched", "outcome"), [(1, "violations"), (4, "not modelled")])
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
