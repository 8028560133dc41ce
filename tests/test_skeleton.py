"""The base of the three recipes, what they make of it, and what its config.json means."""

import json
import subprocess
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT, Refuses
from tests.tiny import EC, config, tiny, write_tiny

from requant.checkpoint.checkpoint import open_checkpoint
from requant.checkpoint.safetensors import Spec
from requant.errors import CheckpointError
from requant.inspect.anatomy import LM, MTP, VISUAL
from requant.model.plan import Plan, Specs
from requant.model.rules import SIZES
from requant.model.skeleton import is_modelled, plan, skeleton, tables
from requant.model.tables import ignored
from requant.model.target import target_of
from requant.mtp_blocks import MTP_BLOCKS
from requant.protocol import Layer, Source
from requant.recipe import read_recipe

BASE = config(None)
TARGETS = {name: target_of(read_recipe(ROOT / "builds" / name), None) for name in ("ec", "gb10", "intel")}
PLAN = TARGETS["ec"].plan
ATTENTION = "model.language_model.layers.3."
LINEAR = "model.language_model.layers.4."


def part(specs: Specs, prefix: str) -> Specs:
    return {name: spec for name, spec in specs.items() if name.startswith(prefix)}


def size(specs: Specs) -> int:
    return sum(spec.size for spec in specs.values())


def nbytes(specs: Specs) -> int:
    return sum(spec.nbytes for spec in specs.values())


# The base: facts published about it, by count and by sum.


def test_tensors_of_the_base() -> None:
    base = PLAN.tensors
    visual, mtp = part(base, VISUAL), part(base, MTP)
    assert (len(base), len(visual), len(mtp)) == (1045, 333, 19)
    assert len(base) - len(visual) - len(mtp) == 693
    assert sum(name.endswith(".weight") for name in visual) == 167
    assert (len(part(base, LINEAR)), len(part(base, ATTENTION))) == (18, 15)


def test_parameters_and_bytes_of_the_base() -> None:
    base = PLAN.tensors
    assert size(base) == 35_951_822_704
    assert size(part(base, MTP)) == 844_640_768
    assert size(part(base, VISUAL)) == 446_571_248
    assert nbytes(base) == 71_903_645_408
    assert {spec.dtype for spec in base.values()} == {"BF16"}


def test_shapes_of_the_base() -> None:
    base = PLAN.tensors
    assert base[f"{LINEAR}mlp.experts.gate_up_proj"] == Spec("BF16", (256, 1024, 2048))
    assert base[f"{LINEAR}mlp.experts.down_proj"] == Spec("BF16", (256, 2048, 512))
    assert base[f"{LINEAR}linear_attn.in_proj_a.weight"] == Spec("BF16", (32, 2048))
    assert base[f"{LINEAR}linear_attn.conv1d.weight"] == Spec("BF16", (8192, 1, 4))
    assert base[f"{ATTENTION}self_attn.q_proj.weight"] == Spec("BF16", (8192, 2048))
    assert base["mtp.layers.0.mlp.experts.gate_up_proj"] == Spec("BF16", (256, 1024, 2048))
    assert base["lm_head.weight"] == base["model.language_model.embed_tokens.weight"] == Spec("BF16", (248320, 2048))


def test_every_fourth_block_has_full_attention() -> None:
    base = PLAN.tensors
    full = [i for i, block in enumerate(PLAN.blocks) if f"{block}.self_attn.q_proj.weight" in base]
    linear = [i for i, block in enumerate(PLAN.blocks) if f"{block}.linear_attn.A_log" in base]
    assert full == list(range(3, 40, 4))
    assert sorted(full + linear) == list(range(40))


def test_linear_layers_of_the_base() -> None:
    found = PLAN.layers
    assert len(found) == 31_181
    assert sum(name.startswith(VISUAL) for name in found) == 110
    assert [name for name in found if not name.startswith((VISUAL, LM))] == ["lm_head"]
    assert sum(name.startswith(f"{LINEAR}mlp.experts.") for name in found) == 3 * 256


# What the recipes make of it.


