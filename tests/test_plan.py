"""What `plan` says of the real base, number by number."""

import json
from pathlib import Path

import pytest
from tests.conftest import ROOT
from typer.testing import CliRunner

from requant.base_config import base_config
from requant.checkpoint import open_checkpoint
from requant.cli.options import app
from requant.errors import RecipeError
from requant.plan import Size, plan
from requant.recipe import read_recipe
from requant.twin import write_twin

BUILDS = ROOT / "builds"


@pytest.mark.parametrize(
    ("name", "quantized", "tensors", "main", "extras", "mtp"),
    [
        ("ec", 31_030, 96_061, 19_545_968_896, 1_345_173_984, 2_335),
        ("intel", 31_030, 96_061, 19_545_968_896, 1_345_173_984, 2_335),
        ("gb10", 30_850, 93_385, 19_738_076_416, 2_582_424_032, 19),
    ],
)
def test_numbers_of_the_real_base(name: str, quantized: int, tensors: int, main: int, extras: int, mtp: int) -> None:
    made = plan(read_recipe(BUILDS / name))
    sizes = made.sizes
    assert sizes["base"] == Size(1_045, 35_951_822_704, 71_903_645_408)
    assert sizes["base, MTP"] == Size(19, 844_640_768, 2 * 844_640_768)
    assert sizes["base, visual tower"] == Size(333, 446_571_248, 2 * 446_571_248)
    assert sizes["base, language model"].tensors == 693
    assert (made.linears, made.quantized) == (31_181, quantized)
    assert (sizes["checkpoint"].tensors, sizes["checkpoint"].bytes) == (tensors, main + extras)
    assert sizes["main shards"].bytes == main
    assert sizes["model_extra_tensors.safetensors"].bytes == extras
    assert sizes["checkpoint, MTP"].tensors == mtp
    assert sizes["checkpoint, visual tower"].tensors == 333


def test_a_plan_of_the_twin_is_what_the_twin_is(tmp_path: Path) -> None:
    write_twin("mini", tmp_path / "mini")
    written = open_checkpoint(tmp_path / "mini").tensors
    made = plan(read_recipe(BUILDS / "ec"), "mini")
    assert made.before == {name: tensor.spec for name, tensor in written.items()}


def test_the_command_prints_the_numbers() -> None:
    shown = CliRunner().invoke(app, ["plan", str(BUILDS / "gb10")])
    assert shown.exit_code == 0
    assert "30,850 of 31,181" in " ".join(shown.output.split())
    assert "22,320,500,448" in shown.output


def test_json_names_every_tensor() -> None:
    shown = CliRunner().invoke(app, ["plan", str(BUILDS / "ec"), "--json"])
    document = json.loads(shown.output)
    assert document["sizes"]["checkpoint"]["tensors"] == 96_061
    assert sum(map(len, document["tensors"].values())) == 96_061
    assert document["quantized_layers"] == 31_030


@pytest.mark.parametrize("content", [None, b"{", b"[]", b"\xff"])
def test_a_config_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    recipe = tmp_path / "builds" / "x" / "recipe.toml"
    recipe.parent.mkdir(parents=True)
    recipe.write_bytes((BUILDS / "ec" / "recipe.toml").read_bytes())
    bases = tmp_path / "builds" / "bases"
    bases.mkdir()
    if content is not None:
        (bases / "qwen3.6-35b-a3b.config.json").write_bytes(content)
    with pytest.raises(RecipeError, match=r"qwen3\.6-35b-a3b\.config\.json"):
        base_config(read_recipe(recipe))
