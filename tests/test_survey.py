"""AutoRound, asked before it tunes: the plan is what it means, and of other architectures it says what they hold."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT
from tests.corpus import headers
from typer.testing import CliRunner

import requant.build.survey as surveying
from requant.build.survey import Layer, Source, Survey, ask, compare, read_survey
from requant.checkpoint.safetensors import Spec
from requant.cli.options import app
from requant.errors import UsageError
from requant.model.inventory import quantized
from requant.model.tiny import config
from requant.recipe import read_recipe

EC = read_recipe(ROOT / "builds" / "ec")
VERSIONS = {"auto-round": "0.12.2"}
PACKED = {
    "base-llama": "a12-llama-w4-ar-tuned",
    "base-llama_tied": "a12-llamatied-w4-ar-tuned",
    "base-qwen3": "a12-qwen3-w4gm1-ar-tuned",
    "base-qwen3moe": "a12-qwen3moe-w4-ar-tuned",
    "base-gemma3": "a12-gemma3-w4-ar-tuned",
    "base-phi3": "a12-phi3-w4-ar-tuned",
    "base-gptoss": "a12-gptoss-w8-ar-rtn",
}
"""Bases, and what AutoRound 0.12 made of each."""


@pytest.fixture(scope="module")
def said(worker: Path) -> Survey:
    return ask(EC, "mini")


@pytest.mark.worker
def test_the_plan_is_what_autoround_means(said: Survey) -> None:
    asked = compare(EC, "mini", said)
    assert asked.differences == ()
    assert (asked.blocks, asked.layers) == (4, len(quantized(config("mini"), EC.layers.ignore)))
    assert asked.versions["auto-round"] == "0.12.2"


@pytest.mark.worker
def test_whatever_is_otherwise_is_named(said: Survey) -> None:
    def differing(**changes: Layer | None) -> tuple[str, ...]:
        layers = {name: layer for name, layer in (dict(said.layers) | changes).items() if layer}
        return compare(EC, "mini", Survey(said.versions, said.blocks, layers)).differences

    name = "model.language_model.layers.0.mlp.experts.1.up_proj"
    layer = said.layers[name]
    assert layer.source
    assert layer.source.first > 0
    assert differing(**{name: None}) == (f"{name}: planned, and not packed",)
    assert differing(other=layer) == ("other: packed, and not planned",)
    assert differing(**{name: Layer(layer.shape, 16, layer.source)}) == (f"{name}: planned, and not packed",)
    for moved in (
        None,
        Source(layer.source.tensor, 0, 256, 1),
        Source(layer.source.tensor, layer.source.first, 512, 1),
    ):
        (difference,) = differing(**{name: Layer(layer.shape, layer.bits, moved)})
        assert difference.startswith(f"{name}: is ")
    (difference,) = differing(**{name: Layer((1, 2), layer.bits, layer.source)})
    assert "has the shape [1, 2]" in difference
    assert (
        compare(EC, "mini", Survey(said.versions, said.blocks[::-1], said.layers)).differences[0].startswith("blocks")
    )


@pytest.fixture(scope="module")
def others(ask: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Survey]:
    answers = ask("survey", tmp_path_factory.mktemp("bases"), *PACKED)
    return {name: read_survey(json.dumps(answer).encode(), {"versions": VERSIONS}) for name, answer in answers.items()}


@pytest.mark.worker
@pytest.mark.parametrize("base", PACKED)
def test_of_other_architectures_it_says_what_their_checkpoints_hold(base: str, others: dict[str, Survey]) -> None:
    made = {name for specs in headers(PACKED[base]).shards.values() for name in specs}
    packed = {name.removesuffix(".qweight") for name in made if name.endswith(".qweight")}
    assert {name for name, layer in others[base].layers.items() if layer.packed} == packed


@pytest.mark.worker
@pytest.mark.parametrize("base", PACKED)
def test_each_layer_lies_within_its_source_and_no_two_in_the_same_place(base: str, others: dict[str, Survey]) -> None:
    specs: dict[str, Spec] = {name: spec for each in headers(base).shards.values() for name, spec in each.items()}
    taken: set[tuple[str, int]] = set()
    for name, layer in others[base].layers.items():
        source = layer.source
        assert source, name
        rows, columns = layer.shape
        last = source.first + (rows - 1) * source.row + (columns - 1) * source.column
        assert 0 <= source.first <= last < specs[source.tensor].size
        assert (source.tensor, source.first) not in taken
        taken.add((source.tensor, source.first))


@pytest.mark.worker
def test_experts_of_gpt_oss_are_read_as_halves_and_transposed(others: dict[str, Survey]) -> None:
    """So 0.12.2 takes them, whose tensor holds gate and up in turn: what it writes has other meanings (upstream)."""
    layers = others["base-gptoss"].layers
    tensor = "model.layers.0.mlp.experts.gate_up_proj"
    assert layers["model.layers.0.mlp.experts.0.gate_proj"].source == Source(tensor, 0, 1, 512)
    assert layers["model.layers.0.mlp.experts.0.up_proj"].source == Source(tensor, 256, 1, 512)


def test_the_command_tells_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def answered(*_: object, **__: object) -> Survey:
        return Survey(VERSIONS, (), {})

    monkeypatch.setattr(surveying, "ask", answered)
    shown = CliRunner().invoke(app, ["plan", str(EC.path.parent), "--tiny", "--ask"])
    assert shown.exit_code == 1
    assert "planned, and not packed" in shown.output
    shown = CliRunner().invoke(app, ["plan", str(EC.path.parent), "--tiny", "--ask", "--json"])
    assert json.loads(shown.output)["asked"]["layers"] == 0
    shown = CliRunner().invoke(app, ["plan", str(EC.path.parent), "--ask"])
    assert isinstance(shown.exception, UsageError)
