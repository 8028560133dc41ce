"""AutoRound, asked before it tunes, of bases of other architectures; and plans as values, on disk and compared."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import Refuses
from tests.corpus import BASES, headers
from tests.tiny import EC, config

from requant.errors import CheckpointError, RecipeError
from requant.model.plan import NotPlannedError, Plan, Question, differences, read_plan, read_tensors, write_plans
from requant.model.target import question, target_of
from requant.model.templates import MAX_NAMES, MAX_PLACES, Template, fold, parse, unfold
from requant.protocol import Layer, Model, Source, Survey
from requant.protocol import ask as ask_worker
from requant.records import record

ASKED = question(EC)
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
QUICK = 5
"""Seconds that a stranger's file may take, on a busy machine."""


@cache
def plan(target: str) -> Plan:
    """The recorded plan of a tiny model of this size, or of the whole base."""
    return target_of(EC, None if target == "base" else target).plan


UP = "model.language_model.layers.0.mlp.experts.1.up_proj"


def differing(change: Layer | None, name: str = UP) -> list[str]:
    """The differences of the mini model's plan from one that has another layer of this name, or none."""
    layers = {key: layer for key, layer in {**plan("mini").layers, name: change}.items() if layer}
    return differences(plan("mini"), replace(plan("mini"), layers=layers))


def test_a_plan_differs_from_itself_in_nothing() -> None:
    assert differences(plan("mini"), replace(plan("mini"), versions={"auto-round": "9"})) == []


def test_a_packed_layer_less_and_one_more_are_named() -> None:
    layer = plan("mini").layers[UP]
    assert differing(None) == [f"{UP}: planned, and not packed"]
    assert differing(replace(layer, reason="left alone")) == [f"{UP}: planned, and not packed"]
    assert differing(layer, "other") == ["other: packed, and not planned"]
    assert differing(replace(layer, reason="left alone"), "other") == []


def test_another_source_or_shape_is_named() -> None:
    layer = plan("mini").layers[UP]
    source = Source("model.language_model.layers.0.mlp.experts.gate_up_proj", (1,), 1, 2)
    assert layer.source == source
    moved = (replace(source, **each) for each in ({"part": 0}, {"interleaved": True}, {"transposed": True}))
    for change in (*(replace(layer, source=each) for each in (None, *moved)), replace(layer, shape=(1, 2))):
        assert differing(change) == [f"{UP}: is {change}, planned {layer}"]


def test_another_order_of_blocks_and_other_tensors_are_named() -> None:
    planned = plan("mini")
    said = ["blocks: other ones, or in another order"]
    assert differences(planned, replace(planned, blocks=planned.blocks[::-1])) == said
    assert differences(planned, replace(planned, blocks=planned.blocks[:-1])) == said
    (name, spec), *rest = planned.tensors.items()
    assert differences(planned, replace(planned, tensors=dict(rest))) == [f"{name}: is None, planned {spec}"]


