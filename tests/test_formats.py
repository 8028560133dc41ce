"""Every format that lies row by row, in `check`: what each formula makes is exact, and any damage to it is named.

What the formulas themselves are worth, the tests of each format say, against the tools that have them.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.checkpoints import Tensors, shard

from requant.check import check
from requant.check.checked import Checked, Outcome
from requant.check.reader import open_reader
from requant.check.recomputed import NUMPY
from requant.checkpoint.safetensors import Spec
from requant.formats.bitsandbytes import BLOCK, MAP, NAMES, NESTED, FourBit, dynamic_map
from requant.formats.codec import Array, Codec, narrow, widen
from requant.formats.declarations import READERS, declared
from requant.formats.ggml import Ggml
from requant.rounding.formula import Formula
from requant.rounding.formulas import FORMULAS, formulas

ROWS, COLUMNS = 192, 256
LAYERS = [f"model.layers.{block}.mlp.{name}_proj" for block in range(4) for name in ("gate", "up")]
WHERE = LAYERS[3]


def integers(form: str, bits: int, **weights: Any) -> dict[str, Any]:
    """A configuration of compressed-tensors."""
    scheme = {"targets": ["Linear"], "weights": {"num_bits": bits, "type": "int", "symmetric": True, **weights}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": scheme}, "ignore": []}


def bits_and_bytes(**said: Any) -> dict[str, Any]:
    """A configuration of bitsandbytes."""
    return {"quant_method": "bitsandbytes", **said}


CONFIGS: dict[str, dict[str, Any]] = {
    "int4, groups": integers("pack-quantized", 4, strategy="group", group_size=128),
    "int4, groups, zero points": integers("pack-quantized", 4, strategy="group", group_size=64, symmetric=False),
    "int8, channels": integers("int-quantized", 8, strategy="channel"),
    "FP8, channels": integers("float-quantized", 8, strategy="channel", type="float"),
    "FP8, one scale": integers("float-quantized", 8, strategy="tensor", type="float"),
    "FP8, blocks": integers("float-quantized", 8, strategy="block", block_structure=[128, 128], type="float"),
    "NVFP4": integers("nvfp4-pack-quantized", 4, strategy="tensor_group", group_size=16, type="float"),
    "MXFP4": integers("mxfp4-pack-quantized", 4, strategy="group", group_size=32, type="float"),
    "FP8 of DeepSeek": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "FP8 of AutoFP8": {"quant_method": "fp8", "activation_scheme": "static"},
    "FP8 of ModelOpt": {"quant_method": "modelopt", "quant_algo": "FP8"},
    "NVFP4 of ModelOpt": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    "nf4": bits_and_bytes(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "fp4": bits_and_bytes(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
    "nf4, nested": bits_and_bytes(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "int8 by rows": bits_and_bytes(load_in_8bit=True),
    "MLX 4 bits": {"group_size": 64, "bits": 4},
    "MLX 3 bits": {"group_size": 32, "bits": 3},
    "MLX 8 bits": {"group_size": 128, "bits": 8},
}


def made_by(config: Mapping[str, Any]) -> tuple[Codec, tuple[Formula, ...]]:
    declaration = declared(config)
    assert declaration
    codec = declaration.codec(WHERE)
    assert codec
    return codec, tuple(formulas(codec))


CASES = [
    (name, number, dtype)
    for name, config in CONFIGS.items()
    for number in range(len(made_by(config)[1]))
    for dtype in ("BF16", "F16")
]


def weights(layer: str, dtype: str) -> Array:
    """Numbers of a dtype, as float32, with a few of the awkward kinds."""
    some = np.random.default_rng(LAYERS.index(layer)).normal(0, 0.02, (ROWS, COLUMNS)).astype(np.float32)
    some[0, :128], some[1, :] = 0, 0.01
    return widen(narrow(some, dtype), dtype)


def beside(codec: Codec, dtype: str) -> dict[str, Array]:
    """What no formula makes of the weights."""
    inputs = {name: part for name, part in codec.parts(ROWS, COLUMNS, dtype).items() if name.startswith("input")}
    if not isinstance(codec, FourBit):
        return {name: np.full(part.spec.shape, 0.5, NUMPY[part.spec.dtype]) for name, part in inputs.items()}
    state = {"quant_type": codec.kind, "blocksize": BLOCK, "dtype": NAMES[dtype], "shape": [ROWS, COLUMNS]}
    nested = {"nested_blocksize": NESTED, "nested_dtype": "float32", "nested_offset": 0.03125} if codec.nested else {}
    table = {MAP: dynamic_map()} if codec.nested else {}
    return {codec.state: np.frombuffer(json.dumps({**state, **nested}).encode(), np.uint8), **table}


def tensors(codec: Codec, formula: Formula, dtype: str) -> dict[str, tuple[str, list[int], bytes]]:
    made: dict[str, tuple[str, list[int], bytes]] = {}
    for layer in LAYERS:
        values, parts = weights(layer, dtype), codec.parts(ROWS, COLUMNS, dtype)
        whole = dict(formula.whole(float(np.abs(values).max()), dtype))
        whole |= {suffix: part.holds for suffix, part in parts.items() if part.holds is not None}
        whole |= beside(codec, dtype)
        for suffix, each in {**whole, **formula.encode(values, dtype, whole)}.items():
            spec = parts[suffix].spec if parts[suffix].sized else Spec(parts[suffix].spec.dtype, each.shape)
            data = np.ascontiguousarray(each, NUMPY[spec.dtype]).tobytes()
            assert len(data) == spec.nbytes, suffix
            made[f"{layer}.{suffix}" if suffix else layer] = (spec.dtype, list(spec.shape), data)
    return made


def checked(folder: Path, config: Mapping[str, Any], theirs: Tensors, dtype: str) -> Checked:
    base = {
        f"{each}.weight": (dtype, [ROWS, COLUMNS], narrow(weights(each, dtype), dtype).tobytes()) for each in LAYERS
    }
    for name, some, said in (("base", base, {}), ("theirs", theirs, {"quantization_config": config})):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(shard(some))
        (folder / name / "config.json").write_text(json.dumps({"model_type": "toy", **said}))
    with open_reader(str(folder / "theirs")) as one, open_reader(str(folder / "base")) as two:
        return check(one, two)


def test_every_reader_and_every_codec_has_a_case() -> None:
    codecs = {type(made_by(config)[0]) for config in CONFIGS.values()}
    assert codecs == FORMULAS.keys() - {Ggml}  # that is said by files: tests/test_gguf_check.py
    assert {config.get("quant_method", "mlx") for config in CONFIGS.values()} == READERS.keys()


@pytest.mark.parametrize(("name", "number", "dtype"), CASES)
def test_what_a_formula_makes_is_exact(name: str, number: int, dtype: str, tmp_path: Path) -> None:
    codec, known = made_by(CONFIGS[name])
    found = checked(tmp_path, CONFIGS[name], tensors(codec, known[number], dtype), dtype)
    assert found.outcome == Outcome.CLEAN
    assert found.ways.keys() <= {each.name for each in known}


def damaged(name: str) -> Iterator[tuple[str, Tensors, set[str]]]:
    """Yield what was done to a healthy checkpoint, the checkpoint, and the layers that must be named, alone."""
    codec, known = made_by(CONFIGS[name])
    healthy = tensors(codec, known[0], "BF16")
    for suffix in codec.parts(ROWS, COLUMNS, "BF16"):
        tensor = f"{WHERE}.{suffix}" if suffix else WHERE
        dtype, shape, data = healthy[tensor]
        if suffix.startswith("input"):
            yield f"{suffix} of 0", {**healthy, tensor: (dtype, shape, bytes(len(data)))}, {WHERE}
        else:
            yield f"a bit of {suffix}", {**healthy, tensor: (dtype, shape, data[:-1] + bytes([data[-1] ^ 1]))}, {WHERE}
        yield f"no {suffix}", {key: each for key, each in healthy.items() if key != tensor}, {WHERE}
    swapped = {LAYERS[2]: LAYERS[5], LAYERS[5]: LAYERS[2]}
    moved = {}
    for key, each in healthy.items():
        layer = next(one for one in LAYERS if key.startswith(one))
        moved[key.replace(layer, swapped.get(layer, layer))] = each
    yield "two layers swapped", moved, set(swapped)


@pytest.mark.parametrize("name", CONFIGS)
def test_damage_is_found_and_named(name: str, tmp_path: Path) -> None:
    for number, (what, theirs, layers) in enumerate(damaged(name)):
        (tmp_path / str(number)).mkdir()
        found = checked(tmp_path / str(number), CONFIGS[name], theirs, "BF16")
        assert found.outcome == Outcome.VIOLATIONS, what
        assert {next(one for one in LAYERS if each.tensor.startswith(one)) for each in found.findings} == layers, what
