"""AutoRound, asked before it tunes: the plan is what it means, and of other architectures it says what they hold."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from tests.conftest import ROOT
from tests.corpus import BASES, headers
from typer.testing import CliRunner

import requant.build.survey as surveying
from requant.build.survey import Layer, Source, Survey, _planned_source, ask, compare
from requant.cli.options import app
from requant.errors import UsageError
from requant.model.base_config import base_config
from requant.model.inventory import base_tensors, blocks, linears, origin, quantized
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
    source = layer.source
    assert source == Source("model.language_model.layers.0.mlp.experts.gate_up_proj", (1,), 1, 2)
    assert differing(**{name: None}) == (f"{name}: planned, and not packed",)
    assert differing(other=layer) == ("other: packed, and not planned",)
    assert differing(**{name: Layer(layer.shape, 16, source)}) == (f"{name}: planned, and not packed",)
    for moved in (None, replace(source, part=0), replace(source, interleaved=True), replace(source, transposed=True)):
        (difference,) = differing(**{name: Layer(layer.shape, layer.bits, moved)})
        assert difference.startswith(f"{name}: is ")
    (difference,) = differing(**{name: Layer((1, 2), layer.bits, layer.source)})
    assert "has the shape [1, 2]" in difference
    assert (
        compare(EC, "mini", Survey(said.versions, said.blocks[::-1], said.layers)).differences[0].startswith("blocks")
    )


Tensors = dict[str, list[Any]]


def config_in(folder: Path, config: Mapping[str, Any]) -> str:
    """Write a `config.json`, and say where: all that is read of a base."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def corpus(base: str) -> tuple[dict[str, Any], Tensors]:
    """The configuration and the tensors of a base of the corpus."""
    found = headers(base)
    tensors = {name: [spec.dtype, list(spec.shape)] for each in found.shards.values() for name, spec in each.items()}
    return json.loads(found.sides["config.json"]), tensors


def planned(config: Mapping[str, Any]) -> Tensors:
    return {name: [spec.dtype, list(spec.shape)] for name, spec in base_tensors(config).items()}


def without_last(tensors: Tensors) -> Tensors:
    return dict(list(tensors.items())[:-1])


