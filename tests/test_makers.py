"""Which formulas give a few layers of each format, and which are excluded: `identify --base`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import awkward
from tests.checkpoints import Tensors, shard
from tests.corpus import BASES, NAMES, headers, on_disk
from tests.fixture import load
from tests.formats import CONFIGS, LAYERS, made_by
from tests.test_formats import base_of, checked, tensors
from tests.test_gguf_check import base as gguf_base
from tests.test_gguf_check import checked as gguf_checked
from tests.test_gguf_check import stored as gguf_stored
from typer.testing import CliRunner

from requant.check.makers import Made, made_again
from requant.check.reader import open_reader
from requant.cli.options import app
from requant.formats.fp8 import INVERSE
from requant.identify import identify

NATURE = {
    "a": "AutoRound, or requant: autoround_version ",
    "g": "GPTQModel: meta.quantizer 7.7.0",
    "l": "a tool that saves through compressed-tensors, as llm-compressor does: quantization_status 0.19.0",
}
"""By the first letter of its name in the corpus: what the declaration of a checkpoint says."""


def made(folder: Path) -> list[Made]:
    with open_reader(str(folder / "theirs")) as one, open_reader(str(folder / "base")) as two:
        return made_again(one, two)[0]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_formula_that_gives_the_bytes_is_named_and_no_other(name: str, tmp_path: Path) -> None:
    codec, known = made_by(CONFIGS[name])
    theirs = tensors(codec, known[0], "BF16")
    checked(tmp_path, CONFIGS[name], theirs, "BF16")
    (found,) = made(tmp_path)
    assert (found.format, found.layers, found.tried) == (codec.name, len(LAYERS), len(LAYERS))
    for formula in known:
        others = tensors(codec, formula, "BF16")
        alike = [layer for layer in LAYERS if all(others[key] == theirs[key] for key in theirs if layer in key)]
        assert found.gave[formula.name] == len(alike), formula.name
    assert found.gave[known[0].name] == len(LAYERS)


@pytest.mark.parametrize("name", ["FP8, channels", "FP8 of AutoFP8", "NVFP4", "nf4, nested", "MLX 4 bits"])
def test_a_flipped_bit_is_given_by_no_formula(name: str, tmp_path: Path) -> None:
    codec, known = made_by(CONFIGS[name])
    theirs = tensors(codec, known[0], "BF16")
    dtype, shape, data = theirs[largest := max(theirs, key=lambda key: (len(theirs[key][2]), key))]
    checked(tmp_path, CONFIGS[name], {**theirs, largest: (dtype, shape, data[:-1] + bytes([data[-1] ^ 1]))}, "BF16")
    (found,) = made(tmp_path)
    assert max(found.gave.values()) == len(LAYERS) - 1


def test_what_belongs_to_a_layer_as_a_whole_is_not_told_from_its_first_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, known = made_by(CONFIGS["FP8 of AutoFP8"])
    checked(tmp_path, CONFIGS["FP8 of AutoFP8"], tensors(codec, known[0], "BF16"), "BF16")
    monkeypatch.setattr("requant.check.CODED", 1)
    monkeypatch.setattr("requant.check.makers.WHOLE", 1)
    (found,) = made(tmp_path)
    assert not any(found.gave.values()) and [*found.ways] == ["nearest to a scale that is not modelled"]


def test_no_more_layers_than_said_and_modules_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codec, known = made_by(CONFIGS["NVFP4"])
    checked(tmp_path, CONFIGS["NVFP4"], tensors(codec, known[0], "BF16"), "BF16")
    monkeypatch.setattr("requant.check.makers.LAYERS", 5)  # modules have two
    (found,) = made(tmp_path)
    assert (found.tried, found.layers) == (4, len(LAYERS)) and found.gave[known[0].name] == 4


def write(folder: Path, said: dict[str, Any], held: Tensors) -> str:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(shard(held))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **said}))
    return str(folder)


def identified(*arguments: str) -> tuple[int, Any]:
    shown = CliRunner().invoke(app, ["identify", *arguments, "--json"])
    assert shown.exception is None or isinstance(shown.exception, SystemExit), shown.exception
    return shown.exit_code, json.loads(shown.output)


def test_what_transformers_made_is_told_from_what_others_make(tmp_path: Path) -> None:
    """Blocks of FP8 by the real tool: the formulas of others are excluded."""
    stored = load(Path(__file__).parent / "fixtures/fp8/stored.safetensors")
    layer = "model.layers.0.mlp.up_proj"
    codes, scales = (stored.tensors[f"BF16.small.{suffix}"] for suffix in ("weight", INVERSE))
    held = {
        f"{layer}.weight": ("F8_E4M3", [48, 64], np.ascontiguousarray(codes).tobytes()),
        f"{layer}.{INVERSE}": ("F32", [*scales.shape], np.ascontiguousarray(scales).tobytes()),
    }
    said = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [2, 16]}}
    theirs = write(tmp_path / "theirs", said, held)
    base = write(tmp_path / "base", {}, {f"{layer}.weight": ("BF16", [48, 64], awkward.bits(48, 64, "BF16").tobytes())})
    status, found = identified(theirs, "--base", base)
    (again,) = found["made"]
    assert status == 0 and again["format"] == "FP8, blocks of 2 by 16"
    assert again["gave"] == {"transformers, absmax": 1, "absmax, divided in float32": 0, "DeepGEMM, absmax": 0}
    shown = " ".join(CliRunner().invoke(app, ["identify", theirs, "--base", base]).output.split())
    assert "transformers, absmax: gives every byte of all" in shown and "excluded:" in shown


def test_a_gguf_file(tmp_path: Path) -> None:
    gguf_checked(tmp_path, "llama", gguf_stored("llama", gguf_base("llama")), "Q8_0")
    status, found = identified(str(tmp_path / "model.gguf"), "--base", str(tmp_path / "base"))
    assert status == 0 and (found["method"], found["architecture"]) == ("GGUF", "llama")
    assert {*found["formats"]} == {"ggml Q8_0"} and found["made"][0]["gave"]["ggml, reference"]
    assert identified(str(tmp_path / "model.gguf"))[0] == 3  # nothing says anything of any tool


@pytest.mark.parametrize("name", NAMES)
def test_any_architecture_is_read(name: str) -> None:
    """Where Qwen3.5-MoE's modules would have to be known, nothing is said of others; the rest is."""
    found = identify(headers(name))
    known = found.architecture.startswith("Qwen3_5Moe")
    assert known == (found.writers is not None) == (found.mtp is not None) == (found.linear_layers is not None)
    assert found.quantized == (name not in BASES) and not found.silent and not found.unknown
    assert sum(found.formats.values()) >= found.quantized_layers
    if found.quantized:
        assert any(each.startswith(NATURE[name[0]]) for each in found.tools), found.tools
        others = [each for letter, each in NATURE.items() if letter != name[0]]
        assert not any(each.startswith(tuple(others)) for each in found.tools)
    else:
        assert not found.tools and not found.formats