@pytest.mark.parametrize(
    ("name", "layers", "tensors", "main", "extras"),
    [
        ("ec", 31_030, 96_061, 19_545_968_896, 1_345_173_984),
        ("intel", 31_030, 96_061, 19_545_968_896, 1_345_173_984),
        ("gb10", 30_850, 93_385, 19_738_076_416, 2_582_424_032),
    ],
)
def test_what_a_recipe_writes(name: str, layers: int, tensors: int, main: int, extras: int) -> None:
    written = TARGETS[name].main, TARGETS[name].extras
    assert len(TARGETS[name].plan.packed) == layers
    assert len(written[0]) + len(written[1]) == len(written[0] | written[1]) == tensors
    assert (nbytes(written[0]), nbytes(written[1])) == (main, extras)


def test_sums_that_the_cards_can_be_held_against() -> None:
    ec, gb10 = nbytes(TARGETS["ec"].main), nbytes(TARGETS["gb10"].main)
    packed = TARGETS["ec"].extras
    visual = nbytes(part(packed, VISUAL))
    assert (visual, nbytes(part(packed, MTP))) == (893_142_496, 452_031_488)
    assert ec + nbytes(packed) == 20_891_142_880
    assert gb10 + nbytes(TARGETS["gb10"].extras) == 22_320_500_448
    assert gb10 + nbytes(packed) == 21_083_250_400  # GB10's main part with a whole MTP block in INT4

    # The raw output of EC's command: visual tower in the main part, routed MTP experts left as they are.
    experts = part(PLAN.tensors, "mtp.layers.0.mlp.experts.")
    split = [name for name in packed if name.startswith("mtp.layers.0.mlp.experts.")]
    raw_mtp = {name: spec for name, spec in part(packed, MTP).items() if name not in split} | experts
    assert (len(raw_mtp), nbytes(raw_mtp)) == (33, 1_644_262_400)
    assert ec + visual == 20_439_111_392
    assert ec + visual + nbytes(raw_mtp) == 22_083_373_792


def test_mtp_by_policy() -> None:
    packed = part(TARGETS["ec"].extras, MTP)
    assert len(packed) == 2335
    assert sum(".mlp.experts." in name for name in packed) == 2304 == 256 * 3 * 3
    left = {name.removesuffix(".weight") for name in packed if packed[name].dtype == "BF16" and "norm" not in name}
    assert left == {"mtp.fc", "mtp.layers.0.mlp.gate", "mtp.layers.0.mlp.shared_expert_gate"}
    assert part(TARGETS["gb10"].extras, MTP) == part(PLAN.tensors, MTP)


@pytest.mark.parametrize("name", ["ec", "gb10"])
def test_what_stays_float_in_the_blocks(name: str) -> None:
    """Widths that are no multiple of 32 leave shared_expert_gate alone; everything else, the recipe names."""
    packed = TARGETS[name].plan.packed
    left = {each for each in PLAN.layers if each.startswith((LINEAR, ATTENTION)) and each not in packed}
    gates = {f"{block}mlp.shared_expert_gate" for block in (LINEAR, ATTENTION)}
    shared = {
        f"{block}mlp.shared_expert.{half}_proj" for block in (LINEAR, ATTENTION) for half in ("gate", "up", "down")
    }
    halves = {f"{LINEAR}linear_attn.in_proj_{half}" for half in "ab"}
    assert left == (gates if name == "ec" else gates | shared | halves)
    assert not any(each.startswith((VISUAL, "lm_head")) for each in packed)


def test_a_width_that_is_no_multiple_of_32_is_left_alone() -> None:
    narrow = BASE | {"text_config": BASE["text_config"] | {"moe_intermediate_size": 528}}
    assert len(plan(BASE, ()).packed) - len(plan(narrow, ()).packed) == 40 * 256 * 3


