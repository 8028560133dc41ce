"""What stands around the weights: edited configurations are found key by key, and what tools rewrite is not accused."""

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.cases.tiny_models import healthy
from tests.checkpoints import Tensors, on_a_disk, on_disk, shard, write
from tests.conftest import ROOT
from tests.tiny import write_tiny

from requant.check import check
from requant.check.checked import Checked, Outcome
from requant.check.findings import CONVERTED, EXTENDED, FAITHFUL, FAR, NEAR, STRANGE, TUNED, Kind
from requant.check.reader import Files, Reader, open_reader
from requant.check.side_files import Side, bind, canonical, compare
from requant.checkpoint.checkpoint import write_checkpoint
from requant.digest import MAX_VALUES
from requant.formats import Packing, awq, gptq, packing_of
from requant.formats.gptq import bfloat16_to_float32
from requant.rounding import ways as rounding

Edit = Callable[[dict[str, Any]], Any]
BLOCKS = ["model.language_model.layers", "mtp.layers"]
EXPERT = "model.language_model.layers.1.mlp.experts.2.up_proj"
GATE = "model.language_model.layers.1.mlp.shared_expert_gate"
QUANTIZATION = "quantization_config"


class Overlay:
    """Files of which some have other content."""

    def __init__(self, files: Files, content: Mapping[str, bytes | None]) -> None:
        self.files, self.content = files, content
        self.identity = files.identity

    def names(self) -> list[str]:
        changed = {name for name, data in self.content.items() if data is not None}
        return sorted(({*self.files.names()} | changed) - {n for n, data in self.content.items() if data is None})

    def whole(self, name: str) -> bytes:
        return self.files.whole(name) if name not in self.content else self.content[name] or b""

    def header(self, name: str) -> tuple[bytes, int]:
        return self.files.header(name)

    def read(self, name: str, start: int, into: memoryview) -> None:
        self.files.read(name, start, into)

    def close(self) -> None:
        self.files.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A healthy tiny model and its base."""
    folder = tmp_path_factory.mktemp("pair")
    write_tiny("mini", folder / "base")
    write_checkpoint(healthy("ec"), folder / "ec")
    return folder / "ec", folder / "base"


@contextmanager
def opened(pair: tuple[Path, Path], content: Mapping[str, bytes | None], base: Mapping[str, bytes]) -> Iterator[Any]:
    with open_reader(str(pair[0])) as theirs, open_reader(str(pair[1])) as ours:
        yield replace(theirs, files=Overlay(theirs.files, content)), replace(ours, files=Overlay(ours.files, base))


def judged(
    pair: tuple[Path, Path], content: Mapping[str, bytes | None] | None = None, base: Mapping[str, bytes] | None = None
) -> Checked:
    """A check of one window of weights, and of everything else."""
    with opened(pair, content or {}, base or {}) as (theirs, ours):
        return check(theirs, ours, sample=1e-9)


def found(result: Checked) -> set[tuple[str, str]]:
    return {(each.kind, each.tensor) for each in result.findings}


def edited(pair: tuple[Path, Path], edit: Edit) -> dict[str, bytes | None]:
    """The configuration after an edit, and the side file that repeats a part of it."""
    config = json.loads((pair[0] / "config.json").read_bytes())
    edit(config)
    data: dict[str, bytes | None] = {"config.json": json.dumps(config).encode()}
    data["quantization_config.json"] = json.dumps(config[QUANTIZATION]).encode() if QUANTIZATION in config else None
    return data


def into(*path: str, value: Any) -> Edit:
    """Set a key; without a value (None), remove it."""

    def edit(config: dict[str, Any]) -> None:
        *above, last = path
        for name in above:
            config = config[name]
        if value is None:
            del config[last]
        else:
            config[last] = value

    return edit


def test_a_healthy_tiny_model_is_clean(pair: tuple[Path, Path]) -> None:
    result = judged(pair)
    assert (result.outcome, result.findings, result.unmodelled) == (Outcome.CLEAN, (), ())
    assert [(each.kind, each.tensor) for each in result.notes] == [
        ("stated by the checkpoint alone", "processor_config.json")
    ]


CONFIG_EDITS = {
    "text_config.rms_norm_eps": 1e-5,
    "text_config.num_experts_per_tok": 1,
    "text_config.rope_parameters.rope_theta": 10_000,
    "text_config.rope_parameters.rope_type": "linear",
    "text_config.rope_parameters.mrope_section": [2, 4, 2],
    "text_config.attn_output_gate": 1,
    "text_config.eos_token_id": 257,
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "dtype": "float16",
    "tie_word_embeddings": True,
    "vision_config.spatial_merge_size": 3,
}


@pytest.mark.parametrize("key", CONFIG_EDITS)
def test_a_key_that_both_sides_state_must_agree(key: str, pair: tuple[Path, Path]) -> None:
    result = judged(pair, edited(pair, into(*key.split("."), value=CONFIG_EDITS[key])))
    assert found(result) == {("differs from the base", f"config.json: {key}")}
    assert result.exit_status == 1


@pytest.mark.parametrize("key", ["text_config.rms_norm_eps", "text_config.rope_parameters.rope_theta", "architectures"])
def test_a_key_that_one_side_states_is_named_and_not_accused(key: str, pair: tuple[Path, Path]) -> None:
    result = judged(pair, edited(pair, into(*key.split("."), value=None)))
    assert result.clean
    assert ("stated by the base alone", f"config.json: {key}") in {(each.kind, each.tensor) for each in result.notes}
    result = judged(pair, edited(pair, into("text_config", "sliding_window", value=4096)))
    assert ("stated by the checkpoint alone", "config.json: text_config.sliding_window") in {
        (each.kind, each.tensor) for each in result.notes
    }


def older(config: dict[str, Any]) -> None:
    """Spell a configuration as transformers 4 does."""
    text = config["text_config"]
    rope = text.pop("rope_parameters")
    text["rope_theta"], text["partial_rotary_factor"] = float(rope.pop("rope_theta")), rope.pop("partial_rotary_factor")
    text["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}
    config["torch_dtype"] = config.pop("dtype")


def rewritten(config: dict[str, Any]) -> None:
    """What tools do to a configuration that they save."""
    older(config)
    config["transformers_version"], config["_name_or_path"] = "4.57.1", "/tmp/model"  # noqa: S108
    config["text_config"]["use_cache"] = False
    config["torch_dtype"] = config["dtype"] = "bfloat16"
    config["text_config"]["rms_norm_eps"] = 0.000001


@pytest.mark.parametrize("edit", [older, rewritten])
def test_another_spelling_is_the_same_key(edit: Edit, pair: tuple[Path, Path]) -> None:
    result = judged(pair, edited(pair, edit))
    assert result.clean, result.findings
    base = json.loads((pair[1] / "config.json").read_bytes())
    edit(base)
    assert judged(pair, base={"config.json": json.dumps(base).encode()}).clean


@pytest.mark.parametrize(
    ("edit", "key"),
    [
        (into("text_config", "rope_theta", value=1e4), "text_config.rope_theta"),
        (into("text_config", "rope_scaling", value={"type": "yarn"}), "text_config.rope_scaling.type"),
        (into("text_config", "partial_rotary_factor", value=1), "text_config.partial_rotary_factor"),
        (into("torch_dtype", value="float32"), "torch_dtype"),
        (into("text_config", "num_local_experts", value=3), "text_config.num_local_experts"),
        (into("text_config.rms_norm_eps", value=None), ""),
    ],
)
def test_a_second_spelling_must_agree_too(edit: Edit, key: str, pair: tuple[Path, Path]) -> None:
    """Which of two a loader takes is its affair; a key with a dot in its name is no path."""
    if not key:
        value = json.loads((pair[0] / "config.json").read_bytes())
        value["text_config"]["rms_norm_eps"], value["text_config.rms_norm_eps"] = 1e-3, 1e-6
        assert found(judged(pair, {"config.json": json.dumps(value).encode()})) == {
            ("differs from the base", "config.json: text_config.rms_norm_eps")
        }
        return
    assert found(judged(pair, edited(pair, edit))) == {("differs from the base", f"config.json: {key}")}


def test_a_scaled_rope_is_no_plain_one() -> None:
    """A type that only one side spells out is held against the plain one that the other means."""
    plain = {"rope_theta": 1e4, "rope_scaling": None}
    scaled = {"rope_parameters": {"rope_theta": 10_000, "rope_type": "yarn", "factor": 4.0}}
    assert [each.kind for each in compare("config.json", scaled, plain)] == [
        "stated by the checkpoint alone",
        "differs from the base",
    ]
    assert compare("config.json", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}, plain) == []
    gemma = {"full_attention": {"rope_theta": 1e6, "rope_type": "default"}, "sliding_attention": {"rope_theta": 1e4}}
    four = {"rope_theta": 1e6, "rope_local_base_freq": 10_000, "rope_scaling": None}
    assert compare("config.json", {"rope_parameters": {"rope_theta": None, **gemma}}, four) == []
    assert canonical(("a", "rope_scaling", "type")) == canonical(("a", "rope_parameters", "rope_type"))


def quantization(**keys: Any) -> Edit:
    return lambda config: config[QUANTIZATION].update(keys)


def override(layer: str, **keys: Any) -> Edit:
    return lambda config: config[QUANTIZATION]["extra_config"].update({layer: keys})


BLOCKED = ("declared otherwise", "quantization_config.block_name_to_quantize")
WORDS = ("declared otherwise", f"{EXPERT}.qweight")
OTHERWISE: dict[str, tuple[Edit, tuple[str, str]]] = {
    "bits": (quantization(bits=8), WORDS),
    "bits as text": (quantization(bits="4"), WORDS),
    "group_size": (quantization(group_size=64), WORDS),
    "group_size of whole rows": (quantization(group_size=-1), WORDS),
    "group_size of nothing": (quantization(group_size=0), WORDS),
    "sym": (quantization(sym=False), ("declared otherwise", f"{EXPERT}.qzeros")),
    "sym as text": (quantization(sym="yes"), WORDS),
    "packing": (quantization(packing_format="auto_round:auto_awq"), WORDS),
    "data_type": (quantization(data_type="fp"), WORDS),
    "desc_act": (quantization(desc_act=True), WORDS),
    "modules": (quantization(modules_in_block_to_quantize=[["self_attn.q_proj"]]), WORDS),
    "an override of a packed layer": (override(EXPERT, bits=8), WORDS),
    "an override by expression": (override(r".*layers\.1\.mlp\.experts.*", group_size=32), WORDS),
    "an override that makes it float": (override(EXPERT, bits=16, data_type="fp"), WORDS),
    "an override that packs a float layer": (override(GATE, bits=4), ("declared otherwise", f"{GATE}.weight")),
    "an override dropped": (
        into(QUANTIZATION, "extra_config", GATE, value=None),
        ("declared otherwise", f"{GATE}.weight"),
    ),
    "a block dropped": (quantization(block_name_to_quantize=BLOCKS[:1]), BLOCKED),
    "blocks as text": (quantization(block_name_to_quantize="model.language_model.layers"), BLOCKED),
    "a block too many": (quantization(block_name_to_quantize=[*BLOCKS, "model.visual.blocks"]), BLOCKED),
    "no quantization_config": (into(QUANTIZATION, value=None), ("declared otherwise", f"config.json: {QUANTIZATION}")),
    "a list": (into(QUANTIZATION, value=[1]), ("declared otherwise", f"config.json: {QUANTIZATION}")),
}


@pytest.mark.parametrize(("edit", "expected"), OTHERWISE.values(), ids=OTHERWISE)
def test_quantization_config_must_describe_the_codes(
    edit: Edit, expected: tuple[str, str], pair: tuple[Path, Path]
) -> None:
    content = edited(pair, edit)
    if isinstance(
        json.loads(content["config.json"] or b"")[QUANTIZATION] if content["quantization_config.json"] else 0, list
    ):
        content["quantization_config.json"] = None
    result = judged(pair, content)
    assert expected in found(result)
    assert {kind for kind, _ in found(result)} == {"declared otherwise"}
    assert result.exit_status == 1


def test_a_side_file_must_say_the_same(pair: tuple[Path, Path]) -> None:
    value = json.loads((pair[0] / "quantization_config.json").read_bytes())
    for name in ("quantization_config.json", "quantize_config.json"):
        said = judged(pair, {name: json.dumps({**value, "bits": 8}).encode()})
        assert found(said) == {("declared otherwise", f"{name}: bits")}
        assert judged(pair, {name: json.dumps(value, indent=7).encode()}).clean
    less = json.dumps({**value, "extra_config": {}, "block_name_to_quantize": BLOCKS[:1]}).encode()
    assert judged(pair, {"quantization_config.json": less}).clean, "AutoRound 0.12.2 itself writes less there"


SIDE = "quantization_config.json"
ASIDE: dict[str, tuple[dict[str, Any], str, str]] = {
    "bits": ({"extra_config": {EXPERT: {"bits": 8}}}, f"{EXPERT}.qweight", "bits 8, the tensors have 4"),
    "group_size": ({"extra_config": {EXPERT: {"group_size": 32}}}, f"{EXPERT}.qweight", "group_size 32, "),
    "sym": ({"extra_config": {EXPERT: {"sym": False}}}, f"{EXPERT}.qzeros", "sym False, every zero point"),
    "float": ({"extra_config": {EXPERT: {"bits": 16, "data_type": "fp"}}}, f"{EXPERT}.qweight", "data_type 'fp', "),
    "by expression": ({"extra_config": {rf".*{EXPERT[-20:]}.*": {"bits": 2}}}, f"{EXPERT}.qweight", "bits 2, "),
    "a float layer packed": ({"extra_config": {GATE: {"bits": 4}}}, f"{GATE}.weight", "bits 4, the layer is float"),
    "a key of the side file alone": ({"desc_act": True}, f"{EXPERT}.qweight", "desc_act true, "),
}


@pytest.mark.parametrize("name", [SIDE, "quantize_config.json"])
@pytest.mark.parametrize(("said", "tensor", "detail"), ASIDE.values(), ids=ASIDE)
def test_what_a_side_file_alone_says_must_describe_the_codes(
    said: dict[str, Any], tensor: str, detail: str, name: str, pair: tuple[Path, Path]
) -> None:
    value = json.loads((pair[0] / SIDE).read_bytes())
    result = judged(pair, {name: json.dumps({**value, **said}).encode()})
    assert ("declared otherwise", tensor) in found(result)
    assert {kind for kind, _ in found(result)} == {"declared otherwise"}
    assert all(each.detail.startswith(f"{name}: ") for each in result.findings)
    assert any(each.detail.startswith(f"{name}: {detail}") for each in result.findings)
    assert result.exit_status == 1


def test_a_side_file_that_says_less_of_the_codes_or_the_same_is_not_accused(pair: tuple[Path, Path]) -> None:
    value = json.loads((pair[0] / SIDE).read_bytes())
    same = {EXPERT: {"bits": 4, "group_size": 128, "sym": True}, r".*mlp\.experts.*": {"bits": 4}}
    for extra in (None, {}, {GATE: {"bits": 16}}, {EXPERT: {}, "lm_head": {"bits": 16}}, same):
        said = {key: each for key, each in value.items() if key != "extra_config"} | {"extra_config": extra}
        assert judged(pair, {SIDE: json.dumps(said).encode()}).clean, extra
    for key in value:
        less = {other: each for other, each in value.items() if other != key}
        assert judged(pair, {SIDE: json.dumps(less).encode()}).clean, key


MORE: dict[str, tuple[dict[str, Any], Kind]] = {
    "a list of overrides": ({"extra_config": [1]}, "not modelled"),
    "an override that is a number": ({"extra_config": {EXPERT: 8}}, "not modelled"),
    "activations of a layer": ({"extra_config": {EXPERT: {"act_bits": 8}}}, "not modelled"),
    "another kind of integers": ({"extra_config": {EXPERT: {"data_type": "int_asym_dq"}}}, "not modelled"),
    "an expression that is not tried": ({"extra_config": {"(.|.)" * 9: {"bits": 8}}}, "not modelled"),
    "an expression that is none": ({"extra_config": {"(": {"bits": 8}}}, "not modelled"),
    "groups of groups": ({"super_group_size": 8}, "not modelled"),
    "modules left out": ({"modules_to_not_convert": ["model"]}, "not modelled"),
    "GPTQ's rules by name": ({"dynamic": {"-:.*": {}}}, "not modelled"),
    "blocks that are not there": ({"block_name_to_quantize": ["model.nowhere"]}, "declared otherwise"),
    "one block of several": ({"block_name_to_quantize": ["model.language_model.layers.0"]}, "declared otherwise"),
}


@pytest.mark.parametrize("file", ["quantization_config.json", "quantize_config.json"])
@pytest.mark.parametrize(("said", "kind"), MORE.values(), ids=MORE)
def test_what_a_side_file_alone_says_is_never_passed_over(
    said: dict[str, Any], kind: Kind, file: str, pair: tuple[Path, Path]
) -> None:
    value = json.loads((pair[0] / SIDE).read_bytes())
    result = judged(pair, {file: json.dumps({**value, **said}).encode()})
    assert not result.clean
    assert kind in {each.kind for each in (*result.findings, *result.unmodelled)}


@pytest.mark.parametrize("said", [[1], {EXPERT: 8}, {"(.|.)" * 9: {"bits": 8}}, {"(": {"bits": 8}}])
def test_overrides_that_no_layer_is_looked_up_in_are_never_clean(said: object, pair: tuple[Path, Path]) -> None:
    result = judged(pair, edited(pair, lambda config: config[QUANTIZATION].update(extra_config=said)))
    assert any("extra_config" in each.tensor for each in (*result.unmodelled, *result.findings))
    assert not result.clean


TEMPLATE_FOLDER = "additional_chat_templates"
ADDED = {
    "tokenizer.4.0.0.json": b"{}",
    f"{TEMPLATE_FOLDER}/default.jinja": b"{{ 'evil' }}",
    f"{TEMPLATE_FOLDER}/readme.jinja": b"{{ 'evil' }}",
    f"{TEMPLATE_FOLDER}/notice.jinja": b"",
}


@pytest.mark.parametrize("name", ADDED)
def test_a_file_that_transformers_takes_instead_is_accused(name: str, pair: tuple[Path, Path]) -> None:
    result = judged(pair, {name: ADDED[name]})
    assert [(each.kind, each.tensor) for each in result.findings] == [("differs from the base", name)]


def test_templates_that_a_tool_moved_into_files_are_the_bases() -> None:
    """transformers 5 writes a list of `tokenizer_config.json` as one file for each."""
    listed = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]

    def side(**files: bytes) -> Side:
        return Side("", frozenset(files), files.__getitem__)

    base = side(**{"tokenizer_config.json": json.dumps({"chat_template": listed}).encode()})
    for text, kind in ((b"b\n", "stated by the checkpoint alone"), (b"a", "differs from the base")):
        moved = {"tokenizer_config.json": b"{}", f"{TEMPLATE_FOLDER}/tool_use.jinja": text}
        found = {each.tensor: each.kind for each in bind(side(**moved), base)}
        assert found[f"{TEMPLATE_FOLDER}/tool_use.jinja"] == kind


def test_an_expression_that_also_finds_what_is_not_linear_packs_none_of_it(pair: tuple[Path, Path]) -> None:
    """`layers.1` has norms and a router of its own: whoever writes such an expression means the linear layers."""
    wide = {r".*language_model\.layers\.1\..*": {"bits": 4}}
    value = json.loads((pair[0] / SIDE).read_bytes())
    said = {**value, "extra_config": {**value["extra_config"], **wide}}
    assert judged(pair, {SIDE: json.dumps(said).encode()}).clean
    assert judged(pair, edited(pair, lambda config: config[QUANTIZATION].update(said))).clean


def test_what_both_files_say_wrongly_is_told_once(pair: tuple[Path, Path]) -> None:
    result = judged(pair, edited(pair, override(EXPERT, bits=8)))
    assert [each.detail for each in result.findings] == ["bits 8, the tensors have 4"]


def test_the_order_of_expressions_counts(pair: tuple[Path, Path]) -> None:
    some, all_ = rf".*{EXPERT[-20:]}.*", r".*mlp\.experts.*"
    content = edited(pair, lambda config: config[QUANTIZATION].update(extra_config={some: {}, all_: {"sym": False}}))
    value = json.loads(content[SIDE] or b"")
    value["extra_config"] = dict(reversed(value["extra_config"].items()))
    result = judged(pair, {**content, SIDE: json.dumps(value).encode()})
    details = {each.detail for each in result.findings if each.tensor == f"{EXPERT}.qzeros"}
    assert details == {f"{SIDE}: sym False, every zero point is in the middle"}


def test_a_side_file_of_too_many_expressions_is_not_modelled(pair: tuple[Path, Path]) -> None:
    value = json.loads((pair[0] / SIDE).read_bytes())
    many = {**value["extra_config"], **{f"none{number}.*": {"bits": 4} for number in range(257)}}
    result = judged(pair, {SIDE: json.dumps({**value, "extra_config": many}).encode()})
    assert (result.findings, result.exit_status) == ((), 3)
    assert [each.tensor for each in result.unmodelled] == [f"{SIDE}: extra_config"]
    assert judged(pair, edited(pair, quantization(extra_config=many))).outcome == Outcome.NOT_MODELLED
    both = edited(pair, quantization(extra_config=dict([*many.items()][:-100])))
    assert judged(pair, both).clean, "what both files say alike is tried once"


@pytest.mark.parametrize("key", ["quant_method", "packing_format"])
def test_what_a_method_makes_of_the_codes_is_not_modelled(key: str, pair: tuple[Path, Path]) -> None:
    result = judged(pair, edited(pair, quantization(**{key: "else"})))
    assert (result.outcome, result.exit_status) == (Outcome.NOT_MODELLED, 3)
    assert {each.detail for each in result.unmodelled} == {f"{key} 'else'"}
    assert any(line.startswith("not modelled: ") for line in result.text(9))


UNKNOWN = {
    "modules_to_not_convert": ["mlp"],
    "act_bits": 8,
    "hadamard_config": {"a": 1},
    "quant_lm_head": True,
    "checkpoint_format": "gptq_v2",
    "data_type": "int_sym_gptq",
}


@pytest.mark.parametrize("key", UNKNOWN)
def test_what_could_change_the_codes_and_is_not_modelled_is_never_clean(key: str, pair: tuple[Path, Path]) -> None:
    result = judged(pair, edited(pair, quantization(**{key: UNKNOWN[key]})))
    assert (result.outcome, result.exit_status) == (Outcome.NOT_MODELLED, 3)
    assert any(key in each.tensor for each in result.unmodelled)
    assert judged(pair, edited(pair, quantization(act_bits=16, hadamard_config=None, quant_lm_head=False))).clean


def test_without_a_method_nothing_says_how_to_read_the_codes(pair: tuple[Path, Path]) -> None:
    result = judged(pair, edited(pair, into(QUANTIZATION, "quant_method", value=None)))
    assert (result.outcome, result.exit_status) == (Outcome.NOT_MODELLED, 3)


@pytest.mark.parametrize("method", [[], {}, ["gptq"], 5, True])
def test_a_method_that_is_no_text_is_none_that_is_known(method: Any, pair: tuple[Path, Path]) -> None:
    result = judged(pair, edited(pair, into(QUANTIZATION, "quant_method", value=method)))
    assert (result.outcome, result.exit_status) == (Outcome.NOT_MODELLED, 3)


def hiding(*path: str, junk: dict[str, Any]) -> Edit:
    """Edit what counts, beside keys that would make one value of an object."""

    def edit(config: dict[str, Any]) -> None:
        for name in path:
            config = config[name]
        config.update(junk)

    return edit


EVIL = {"rms_norm_eps": 0.5, "num_experts_per_tok": 1}
MANY = {f"junk{number}": number for number in range(1001)}
CLASHES: dict[str, Edit] = {
    "a token among the keys": hiding("text_config", junk={"content": "x", **EVIL}),
    "a token that is none": hiding("text_config", junk={"content": 1, **EVIL}),
    "a token at the top": hiding(junk={"content": "x", "tie_word_embeddings": True}),
    "more keys than anybody reads": hiding("text_config", junk={**MANY, **EVIL}),
    "a list for an object": into("text_config", value=[]),
    "an empty object": into("text_config", value={}),
    "a text for an object": into("text_config", "rope_parameters", value="x"),
    "nothing for an object": lambda config: config.update(vision_config=None),
    "nothing of the base": lambda config: [config.pop(key) for key in [*config] if key != QUANTIZATION],
}


@pytest.mark.parametrize("edit", CLASHES.values(), ids=CLASHES)
def test_an_object_on_one_side_alone_hides_nothing(edit: Edit, pair: tuple[Path, Path]) -> None:
    result = judged(pair, edited(pair, edit))
    assert "differs from the base" in {kind for kind, _ in found(result)}
    assert result.exit_status == 1


@pytest.mark.parametrize("file", ["tokenizer_config.json", "generation_config.json", "tokenizer.json"])
def test_neither_does_it_in_other_files(file: str) -> None:
    base = {"eos_token": "<|im_end|>", "model": {"vocab": {"a": 1}}}
    assert [each.kind for each in compare(file, {**base, "content": "x", "eos_token": "zzz"}, base)] == [
        "stated by the checkpoint alone",
        "differs from the base",
    ]
    assert "differs from the base" in {each.kind for each in compare(file, {**base, "model": {"vocab": {}}}, base)}
    assert "differs from the base" in {each.kind for each in compare(file, base, {**base, "model": None})}


TOKENIZER = "tokenizer.json"


def tokenizer(edit: Edit) -> Callable[[tuple[Path, Path]], dict[str, bytes]]:
    def change(pair: tuple[Path, Path]) -> dict[str, bytes]:
        value = json.loads((pair[0] / TOKENIZER).read_bytes())
        edit(value)
        return {TOKENIZER: json.dumps(value, indent=1).encode()}

    return change


def settings(file: str, **keys: Any) -> Callable[[tuple[Path, Path]], dict[str, bytes]]:
    return lambda pair: {file: json.dumps({**json.loads((pair[0] / file).read_bytes()), **keys}).encode()}


SAME = {
    "formatted otherwise": tokenizer(lambda value: None),
    "truncation": tokenizer(into("truncation", value={"max_length": 64, "strategy": "LongestFirst"})),
    "padding": tokenizer(into("padding", value={"strategy": "BatchLongest"})),
    "merges as text": tokenizer(lambda v: v["model"].update(merges=[" ".join(each) for each in v["model"]["merges"]])),
    "class": settings("tokenizer_config.json", tokenizer_class="TokenizersBackend", backend="tokenizers"),
    "version": settings("generation_config.json", transformers_version="4.57.1", do_sample=True),
    "template's newline": lambda pair: {
        "chat_template.jinja": (pair[0] / "chat_template.jinja").read_bytes().rstrip(b"\n") + b"\n"
    },
    "template in two files": lambda pair: settings(
        "tokenizer_config.json", chat_template=(pair[0] / "chat_template.jinja").read_text()
    )(pair),
    "another licence": lambda pair: {"LICENSE": b"", "README.md": b"# hello"},
}


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_what_tools_rewrite_is_not_accused(
    change: Callable[[tuple[Path, Path]], dict[str, bytes]], pair: tuple[Path, Path]
) -> None:
    assert judged(pair, change(pair)).clean
    assert judged(pair, base=change(pair)).clean


OTHER: dict[str, tuple[Callable[[tuple[Path, Path]], dict[str, bytes]], str]] = {
    "vocabulary": (tokenizer(lambda v: v["model"]["vocab"].update(a=7)), "tokenizer.json: model.vocab.a"),
    "merges": (tokenizer(into("model", "merges", value=[["a", "b"]])), "tokenizer.json: model.merges"),
    "added tokens": (tokenizer(into("added_tokens", value=[])), "tokenizer.json: added_tokens"),
    "vocab.json": (settings("vocab.json", a=7), "vocab.json: a"),
    "merges.txt": (lambda pair: {"merges.txt": b"#version: 0.2\na b\n"}, "merges.txt"),
    "template": (lambda pair: {"chat_template.jinja": b"{{ messages }}"}, "chat_template.jinja: chat_template"),
    "template elsewhere": (
        settings("tokenizer_config.json", chat_template="{{ messages }}"),
        "tokenizer_config.json: chat_template",
    ),
    "stop token": (settings("generation_config.json", eos_token_id=1), "generation_config.json: eos_token_id"),
    "pixels": (settings("preprocessor_config.json", patch_size=8), "preprocessor_config.json: patch_size"),
    "no JSON": (lambda pair: {"generation_config.json": b"{"}, "generation_config.json"),
}


@pytest.mark.parametrize(("change", "expected"), OTHER.values(), ids=OTHER)
def test_what_means_something_else_is_found_by_key(
    change: Callable[[tuple[Path, Path]], dict[str, bytes]], expected: str, pair: tuple[Path, Path]
) -> None:
    assert found(judged(pair, change(pair))) == {("differs from the base", expected)}


def test_a_token_may_be_an_object_or_its_content() -> None:
    file = "tokenizer_config.json"
    token = {"__type": "AddedToken", "content": "<s>", "lstrip": False}
    assert compare(file, {"bos_token": token}, {"bos_token": "<s>"}) == []
    assert [each.kind for each in compare(file, {"bos_token": token}, {"bos_token": "</s>"})] == [
        "differs from the base"
    ]


TOKEN = {"content": "<s>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
FLAGS = {"lstrip": True, "rstrip": True, "single_word": True, "normalized": True, "special": False, "other": None}


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_that_a_plain_token_does_not_have_is_named(flag: str, file: str) -> None:
    """Named, not accused: transformers 5.5.1 saves such an object as plain text, its flags in `tokenizer.json`."""
    token = {**TOKEN, flag: FLAGS[flag]}
    (here,) = compare(file, {"eos_token": token}, {"eos_token": "<s>"})
    assert (here.kind, here.tensor) == ("stated by the checkpoint alone", f"{file}: eos_token.{flag}")
    assert here.detail == f"{FLAGS[flag]}, the base has '<s>' alone"
    (there,) = compare(file, {"eos_token": "<s>"}, {"eos_token": token})
    assert (there.kind, there.tensor) == ("stated by the base alone", f"{file}: eos_token.{flag}")
    listed = compare(file, {"additional_special_tokens": ["a", token]}, {"additional_special_tokens": ["a", "<s>"]})
    assert [each.tensor for each in listed] == [f"{file}: additional_special_tokens.1.{flag}"]
    assert [each.kind for each in compare(file, {"eos_token": token}, {"eos_token": TOKEN})] == [
        "differs from the base"
    ]


@pytest.mark.parametrize("more", [{}, {"special": True}, {"__type": "AddedToken", "special": True}])
def test_a_token_with_the_flags_of_a_plain_one_is_that_token(more: dict[str, Any]) -> None:
    for some in (TOKEN, {"content": "<s>"}):
        for theirs, ours in (({**some, **more}, "<s>"), ("<s>", {**some, **more})):
            assert compare("tokenizer_config.json", {"pad_token": theirs}, {"pad_token": ours}) == []
            assert compare("tokenizer_config.json", {"a_tokens": [theirs]}, {"a_tokens": [ours]}) == []


def test_a_checkpoint_whose_tokens_were_spelled_anew_is_not_accused(pair: tuple[Path, Path]) -> None:
    file = "tokenizer_config.json"
    value = json.loads((pair[0] / file).read_bytes())
    objects = {
        key: {**TOKEN, "content": each, "lstrip": True}
        for key, each in value.items()
        if key.endswith("_token") and isinstance(each, str)
    }
    assert objects
    data = json.dumps({**value, **objects}).encode()
    for result in (judged(pair, {file: data}), judged(pair, base={file: data})):
        assert result.clean
        assert {f"{file}: {key}.lstrip" for key in objects} <= {each.tensor for each in result.notes}


def test_two_huge_tokenizers_of_other_bytes_are_not_modelled(pair: tuple[Path, Path]) -> None:
    """Together over the limit, which docs/levels.md states; equal bytes need no parsing."""
    theirs, ours = (b"[" + b"0," * (MAX_VALUES // 2) + last + b"]" for last in (b"1", b"0"))
    result = judged(pair, {TOKENIZER: theirs}, {TOKENIZER: ours})
    assert (result.findings, result.exit_status) == ((), 3)
    assert [each.tensor for each in result.unmodelled] == [TOKENIZER]
    assert judged(pair, {TOKENIZER: ours}, {TOKENIZER: ours}).clean
    assert f"more than {MAX_VALUES:,}" in " ".join((ROOT / "docs" / "levels.md").read_text().split())


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["rope_theta", "rope_scaling", "rope_parameters", "type", "content", "dtype", "torch_dtype", "a", ""]
            )
            | st.text(max_size=2),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(value=values, file=st.sampled_from(["config.json", "tokenizer.json", "tokenizer_config.json"]))
def test_whatever_is_stated_agrees_with_itself(value: Any, file: str) -> None:
    assert compare(file, value, copy.deepcopy(value)) == []


@on_a_disk
@given(
    value=values,
    keys=st.dictionaries(st.sampled_from(["bits", "group_size", "extra_config", "packing_format", "sym"]), values),
)
def test_no_configuration_ends_in_a_traceback(value: Any, keys: dict[str, Any]) -> None:
    tensors, base = layer()
    config = {"a": value, QUANTIZATION: {"quant_method": "auto-round", "block_name_to_quantize": value, **keys}}
    side = {"config.json": json.dumps(config).encode(), "tokenizer.json": json.dumps(value).encode()}
    with (
        on_disk({"model.safetensors": shard(tensors), **side}) as made,
        on_disk({"model.safetensors": shard(base), **side}) as its,
        open_reader(str(made)) as theirs,
        open_reader(str(its)) as ours,
    ):
        check(theirs, ours, sample=1e-9).text(9)


def test_nesting_is_no_traceback() -> None:
    deep: Any = 1
    for _ in range(5_000):
        deep = {"a": deep}
    assert [each.kind for each in compare("tokenizer.json", deep, {"a": 1})] == ["differs from the base"]


# One layer, packed in the ways of other tools.

ROWS, COLUMNS = 64, 256
BITS = (np.random.default_rng(5).normal(0, 0.02, (ROWS, COLUMNS)).astype("<f4").view("<u4") >> 16).astype("<u2")


def layer(
    stretch: float = 1.0, bits: int = 4, symmetric: bool = True, layout: str = "gptq"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A layer rounded to nearest in groups of 128, its scales `stretch` times the widest, and the base's."""
    weights = bfloat16_to_float32(BITS.tobytes()).reshape(ROWS, COLUMNS)
    grouped, middle, top = weights.reshape(ROWS, -1, 128), 1 << (bits - 1), (1 << bits) - 1
    low, high = np.minimum(grouped.min(-1), 0), np.maximum(grouped.max(-1), 0)
    points = np.full(low.shape, middle)
    if symmetric:
        scales = (-np.where(-low > high, low, high) / np.float32(middle) * np.float32(stretch)).astype("<f2")
    else:
        scales = ((high - low) / np.float32(top)).astype("<f2")
        points = np.rint(-low / scales.astype("<f4")).astype(int)
    steps = grouped / scales.astype("<f4")[..., None]
    codes = np.clip(np.rint(steps) + points[..., None], 0, top).astype(np.uint8).reshape(ROWS, COLUMNS)
    stored = points.astype(np.uint8)  # [out, groups]
    if layout == "awq":
        words, zeros = awq.pack(codes), awq.pack(stored)
    else:
        words, zeros = gptq.pack(codes, bits), gptq.pack((stored - 1).T, bits).T
    made = {
        "x.0.p.qweight": ("I32", [*words.shape], words.tobytes()),
        "x.0.p.qzeros": ("I32", [*zeros.shape], np.ascontiguousarray(zeros).tobytes()),
        "x.0.p.scales": ("F16", [2, ROWS], np.ascontiguousarray(scales.T).tobytes()),
    }
    return made, {"x.0.p.weight": ("BF16", [ROWS, COLUMNS], BITS.tobytes())}


