"""An MTP block that is tuned: one more block, the last, given what the quantized model puts out and the next token."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT
from tests.owned import base, built_and_recorded, found_within_reach, hold
from tests.test_adapters import CPU, accumulating, for_base, heard
from tests.test_architectures import made
from tests.test_worker import FLOAT32, TERMS, bound

from requant.build import build
from requant.checkpoint.checkpoint import Checkpoint, Held
from requant.checkpoint.safetensors import Spec
from requant.errors import RecipeError
from requant.formats import PACKED
from requant.formats.form import Form
from requant.model.plan import FILE, Plan
from requant.model.tables import table_of
from requant.model.target import Target, question, target_of
from requant.new import EnvironmentName
from requant.passes.context import EXTRAS, Mending
from requant.passes.overrides import quantization_config
from requant.progress import Progress
from requant.protocol import Layer, Source
from requant.recipe import Recipe, read_recipe
from requant.verdict import Outcome

BLOCK = "mtp.layers.0"
TUNED_PARTS = ("qweight", "scales")
"""Zero points are those of the format in both."""
NUMBERED = ("glm4_moe", "deepseek_v3")
"""Architectures whose MTP block is numbered on from the blocks of the model."""
EC = ROOT / "builds" / "ec" / "recipe.toml"
SCHEME = '\n[layers.schemes]\no_proj = { name = "W8A16", symmetric = true, group_size = 128 }\n'
TRIED: Mapping[str, tuple[str, EnvironmentName, Callable[[str], str]]] = {
    "by 0.12": ("qwen3_5_moe", "cpu", str),
    "by 0.12, accumulating": ("qwen3_5_moe", "cpu", accumulating),
    "by 0.16": ("qwen3_5_moe", "current", str),
    "by 0.16, accumulating": ("qwen3_5_moe", "current", accumulating),
    "of GLM-4 MoE by 0.12": ("glm4_moe", "cpu", str),
    "of GLM-4 MoE by 0.16, accumulating": ("glm4_moe", "current", accumulating),
    "of DeepSeek-V3 by 0.12, accumulating": ("deepseek_v3", "cpu", accumulating),
    "of DeepSeek-V3 by 0.16": ("deepseek_v3", "current", str),
}


def calibrated(text: str) -> str:
    """A recipe whose MTP block is tuned."""
    assert text.count('policy = "rtn"') == 1
    return text.replace('policy = "rtn"', 'policy = "calibrated"')


def edited(folder: Path, edit: Callable[[str], str]) -> Recipe:
    """The recipe `ec`, edited, with its plan."""
    shutil.copytree(ROOT / "builds", folder / "builds", ignore=shutil.ignore_patterns("*.jsonl", "*.manifest.json"))
    (folder / "lockfiles").symlink_to(ROOT / "lockfiles")
    file = folder / "builds" / "ec" / "recipe.toml"
    file.write_text(edit(file.read_text()))
    return read_recipe(file)


def test_it_is_one_more_block_of_the_plan_and_its_tensors_are_those_of_a_rounded_one(tmp_path: Path) -> None:
    tuned, rounded = target_of(edited(tmp_path, calibrated), "mini"), target_of(read_recipe(EC), "mini")
    assert tuned.plan.blocks == (*rounded.plan.blocks, BLOCK)
    assert tuned.plan.packed.keys() == rounded.plan.packed.keys() | rounded.rounded.keys()
    assert (tuned.main, tuned.extras, tuned.rounded) == (rounded.main, rounded.extras, {})
    assert tuned.kept.keys() - tuned.main.keys() == {name for name in rounded.extras if name.startswith("mtp.")}


def test_its_file_alone_is_another_one_in_what_is_recorded() -> None:
    tuned, rounded = (
        json.loads((ROOT / "builds" / name / "mini.manifest.json").read_text()) for name in ("ec-mtp", "ec")
    )
    assert tuned["files"].keys() == rounded["files"].keys()
    assert {name for name, each in tuned["files"].items() if each != rounded["files"][name]} == {EXTRAS}
    assert tuned["files"][EXTRAS]["bytes"] == rounded["files"][EXTRAS]["bytes"]
    others = {name for name, each in tuned["tensors"].items() if each != rounded["tensors"][name]}
    codes = {
        f"{name}.{part}" for name, layer in target_of(read_recipe(EC), "mini").rounded.items() for part in TUNED_PARTS
    }
    assert others == codes


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (lambda text: text.replace('ignore = ["mtp.fc"]', "ignore = []"), 'bf16, or "mtp.fc" in layers.ignore'),
        (lambda text: text.replace('["mtp.fc"]', '["mtp.fc", "q_proj"]'), "loaders fuse them (defect D06)"),
        (lambda text: text + SCHEME, "no part of mtp.layers.0.self_attn.o_proj: MTP is packed as [scheme] says"),
    ],
)
def test_what_does_not_fit_it_is_refused(edit: Callable[[str], str], fault: str, tmp_path: Path) -> None:
    recipe = edited(tmp_path, lambda text: edit(calibrated(text)))
    renamed = question(recipe)
    file = recipe.beside(FILE)
    file.write_text(json.dumps({**json.loads(file.read_text()), "asked": renamed.as_json()}))
    with pytest.raises(RecipeError, match=re.escape(fault)):
        target_of(recipe, "mini")


@pytest.mark.parametrize("kind", NUMBERED)
@pytest.mark.parametrize("policy", ["bf16", "rtn", "calibrated"])
def test_a_numbered_one_lies_aside_and_what_is_float_in_it_is_declared(policy: str, kind: str) -> None:
    inside, copies = ("self_attn.o_proj", "mlp.experts.0.down_proj"), ("embed_tokens", "shared_head.head")
    layers = {
        f"model.layers.{i}.{name}": Layer((256, 256), "", Source(f"model.layers.{i}.{name}.weight"))
        for i in (0, 1)
        for name in inside
    }
    ours = [f"model.layers.2.{name}.weight" for name in ("enorm", "hnorm", "shared_head.norm", "input_layernorm")]
    theirs = [f"model.layers.2.{name}.weight" for name in (*inside, "eh_proj", *copies)]
    tensors = {f"{name}.weight": Spec("BF16", layer.shape) for name, layer in layers.items()}
    tensors |= {name: Spec("BF16", (256,)) for name in ours} | {name: Spec("BF16", (256, 256)) for name in theirs}
    plan = Plan({}, tensors, ("model.layers.0", "model.layers.1"), layers, frozenset((*ours, *theirs)))
    table = table_of({"model_type": kind, "num_hidden_layers": 2})
    assert table.mtp
    plan = plan.with_block(table.mtp, ("eh_proj",)) if policy == "calibrated" else plan
    target = Target(plan, table, ("eh_proj",), policy, Form("auto_round:auto_gptq", 4, 128, symmetric=True))
    assert plan.blocks[2:] == (("model.layers.2",) if policy == "calibrated" else ())
    assert not any(name.startswith("model.layers.2.") for name in target.main)
    packed = {f"model.layers.2.{name}" for name in inside}
    codes = {f"{name}.{part}" for name in packed for part in PACKED}
    left = {*ours, *theirs} if policy == "bf16" else {*ours, *theirs, *codes} - {f"{name}.weight" for name in packed}
    assert target.extras.keys() == left
    assert plan.unloaded == {f"model.layers.2.{name}.weight" for name in copies} or policy != "calibrated"
    base = Checkpoint({}, {"config.json": Held(b"{}")})
    made = json.loads(quantization_config(base, Mending(base, target, 1, {})).file("config.json"))
    said = made["quantization_config"]
    assert said["block_name_to_quantize"] == ["model.layers"]
    floats = {name.removesuffix(".weight") for name in theirs}
    assert said["extra_config"].keys() == (floats if policy == "bf16" else floats - packed)


@pytest.mark.worker
@pytest.mark.full
@pytest.mark.parametrize("environment", CPU)
@pytest.mark.parametrize("name", NUMBERED)
def test_a_numbered_one_is_what_its_formulas_say_and_no_variant_of_them(
    name: str, environment: str, ask: Callable[..., Any], tmp_path: Path
) -> None:
    found = ask("numbered", made(name, tmp_path, ask), tmp_path, environment=environment)
    assert found["layer"] == "model.layers.2"
    # The base's 256 embedding and 256 hidden numbers make the widest sum, of 512.
    assert found["off"].pop("as it is") < bound(0, FLOAT32, TERMS)
    assert found["off"].pop("counted from the next token") < bound(0, FLOAT32, TERMS), "positions count by differences"
    assert {each for each, off in found["off"].items() if off < 0.01} == set(), "rounding is off by 1e-5 at most"
    assert len(found["off"]) == 10
    assert found["rows"] == [3, 32], "the last of 33 tokens has no next one"
    assert found["a beginning"] < bound(0, FLOAT32, TERMS), "a row sees none after it"
    own, other = "model.layers.2.{}: the base has {}, its MTP block of one layer has {}", "no such tensor"
    assert found["refused"] == {
        "one norm less": own.format("hnorm.weight", other, [256]),
        "one tensor of the layer less": own.format("input_layernorm.weight", other, [256]),
        "one more": own.format("mlp.gate.other", [256], other),
        "another shape": own.format("input_layernorm.weight", [255], [256]),
        "no experts": own.format("mlp.experts.down_proj", other, [4, 256, 128]),
        "wider experts": own.format("mlp.experts.down_proj", [4, 512, 128], [4, 256, 128]),
        "one expert less": found["refused"]["one expert less"],
        "no copies": "",
    }
    assert found["refused"]["one expert less"].startswith("model.layers.2: transformers makes no layer of")


@pytest.fixture(scope="module", params=TRIED)
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, ask: Callable[..., Any]) -> Recipe:
    name, environment, edit = TRIED[request.param]
    folder = tmp_path_factory.mktemp("own")
    model = made(name, folder, ask) if name in NUMBERED else base(name, folder / "model")
    return for_base(model, folder / "project", environment, lambda text: calibrated(edit(text)))


@pytest.fixture(scope="module")
def first(own: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_and_recorded(own, tmp_path_factory.mktemp("first"))


@pytest.mark.worker
@pytest.mark.full
def test_it_is_heard_resumed_checked_and_audited(own: Recipe, first: Path, tmp_path: Path) -> None:
    *blocks, block = heard(first, own)
    assert block.block == target_of(own, "mini").plan.blocks[-1] != blocks[-1].block
    packed = {f"{name}.{part}" for name in target_of(own, "mini").mtp for part in PACKED}
    assert {name for name in block.tensors if name.endswith(PACKED)} == packed & {*block.tensors}
    assert len(packed & {*block.tensors}) > 3 * 7
    assert any(".mlp.experts.0." in name for name in packed & {*block.tensors})

    def stopping(now: Progress) -> None:
        if now.stage == "tuning" and now.done >= len(blocks):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(own, tiny="mini", out=tmp_path / "stopped", tell=stopping)
    assert build(own, tiny="mini", out=tmp_path / "stopped").verdict.outcome is Outcome.IDENTICAL
    hold(own, first, tmp_path)


@pytest.mark.worker
@pytest.mark.full
def test_a_code_of_it_that_was_changed_within_reach_is_found(own: Recipe, first: Path, tmp_path: Path) -> None:
    block = target_of(own, "mini").plan.blocks[-1]
    found_within_reach(own, first, f"{block}.self_attn.o_proj", block, tmp_path)