@pytest.mark.parametrize("target", ["mini", "base"])
def test_a_plan_is_read_as_it_was_written(target: str, tmp_path: Path) -> None:
    planned = replace(plan(target), tied={"lm_head.weight": "model.embed.weight"})
    write_plans(tmp_path / "plan.json", ASKED, {target: planned, "other": plan("mini")})
    assert len((tmp_path / "plan.json").read_bytes()) < 50_000
    found = read_plan(tmp_path / "plan.json", target, ASKED)
    assert found == planned
    assert [*found.tensors] == [*planned.tensors]
    assert differences(planned, found) == []


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A plan.json of the mini model, which stands for a base here."""
    write_plans(tmp_path / "plan.json", ASKED, {"base": plan("mini")})
    return tmp_path / "plan.json"


@pytest.mark.parametrize(
    "edited", [Question("W8A16", 128, ASKED.ignore), replace(ASKED, group_size=64), replace(ASKED, ignore=("lm_head",))]
)
def test_the_plan_of_a_recipe_that_was_edited_is_refused(edited: Question, file: Path, refuses: Refuses) -> None:
    with refuses(RecipeError):
        read_plan(file, "base", edited)
    assert read_tensors(file) == plan("mini").tensors


def test_a_target_that_is_not_there_is_named(file: Path, refuses: Refuses) -> None:
    with refuses(NotPlannedError):
        read_plan(file, "demo", ASKED)
    file.unlink()
    with refuses(RecipeError):
        read_plan(file, "base", ASKED)


def refused(file: Path) -> None:
    """Hold that a file is refused, and in no time."""
    started = time.monotonic()
    with pytest.raises(RecipeError, match=r"plan\.json: ") as error:
        read_plan(file, "base", ASKED)
    assert len(str(error.value)) < 1_000
    assert time.monotonic() - started < QUICK


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff", b"null", b"[]", b"5", b"{}", b'{"asked": []}', b"[" * 100_000, b'{"a": 1, "a": 2}']
)
def test_what_is_no_plan_is_refused(data: bytes, file: Path) -> None:
    file.write_bytes(data)
    refused(file)


HUGE = {
    "10**9 names": ["a.{0..999999}.{0..999}"],
    "a number too many": ["a.{0..9999999}"],
    "many runs": ["a.{0..999999,1000000..1999999,2000000..2999999}"],
    "many of the most": [f"{letter}{number}.{{0..999999}}" for letter in "abc" for number in range(10_000)],
    "many numbers": ["a" + ".{0..9}" * 100],
    "many places": ["a" + ".0" * 100_000],
    "no number": ["a.{}"],
    "a brace": ["{{0}0}"],
    "backwards": ["a.{3..1}"],
    "twice": ["a.{1,1}"],
}


@pytest.mark.parametrize("names", HUGE.values(), ids=HUGE)
@pytest.mark.parametrize("key", ["blocks", "unloaded", "tensors", "layers"])
def test_templates_of_too_much_are_refused(key: str, names: list[str], file: Path) -> None:
    rest: dict[str, list[Any]] = {"tensors": ["BF16", [1]], "layers": [[1, 1], "", None]}
    edit(file, key, [[name, *rest[key]] if key in rest else name for name in names])
    refused(file)


def edit(file: Path, key: str, value: object) -> None:
    document = json.loads(file.read_text())
    document["base"][key] = value
    file.write_text(json.dumps(document))


def test_as_many_names_as_there_may_be_are_read_quickly(file: Path) -> None:
    """They were looked for among one another: hours."""
    edit(file, "unloaded", [f"a.{{0..{MAX_NAMES - 1}}}"])
    started = time.monotonic()
    assert len(read_plan(file, "base", ASKED).unloaded) == MAX_NAMES
    assert time.monotonic() - started < 4 * QUICK


SOURCE: list[Any] = ["{0}", [], 0, 1, False, False]
SHAPES: list[Any] = [[1], [], [1, 2, 3], "ab", [1, "2"], {"0": 1, "1": 2}, None]
SPECS: list[Any] = [
    ["BF16"],
    ["Q4", [1]],
    [[], [1]],
    *(["BF16", each] for each in ("ab", [1.5], [True], [-1], [1 << 64])),
]
NO_SOURCES: list[Any] = [5, "abcdef", [], SOURCE[:-1], [*SOURCE, 1]]
PARTS: list[list[Any]] = [["{1}", 5], ["", [5], ["a"], ["{7}"]], ["0", -1, 1], [0, None], [0], [None]]
NO_SOURCES += [[*SOURCE[:at], part, *SOURCE[at + 1 :]] for at, parts in enumerate(PARTS) for part in parts]
NO_TEMPLATES: list[Any] = [None, 5, [5], [[]], [None]]
NO_TEXTS: list[Any] = [None, 5, "a", [], {"a": 5}]
WRONG: list[tuple[str, Any]] = [
    *((key, each) for key in ("versions", "tied") for each in NO_TEXTS),
    *((key, each) for key in ("blocks", "unloaded", "tensors", "layers") for each in NO_TEMPLATES),
    *(("tensors", [["a", *each]]) for each in SPECS),
    *(("layers", [["a.0", each, "", None]]) for each in SHAPES),
    *(("layers", [["a.0", [1, 2], each, None]]) for each in NO_TEXTS if each != "a"),
    *(("layers", [["a.0", [1, 2], "", each]]) for each in NO_SOURCES),
]


@pytest.mark.parametrize(("key", "value"), WRONG, ids=lambda value: json.dumps(value))
def test_wrong_types_are_refused(key: str, value: Any, file: Path) -> None:
    edit(file, key, value)
    refused(file)


def test_a_name_is_no_format(file: Path) -> None:
    """Of Python's formats, one asks for gigabytes and one for attributes: here they are letters."""
    for tensor in ("{0:>9999999999}", "{0.__class__}"):
        edit(file, "layers", [["a.7", [1, 2], "", [tensor, ["{0}"], 0, 1, False, False]]])
        assert read_plan(file, "base", ASKED).layers["a.7"].source == Source(tensor, (7,))