def zeros(dtype: str, *shape: int) -> tuple[str, list[int], bytes]:
    width = {"I32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I64": 8}[dtype]
    return dtype, list(shape), bytes(int(np.prod(shape)) * width)


AUTOROUND = {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True, "iters": 200}
NAMED = {
    f"x.0.p.{suffix}": tensor
    for suffix, tensor in zip(("qweight", "qzeros", "scales"), layer()[0].values(), strict=True)
}
ELSEWHERE: dict[str, tuple[Tensors, dict[str, Any], str]] = {
    "GPTQ with g_idx": (
        {**layer()[0], "x.0.p.g_idx": zeros("I32", COLUMNS)},
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": True},
        "inputs in the order of g_idx",
    ),
    "compressed-tensors": (
        {"x.0.p.weight_packed": zeros("I32", ROWS, COLUMNS // 8), "x.0.p.weight_scale": zeros("BF16", ROWS, 2)},
        {"quant_method": "compressed-tensors"},
        "`config_groups` is no object",
    ),
    "FP8": (
        {"x.0.p.weight": zeros("F8_E4M3", ROWS, COLUMNS), "x.0.p.weight_scale": zeros("BF16", ROWS, 1)},
        {"quant_method": "fp8"},
        "FP8, one scale: weight_scale: found BF16 [64, 1], the base's shape gives F32 []",
    ),
}


def single(tmp_path: Path, tensors: Tensors, base: Tensors, quantization: Any) -> Checked:
    config = {"model_type": "llama", "dtype": "bfloat16"}
    write(tmp_path / "base", {"model.safetensors": shard(base), "config.json": json.dumps(config).encode()})
    stated = {**config, QUANTIZATION: quantization} if quantization else config
    write(tmp_path / "made", {"model.safetensors": shard(tensors), "config.json": json.dumps(stated).encode()})
    with open_reader(str(tmp_path / "made")) as theirs, open_reader(str(tmp_path / "base")) as ours:
        return check(theirs, ours)


@pytest.mark.parametrize(("tensors", "config", "reason"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_other_tools_are_not_modelled_and_not_accused(
    tensors: Tensors, config: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    norm = ("BF16", [8], bytes(range(16)))
    result = single(tmp_path, {**tensors, "n": norm}, {**layer()[1], "n": norm}, config)
    assert (result.findings, result.exit_status) == ((), 3)
    assert [(each.tensor, each.detail) for each in result.unmodelled] == [("x.0.p", reason)]
    assert result.layers == {"n": "the base's bytes"}, "what is copied is looked at all the same"
    other = single(tmp_path, {**tensors, "n": ("BF16", [8], bytes(16))}, {**layer()[1], "n": norm}, config)
    assert found(other) == {("not the base's bytes", "n")}
    gone = single(tmp_path, {"n": norm}, {**layer()[1], "n": norm}, config)
    assert ("not in the checkpoint", "x.0.p.weight") in found(gone)


MODELLED: dict[str, tuple[Tensors, dict[str, Any]]] = {
    "eight bits": (layer(bits=8)[0], {**AUTOROUND, "bits": 8}),
    "three bits": (layer(bits=3)[0], {**AUTOROUND, "bits": 3}),
    "two bits": (layer(bits=2)[0], {**AUTOROUND, "bits": 2}),
    "one layer of eight bits": (layer(bits=8)[0], {**AUTOROUND, "extra_config": {"x.0.p": {"bits": 8}}}),
    "the order of AWQ": (layer(layout="awq")[0], {**AUTOROUND, "packing_format": "auto_round:auto_awq"}),
    "asymmetric": (layer(symmetric=False)[0], {**AUTOROUND, "sym": False}),
    "asymmetric, two bits": (layer(bits=2, symmetric=False)[0], {**AUTOROUND, "sym": False, "bits": 2}),
    "asymmetric AWQ": (
        layer(symmetric=False, layout="awq")[0],
        {**AUTOROUND, "sym": False, "packing_format": "auto_round:auto_awq"},
    ),
    "an export to GPTQ": (
        {**layer()[0], "x.0.p.g_idx": ("I32", [COLUMNS], (np.arange(COLUMNS, dtype="<i4") // 128).tobytes())},
        {**AUTOROUND, "quant_method": "gptq", "provider": "auto-round", "desc_act": False},
    ),
    "an export to AWQ": (
        layer(layout="awq")[0],
        {**AUTOROUND, "quant_method": "awq", "provider": "auto-round", "version": "gemm"},
    ),
}


@pytest.mark.parametrize(("tensors", "config"), MODELLED.values(), ids=MODELLED)
def test_whatever_autoround_writes_is_recomputed_and_one_code_that_moved_is_found(
    tensors: Tensors, config: dict[str, Any], tmp_path: Path
) -> None:
    base = layer()[1]
    result = single(tmp_path, tensors, base, config)
    assert (result.findings, result.outcome, result.layers) == ((), Outcome.CLEAN, {"x.0.p": rounding.FULL})
    for suffix, word in (("qweight", 37), ("qzeros", 3)):
        dtype, shape, data = tensors[f"x.0.p.{suffix}"]
        words = np.frombuffer(data, "<u4").copy()
        for bit in (1, 31):
            words[word] ^= 1 << bit
            moved = {**tensors, f"x.0.p.{suffix}": (dtype, shape, words.tobytes())}
            spoilt = single(tmp_path, moved, base, config)
            # A code may move by one and stay within what tuning reaches: then nothing says "rounded" any more.
            assert spoilt.layers != result.layers
            if suffix == "qzeros":
                assert {each.tensor for each in spoilt.findings} & {f"x.0.p.{each}" for each in ("qzeros", "scales")}
            words[word] ^= 1 << bit


BESIDE: dict[str, tuple[str, dict[str, Any], str]] = {
    "one layer of eight bits": ("one layer of eight bits", {"bits": 4}, "x.0.p.qweight"),
    "asymmetric": ("asymmetric", {"sym": True}, "x.0.p.qzeros"),
}


@pytest.mark.parametrize(("name", "entry", "tensor"), BESIDE.values(), ids=BESIDE)
def test_a_side_file_is_held_against_every_kind_of_codes(
    name: str, entry: dict[str, Any], tensor: str, tmp_path: Path
) -> None:
    tensors, config = MODELLED[name]
    less = {key: each for key, each in config.items() if key != "extra_config"}
    (tmp_path / "made").mkdir()
    for said in ({}, less, config):
        (tmp_path / "made" / SIDE).write_text(json.dumps(said))
        result = single(tmp_path, tensors, layer()[1], config)
        assert result.clean, said
    (tmp_path / "made" / SIDE).write_text(json.dumps({**less, "extra_config": {".*x.*": entry}}))
    result = single(tmp_path, tensors, layer()[1], config)
    assert found(result) == {("declared otherwise", tensor)}
    assert result.findings[0].detail.startswith(f"{SIDE}: {next(iter(entry))} ")


@pytest.mark.parametrize("name", ["eight bits", "the order of AWQ", "asymmetric"])
def test_codes_are_declared_as_they_are(name: str, tmp_path: Path) -> None:
    assert single(tmp_path, MODELLED[name][0], layer()[1], AUTOROUND).exit_status == 1


def test_codes_of_a_tool_whose_rounding_is_not_known_are_nearer_to_the_base_than_zeros(tmp_path: Path) -> None:
    """As GPTQModel's are: the error of one code moves the next, and no formula gives them."""
    tensors, base = layer()
    words = np.frombuffer(tensors["x.0.p.qweight"][2], "<u4").copy()
    words ^= np.random.default_rng(0).integers(0, 2, words.shape, np.uint32) << 1  # an eighth of them by two steps
    gptq_tool = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
    made = {**tensors, "x.0.p.qweight": ("I32", [COLUMNS // 8, ROWS], words.tobytes())}
    result = single(tmp_path, made, base, gptq_tool)
    assert (result.findings, result.exit_status, result.layers) == ((), 3, {"x.0.p": NEAR})
    assert any(line.startswith("weights near the base: relative error 0.") for line in result.text(9))
    assert single(tmp_path, made, base, AUTOROUND).exit_status == 1
    strange = np.random.default_rng(1).integers(0, 2**32, words.shape, np.uint32)
    other = {**tensors, "x.0.p.qweight": ("I32", [COLUMNS // 8, ROWS], strange.tobytes())}
    assert ("not the base's weights", "x.0.p.qweight") in found(single(tmp_path, other, base, gptq_tool))


def shuffled(symmetric: bool) -> tuple[Tensors, Tensors]:
    """A layer as GPTQ makes it where groups are of inputs that are not side by side, and the base's."""
    tensors, base = layer(symmetric=symmetric)
    places = np.random.default_rng(5).permutation(COLUMNS)
    words = np.frombuffer(tensors["x.0.p.qweight"][2], "<i4").reshape(-1, ROWS)
    weights = np.frombuffer(base["x.0.p.weight"][2], "<u2").reshape(ROWS, COLUMNS)
    moved = [np.empty_like(weights), np.empty((ROWS, COLUMNS), np.uint8)]
    for into, each in zip(moved, (weights, gptq.unpack(words)), strict=True):
        into[:, places] = each
    groups = np.empty(COLUMNS, "<i4")
    groups[places] = np.arange(COLUMNS) // 128
    made = {
        **tensors,
        "x.0.p.qweight": ("I32", [COLUMNS // 8, ROWS], gptq.pack(moved[1]).tobytes()),
        "x.0.p.g_idx": ("I32", [COLUMNS], groups.tobytes()),
    }
    return made, {"x.0.p.weight": ("BF16", [ROWS, COLUMNS], moved[0].tobytes())}


@pytest.mark.parametrize("symmetric", [True, False])
def test_groups_of_inputs_that_are_not_side_by_side_are_measured(symmetric: bool, tmp_path: Path) -> None:
    tensors, base = shuffled(symmetric)
    told = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": symmetric, "desc_act": True}
    result = single(tmp_path, tensors, base, told)
    assert (result.findings, result.exit_status, result.layers) == ((), 3, {"x.0.p": NEAR})
    assert any(line.startswith("weights near the base: relative error 0.1") for line in result.text(9))
    weights = np.frombuffer(base["x.0.p.weight"][2], "<u2").reshape(ROWS, COLUMNS)
    swapped = {"x.0.p.weight": ("BF16", [ROWS, COLUMNS], weights[::-1].tobytes())}
    assert ("not the base's weights", "x.0.p.qweight") in found(single(tmp_path, tensors, swapped, told))
    dtype, shape, data = tensors["x.0.p.scales"]
    for times, kind in ((4, FAR), (16, STRANGE)):
        scales = np.frombuffer(data, "<f2").copy()
        scales[9] *= np.float16(times)
        spoilt = single(tmp_path, {**tensors, "x.0.p.scales": (dtype, shape, scales.tobytes())}, base, told)
        (one,) = (each for each in (*spoilt.findings, *spoilt.notes) if each.tensor.startswith("x.0.p"))
        assert (one.kind, one.index) == (kind, (9, 0)) and spoilt.exit_status == (1 if times == 16 else 3)


def test_groups_that_are_no_groups_of_a_size_are_not_modelled(tmp_path: Path) -> None:
    tensors, base = shuffled(symmetric=True)
    groups = np.frombuffer(tensors["x.0.p.g_idx"][2], "<i4").copy()
    told = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": True}
    for group in (1 - groups[0], -1, 1 << 30):
        other = np.concatenate([np.array([group], "<i4"), groups[1:]])
        result = single(tmp_path, {**tensors, "x.0.p.g_idx": ("I32", [COLUMNS], other.tobytes())}, base, told)
        assert (result.findings, result.exit_status) == ((), 3)
        assert [each.detail for each in result.unmodelled] == ["inputs in the order of g_idx"]


@pytest.mark.parametrize("symmetric", [True, False])
def test_an_export_to_awq_states_symmetry_twice_and_alike(symmetric: bool, tmp_path: Path) -> None:
    """AutoRound writes `zero_point` as the contrary of `sym`."""
    tensors, base = layer(symmetric=symmetric, layout="awq")
    told = {**MODELLED["an export to AWQ"][1], "sym": symmetric, "zero_point": not symmetric}
    assert single(tmp_path, tensors, base, told).clean
    wrong = single(tmp_path, tensors, base, {**told, "zero_point": symmetric})
    assert found(wrong) == {("declared otherwise", "quantization_config.zero_point")}


FLOAT: dict[str, tuple[str, Any, Any, Any]] = {
    "an export to GPTQ": ("dynamic", {"-:^x\\.1\\.p$": {}}, {"-:^x\\.1\\.p$": 0}, {"-:x": {}}),
    "an export to AWQ": ("modules_to_not_convert", ["x.1.p", "v."], "x.1.p", ["x"]),
}
"""What an export says of a layer that is float, what is no list of such layers, and one that has a packed layer too."""


@pytest.mark.parametrize("name", FLOAT)
def test_an_export_names_float_layers(name: str, tmp_path: Path) -> None:
    tensors, config = MODELLED[name]
    weight = layer()[1]["x.0.p.weight"]
    base = {"x.0.p.weight": weight, "x.1.p.weight": weight}
    (key, said, strange, all_of_them), some = FLOAT[name], {**tensors, "x.1.p.weight": weight}
    assert single(tmp_path, some, base, {**config, key: said}).clean
    assert found(single(tmp_path, some, base, config)) == {("declared otherwise", "x.1.p.weight")}
    assert single(tmp_path, some, base, {**config, key: strange}).exit_status == 1
    told = single(tmp_path, some, base, {**config, key: all_of_them})
    assert ("declared otherwise", "x.0.p.qweight") in found(told)


@pytest.mark.parametrize(
    ("key", "value", "clean"),
    [
        ("^x\\.0\\.p$", {"bits": 4}, True),
        (".*\\.p", {"bits": 4}, True),
        ("x\\.0", {"bits": 4}, True),
        ("\\.p", {"bits": 4}, False),
        ("^x\\.0\\.p$", {"bits": 4, "another": 1}, False),
    ],
)
def test_gptqs_rules_hold_from_the_beginning_of_a_name(
    key: str, value: dict[str, Any], clean: bool, tmp_path: Path
) -> None:
    tensors, config = MODELLED["an export to GPTQ"]
    for sign in ("+:", ""):
        told = {**config, "bits": 8, "dynamic": {f"{sign}{key}": value}}
        assert single(tmp_path, tensors, layer()[1], told).clean == clean


def test_where_one_layer_says_the_order_of_its_inputs_every_layer_does(tmp_path: Path) -> None:
    tensors, config = MODELLED["an export to GPTQ"]
    second = {key.replace("x.0", "x.1"): tensor for key, tensor in tensors.items()}
    weight = layer()[1]["x.0.p.weight"]
    base = {"x.0.p.weight": weight, "x.1.p.weight": weight}
    assert single(tmp_path, {**tensors, **second}, base, config).clean
    second.pop("x.1.p.g_idx")
    assert found(single(tmp_path, {**tensors, **second}, base, config)) == {("missing tensor", "x.1.p.g_idx")}


def test_one_scale_beyond_tuning_is_no_extended_algorithm(tmp_path: Path) -> None:
    tensors, base = layer()
    assert single(tmp_path, layer(1.3)[0], base, AUTOROUND).layers == {"x.0.p": EXTENDED}
    scales = np.frombuffer(tensors["x.0.p.scales"][2], "<f2").copy()
    scales[7] *= np.float16(1.05)
    one = {**tensors, "x.0.p.scales": ("F16", [2, ROWS], scales.tobytes())}
    assert {each.tensor for each in single(tmp_path, one, base, AUTOROUND).findings} == {"x.0.p.scales"}


def test_a_searched_scale_is_not_modelled_where_nothing_was_tuned(tmp_path: Path) -> None:
    """AutoRound searches scales at iterations 0; farther than it goes, such a scale is a violation."""
    rounds = {**AUTOROUND, "iters": 0}
    tensors, base = layer(1.12)
    result = single(tmp_path, tensors, base, rounds)
    assert (result.outcome, result.layers) == (Outcome.NOT_MODELLED, {"x.0.p": FAITHFUL})
    assert single(tmp_path, layer(1.5)[0], base, rounds).exit_status == 1
    words = np.frombuffer(tensors["x.0.p.qweight"][2], "<u4").copy()
    words[5] ^= 4  # a code moved by four
    edited = {**tensors, "x.0.p.qweight": ("I32", [COLUMNS // 8, ROWS], words.tobytes())}
    assert single(tmp_path, edited, base, rounds).exit_status == 1
    assert single(tmp_path, layer()[0], base, rounds).outcome == Outcome.CLEAN, "without the search, it is exact"


def test_tuned_codes_that_are_said_to_be_rounded_are_never_clean(tmp_path: Path) -> None:
    tensors, base = layer()
    words = np.frombuffer(tensors["x.0.p.qweight"][2], "<u4")
    for number in range(64):
        moved = words.copy()
        moved[number] ^= 1
        some = {**tensors, "x.0.p.qweight": ("I32", [COLUMNS // 8, ROWS], moved.tobytes())}
        tuned = single(tmp_path, some, base, {**AUTOROUND, "iters": 200})
        if tuned.layers == {"x.0.p": TUNED} and tuned.clean:
            break
    assert tuned.clean, "one of the codes can have been tuned"
    rounded = single(tmp_path, some, base, {**AUTOROUND, "iters": 0})
    assert (rounded.outcome, rounded.exit_status) == (Outcome.NOT_MODELLED, 3)
    assert {each.tensor for each in rounded.unmodelled} == {"quantization_config: iters"}


@pytest.mark.parametrize(("held", "wanted"), [("BF16", "F16"), ("BF16", "F32"), ("F32", "BF16"), ("F16", "F32")])
def test_floats_in_another_dtype_are_the_bases_rounded(held: str, wanted: str, tmp_path: Path) -> None:
    def stored(dtype: str) -> tuple[str, list[int], bytes]:
        values = np.random.default_rng(2).normal(0, 0.02, ROWS).astype("<f4")
        values = values.astype("<f2").astype("<f4") if held == "F16" else values
        if held == "BF16":
            values = (values.view("<u4") & np.uint32(0xFFFF0000)).view("<f4")
        if dtype != "BF16":
            return dtype, [ROWS], values.astype({"F16": "<f2", "F32": "<f4"}[dtype]).tobytes()
        bits = values.view("<u4").astype(np.uint64)
        return dtype, [ROWS], ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()

    tensors, base = layer()
    base = {**base, "x.0.p.bias": stored(held)}
    result = single(tmp_path, {**tensors, "x.0.p.bias": stored(wanted)}, base, AUTOROUND)
    assert (result.outcome, result.layers["x.0.p.bias"]) == (Outcome.CLEAN, CONVERTED)
    data = bytearray(stored(wanted)[2])
    data[len(data) // 2] ^= 1
    spoilt = single(tmp_path, {**tensors, "x.0.p.bias": (wanted, [ROWS], bytes(data))}, base, AUTOROUND)
    assert [(each.kind, each.tensor, each.index) for each in spoilt.findings] == [
        ("not the base's bytes", "x.0.p.bias", (ROWS // 2,))
    ]


def test_transposed_experts_are_halves_for_autoround_of_one_series(tmp_path: Path) -> None:
    """gpt-oss stores experts [experts, in, 2 * out]; AutoRound 0.12 calls the first half of the columns gate."""
    weight = np.frombuffer(layer()[1]["x.0.p.weight"][2], "<u2").reshape(ROWS, COLUMNS)
    both = np.concatenate([weight.T, weight[::-1].T], axis=1)
    experts = "x.0.mlp.experts"
    base = {
        f"{experts}.gate_up_proj": ("BF16", [1, COLUMNS, 2 * ROWS], np.ascontiguousarray(both).tobytes()),
        f"{experts}.down_proj": zeros("BF16", 1, ROWS, COLUMNS),
    }
    made = {key.replace("x.0.p", f"{experts}.0.gate_proj"): tensor for key, tensor in layer()[0].items()}
    told = {**AUTOROUND, "autoround_version": "0.12.2"}
    result = single(tmp_path, made, base, told)
    assert result.layers == {f"{experts}.0.gate_proj": rounding.FULL}
    up = {key.replace("gate_proj", "up_proj"): tensor for key, tensor in made.items()}
    assert f"{experts}.0.up_proj.scales" in {each.tensor for each in single(tmp_path, up, base, told).findings}
    assert single(tmp_path, made, base, {**told, "autoround_version": "0.16.1"}).layers == {}


def test_interleaved_experts_are_not_modelled_and_mixtral_names_are(tmp_path: Path) -> None:
    def expert(projection: str, name: str = "x.0.mlp.experts.0") -> dict[str, Any]:
        return {key.replace("x.0.p", f"{name}.{projection}_proj"): tensor for key, tensor in layer()[0].items()}

    fused = {
        "x.0.mlp.experts.gate_up_proj": zeros("BF16", 1, COLUMNS, 2 * ROWS),
        "x.0.mlp.experts.gate_up_proj_bias": zeros("BF16", 1, 2 * ROWS),
        "x.0.mlp.experts.down_proj": zeros("BF16", 1, ROWS, COLUMNS),
    }
    result = single(tmp_path, {**expert("gate"), **expert("up")}, fused, AUTOROUND)
    assert (result.findings, [each.tensor for each in result.unmodelled]) == ((), ["x.0.mlp.experts"])
    weight = layer()[1]["x.0.p.weight"]
    mixtral = {f"x.0.block_sparse_moe.experts.0.{name}.weight": weight for name in ("w1", "w3")}
    made = {**expert("gate", "x.0.block_sparse_moe.experts.0"), **expert("up", "x.0.block_sparse_moe.experts.0")}
    assert single(tmp_path, made, mixtral, AUTOROUND).clean
    assert found(single(tmp_path, expert("gate"), {"y": weight}, AUTOROUND)) >= {
        ("no origin", "x.0.mlp.experts.0.gate_proj.qweight")
    }


def test_nothing_quantized_is_nothing_to_check(tmp_path: Path) -> None:
    result = single(tmp_path, layer()[1], layer()[1], None)
    assert (result.outcome, result.exit_status, result.findings) == (Outcome.NOTHING, 3, ())
    assert result.as_json()["packed"] == 0
    assert "nothing is quantized" in result.text(9)
    declared = single(tmp_path, layer()[1], layer()[1], AUTOROUND)
    assert found(declared) == {("declared otherwise", f"config.json: {QUANTIZATION}")}


@given(
    rows=st.integers(1, 8).map(lambda n: 32 * n),
    columns=st.integers(1, 8).map(lambda n: 32 * n),
    groups=st.integers(1, 4),
    bits=st.sampled_from([2, 3, 4, 8]),
    layout=st.sampled_from(["gptq", "awq"]),
)
def test_shapes_tell_the_packing(
    rows: int, columns: int, groups: int, bits: int, layout: Literal["gptq", "awq"]
) -> None:
    if layout == "awq":
        bits = 4
    from requant.checkpoint.safetensors import Spec

    words = {"gptq": (columns * bits // 32, rows), "awq": (columns, rows * bits // 32)}
    specs = {
        "qweight": Spec("I32", words[layout]),
        "qzeros": Spec("I32", (groups, rows * bits // 32)),
        "scales": Spec("F16", (groups, rows)),
    }
    assert packing_of(specs, rows, columns) == Packing(layout, bits, groups)
    assert packing_of({**specs, "qzeros": Spec("I32", (groups, rows))}, rows, columns) is None


def test_a_repository_is_bound_alike(tmp_path: Path) -> None:
    from tests.hub import running

    config = {"model_type": "llama", "rms_norm_eps": 1e-6}
    single(tmp_path, *layer(), AUTOROUND)
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    (tmp_path / "made" / "config.json").write_text(
        json.dumps({**config, "rms_norm_eps": 1e-5, QUANTIZATION: AUTOROUND})
    )
    with running() as hub:
        for name, sha in (("made", "a" * 40), ("base", "b" * 40)):
            hub.serve("model", f"o/{name}", sha, tmp_path / name)
        with open_reader("o/made@main", hub.url) as theirs, open_reader("o/base@main", hub.url) as ours:
            assert isinstance(theirs, Reader)
            assert found(check(theirs, ours)) == {("differs from the base", "config.json: rms_norm_eps")}


def test_a_long_value_is_cut_behind_a_whole_element() -> None:
    """`layer_types` has an entry per layer: half a word of one reads like a wrong one."""
    kinds = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]
    (found,) = compare("config.json", {"layer_types": kinds * 10}, {"layer_types": [*kinds * 9, *kinds[::-1]]})
    shown = "['linear_attention', 'linear_attention', 'linear_attention', 'full_attention', … (40 in all)]"
    assert found.detail == f"{shown}, the base has {shown}"
    (found,) = compare("config.json", {"a": ["x" * 100]}, {"a": "y" * 100})
    assert found.detail == f"['{'x' * 78}…, the base has '{'y' * 79}…"
    (found,) = compare("config.json", {"a": kinds[:2], "b": 1}, {"b": 1})
    assert (found.kind, found.detail) == ("stated by the checkpoint alone", str(kinds[:2]))