def test_the_three_tensors_of_a_packed_layer() -> None:
    main = TARGETS["ec"].main
    layer = f"{LINEAR}mlp.experts.255.down_proj"
    assert main[f"{layer}.qweight"] == Spec("I32", (512 // 8, 2048))
    assert main[f"{layer}.qzeros"] == Spec("I32", (4, 2048 // 8))
    assert main[f"{layer}.scales"] == Spec("F16", (4, 2048))
    assert f"{layer}.weight" not in main
    assert f"{LINEAR}mlp.experts.down_proj" not in main


def test_where_a_layers_weight_lies_in_the_base() -> None:
    made, experts = PLAN, f"{LINEAR}mlp.experts."
    assert made.layers[f"{LINEAR}linear_attn.out_proj"].source == Source(f"{LINEAR}linear_attn.out_proj.weight")
    assert made.layers[f"{experts}7.gate_proj"].source == Source(f"{experts}gate_up_proj", (7,), 0, 2)
    assert made.layers[f"{experts}7.up_proj"].source == Source(f"{experts}gate_up_proj", (7,), 1, 2)
    assert made.layers[f"{experts}7.down_proj"].source == Source(f"{experts}down_proj", (7,))
    spec = made.tensors[f"{experts}gate_up_proj"]
    assert Source(f"{experts}gate_up_proj", (7,), 1, 2).flat_rows(spec.shape, 512) == (7 * 1024 + 512, 8 * 1024)
    assert {layer.source.tensor for layer in made.layers.values() if layer.source} <= made.tensors.keys()


def test_the_mtp_block_has_the_layers_of_a_block_with_its_tensors() -> None:
    made, found = PLAN.beside_blocks(MTP_BLOCKS["qwen3_5_moe"], ("mtp.fc",)), skeleton(BASE)
    layers = found.layers(part(found.tensors, MTP))
    assert {name: (layer.shape, layer.source) for name, layer in made.items()} == {
        name: (layer.shape, layer.source) for name, layer in layers.items()
    }
    float_ = {"mtp.fc", "mtp.layers.0.mlp.shared_expert_gate"}
    assert {name for name, layer in made.items() if not layer.packed} == float_


def test_a_pattern_is_a_part_of_a_name() -> None:
    assert ignored("mtp.layers.0.mlp.shared_expert_gate", ("shared_expert",))
    assert not ignored("mtp.layers.0.mlp.shared_expert_gate", ("shared_experts", "gate."))


# The tiny model has the same form.


@pytest.mark.parametrize("size", SIZES)
def test_the_tiny_models_shards_hold_the_plan_in_order(size: str) -> None:
    found = {name: tensor.spec for shard in tiny(size).shards.values() for name, tensor in shard.items()}
    assert list(found.items()) == list(target_of(EC, size).plan.tensors.items())


def test_the_tiny_models_headers_are_what_its_config_means(tmp_path: Path) -> None:
    write_tiny("mini", tmp_path)
    written = open_checkpoint(tmp_path)
    found = {name: tensor.spec for name, tensor in written.tensors.items()}
    assert found == skeleton(json.loads(written.file("config.json"))).tensors


def test_the_tiny_model_has_the_names_of_the_base() -> None:
    """Of a block of each kind, of the MTP block, of a visual block and of everything around them."""

    def kinds(found: Specs) -> set[str]:
        return {".".join("N" if each.isdigit() else each for each in name.split(".")) for name in found}

    assert kinds(target_of(EC, "mini").plan.tensors) == kinds(PLAN.tensors)


# What config.json means, against what AutoRound was asked.


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("size", [None, *SIZES])
def test_the_skeleton_of_a_config_is_what_autoround_planned(name: str, size: str | None) -> None:
    """Nobody asks about a stranger's checkpoint; of this base, both ways end in one plan, but for the words."""
    recipe = read_recipe(ROOT / "builds" / name)
    planned, found = target_of(recipe, size).plan, plan(config(size), recipe.layers.ignore)
    assert list(found.tensors.items()) == list(planned.tensors.items())
    assert (found.blocks, found.unloaded, found.tied) == (planned.blocks, planned.unloaded, planned.tied)

    def said(made: Plan) -> dict[str, Layer]:
        return {key: replace(layer, reason="float" if layer.reason else "") for key, layer in made.layers.items()}

    assert said(found) == said(planned)


def test_a_layer_lies_where_its_block_does() -> None:
    found = skeleton(BASE)
    assert {*found.layers(found.tensors)} == {*PLAN.layers, *TARGETS["ec"].mtp}
    inside = found.layers(found.inside["full_attention"])
    assert {name: layer.shape for name, layer in inside.items()} == {
        name.removeprefix(ATTENTION): PLAN.layers[name].shape for name in PLAN.layers if name.startswith(ATTENTION)
    }


@pytest.mark.parametrize("model_type", ["qwen3_5_moe"])
def test_a_table_is_a_screenful(model_type: str) -> None:
    assert {*tables()} == {model_type}
    assert len(ROOT.joinpath(f"src/requant/model/skeletons/{model_type}.toml").read_text().splitlines()) <= 80


@pytest.mark.parametrize("model_type", [None, "", "llama", "../tables/dense", ["qwen3_5_moe"], {}])
def test_what_has_no_table_is_not_modelled(model_type: Any) -> None:
    assert is_modelled(BASE)
    assert not is_modelled(BASE | {"model_type": model_type})


@pytest.mark.worker
@pytest.mark.full
@pytest.mark.parametrize("settings", [BASE, config("mini")], ids=["base", "mini"])
def test_transformers_builds_these_tensors(settings: dict[str, Any], worker: Path) -> None:
    """All but MTP, which it does not build; its order is the skeleton's within a module."""
    code = (
        "import json, sys, torch, transformers\n"
        "config = transformers.models.qwen3_5_moe.Qwen3_5MoeConfig(**json.load(sys.stdin))\n"
        "with torch.device('meta'):\n"
        "    model = transformers.Qwen3_5MoeForConditionalGeneration(config)\n"
        "print(json.dumps({name: list(value.shape) for name, value in model.state_dict().items()}))"
    )
    command = [str(worker), "-s", "-P", "-c", code]
    done = subprocess.run(command, input=json.dumps(settings), capture_output=True, text=True, check=True)
    expected = {name: list(spec.shape) for name, spec in skeleton(settings).tensors.items() if not name.startswith(MTP)}
    assert json.loads(done.stdout) == expected


# Configurations that are none.


@pytest.mark.parametrize("table", ["text_config", "vision_config"])
@pytest.mark.parametrize("value", [None, [], "x", 1, {}])
def test_a_table_of_another_type_is_refused(table: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        skeleton(BASE | {table: value})


OPTIONAL = (
    "attn_output_gate",
    "full_attention_interval",
    "layer_types",
    "mtp_num_hidden_layers",
    "tie_word_embeddings",
)
UNREAD = {
    *("attention_bias", "dtype", "eos_token_id", "hidden_act", "max_position_embeddings", "model_type", "num_heads"),
    *("mtp_use_dedicated_embeddings", "num_experts_per_tok", "rms_norm_eps", "rope_parameters"),
}
FIELDS = [(table, key) for table in ("text_config", "vision_config") for key in BASE[table] if key not in UNREAD]


@pytest.mark.parametrize(("table", "key"), [field for field in FIELDS if field[1] not in OPTIONAL])
def test_a_missing_field_is_named(table: str, key: str) -> None:
    broken = deepcopy(BASE)
    del broken[table][key]
    with pytest.raises(CheckpointError, match=key):
        skeleton(broken)


@pytest.mark.parametrize("key", OPTIONAL)
def test_a_field_that_may_be_left_out_is_as_in_its_class(key: str) -> None:
    left = deepcopy(BASE)
    del left["text_config"][key]
    assert (skeleton(left).tensors == PLAN.tensors) == (key != "mtp_num_hidden_layers")


@pytest.mark.parametrize(("table", "key"), FIELDS)
@pytest.mark.parametrize("value", [None, "2048", 2.5, [1]])
def test_a_field_that_is_no_number_is_refused(table: str, key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        skeleton(BASE | {table: BASE[table] | {key: value}})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 0),
        ("num_experts", -1),
        ("full_attention_interval", 0),
        ("layer_types", []),
        ("layer_types", ["full_attention"] * 39),
        ("layer_types", ["sliding_attention"] * 40),
        ("layer_types", None),
        ("attn_output_gate", 7),
        ("hidden_size", True),
    ],
)
def test_an_impossible_value_is_refused(key: str, value: Any, refuses: Refuses) -> None:
    with refuses(CheckpointError):
        skeleton(BASE | {"text_config": BASE["text_config"] | {key: value}})


def test_listed_layer_types_win_over_the_interval() -> None:
    kinds = ["full_attention", *["linear_attention"] * 39]
    base = skeleton(BASE | {"text_config": BASE["text_config"] | {"layer_types": kinds}}).tensors
    assert "model.language_model.layers.0.self_attn.q_proj.weight" in base
    assert "model.language_model.layers.3.linear_attn.A_log" in base


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ("text_config", "num_experts"),
        ("text_config", "num_hidden_layers"),
        ("text_config", "mtp_num_hidden_layers"),
        ("vision_config", "depth"),
    ],
)
def test_a_configuration_that_would_fill_the_memory_is_refused(table: str, key: str) -> None:
    with pytest.raises(CheckpointError, match=f"{key}: "):
        skeleton({**BASE, table: {**BASE[table], key: 10**9}})
