"""Layers that `check` makes again by a formula: in a format of the tests' own, which has all that formats can have."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.checkpoints import shard

from requant.check import check
from requant.check.checked import Checked, Outcome
from requant.check.reader import open_reader
from requant.checkpoint.safetensors import Spec
from requant.formats.codec import Array, Arrays, Part
from requant.formats.declarations import READERS
from requant.rounding.formulas import FORMULAS

ROWS, COLUMNS, BLOCK = 200, 192, 16
LAYERS = [f"model.layers.{block}.{name}_proj" for block in range(4) for name in ("q", "k")]


@dataclass(frozen=True)
class Toy:
    """Codes int8; a step in BF16 per `BLOCK` outputs, of a step float32 per layer; and the shape."""

    name: str = "toy"
    align: int = BLOCK

    def parts(self, rows: int, columns: int, dtype: str) -> Mapping[str, Part]:
        blocks = -(-rows // BLOCK)
        return {
            "weight": Part(Spec("I8", (rows, columns))),
            "step": Part(Spec("BF16", (blocks, 1)), BLOCK),
            "unit": Part(Spec("F32", ()), 0),
            "shape": Part(Spec("I64", (2,)), 0, np.array([rows, columns], np.int64)),
        }

    def decode(self, stored: Arrays, columns: int) -> Array:
        return np.asarray(stored["weight"] * _each(stored, len(stored["weight"])), np.float32)


def _each(stored: Arrays, rows: int) -> Array:
    steps = (stored["step"].astype(np.uint32) << np.uint32(16)).view(np.float32) * stored["unit"]
    return np.repeat(steps, BLOCK, axis=0)[:rows]


@dataclass(frozen=True)
class ToyFormula:
    """Steps are `share` of the widest weight of a block, in units of the widest of the layer."""

    name: str
    share: float

    def encode(self, weights: Array, dtype: str, stored: Arrays) -> Arrays:
        starts = np.arange(0, len(weights), BLOCK)
        widest = np.maximum.reduceat(np.abs(weights).max(axis=1), starts)[:, None]
        with np.errstate(all="ignore"):
            bits = (widest / np.float32(self.share) / stored["unit"]).astype(np.float32).view(np.uint32)
            steps = (bits >> np.uint32(16)).astype(np.uint16)
            codes = np.rint(weights / _each({**stored, "step": steps}, len(weights)))
        return {"weight": np.clip(np.nan_to_num(codes), -127, 127).astype(np.int8), "step": steps}

    def whole(self, widest: float, dtype: str) -> Arrays:
        return {"unit": np.array(widest / 2, np.float32)}


NARROW, WIDE, OTHER = ToyFormula("toy, narrow", 64), ToyFormula("toy, wide", 120), ToyFormula("toy, unknown", 100)


@dataclass(frozen=True)
class Declared:
    """All layers but one."""

    def codec(self, layer: str) -> Toy | None:
        return None if layer.endswith("head") else Toy()


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READERS, "toy", lambda value: Declared())
    monkeypatch.setitem(FORMULAS, Toy, lambda codec: (NARROW, WIDE))


def weights(layer: str) -> Array:
    """BF16 as float32, a greatest magnitude of its own."""
    some = np.random.default_rng(LAYERS.index(layer)).normal(0, 0.02, (ROWS, COLUMNS)).astype(np.float32)
    return (some.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def narrow(values: Array) -> Array:
    """BF16 as bits, of numbers that are BF16."""
    return (values.view(np.uint32) >> np.uint32(16)).astype("<u2")


def made(formula: ToyFormula) -> dict[str, Array]:
    """All layers, made whole at once."""
    tensors: dict[str, Array] = {}
    for layer in LAYERS:
        whole = {
            **formula.whole(float(np.abs(weights(layer)).max()), "BF16"),
            "shape": np.array([ROWS, COLUMNS], np.int64),
        }
        tensors |= {f"{layer}.{suffix}": each for suffix, each in whole.items()}
        tensors |= {f"{layer}.{s}": each for s, each in formula.encode(weights(layer), "BF16", whole).items()}
    return tensors


def checked(folder: Path, tensors: Mapping[str, Array], sample: float = 1) -> Checked:
    names = {"int8": "I8", "uint16": "BF16", "float32": "F32", "int64": "I64"}
    base = {f"{each}.weight": ("BF16", [ROWS, COLUMNS], narrow(weights(each)).tobytes()) for each in LAYERS}
    theirs = {name: (names[each.dtype.name], list(each.shape), each.tobytes()) for name, each in tensors.items()}
    for name, some, said in (("base", base, {}), ("theirs", theirs, {"quantization_config": {"quant_method": "toy"}})):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(shard(some))
        (folder / name / "config.json").write_text(json.dumps({"model_type": "toy", **said}))
    with open_reader(str(folder / "theirs")) as one, open_reader(str(folder / "base")) as two:
        return check(one, two, sample=sample)


@pytest.mark.parametrize("formula", [NARROW, WIDE])
def test_what_a_formula_makes_is_exact(formula: ToyFormula, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("requant.check.CODED", 40 * COLUMNS)  # windows of 32 outputs
    found = checked(tmp_path, made(formula))
    assert (found.outcome, found.ways) == (Outcome.CLEAN, {formula.name: len(LAYERS)})


def test_layers_that_no_formula_makes_are_measured_and_accuse_nobody(tmp_path: Path) -> None:
    found = checked(tmp_path, made(OTHER))
    assert (found.outcome, len(found.unmodelled)) == (Outcome.NOT_MODELLED, len(LAYERS))
    assert (
        0 < found.statistics["model.layers.0"]["near"].missed < 1e-3 * found.statistics["model.layers.0"]["near"].whole
    )


def _flip(tensors: dict[str, Array], name: str) -> None:
    tensors[name] = tensors[name].copy()
    tensors[name].reshape(-1).view(f"u{tensors[name].dtype.itemsize}")[-1] ^= 1


def _swap(tensors: dict[str, Array]) -> None:
    for suffix in ("weight", "step", "unit"):
        one, two = f"{LAYERS[2]}.{suffix}", f"{LAYERS[5]}.{suffix}"
        tensors[one], tensors[two] = tensors[two], tensors[one]


@pytest.mark.parametrize(
    ("damage", "kind", "named"),
    [
        (lambda tensors: _flip(tensors, f"{LAYERS[3]}.weight"), "not rounded to nearest", [f"{LAYERS[3]}.weight"]),
        (lambda tensors: _flip(tensors, f"{LAYERS[3]}.step"), "not rounded to nearest", [f"{LAYERS[3]}.step"]),
        (lambda tensors: _flip(tensors, f"{LAYERS[3]}.unit"), "not rounded to nearest", [f"{LAYERS[3]}.unit"]),
        (lambda tensors: _flip(tensors, f"{LAYERS[3]}.shape"), "declared otherwise", [f"{LAYERS[3]}.shape"]),
        (lambda tensors: tensors.pop(f"{LAYERS[3]}.step"), "missing tensor", [f"{LAYERS[3]}.step"]),
        (_swap, "not the base's weights", [f"{LAYERS[2]}.weight", f"{LAYERS[5]}.weight"]),
    ],
)
def test_damage_is_found_and_named(
    damage: Callable[[dict[str, Array]], Any], kind: str, named: list[str], tmp_path: Path
) -> None:
    tensors = made(NARROW)
    damage(tensors)
    found = checked(tmp_path, tensors)
    assert found.outcome == Outcome.VIOLATIONS
    assert {each.tensor for each in found.findings if each.kind == kind} >= set(named)
    assert {each.tensor.rpartition(".")[0] for each in found.findings} == {each.rpartition(".")[0] for each in named}


def test_a_layer_that_was_left_float_is_named(tmp_path: Path) -> None:
    tensors = made(NARROW)
    for suffix in ("step", "unit", "shape"):
        del tensors[f"{LAYERS[3]}.{suffix}"]
    tensors[f"{LAYERS[3]}.weight"] = narrow(weights(LAYERS[3]))
    found = checked(tmp_path, tensors)
    assert [(each.kind, each.tensor) for each in found.findings] == [("declared otherwise", f"{LAYERS[3]}.weight")]


def test_a_sample_accuses_nobody_of_what_it_did_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("requant.check.CODED", 40 * COLUMNS)
    found = checked(tmp_path, made(NARROW), sample=0.3)
    assert found.findings == () and found.read < found.total
    assert found.outcome == Outcome.NOT_MODELLED, "no layer's own unit was confirmed"


def test_what_a_formula_takes_as_stored_is_not_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToyFormula, "whole", lambda self, widest, dtype: {})
    unit = {f"{layer}.unit": np.array(0.03, np.float32) for layer in LAYERS}
    tensors: dict[str, Array] = {f"{layer}.shape": np.array([ROWS, COLUMNS], np.int64) for layer in LAYERS}
    for layer in LAYERS:
        encoded = NARROW.encode(weights(layer), "BF16", {"unit": unit[f"{layer}.unit"]})
        tensors |= {f"{layer}.{suffix}": each for suffix, each in encoded.items()}
    found = checked(tmp_path, {**tensors, **unit})
    assert (found.outcome, len(found.unmodelled)) == (Outcome.NOT_MODELLED, len(LAYERS))


@dataclass(frozen=True)
class Fickle(ToyFormula):
    """As the other, unless the first weight is negative."""

    def encode(self, weights: Array, dtype: str, stored: Arrays) -> Arrays:
        made = super().encode(weights, dtype, stored)
        return {**made, "step": made["step"] + np.uint16(weights[0, 0] < 0)}


def test_layers_that_two_formulas_make_are_said_to_be_made_as_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fickle = Fickle("toy, fickle", WIDE.share)
    monkeypatch.setitem(FORMULAS, Toy, lambda codec: (fickle, WIDE))
    assert {weights(layer)[0, 0] < 0 for layer in LAYERS} == {True, False}
    assert checked(tmp_path, made(WIDE)).ways == {WIDE.name: len(LAYERS)}