NUMBERS = st.one_of(st.integers(0, 12), st.integers(0, 9_999_999)).map(str)
WORDS = st.sampled_from(["a", "b", "layers", "w4", "07", "4w", "", "_1"])
NAMES = st.lists(st.one_of(WORDS, NUMBERS), min_size=1, max_size=6).map(".".join)


@given(st.dictionaries(NAMES, st.integers(0, 1), max_size=40))
def test_unfolding_inverts_folding(named: dict[str, int]) -> None:
    folded = fold(named)
    assert set(unfold(folded).items()) == set(named.items())
    assert sum(each.count for each in folded) == len(named)
    assert set(unfold(parse(str(each), each.value) for each in folded).items()) == set(named.items())


@st.composite
def templates(draw: st.DrawFn) -> Template[int]:
    """Templates as they are folded: each number stands between dots, or at an end."""
    places = st.sets(st.integers(0, 40), min_size=1).map(lambda numbers: tuple(sorted(numbers)))
    numbers = draw(st.lists(places, max_size=3))
    between = st.sampled_from([".", ".a.", ".a.07.b."])
    texts = [draw(st.sampled_from(["a", "model.w4"])), *(draw(between) for _ in numbers)]
    texts = [f"{texts[0]}.", *texts[1:]] if numbers else texts
    return Template((*texts[:-1], draw(st.sampled_from(["", ".w"]))) if numbers else tuple(texts), tuple(numbers), 1)


@given(templates())
def test_parsing_inverts_printing(template: Template[int]) -> None:
    assert parse(str(template), 1) == template
    assert len(unfold([template])) == template.count


@given(st.text(alphabet="a.{}0123,", max_size=30))
def test_any_text_is_a_template_or_said_to_be_none(text: str) -> None:
    try:
        found = parse(text, 0)
    except CheckpointError:
        return
    assert len(found.numbers) <= MAX_PLACES
    assert parse(str(found), 0).count == found.count


Tensors = dict[str, list[Any]]
BESIDE = {
    "embed_tokens.weight": [320, 256],
    "enorm.weight": [256],
    "eh_proj.weight": [256, 512],
    "self_attn.k_proj.weight": [128, 256],
}
"""What a block holds that transformers does not load, numbered on from two that it does."""


def typed(tensors: Tensors) -> Mapping[str, tuple[str, tuple[int, ...]]]:
    return {name: (dtype, tuple(shape)) for name, (dtype, shape) in tensors.items()}


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


def planned(target: str) -> Tensors:
    return {name: [spec.dtype, list(spec.shape)] for name, spec in plan(target).tensors.items()}


def without_last(tensors: Tensors) -> Tensors:
    return dict(list(tensors.items())[:-1])


