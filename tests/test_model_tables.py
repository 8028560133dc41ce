import json
import tomllib
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT, Refuses

from requant.checkpoint.checkpoint import Checkpoint, Held
from requant.checkpoint.safetensors import Spec
from requant.errors import RecipeError
from requant.formats.form import Form
from requant.inspect.anatomy import LM, MTP, VISUAL
from requant.inspect.loaders import LOADERS
from requant.inspect.loaders.modules import modules
from requant.model.base_config import base_config
from requant.model.plan import Plan
from requant.model.skeleton import skeleton
from requant.model.summary import summarize
from requant.model.tables import Table, confirm_layers, table_of
from requant.model.target import Target, target_of
from requant.passes.context import Mending
from requant.passes.overrides import quantization_config
from requant.protocol import Layer
from requant.recipe import Layers, Mtp, Recipe, read_recipe

EC = read_recipe(ROOT / "builds" / "ec")
BASE = target_of(EC, None)
LAYERS = (*BASE.plan.layers, *BASE.mtp)
QWEN = table_of({"model_type": "qwen3_5_moe"})
DENSE = [f"model.layers.{i}.{each}_proj" for i in (0, 1) for each in ("self_attn.q", "self_attn.k", "self_attn.v")]
DENSE += [f"model.layers.{i}.mlp.{each}_proj" for i in (0, 1) for each in ("gate", "up", "down")]


def asking(policy: Any = "rtn", *ignore: str) -> Recipe:
    return replace(EC, layers=Layers(ignore), mtp=Mtp(policy))


def refused(recipe: Recipe, table: Table = QWEN, layers: Any = LAYERS) -> str:
    with pytest.raises(RecipeError) as error:
        confirm_layers(recipe, table, layers)
    return str(error.value).removeprefix(f"{recipe.path}: ")


def test_every_table_is_a_screenful_of_the_same_keys() -> None:
    seen: list[str] = []
    for file in resources.files("requant.model").joinpath("tables").iterdir():
        value = tomllib.loads(file.read_text())
        more = {"aliases", "processor", "routers", "zero_centred"}
        assert value.keys() - more == {"model_types", "fused", "experts", "extras"}
        assert value["extras"].keys() <= {"visual"}
        assert len(file.read_text().splitlines()) < 25
        seen += value["model_types"]
    assert sorted(seen) == sorted({*seen})


def test_what_is_not_modelled_has_an_empty_table() -> None:
    assert table_of({"model_type": "nope"}) == Table("nope") == Table("nope", (), "", {}, None)


def test_the_table_is_what_the_modelled_loaders_fuse() -> None:
    assert QWEN.extras == {"visual": VISUAL, "mtp": MTP}
    for loader in LOADERS:
        fused = {
            frozenset(part.removeprefix(LM).removeprefix(MTP).split(".", 2)[2] for part in module.parts)
            for module in modules(skeleton(base_config(EC)), loader.names)
            if len(module.parts) > 1
        }
        assert fused == {*map(frozenset, QWEN.fused)}


def test_the_recipes_fit_their_bases() -> None:
    for name in ("ec", "gb10", "intel"):
        confirm_layers(read_recipe(ROOT / "builds" / name), QWEN, LAYERS)


@pytest.mark.parametrize(
    ("patterns", "reason"),
    [
        (["linear_attn.in_proj_a"], "D06"),
        (["in_proj_qkv"], "D06"),
        (["q_proj"], "D06"),
        (["k_proj", "v_proj"], "D06"),
        (["shared_expert.up_proj"], "D06"),
        (["layers.7.self_attn.q_proj"], "D06"),
        (["mtp.layers.0.self_attn.v_proj"], "D06"),
        (["1.self_attn.q_proj", "11.self_attn.k_proj", "11.self_attn.v_proj"], "D06"),
        (["experts"], "D17"),
        (["mlp"], "D17"),
        (["experts.17.down_proj"], "D17"),
        (["layers.3.mlp.experts."], "D17"),
        (["shared_expret"], "'shared_expret' is part of no layer's name"),
    ],
)
def test_a_layer_is_ignored_with_those_that_loaders_join_it_to(patterns: list[str], reason: str) -> None:
    message = refused(asking("rtn", "mtp.fc", *patterns))
    assert message.startswith("layers.ignore: ") and reason in message


