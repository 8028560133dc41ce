"""Codes of 3, 5, 6 and 7 bits of compressed-tensors: what real versions stored, in each layout, and damage."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import awkward
from tests.checkpoints import Tensors, shard
from tests.fixture import damaged, load, wrong
from tests.formats import CONFIGS, LAYERS, WHERE, integers, made_by
from tests.test_formats import checked, tensors
from tests.test_formats import damaged as each_damage

from requant.check import check
from requant.check.checked import Checked, Outcome
from requant.check.reader import open_reader
from requant.checkpoint.safetensors import Spec
from requant.formats import codec, floats
from requant.formats.compressed_tensors import FLOATS, MX, Packed
from requant.formats.grid import Grid
from requant.rounding.formulas import formulas
from requant.rounding.quotients import e2m3

FIXTURES = Path(__file__).parent / "fixtures/compressed_tensors"
VERSIONS = ("0.12.2", "0.17.1", "0.20.1")
SHAPES = {"group": (16, 96), "loose": (44, 64), "channel": (16, 50)}
CASES = [f"{bits}{case}" for bits in (3, 5, 6, 7) for case in SHAPES]


def form_of(case: str, version: str) -> Packed:
    grid = Grid(1, None if case.endswith("channel") else 32)
    return Packed(int(case[0]), grid, not case.endswith("loose"), padded=version != "0.20.1")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", CASES)
def test_the_real_tools_tensors_are_recomputed(version: str, case: str) -> None:
    stored, form = load(FIXTURES / f"bits_{version}.safetensors"), form_of(case, version)
    rows, columns = SHAPES[case[1:]]
    for dtype in FLOATS:
        parts = form.parts(rows, columns, dtype)
        found = stored.layer(f"{dtype}.{case}", parts)
        wide = codec.widen(awkward.bits(rows, columns, dtype), dtype)
        exact = [each for each in formulas(form) if not wrong(each, wide, dtype, found, parts)]
        first = "compressed-tensors to 0.12, min-max" if version == "0.12.2" else "compressed-tensors, min-max"
        assert first in {each.name for each in exact}
        if version != "0.12.2":  # it reads no zero points again
            again = floats.widened(stored.tensors[f"{dtype}.{case}.again"])
            np.testing.assert_array_equal(form.decode(found, columns)[: len(again)], again)
        for suffix, part in parts.items():
            for place in range(0, found[suffix].size if part.every else 0, 31):
                assert wrong(exact[0], wide, dtype, damaged(found, suffix, place), parts) == {suffix: [place]}
        # A window that does not begin with the layer, and ends with a share of its last words.
        rest = {suffix: parts[suffix].cut(each, form.align, rows) for suffix, each in found.items()}
        made = exact[0].encode(wide[form.align :], dtype, rest)
        assert all(made[suffix].tobytes() == rest[suffix].tobytes() for suffix in made)
        np.testing.assert_array_equal(form.decode(rest, columns), form.decode(found, columns)[form.align :])


@pytest.mark.parametrize("dtype", FLOATS)
def test_floats_of_6_bits_are_recomputed(dtype: str) -> None:
    stored, form = load(FIXTURES / "bits_0.20.1.safetensors"), MX(6)
    parts = form.parts(16, 64, dtype)
    found = stored.layer(f"{dtype}.mxfp6", parts)
    wide = codec.widen(awkward.bits(16, 64, dtype), dtype)
    cpu, gpu, *_ = formulas(form)
    assert not wrong(cpu, wide, dtype, found, parts)
    assert {*wrong(gpu, wide, dtype, found, parts)} == {"weight_packed"}  # which has no sign for the zeros of one row
    again = floats.widened(stored.tensors[f"{dtype}.mxfp6.again"])
    np.testing.assert_array_equal(form.decode(found, 64), again)
    for suffix in parts:
        for place in range(0, found[suffix].size, 31):
            assert wrong(cpu, wide, dtype, damaged(found, suffix, place), parts) == {suffix: [place]}


def test_a_float_of_6_bits_is_the_nearest() -> None:
    """Of every number, halves between two values among them; none is farther from its value than from another."""
    values = np.arange(-9, 9, 1 / 64, dtype=np.float32)
    wide = np.pad(values, (0, -len(values) % 32)).reshape(-1, 32)
    codes, ones = np.empty(wide.shape, np.uint8), np.ones((len(wide), 1), np.float32)
    e2m3(wide, ones, 1, 32, 0, True, codes)
    apart = np.abs(floats.E2M3[None, :] - np.clip(wide.reshape(-1, 1), -7.5, 7.5))
    near = np.abs(floats.E2M3[codes.reshape(-1)] - np.clip(wide.reshape(-1), -7.5, 7.5))
    np.testing.assert_array_equal(near, apart.min(axis=1))
    tied = (apart == near[:, None]).sum(axis=1) > 1
    assert (codes.reshape(-1)[tied & (wide.reshape(-1) != 0)] % 2 == 0).all()


def of_all(folder: Path, version: str, change: Any = lambda tensors: None) -> Checked:
    """Check a file of one version with a layer of each case, some of which have the same shapes in both layouts."""
    stored = load(FIXTURES / f"bits_{version}.safetensors")
    theirs: dict[str, Any] = {}
    base: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    for number, case in enumerate(CASES):
        form, (rows, columns), layer = form_of(case, version), SHAPES[case[1:]], f"model.layers.{number}.mlp.up_proj"
        for suffix, each in stored.layer(f"BF16.{case}", form.parts(rows, columns, "BF16")).items():
            spec: Spec = stored.specs[f"BF16.{case}.{suffix}"]
            theirs[f"{layer}.{suffix}"] = spec.dtype, [*spec.shape], each.tobytes()
        base[f"{layer}.weight"] = "BF16", [rows, columns], awkward.bits(rows, columns, "BF16").tobytes()
        weights = {"num_bits": form.bits, "type": "int", "symmetric": form.symmetric}
        weights |= {"strategy": "group", "group_size": 32} if form.grid.width else {"strategy": "channel"}
        groups[f"group_{number}"] = {"targets": [layer], "weights": weights}
    change(theirs)
    said = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": [], "config_groups": groups}
    return both(folder, base, theirs, said)


def both(folder: Path, ours: Tensors, theirs: Tensors, said: dict[str, Any]) -> Checked:
    """Check a file against its base, both written into a folder."""
    for side, some, stated in (("base", ours, {}), ("made", theirs, {"quantization_config": said})):
        (folder / side).mkdir()
        (folder / side / "model.safetensors").write_bytes(shard(some))
        (folder / side / "config.json").write_text(json.dumps({"model_type": "llama"} | stated))
    with open_reader(str(folder / "made")) as one, open_reader(str(folder / "base")) as two:
        return check(one, two, threads=1)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_file_of_a_real_version_is_exact_whichever_layout_it_has(version: str, tmp_path: Path) -> None:
    found = of_all(tmp_path, version)
    assert found.outcome == Outcome.CLEAN, (found.findings, found.unmodelled)
    assert len(found.layers) == len(CASES)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", ["3channel", "6channel", "5loose"])
def test_one_bit_is_named_where_both_layouts_have_the_same_shapes_too(version: str, case: str, tmp_path: Path) -> None:
    name = f"model.layers.{CASES.index(case)}.mlp.up_proj.weight_packed"

    def flip(tensors: dict[str, Any]) -> None:
        dtype, shape, data = tensors[name]
        tensors[name] = dtype, shape, data[:200] + bytes([data[200] ^ 8]) + data[201:]

    found = of_all(tmp_path, version, flip)
    assert [(each.tensor, each.count) for each in found.findings] == [(name, 1)]


@pytest.mark.parametrize("size", [1.0, 1e20, 1e30, 1e-25])
@pytest.mark.parametrize("padded", [False, True])
def test_a_layout_is_told_by_weights_of_any_size(padded: bool, size: float, tmp_path: Path) -> None:
    """40 codes of 3 bits are as many words in both; squares of 1e20 are none in float32."""
    form, name = Packed(3, Grid(1, None), padded=padded), "model.layers.0.mlp.up_proj"
    drawn = np.random.default_rng(0).standard_normal((64, 40)) * size
    wide = floats.rounded(drawn.astype(np.float32), "BF16")
    stored = {**formulas(form)[0].encode(wide, "BF16", {}), "weight_shape": np.array(wide.shape)}
    parts = form.parts(64, 40, "BF16")
    theirs = {
        f"{name}.{key}": (parts[key].spec.dtype, [*parts[key].spec.shape], stored[key].tobytes()) for key in parts
    }
    ours = {f"{name}.weight": ("BF16", [*wide.shape], codec.narrow(wide, "BF16").tobytes())}
    weights = {"num_bits": 3, "type": "int", "symmetric": True, "strategy": "channel"}
    said: dict[str, Any] = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": []}
    said |= {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}
    assert both(tmp_path, ours, theirs, said).outcome == Outcome.CLEAN


@pytest.mark.parametrize("suffix", ["weight_zero_point", "weight_scale", "weight_shape", "weight_packed"])
def test_a_layer_that_lacks_what_tells_its_layout_is_no_layer_of_another(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.test_formats.ROWS", 200)  # of which zero points tell the layout, and inputs do not
    monkeypatch.setattr("tests.test_formats.COLUMNS", 24)
    form = Packed(7, Grid(1, None), symmetric=False, padded=True)
    theirs = dict(tensors(form, formulas(form)[0], "BF16"))
    del theirs[f"{WHERE}.{suffix}"]
    config = integers("pack-quantized", 7, strategy="channel", symmetric=False)
    found = checked(tmp_path, config, theirs, "BF16")
    assert found.outcome == Outcome.VIOLATIONS
    assert {each.tensor for each in found.findings} == {f"{WHERE}.{suffix}", f"{WHERE}.weight"}


@pytest.mark.parametrize("name", ["int3, groups", "int6, groups, zero points"])
def test_damage_to_words_of_whole_codes_is_found_and_named(name: str, tmp_path: Path) -> None:
    form, _ = made_by(CONFIGS[name])
    assert isinstance(form, Packed)
    form = replace(form, padded=True)
    (tmp_path / "healthy").mkdir()
    healthy = tensors(form, formulas(form)[0], "BF16")
    assert checked(tmp_path / "healthy", CONFIGS[name], healthy, "BF16").outcome == Outcome.CLEAN
    for number, (what, theirs, layers) in enumerate(each_damage(form, formulas(form)[0])):
        (tmp_path / str(number)).mkdir()
        found = checked(tmp_path / str(number), CONFIGS[name], theirs, "BF16")
        assert found.outcome == Outcome.VIOLATIONS, what
        assert {next(one for one in LAYERS if each.tensor.startswith(one)) for each in found.findings} == layers, what
        if what.startswith("no "):
            assert {each.tensor for each in found.findings} == {f"{WHERE}.{what[3:]}", f"{WHERE}.weight"}


def misshapen(shape: list[int]) -> tuple[str, Tensors]:
    """Return a layer's codes in words of some shape, among healthy ones."""
    form, known = made_by(CONFIGS["int3, groups"])
    return f"{WHERE}.weight_packed", {
        **tensors(form, known[0], "BF16"),
        f"{WHERE}.weight_packed": ("I32", shape, bytes(4 * int(np.prod(shape)))),
    }


@pytest.mark.parametrize("shape", [[192, 25], [192, 0], [0, 24], [24, 192], [192], [192, 24, 1], []])
def test_words_of_neither_layout_are_named(shape: list[int], tmp_path: Path) -> None:
    name, theirs = misshapen(shape)
    found = checked(tmp_path, CONFIGS["int3, groups"], theirs, "BF16")
    told = {(each.kind, each.tensor): each.detail for each in found.findings}
    assert told.keys() == {("wrong shape", name), ("not in the checkpoint", f"{WHERE}.weight")}
    assert told["wrong shape", name] == f"found I32 {shape}, the base's shape gives I32 [192, 24]"