@pytest.fixture(scope="module")
def answers(ask: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is answered of each base of the corpus, and of a model of its configuration that has no files yet."""
    folder = tmp_path_factory.mktemp("asked")

    def request(name: str, **targets: tuple[Mapping[str, Any], Tensors | None]) -> Path:
        models = {
            target: Model(config_in(folder / name / target, given), None if tensors is None else typed(tensors))
            for target, (given, tensors) in targets.items()
        }
        ask_worker(folder / name, Survey(models))
        return folder / name

    requests = []
    for base in BASES:
        given = corpus(base)
        requests.append(request(base, base=given, mini=(given[0], None)))
    mini, llama = config("mini"), corpus("base-llama")
    odd = planned("mini") | {"mtp.odd.weight": ["BF16", [7]]}
    tied = corpus("base-llama_tied")
    stored = tied[1] | {"lm_head.weight": tied[1]["model.embed_tokens.weight"]}
    bare = {name.removeprefix("model."): spec for name, spec in llama[1].items()}
    numbered = llama[1] | {f"model.layers.2.{each}": ["BF16", shape] for each, shape in BESIDE.items()}
    requests += [
        request("stored", base=(tied[0], stored), mini=(tied[0], None)),
        request("bare", base=(llama[0], bare), mini=(llama[0], None)),
        request("numbered", base=(llama[0], numbered), mini=(llama[0] | {"num_hidden_layers": 1}, None)),
        request("sizes", base=(mini, planned("mini")), mini=(mini, None), demo=(config("demo"), None)),
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
def test_a_tied_tensor_that_files_hold_stays_and_is_known_as_one(answers: dict[str, Any]) -> None:
    found = answers["stored"]
    assert "lm_head.weight" in found["mini"]["tensors"]
    assert found["mini"]["tensors"] == found["base"]["tensors"]
    assert found["mini"]["tied"] == found["base"]["tied"] == {"lm_head.weight": "model.embed_tokens.weight"}


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
    assert {name for name, layer in layers.items() if layer["reason"] == ""} == packed
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
def test_what_stays_float_may_lie_under_another_name_or_in_part_of_a_tensor(answers: dict[str, Any]) -> None:
    assert answers["base-llama"]["base"]["elsewhere"] == {}
    renamed = {
        f"model.layers.{i}.mlp.gate.weight": Source(f"model.layers.{i}.block_sparse_moe.gate.weight") for i in (0, 1)
    }
    found = answers["base-mixtral"]["base"]["elsewhere"]
    assert {name: record(Source, source) for name, source in found.items()} == renamed
    biases = answers["base-gptoss"]["base"]["elsewhere"]
    experts = "model.layers.1.mlp.experts"
    assert record(Source, biases[f"{experts}.3.up_proj.bias"]) == Source(f"{experts}.gate_up_proj_bias", (3,), 1, 2)
    assert record(Source, biases[f"{experts}.3.down_proj.bias"]) == Source(f"{experts}.down_proj_bias", (3,))
    assert len(biases) == 2 * 4 * 3


@pytest.mark.worker
def test_a_block_that_is_numbered_on_from_the_others_is_so_in_a_smaller_model(answers: dict[str, Any]) -> None:
    """Such as the one that predicts more tokens in DeepSeek-V3 and GLM-4.5, with a copy of the embedding."""
    found = answers["numbered"]
    assert found["base"]["unloaded"] == [f"model.layers.2.{each}" for each in BESIDE]
    assert found["mini"]["unloaded"] == [f"model.layers.1.{each}" for each in BESIDE]
    for each in BESIDE:
        assert found["mini"]["tensors"][f"model.layers.1.{each}"] == found["base"]["tensors"][f"model.layers.2.{each}"]


@pytest.mark.worker
@pytest.mark.parametrize("size", ["mini", "demo"])
def test_the_plan_at_any_size_is_what_is_recorded(size: str, answers: dict[str, Any]) -> None:
    is_the_plan(answers["sizes"][size], size)


def is_the_plan(found: dict[str, Any], size: str) -> None:
    """Hold an answer against what is recorded: the very tensors in their order, layers, shapes and sources."""
    expected = plan(size)
    assert list(found["tensors"].items()) == list(planned(size).items())
    assert found["blocks"] == list(expected.blocks)
    assert set(found["unloaded"]) == expected.unloaded
    assert found["layers"].keys() == expected.layers.keys()
    for name, layer in found["layers"].items():
        told, planned_ = record(Layer, layer), expected.layers[name]
        assert (told.packed, told.shape, told.source) == (planned_.packed, planned_.shape, planned_.source)


@pytest.mark.worker
@pytest.mark.full
def test_the_plan_of_the_whole_base(ask: Callable[..., Any], tmp_path: Path) -> None:
    """Its numbers are too many to count, and so are the wide model's: their sources follow the mini model's."""
    mini = {"mini": Model(config_in(tmp_path / "mini", config("mini")), None)}
    requests = {}
    for name, size, beside in (("base", None, mini), ("wide", "wide", mini), ("lone", "wide", {})):
        model = Model(config_in(tmp_path / name / "config", config(size)), typed(planned(size or "base")))
        ask_worker(tmp_path / name, Survey({"base": model, **beside}))
        requests[name] = tmp_path / name
    answers = ask("survey", *requests.values())
    is_the_plan(answers["wide"]["base"], "wide")
    assert "there is no smaller model of its class" in answers["lone"]
    found = answers["base"]["base"]
    is_the_plan(found, "base")
    assert sum(layer["reason"] == "" for layer in found["layers"].values()) == 31_030


@pytest.mark.worker
@pytest.mark.parametrize(
    ("request_", "said"),
    {
        "lacking": "the base's files have not",
        "other": "by config.json",
        "odd": "mtp.odd.weight: nothing says what size 7 would be",
        "strange": "mini: has no tensors",
        "unknown": "transformers has no class 'Unheard'",
    }.items(),
)
def test_what_does_not_fit_is_said(request_: str, said: str, answers: dict[str, Any]) -> None:
    assert said in answers[request_]