def test_codes_of_which_nothing_is_known_are_not_modelled(tmp_path: Path) -> None:
    held = {"model.layers.0.mlp.up_proj.W_q": ("U8", [8, 8], bytes(64))}
    for said, why in (
        ({}, "nothing declares"),
        ({"quantization_config": {"quant_method": "hqq"}}, "quant_method 'hqq'"),
    ):
        folder = write(tmp_path / why.partition(" ")[0], said, held)
        status, found = identified(folder)
        assert status == 3 and next(iter(found["unknown"])).startswith(why)


def test_another_base_gives_nothing(tmp_path: Path) -> None:
    theirs, base = (str(on_disk(name, tmp_path / name)) for name in ("lc-llama-fp8", "base-phi3"))
    status, found = identified(theirs, "--base", base)
    assert status == 0 and all(not any(each["gave"].values()) for each in found["made"])


def test_a_base_is_not_said_to_be_quantized(tmp_path: Path) -> None:
    codec, known = made_by(CONFIGS["int8, channels"])
    checked(tmp_path, CONFIGS["int8, channels"], tensors(codec, known[0], "BF16"), "BF16", base_of("BF16"))
    with open_reader(str(tmp_path / "base")) as one, open_reader(str(tmp_path / "base")) as two:
        assert made_again(one, two) == ([], {})