@pytest.mark.parametrize(
    "patterns", [["in_proj_a", "in_proj_b"], ["in_proj"], ["self_attn"], ["layers.3.self_attn"], ["shared_expert"]]
)
def test_whole_groups_can_be_ignored(patterns: list[str]) -> None:
    confirm_layers(asking("rtn", "mtp.fc", *patterns), QWEN, LAYERS)


def test_a_copied_mtp_block_can_be_ignored_whole() -> None:
    assert "D17" in refused(asking("rtn", "mtp"))
    confirm_layers(asking("bf16", "mtp"), QWEN, LAYERS)
    confirm_layers(asking("bf16", "mtp.layers.0.self_attn.q_proj"), QWEN, LAYERS)


def test_rtn_needs_mtp_fc_as_float() -> None:
    assert refused(asking("rtn")).startswith("mtp.policy: found 'rtn', allowed: bf16, or \"mtp.fc\" in layers.ignore")
    confirm_layers(asking("bf16"), QWEN, LAYERS)


def test_the_policy_of_mtp_is_none_where_there_is_none_and_nowhere_else() -> None:
    assert (
        refused(asking("none"))
        == "mtp.policy: found 'none', allowed: bf16, rtn or calibrated: the base has an MTP block, mtp.*"
    )
    without = [*BASE.plan.layers]
    for policy in ("bf16", "rtn"):
        message = refused(asking(policy, "self_attn"), QWEN, without)
        assert message == f"mtp.policy: found '{policy}', allowed: none: no MTP block is known of the base"
    confirm_layers(asking("none", "self_attn"), QWEN, without)
    confirm_layers(asking("none", "self_attn.q_proj"), Table("nope"), DENSE)  # what is fused is not modelled


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen3", "qwen3_moe"])
def test_dense_layers_are_ignored_together(model_type: str) -> None:
    table = table_of({"model_type": model_type})
    for patterns in (["q_proj"], ["up_proj"], ["layers.1.self_attn.k_proj"]):
        assert "D06" in refused(asking("none", *patterns), table, DENSE)
    for patterns in ([], ["self_attn"], ["layers.1.mlp", "down_proj"]):
        confirm_layers(asking("none", *patterns), table, DENSE)


@pytest.mark.parametrize(
    ("model_type", "router", "declared"),
    [
        ("qwen3_moe", "model.layers.0.mlp.gate", True),
        ("qwen3_5_moe", "model.language_model.layers.0.mlp.gate", False),
    ],
)
def test_a_router_that_a_loader_makes_a_linear_layer_is_declared(model_type: str, router: str, declared: bool) -> None:
    """A router of EC's main blocks stays what it is in every loader, and its manifests state the declaration."""
    block = router[: router.index(".0.") + 2]
    layer = Layer((128, 256), "", None)
    tensors = {f"{router}.weight": Spec("BF16", (8, 256)), f"{block}.self_attn.q_proj.weight": Spec("BF16", (128, 256))}
    plan = Plan({}, tensors, (block,), {f"{block}.self_attn.q_proj": layer})
    base = Checkpoint({}, {"config.json": Held(b"{}")})
    form = Form("auto_round:auto_gptq", 4, 128, symmetric=True)
    aim = Mending(base, Target(plan, table_of({"model_type": model_type}), (), "none", form), 1, {})
    made = json.loads(quantization_config(base, aim).file("config.json"))["quantization_config"]
    assert made["block_name_to_quantize"] == [block.removesuffix(".0")]
    assert made["extra_config"] == ({router: {"bits": 16, "data_type": "fp"}} if declared else {})


def test_a_plan_is_of_a_recipe_that_fits(tmp_path: Path, refuses: Refuses) -> None:
    path = tmp_path / "builds" / "ec" / "recipe.toml"
    path.parent.mkdir(parents=True)
    (path.parent.parent / "bases").symlink_to(ROOT / "builds" / "bases")
    text, plan = EC.path.read_text(), json.loads(EC.beside("plan.json").read_text())
    for old, new in (('"rtn"', '"none"'), ('["mtp.fc"]', json.dumps(["mtp.fc", "q_proj"]))):
        path.write_text(text.replace(old, new))
        plan["asked"]["ignore"] = [*read_recipe(path).layers.ignore]
        path.with_name("plan.json").write_text(json.dumps(plan))
        with refuses(RecipeError):
            summarize(read_recipe(path), "mini")
