"""Bases in float32 and float16: codes that were made from them are held against those numbers, not against BF16's."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.checkpoints import shard

from requant.check import check
from requant.check.checked import Checked, Outcome
from requant.check.reader import open_reader
from requant.formats import gptq
from requant.formats.codec import Array
from requant.rounding.reach import half
from requant.rounding.ways import FULL, bfloat16

ROWS, COLUMNS, GROUP = 64, 256, 128
CONFIG = {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "bits": 4, "group_size": GROUP}


def full_range(weights: Array) -> dict[str, Array]:
    """Codes, scales and zero points of symmetric rounding to nearest, by the words of AutoRound's formula."""
    groups = weights.reshape(ROWS, -1, GROUP)
    low, high = np.minimum(groups.min(axis=2), 0), np.maximum(groups.max(axis=2), 0)
    bits = half((np.maximum(-low, high) / np.float32(8)).reshape(-1)).reshape(low.shape)
    scales = np.where(high >= -low, -bits.view(np.float16), bits.view(np.float16))
    codes = np.clip(np.rint(groups / scales.astype(np.float32)[..., None]), -8, 7).reshape(ROWS, -1) + 8
    words = np.full((COLUMNS // GROUP, ROWS // 8), 0x77777777, np.int32)
    return {"qweight": gptq.pack(codes.astype(np.uint8), 4), "qzeros": words, "scales": np.ascontiguousarray(scales.T)}


def stored(values: Array, dtype: str) -> bytes:
    if dtype == "BF16":
        return (values.view(np.uint32) >> np.uint32(16)).astype("<u2").tobytes()
    return values.astype({"F16": "<f2", "F32": "<f4"}[dtype]).tobytes()


def checked(folder: Path, base: str, copied: str, *, flip: bool = False) -> Checked:
    """A layer and a norm, the norm stored in another dtype where the whole model was loaded in it."""
    drawn = np.random.default_rng(7).normal(0, 0.02, (ROWS, COLUMNS)).astype(np.float32)
    weights = {"F32": drawn, "F16": drawn.astype(np.float16).astype(np.float32), "BF16": bfloat16(drawn)}[base]
    norm = np.linspace(0.5, 2, COLUMNS, dtype=np.float32)
    norm = bfloat16(norm)
    made = full_range(bfloat16(weights) if copied == "BF16" else weights)
    if flip:
        made["qweight"][3, 5] ^= 0x70
    names = {"int32": "I32", "float16": "F16"}
    packed = {f"l.{s}": (names[each.dtype.name], list(each.shape), each.tobytes()) for s, each in made.items()}
    sides = {
        "base": (
            {"l.weight": (base, [ROWS, COLUMNS], stored(weights, base)), "n": (base, [COLUMNS], stored(norm, base))},
            {},
        ),
        "made": (packed | {"n": (copied, [COLUMNS], stored(norm, copied))}, {"quantization_config": CONFIG}),
    }
    for name, (tensors, said) in sides.items():
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(shard(tensors))
        (folder / name / "config.json").write_text(json.dumps({"model_type": "toy", **said}))
    with open_reader(str(folder / "made")) as theirs, open_reader(str(folder / "base")) as ours:
        return check(theirs, ours)


@pytest.mark.parametrize(
    ("base", "copied"), [("BF16", "BF16"), ("F32", "F32"), ("F32", "BF16"), ("F16", "F16"), ("F16", "F32")]
)
def test_codes_follow_from_the_numbers_that_were_loaded(base: str, copied: str, tmp_path: Path) -> None:
    found = checked(tmp_path, base, copied)
    assert found.outcome == Outcome.CLEAN and found.layers["l"] == FULL


@pytest.mark.parametrize(("base", "copied"), [("BF16", "BF16"), ("F32", "F32"), ("F32", "BF16")])
def test_a_changed_code_is_named(base: str, copied: str, tmp_path: Path) -> None:
    found = checked(tmp_path, base, copied, flip=True)
    assert found.outcome == Outcome.VIOLATIONS and {each.tensor for each in found.findings} == {"l.qweight"}


def test_in_float16_a_changed_code_accuses_nobody_and_is_not_clean(tmp_path: Path) -> None:
    assert checked(tmp_path, "F16", "F16", flip=True).outcome == Outcome.NOT_MODELLED
