"""Layers that have a scheme of their own: what a recipe can ask of a base, and what follows from it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT

from requant.checkpoint.checkpoint import Checkpoint, Held, Tensor
from requant.checkpoint.safetensors import Spec
from requant.errors import RecipeError
from requant.formats.form import Form
from requant.model.plan import Plan, Question, read_plan, write_plans
from requant.model.tables import Table, table_of
from requant.model.target import Target, confirm_groups, confirm_names, confirm_schemes
from requant.passes.context import MAIN, Mending
from requant.passes.main import tuned
from requant.passes.overrides import quantization_config
from requant.protocol import Layer, Own, Source
from requant.recipe import Layers, LayerScheme, Recipe, SchemeName, read_recipe

EC = read_recipe(ROOT / "builds" / "ec")
PARTS = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")


def scheme(name: SchemeName = "W8A16") -> LayerScheme:
    return LayerScheme(name, symmetric=True, group_size=32)


def asking(*ignore: str, iterations: int = 6, **schemes: LayerScheme) -> Recipe:
    """EC's recipe with schemes of layers' own, by their patterns."""
    return replace(EC, layers=Layers(ignore, schemes), tuning=replace(EC.tuning, iterations=iterations))


def target(recipe: Recipe, table: Table | None = None, *, tied: bool = False, more: Any = ()) -> Target:
    """What AutoRound would answer of two blocks, `lm_head` beside them, and `more` layers."""
    layers = {}
    for name in (*(f"model.layers.{i}.{part}_proj" for i in (0, 1) for part in PARTS), "lm_head"):
        own = next((each for key, each in recipe.layers.schemes.items() if key in name), None)
        beside = name == "lm_head" and (own is None or tied)
        reason = "outside the blocks" if beside else "ignored" if any(p in name for p in recipe.layers.ignore) else ""
        way = Own(own.bits, own.group_size, own.symmetric, "asked for") if own and not reason else None
        layers[name] = Layer((64, 64), reason, Source(f"{name}.weight"), way)
    layers |= {name: Layer((64, 64), "", Source(name), Own(8, 32, True, "asked for")) for name in more}
    tensors = {f"{name}.weight": Spec("BF16", layer.shape) for name, layer in layers.items()}
    ties = {"lm_head.weight": "model.embed_tokens.weight"} if tied else {}
    blocks = ("model.layers.0", "model.layers.1", *(["lm_head"] if layers["lm_head"].packed else []))
    form = Form("auto_round:auto_gptq", 4, 64, symmetric=True)
    plan = Plan({}, tensors, blocks, layers, tied=ties)
    return Target(plan, table or table_of({"model_type": "llama"}), recipe.layers.ignore, "none", form)


def refused(recipe: Recipe, table: Table | None = None, **more: Any) -> str:
    with pytest.raises(RecipeError) as error:
        confirm_schemes(recipe, target(recipe, table, **more))
    return str(error.value).removeprefix(f"{recipe.path}: layers.schemes: found ")


@pytest.mark.parametrize(
    "recipe",
    [
        asking(),
        asking(mlp=scheme()),
        asking(self_attn=scheme("W2A16"), down_proj=scheme()),
        asking("layers.0.self_attn", mlp=scheme()),
        asking(mlp=scheme(), down_proj=scheme()),
        asking(iterations=0, lm_head=scheme()),
        asking(lm_head=scheme()),
    ],
)
def test_what_loaders_join_can_have_a_scheme_together(recipe: Recipe) -> None:
    confirm_schemes(recipe, target(recipe))


def test_what_cannot_be_asked_is_named() -> None:
    assert refused(asking(dwon_proj=scheme())) == "'dwon_proj', allowed: a part of a packed layer's name: of none"
    assert "alike: loaders fuse them (defect D06)" in refused(asking(q_proj=scheme()))
    told = refused(asking(mlp=scheme(), down_proj=scheme("W2A16")))
    assert told == "'down_proj', allowed: no part of model.layers.0.mlp.down_proj, of which 'mlp' asks something else"
    told = refused(asking("_proj", mlp=scheme()))
    assert told.endswith("a part of a packed layer's name: model.layers.0.mlp.gate_proj stays float, ignored")
    told = refused(asking("layers.0.mlp", mlp=scheme()))
    assert told == "'mlp', allowed: no part of model.layers.0.mlp.gate_proj, which layers.ignore keeps float"
    recipe, other = asking(mlp=scheme()), asking(mlp=scheme("W2A16"))
    with pytest.raises(RecipeError, match=r"AutoRound packs it otherwise, \(2, 32, True\) and not \(8, 32, True\)"):
        confirm_schemes(recipe, target(other))
    told = refused(asking(merger=scheme()), Table("x", extras={"visual": "visual."}), more=("visual.merger",))
    assert told == "'merger', allowed: no part of visual.merger, which is copied from the base"
    experts = "model.layers.0.mlp.experts.0.up", "model.layers.0.mlp.experts.1.up"
    assert "D17" in refused(asking(experts=scheme()), Table("x", experts="experts"), more=experts)


def test_a_head_that_is_tied_or_of_hints_in_bfloat16_stays_float() -> None:
    for iterations in (0, 6):
        told = refused(asking(iterations=iterations, lm_head=scheme()), tied=True)
        assert told.endswith("lm_head stays float, it is model.embed_tokens.weight, to which it is tied")
    recipe = asking(lm_head=scheme())
    recipe = replace(recipe, tuning=replace(recipe.tuning, hints=True, precision="bfloat16"))
    assert recipe.tiny.precision == "float32"
    whole = replace(recipe, tuning=replace(recipe.tuning, precision="float32"))
    for each in (recipe, replace(whole, tiny=replace(whole.tiny, precision="bfloat16"))):
        told = refused(each)
        assert told.endswith("no part of lm_head with tuning.hints in bfloat16: only blocks are opened")
    confirm_schemes(whole, target(whole))


def test_a_layer_is_stored_and_declared_in_its_own_way() -> None:
    recipe = asking(iterations=0, down_proj=scheme(), lm_head=scheme("W2A16"))
    made = target(recipe)
    assert made.main["model.layers.0.mlp.down_proj.qweight"] == Spec("I32", (16, 64))
    assert made.main["model.layers.0.mlp.up_proj.qweight"] == Spec("I32", (8, 64))
    assert made.main["lm_head.qweight"] == Spec("I32", (4, 64))
    assert (made.form_at("lm_head.qzeros").bits, made.form_at("model.layers.1.mlp.up_proj.scales").bits) == (2, 4)
    base = Checkpoint({}, {"config.json": Held(b"{}")})
    config = json.loads(quantization_config(base, Mending(base, made, 1, {})).file("config.json"))
    eight = {"bits": 8, "group_size": 32, "sym": True, "data_type": "int"}
    assert config["quantization_config"] == {
        "block_name_to_quantize": ["model.layers"],
        "extra_config": {
            "lm_head": eight | {"bits": 2},
            **{f"model.layers.{number}.mlp.down_proj": eight for number in (0, 1)},
        },
    }


def test_an_export_to_gptq_has_an_expression_for_each_layer_that_is_not_as_all_are() -> None:
    made = target(asking("layers.0.self_attn", iterations=0, down_proj=scheme(), lm_head=scheme("W2A16")))
    form = Form("auto_gptq", 4, 64, symmetric=True)
    base = Checkpoint({}, {"config.json": Held(b"{}")})
    config = json.loads(quantization_config(base, Mending(base, replace(made, form=form), 1, {})).file("config.json"))
    said = config["quantization_config"]
    assert said["lm_head"] is True
    assert list(said) == ["lm_head", "dynamic", "modules_in_block_to_quantize"]
    layer = r"^model\.layers\.0\."
    assert {key: value for key, value in said["dynamic"].items() if "0" in key} == {
        **{f"-:{layer}self_attn\\.{part}_proj$": {} for part in "qkvo"},
        f"+:{layer}mlp\\.down_proj$": {"bits": 8, "group_size": 32, "sym": True},
    }
    # Of no block alone: AutoRound 0.12.2 would leave attention out.
    assert said["modules_in_block_to_quantize"] == [sorted(f"{part}_proj" for part in PARTS)]


def test_an_export_to_awq_names_float_layers_by_parts_of_their_names() -> None:
    made, form = target(asking("layers.0.self_attn")), Form("auto_awq", 4, 64, symmetric=True)
    base = Checkpoint({}, {"config.json": Held(b"{}")})
    config = json.loads(quantization_config(base, Mending(base, replace(made, form=form), 1, {})).file("config.json"))
    ignored = [f"model.layers.0.self_attn.{part}_proj" for part in "koqv"]
    assert config["quantization_config"] == {"modules_to_not_convert": ["lm_head", *ignored]}
    confirm_names(EC, replace(made, form=form))
    short = Layer((64, 64), "ignored", None)
    strange = replace(made, plan=replace(made.plan, layers={**made.plan.layers, "model.layers.1.mlp.up": short}))
    confirm_names(EC, strange)
    with pytest.raises(RecipeError, match=r"model\.layers\.1\.mlp\.up is float, and its name"):
        confirm_names(EC, replace(strange, form=form))


def test_awq_has_whole_groups_of_each_scheme() -> None:
    recipe = asking(down_proj=scheme("W4A16"))
    made, form = target(recipe), Form("auto_round:auto_awq", 4, 64, symmetric=True)
    confirm_groups(recipe, replace(made, form=form))
    layers = {**made.plan.layers, "model.layers.0.mlp.down_proj": Layer((64, 48), "", None, Own(4, 32, True, ""))}
    with pytest.raises(RecipeError, match=r"layers\.schemes: found 32, allowed: a divisor of the 48 inputs"):
        confirm_groups(recipe, replace(made, plan=replace(made.plan, layers=layers), form=form))


def test_a_plan_keeps_what_is_asked_and_answered(tmp_path: Path) -> None:
    made = target(asking(iterations=0, mlp=scheme(), lm_head=scheme("W2A16")))
    asked = Question("W4A16", 64, (), {"mlp": ("W8A16", True, 32), "lm_head": ("W2A16", True, 32)})
    file, other = tmp_path / "plan.json", tmp_path / "other.json"
    write_plans(file, asked, {"mini": made.plan})
    found = read_plan(file, "mini", asked)
    assert (found.layers, found.blocks) == (made.plan.layers, made.plan.blocks)
    with pytest.raises(RecipeError, match="was asked for with"):
        read_plan(file, "mini", replace(asked, schemes={}))
    for wrong in ([8, 32, True], [8, 0, True, "x"], [5, 32, True, "x"], [8, 32, 1, "x"], [8, 32, True, 1], "x"):
        value = json.loads(file.read_text())
        value["mini"]["layers"][-1][4:] = [wrong]
        other.write_text(json.dumps(value))
        with pytest.raises(RecipeError, match="no plan of mini that can be read"):
            read_plan(other, "mini", asked)


def test_what_autoround_writes_under_the_names_of_the_bases_files_gets_the_plans() -> None:
    """AutoRound 0.16 does so of Mixtral, whose `block_sparse_moe` is `mlp` in the model."""
    source, form = Source("a.0.moe.w1.weight"), Form("auto_gptq", 4, 32, symmetric=True)
    tensors = {"a.0.moe.gate.weight": Spec("BF16", (4, 64)), source.tensor: Spec("BF16", (64, 64))}
    elsewhere = {"a.0.mlp.gate.weight": Source("a.0.moe.gate.weight")}
    plan = Plan({}, tensors, ("a.0",), {"a.0.mlp.gate_proj": Layer((64, 64), "", source)}, elsewhere=elsewhere)
    made = Target(plan, table_of({"model_type": "llama"}), (), "none", form)
    raw = {f"a.0.moe.gate_proj.{suffix}": held(spec, b"\1") for suffix, spec in form.specs((64, 64)).items()}
    raw["a.0.moe.gate.weight"] = held(tensors["a.0.moe.gate.weight"], b"\2")
    base = Checkpoint({}, {"config.json": Held(b"{}")})
    found = tuned(Checkpoint({"model.safetensors": raw}, {}), Mending(base, made, 1, {})).shards[MAIN]
    assert [*found] == [
        "a.0.mlp.gate.weight",
        *(f"a.0.mlp.gate_proj.{suffix}" for suffix in ("qweight", "qzeros", "scales", "g_idx")),
    ]
    assert found["a.0.mlp.gate.weight"].read() == raw["a.0.moe.gate.weight"].read()
    assert found["a.0.mlp.gate_proj.g_idx"].read() == bytes([0, 0, 0, 0] * 32 + [1, 0, 0, 0] * 32), "as inputs lie"


def held(spec: Spec, byte: bytes) -> Tensor:
    return Tensor(spec, Held(byte * spec.nbytes))
