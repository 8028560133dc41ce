"""An MTP block that is tuned: one more block, the last, given what the quantized model puts out and the next token."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT
from tests.owned import built_and_recorded, found_within_reach, hold
from tests.test_adapters import CPU, accumulating, heard, of_one_s_own
from tests.test_architectures import made
from tests.test_worker import FLOAT32, TERMS, bound

from requant.build import build
from requant.errors import RecipeError
from requant.formats import PACKED
from requant.model.plan import FILE
from requant.model.target import question, target_of
from requant.new import EnvironmentName
from requant.passes.context import EXTRAS
from requant.progress import Progress
from requant.recipe import Recipe, read_recipe
from requant.verdict import Outcome

BLOCK = "mtp.layers.0"
TUNED_PARTS = ("qweight", "scales")
"""Zero points are those of the format in both."""
NUMBERED = ("glm4_moe", "deepseek_v3")
"""Architectures whose MTP block is numbered on from the blocks of the model."""
EC = ROOT / "builds" / "ec" / "recipe.toml"
SCHEME = '\n[layers.schemes]\no_proj = { name = "W8A16", symmetric = true, group_size = 128 }\n'
TRIED: Mapping[str, tuple[EnvironmentName, Callable[[str], str]]] = {
    "by 0.12": ("cpu", str),
    "by 0.12, accumulating": ("cpu", accumulating),
    "by 0.16": ("current", str),
    "by 0.16, accumulating": ("current", accumulating),
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
        "one expert less": found["refused"]["one expert less"],
        "no copies": "",
    }
    assert found["refused"]["one expert less"].startswith("model.layers.2: transformers makes no layer of")


@pytest.fixture(scope="module", params=TRIED)
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    environment, edit = TRIED[request.param]
    folder = tmp_path_factory.mktemp("own")
    return of_one_s_own(folder, "qwen3_5_moe", environment, lambda text: calibrated(edit(text)))


@pytest.fixture(scope="module")
def first(own: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_and_recorded(own, tmp_path_factory.mktemp("first"))


@pytest.mark.worker
@pytest.mark.full
def test_it_is_heard_resumed_checked_and_audited(own: Recipe, first: Path, tmp_path: Path) -> None:
    *blocks, block = heard(first, own)
    assert block.block == BLOCK
    packed = {f"{name}.{part}" for name in target_of(own, "mini").mtp for part in PACKED}
    assert {name for name in block.tensors if name.endswith(PACKED)} == packed & {*block.tensors}
    assert len(packed & {*block.tensors}) > 3 * 7

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
    found_within_reach(own, first, f"{BLOCK}.self_attn.o_proj", BLOCK, tmp_path)
