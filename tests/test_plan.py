"""What `plan` says of the real base, number by number."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import ROOT, Refuses
from tests.tiny import write_tiny
from typer.testing import CliRunner

from requant.checkpoint.checkpoint import open_checkpoint
from requant.checkpoint.safetensors import Spec
from requant.cli.options import app
from requant.errors import RecipeError
from requant.model.base_config import base_config
from requant.model.summary import Size, summarize
from requant.model.templates import fold
from requant.recipe import read_recipe

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
    made = summarize(read_recipe(BUILDS / name))
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


def test_a_plan_of_the_tiny_model_is_what_the_tiny_model_is(tmp_path: Path) -> None:
    write_tiny("mini", tmp_path / "mini")
    written = open_checkpoint(tmp_path / "mini").tensors
    made = summarize(read_recipe(BUILDS / "ec"), "mini")
    assert made.before == {name: tensor.spec for name, tensor in written.items()}


def test_the_command_prints_the_numbers() -> None:
    shown = CliRunner().invoke(app, ["plan", str(BUILDS / "gb10")])
    assert shown.exit_code == 0
    assert "30,850 of 31,181" in " ".join(shown.output.split())
    assert "22,320,500,448" in shown.output


def expanded(name: str) -> list[str]:
    """All names of a template, as a shell would expand it."""
    head, brace, rest = name.partition("{")
    if not brace:
        return [name]
    inside, _, tail = rest.partition("}")
    numbers: list[int] = []
    for run in inside.split(","):
        first, _, last = run.partition("..")
        numbers += range(int(first), int(last or first) + 1)
    return [f"{head}{number}{each}" for number in numbers for each in expanded(tail)]


def test_json_names_every_tensor() -> None:
    shown = CliRunner().invoke(app, ["plan", str(BUILDS / "ec"), "--json"])
    assert len(shown.output) < 50_000
    document = json.loads(shown.output)
    each = json.loads(CliRunner().invoke(app, ["plan", str(BUILDS / "ec"), "--json", "--layers"]).output)
    count = document["sizes"]["checkpoint"]["tensors"]
    assert sum(map(len, each["tensors"].values())) == count
    for file, found in document["tensors"].items():
        names = {
            tensor: [template["dtype"], template["shape"]]
            for template in found
            for tensor in expanded(template["name"])
        }
        assert names == each["tensors"][file]
        assert sum(template["count"] for template in found) == len(names)
    assert document["quantized_layers"] == each["quantized_layers"]


@given(
    names=st.sets(
        st.builds(
            "{}.{}.{}.{}.w".format, st.sampled_from("ab"), st.integers(0, 3), st.sampled_from("ab01"), st.integers(0, 3)
        )
    ),
    dtypes=st.lists(st.sampled_from(["BF16", "F16"]), min_size=130, max_size=130),
)
def test_templates_name_each_tensor_once(names: set[str], dtypes: list[str]) -> None:
    specs = {name: Spec(dtype, (2,)) for name, dtype in zip(sorted(names), dtypes, strict=False)}
    found = [(name, each.value.dtype) for each in fold(specs) for name in expanded(str(each))]
    assert sorted(found) == [(name, spec.dtype) for name, spec in sorted(specs.items())]


@pytest.mark.parametrize(
    ("key", "value"), [("repository", "Qwen/Qwen3-8B"), ("revision", "0123456789abcdef0123456789abcdef01234567")]
)
def test_another_base_than_is_pinned_is_refused(key: str, value: str, tmp_path: Path, refuses: Refuses) -> None:
    recipe = tmp_path / "builds" / "ec" / "recipe.toml"
    recipe.parent.mkdir(parents=True)
    (recipe.parent.parent / "bases").symlink_to(BUILDS / "bases")
    made = read_recipe(BUILDS / "ec")
    (recipe.parent / "plan.json").symlink_to(BUILDS / "ec" / "plan.json")
    text = (BUILDS / "ec" / "recipe.toml").read_text()
    recipe.write_text(text)
    assert summarize(read_recipe(recipe)).quantized == 31_030
    recipe.write_text(text.replace(getattr(made.base, key), value))
    with refuses(RecipeError):
        summarize(read_recipe(recipe))
    shown = CliRunner().invoke(app, ["plan", str(recipe)])
    assert isinstance(shown.exception, RecipeError)


@pytest.mark.parametrize("content", [None, b"{", b"[]", b"\xff"])
def test_a_config_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, refuses: Refuses) -> None:
    recipe = tmp_path / "builds" / "x" / "recipe.toml"
    recipe.parent.mkdir(parents=True)
    recipe.write_bytes((BUILDS / "ec" / "recipe.toml").read_bytes())
    bases = tmp_path / "builds" / "bases"
    bases.mkdir()
    if content is not None:
        (bases / "qwen3.6-35b-a3b.config.json").write_bytes(content)
    with refuses(RecipeError):
        base_config(read_recipe(recipe))