@pytest.fixture(scope="module")
def answers(ask: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is answered of each base of the corpus, and of a model of its configuration that has no files yet."""
    folder = tmp_path_factory.mktemp("asked")

    def request(name: str, **targets: tuple[Mapping[str, Any], Tensors | None]) -> Path:
        asked = {
            target: {"config": config_in(folder / name / target, given), "tensors": tensors}
            for target, (given, tensors) in targets.items()
        }
        (folder / name / "request.json").write_text(json.dumps({"survey": asked}))
        return folder / name

    requests = []
    for base in BASES:
        given = corpus(base)
        requests.append(request(base, base=given, mini=(given[0], None)))
    wide, mini, llama = config("wide"), config("mini"), corpus("base-llama")
    odd = planned(mini) | {"mtp.odd.weight": ["BF16", [7]]}
    tied = corpus("base-llama_tied")
    stored = tied[1] | {"lm_head.weight": tied[1]["model.embed_tokens.weight"]}
    bare = {name.removeprefix("model."): spec for name, spec in llama[1].items()}
    requests += [
        request("stored", base=(tied[0], stored), mini=(tied[0], None)),
        request("bare", base=(llama[0], bare), mini=(llama[0], None)),
        request("wide", base=(wide, planned(wide)), mini=(mini, None), demo=(config("demo"), None)),
        request("lone", base=(wide, planned(wide))),
        request("lacking", base=(llama[0], without_last(llama[1]))),
        request("other", base=(llama[0] | {"hidden_size": 128}, llama[1])),
        request("odd", base=(mini, odd), mini=(mini, None)),
        request("strange", base=llama, mini=(mini, None)),
        request("unknown", base=({"architectures": ["Unheard"]}, {})),
    ]
    return cast("dict[str, Any]", ask("survey", *requests))


@pytest.mark.worker
@pytest.mark.parametrize("base", BASES)
def test_a_base_looks_like_its_files(base: str, answers: dict[str, Any]) -> None:
    """What a model without files would hold is what the base of the same configuration holds."""
    found = answers[base]
    assert found["mini"]["tensors"] == found["base"]["tensors"] == corpus(base)[1]
    assert found["mini"]["layers"] == found["base"]["layers"]
    unloaded = [name for name in corpus(base)[1] if name.startswith("mtp.")]
    assert sorted(found["mini"]["unloaded"]) == sorted(found["base"]["unloaded"]) == sorted(unloaded)
    ties = {"lm_head.weight": "model.embed_tokens.weight"} if "lm_head.weight" not in corpus(base)[1] else {}
    assert found["base"]["tied"] == ties


@pytest.mark.worker
def test_a_tied_tensor_that_files_hold_is_one_of_its_own(answers: dict[str, Any]) -> None:
    found = answers["stored"]
    assert "lm_head.weight" in found["mini"]["tensors"]
    assert found["mini"]["tensors"] == found["base"]["tensors"]
    assert found["mini"]["tied"] == found["base"]["tied"] == {}


@pytest.mark.worker
def test_files_may_name_tensors_otherwise_than_transformers(answers: dict[str, Any]) -> None:
    found = answers["bare"]
    assert "layers.0.mlp.up_proj.weight" in found["mini"]["tensors"]
    assert found["mini"]["tensors"] == found["base"]["tensors"]
    assert found["base"]["layers"]["model.layers.0.mlp.up_proj"]["source"]["tensor"] == "layers.0.mlp.up_proj.weight"


@pytest.mark.worker
@pytest.mark.parametrize("base", PACKED)
def test_of_other_architectures_it_says_what_their_checkpoints_hold(base: str, answers: dict[str, Any]) -> None:
    made = {name for specs in headers(PACKED[base]).shards.values() for name in specs}
    packed = {name.removesuffix(".qweight") for name in made if name.endswith(".qweight")}
    layers = answers[base]["base"]["layers"]
    assert {name for name, layer in layers.items() if layer["bits"] == 4} == packed
    assert all((layer["reason"] == "") == (name in packed) for name, layer in layers.items())
    assert layers["lm_head"]["reason"] == "outside the blocks"


@pytest.mark.worker
@pytest.mark.parametrize("base", BASES)
def test_each_layer_has_a_place_and_no_two_the_same(base: str, answers: dict[str, Any]) -> None:
    tensors = corpus(base)[1]
    taken: set[tuple[str, tuple[int, ...], int]] = set()
    for name, layer in answers[base]["base"]["layers"].items():
        source, shape = layer["source"], tensors[layer["source"]["tensor"]][1]
        assert len(source["index"]) == len(shape) - 2, name
        rows, columns = shape[:-3:-1] if source["transposed"] else shape[-2:]
        assert [rows, columns] == [layer["shape"][0] * source["parts"], layer["shape"][1]]
        place = (source["tensor"], tuple(source["index"]), source["part"])
        assert place not in taken
        taken.add(place)


@pytest.mark.worker
def test_experts_of_gpt_oss_are_read_as_halves_and_transposed(answers: dict[str, Any]) -> None:
    """So 0.12.2 takes them, whose tensor holds gate and up in turn: what it writes has other meanings (upstream)."""
    layers = answers["base-gptoss"]["base"]["layers"]
    place = {"tensor": "model.layers.0.mlp.experts.gate_up_proj", "index": [1], "interleaved": False}
    for part, half in enumerate(("gate_proj", "up_proj")):
        source = layers[f"model.layers.0.mlp.experts.1.{half}"]["source"]
        assert source == place | {"part": part, "parts": 2, "transposed": True}


@pytest.mark.worker
@pytest.mark.parametrize(("target", "size"), [("base", "wide"), ("mini", "mini"), ("demo", "demo")])
def test_the_plan_at_any_size_is_what_was_written_by_hand(target: str, size: str, answers: dict[str, Any]) -> None:
    """The wide one's numbers are too many to count: its sources follow the mini model's."""
    is_the_plan(answers["wide"][target], config(size))


def is_the_plan(found: dict[str, Any], config: Mapping[str, Any]) -> None:
    """Hold an answer against the inventory: the very tensors in their order, layers, shapes and sources."""
    assert list(found["tensors"].items()) == list(planned(config).items())
    assert found["blocks"] == blocks(config)
    assert found["unloaded"] == [name for name in found["tensors"] if name.startswith("mtp.")]
    layers, packed = linears(config), quantized(config, EC.layers.ignore)
    assert list(found["layers"]) == list(layers)
    for name, layer in found["layers"].items():
        assert layer["shape"] == [layers[name].out_features, layers[name].in_features]
        assert layer["bits"] == (4 if name in packed else 16)
        source = Source(**layer["source"] | {"index": tuple(layer["source"]["index"])})
        assert source == _planned_source(layers[name], origin(name, config))


@pytest.mark.worker
@pytest.mark.full
def test_the_plan_of_the_whole_base(ask: Callable[..., Any], tmp_path: Path) -> None:
    whole = base_config(EC)
    del whole["generator"]
    asked = {
        "base": {"config": config_in(tmp_path / "base", whole), "tensors": planned(whole)},
        "mini": {"config": config_in(tmp_path / "mini", config("mini")), "tensors": None},
    }
    (tmp_path / "request.json").write_text(json.dumps({"survey": asked}))
    found = ask("survey", tmp_path)[tmp_path.name]["base"]
    is_the_plan(found, whole)
    assert sum(layer["bits"] == 4 for layer in found["layers"].values()) == 31_030


@pytest.mark.worker
@pytest.mark.parametrize(
    ("request_", "said"),
    {
        "lone": "there is no smaller model of its class",
        "lacking": "the base's files have not",
        "other": "by config.json",
        "odd": "mtp.odd.weight: nothing says what size 7 would be",
        "strange": "mini: has no tensors",
        "unknown": "transformers has no class 'Unheard'",
    }.items(),
)
def test_what_does_not_fit_is_said(request_: str, said: str, answers: dict[str, Any]) -> None:
    assert said in answers[request_]


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
