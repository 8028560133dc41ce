"""MLX's layout and roundings, held against what MLX itself wrote (fixtures/mlx)."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from requant.formats import mlx
from requant.formats.codec import Array, Arrays, narrow, widen
from requant.formats.declarations import READERS
from requant.formats.streams import unpack
from requant.rounding.formula import Formula
from requant.rounding.formulas import formulas

FIXTURES = Path(__file__).parent / "fixtures" / "mlx"
GPU, CPU, OLD = ", GPU", ", CPU", " in the weights' dtype, before 0.23.2"


def made(version: str) -> dict[str, Array]:
    with np.load(FIXTURES / f"{version}.npz") as arrays:
        return dict(arrays)


RECORDED = {version: made(version) for version in ("0.32.4", "0.21.1")}


def formula(codec: mlx.Affine, ending: str) -> Formula:
    (found,) = (each for each in formulas(codec) if each.name == f"MLX affine{ending}")
    return found


def cases(version: str) -> Iterator[Any]:
    for name in RECORDED[version]:
        if name.endswith("/weight") and name.count("/") == 3:
            dtype, bits, group, _ = name.split("/")
            yield pytest.param(version, dtype, int(bits), int(group), id=f"{version}-{dtype}-{bits}-{group}")


def recorded(version: str, dtype: str, bits: int, group: int) -> tuple[Array, dict[str, Array]]:
    every = RECORDED[version]
    stored = {suffix: every[f"{dtype}/{bits}/{group}/{suffix}"] for suffix in ("weight", "scales", "biases")}
    return widen(every[dtype], dtype), stored


def differing(one: Arrays, other: Arrays) -> dict[str, list[int]]:
    return {suffix: np.flatnonzero(one[suffix].reshape(-1) != other[suffix].reshape(-1)).tolist() for suffix in other}


@pytest.mark.parametrize(("version", "dtype", "bits", "group"), [*cases("0.32.4"), *cases("0.21.1")])
def test_what_mlx_wrote_is_recomputed(version: str, dtype: str, bits: int, group: int) -> None:
    weights, stored = recorded(version, dtype, bits, group)
    codec = mlx.Affine(bits, group)
    encoded = formula(codec, CPU if version == "0.32.4" else OLD).encode(weights, dtype, stored)
    assert {suffix: array.tobytes() for suffix, array in encoded.items()} == {
        suffix: array.tobytes() for suffix, array in stored.items()
    }
    rows, columns = weights.shape
    for suffix, part in codec.parts(rows, columns, dtype).items():
        assert part.spec.shape == stored[suffix].shape
        assert part.spec.nbytes == stored[suffix].nbytes


@pytest.mark.parametrize(("dtype", "bits"), [(dtype, bits) for dtype in ("BF16", "F16", "F32") for bits in mlx.BITS])
def test_decoded_as_mlx_does(dtype: str, bits: int) -> None:
    weights, stored = recorded("0.32.4", dtype, bits, 32)
    decoded = mlx.Affine(bits, 32).decode(stored, weights.shape[1])
    assert np.array_equal(decoded, widen(RECORDED["0.32.4"][f"{dtype}/{bits}/32/decoded"], dtype))


@pytest.mark.parametrize("mode", mlx.FLOATS)
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_floats_are_decoded_as_mlx_does(dtype: str, mode: str) -> None:
    prefix = f"{dtype}/{mode}/"
    stored = {suffix: RECORDED["0.32.4"][prefix + suffix] for suffix in ("weight", "scales")}
    codec, weights = mlx.Float(mode), RECORDED["0.32.4"][dtype]
    decoded = codec.decode(stored, weights.shape[1])
    wanted = widen(RECORDED["0.32.4"][f"{prefix}decoded"], dtype)
    assert np.array_equal(widen(narrow(decoded, dtype), dtype), wanted)
    rows, columns = weights.shape
    assert {suffix: part.spec.shape for suffix, part in codec.parts(rows, columns, dtype).items()} == {
        suffix: each.shape for suffix, each in stored.items()
    }
    made = {each.name: each.encode(widen(weights, dtype), dtype, stored) for each in formulas(codec)}
    fits = [name for name, each in made.items() if not any(differing(each, stored).values())]
    assert fits == [f"MLX {mode}, CPU"]
    assert READERS["mlx"]({"mode": mode}).codec("a") == codec


def test_forms_are_told_apart() -> None:
    weights, stored = recorded("0.32.4", "BF16", 4, 32)
    every = formulas(mlx.Affine(4, 32))
    fits = [each.name for each in every if not any(differing(each.encode(weights, "BF16", {}), stored).values())]
    assert fits == ["MLX affine, CPU"]


def test_on_a_gpu_ties_go_away_from_zero_and_zero_is_the_least_maximum() -> None:
    weights = np.array([[-3, 0.5, 0, 4.5] * 8, [-2, -1] * 16], np.float32)
    gpu, cpu = (formula(mlx.Affine(8, 32), each).encode(weights, "F32", {}) for each in (GPU, CPU))
    assert gpu["scales"][1, 0] == np.float32(-2) / np.rint(np.float32(-2) / (np.float32(2) / np.float32(255)))
    assert cpu["scales"][1, 0] == np.float32(-2) / np.rint(np.float32(-2) / (np.float32(1) / np.float32(255)))
    tie = np.array([[0, 1, 2.5, 3] * 8], np.float32)  # a scale of -1 from 3 down: 2.5 is half a step
    packed = [formula(mlx.Affine(2, 32), each).encode(tie, "F32", {})["weight"] for each in (GPU, CPU)]
    codes = [unpack(each, 2, 4)[0] for each in packed]
    assert [each.tolist() for each in codes] == [[3, 2, 1, 0], [3, 2, 0, 0]]


def test_one_bit_or_one_step_of_a_scale_is_found_where_it_is() -> None:
    weights, stored = recorded("0.32.4", "F16", 4, 64)
    encoded = formula(mlx.Affine(4, 64), CPU).encode(weights, "F16", stored)
    stored["weight"][3, 5] ^= 1 << 9
    stored["scales"].view(np.uint16)[2, 1] += 1
    words, scales = stored["weight"].shape[1], stored["scales"].shape[1]
    assert differing(stored, encoded) == {"weight": [3 * words + 5], "scales": [2 * scales + 1], "biases": []}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_weights_that_are_no_numbers_end_nothing(bad: float) -> None:
    weights = np.array([[bad, 1.0, -1.0, 0.0] * 16], np.float32)
    for dtype in ("BF16", "F16", "F32"):
        for each in formulas(mlx.Affine(3, 32)):
            stored = each.encode(weights, dtype, {})
            assert mlx.Affine(3, 32).decode(stored, 64).shape == (1, 64)
        for codec in map(mlx.Float, mlx.FLOATS):
            for each in formulas(codec):
                assert codec.decode(each.encode(weights, dtype, {}), 64).shape == (1, 64)


def test_a_number_that_is_none_stays_none() -> None:
    assert np.isnan(widen(narrow(np.array([np.nan, -np.nan], np.float32), "BF16"), "BF16")).all()


def test_a_configuration_says_how_each_layer_is_stored() -> None:
    declared = READERS["mlx"](
        {
            "group_size": 64,
            "bits": 4,
            "mode": "affine",
            "model.a": {"group_size": 32, "bits": 6},
            "model.b": False,
            "model.c": True,
        }
    )
    found = [declared.codec(layer) for layer in ("model.a", "model.b", "model.c", "model.d")]
    assert found == [mlx.Affine(6, 32), None, mlx.Affine(4, 64), mlx.Affine(4, 64)]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"bits": 7}, "MLX affine, 7 bits in groups of 64"),
        ({"bits": True}, "MLX affine, True bits"),
        ({"bits": [4]}, r"MLX affine, \[4\] bits"),
        ({"group_size": 10**30}, "groups of 10000"),
        ({"mode": "mxfp5"}, "MLX's mode 'mxfp5'"),
        ({"mode": "mxfp4", "bits": 8}, "MLX mxfp4, 8 bits"),
        ({"mode": ["affine"]}, r"MLX's mode \['affine'\]"),
        ({"linear_class": "x"}, "'linear_class' 'x'"),
        ({"model.a": {"bits": 4, "new": 1}}, "MLX's 'new'"),
        ({"model.a": None}, "'model.a' None"),
    ],
)
def test_what_is_not_modelled_is_said(value: Mapping[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        READERS["mlx"](value)


def test_shapes_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="100 inputs, no multiple of the group size 64"):
        mlx.Affine(4, 64).parts(8, 100, "BF16")
    with pytest.raises(ValueError, match="a base in F64"):
        mlx.Affine(4, 64).parts(8, 128, "F64")
