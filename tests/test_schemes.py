"""Schemes other than EC's, from `new` to `audit`: each is built twice, stopped in between, checked and tuned again."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tests.conftest import ROOT, Refuses
from tests.owned import base, hold
from typer.testing import CliRunner

from requant.build import build, record
from requant.check import check
from requant.check.checked import Checked
from requant.check.findings import TUNED
from requant.check.reader import open_reader
from requant.checkpoint.checkpoint import Checkpoint, Held, Tensor, open_checkpoint, write_checkpoint
from requant.cli.options import app
from requant.errors import RecipeError, UsageError
from requant.formats import packing_of
from requant.formats.form import Form
from requant.model.plan import Plan
from requant.model.tables import table_of
from requant.model.target import Target, confirm_groups, target_of, tiny_model
from requant.new import new
from requant.protocol import Layer
from requant.recipe import Format, Recipe, read_recipe

GPTQ, AWQ, OWN = "auto_round:auto_gptq", "auto_round:auto_awq", "auto_round"
TO_GPTQ, TO_AWQ = "auto_gptq", "auto_awq"
SCHEMES = (
    ("W4A16", "asymmetric", 32, AWQ, "cpu"),
    ("W2A16", "symmetric", 64, GPTQ, "cpu"),
    ("W3A16", "symmetric", 128, GPTQ, "cpu"),
    ("W4A16", "symmetric", 128, AWQ, "cpu"),
    ("W8A16", "symmetric", -1, GPTQ, "cpu"),
    ("W2A16", "asymmetric", 32, OWN, "cpu"),
    ("W3A16", "asymmetric", -1, OWN, "cpu"),
    ("W8A16", "asymmetric", 64, OWN, "cpu"),
    ("W2A16", "symmetric", 32, TO_GPTQ, "cpu"),
    ("W8A16", "symmetric", -1, TO_GPTQ, "cpu"),
    ("W4A16", "asymmetric", 64, TO_AWQ, "cpu"),
    ("W3A16", "symmetric", 64, TO_GPTQ, "current"),
    ("W4A16", "symmetric", 32, TO_AWQ, "current"),
)
"""Built in the full tier: each takes minutes. What `check` makes of every scheme, tests/test_binding.py tries."""
CHOSEN = {("asymmetric", AWQ), ("symmetric", GPTQ), ("asymmetric", OWN)}
"""Formats that AutoRound chooses by itself."""


@pytest.fixture(scope="module", params=SCHEMES, ids=lambda each: "-".join(map(str, each)).replace(":", "-"))
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, worker: Path) -> Recipe:
    """A recipe of the Llama base in a scheme; its format is AutoRound's choice, or named where it is another."""
    del worker
    name, kind, group_size, packing_format, environment = request.param
    folder = tmp_path_factory.mktemp("own")
    words = ["new", base("llama", folder / "model"), "--name", "mine", "--project", folder / "project"]
    words += ["--scheme", name, f"--{kind}", "--group-size", group_size]
    words += ["--format", packing_format] if (kind, packing_format) not in CHOSEN else []
    words += ["--environment", environment, "--sandbox", "venv", "--json"]
    shown = CliRunner().invoke(app, [*map(str, words)])
    assert shown.exit_code == 0, shown.output
    path = Path(json.loads(shown.stdout)["recipe"]) / "recipe.toml"
    path.write_text(path.read_text().replace("keep_best = true", "keep_best = false"))  # often it is the untuned one
    recipe = read_recipe(path)
    scheme = recipe.scheme
    assert (scheme.name, scheme.symmetric, scheme.group_size) == (name, kind == "symmetric", group_size)
    assert scheme.format == packing_format
    return recipe


@pytest.mark.worker
@pytest.mark.full
def test_a_scheme_is_built_twice_resumed_checked_and_audited(own: Recipe, tmp_path: Path) -> None:
    first, target = build(own, tiny="mini", out=tmp_path / "first").folder, target_of(own, "mini")
    record(own, "mini", first)
    tensors = open_checkpoint(first).tensors
    for name, layer in target.plan.packed.items():
        specs = {each: tensors[f"{name}.{each}"].spec for each in target.form.specs(layer.shape)}
        packing = packing_of(specs, *layer.shape)
        assert packing is not None and packing.bits == own.scheme.bits

    hold(own, first, tmp_path)
    with open_reader(str(first)) as theirs, open_reader(str(tmp_path / "base")) as ours:
        checked = check(theirs, ours)
    assert checked.outcome == "clean", checked.findings
    assert TUNED in checked.ways
    another: Format = "auto_round:auto_gptq" if own.scheme.format in (AWQ, TO_AWQ, OWN) else "auto_round"
    other = replace(own, scheme=replace(own.scheme, format=another))
    with open_reader(str(first)) as theirs, open_reader(str(tmp_path / "base")) as ours:
        checked = check(theirs, ours, recipe=other, tiny=True)
    assert {each.tensor.rpartition(".")[0] for each in checked.findings if each.kind == "not as the recipe says"} == {
        *target.plan.packed
    }


@pytest.mark.full
@pytest.mark.worker
def test_an_export_is_built_as_asked_and_a_group_that_moved_is_found(worker: Path, tmp_path: Path) -> None:
    del worker
    model, project = base("llama", tmp_path / "model"), tmp_path / "project"
    own = new(str(model), "mine", project, packing_format="auto_gptq", environment="cpu").recipe
    folder = build(own, tiny="mini", out=tmp_path / "out").folder
    write_checkpoint(tiny_model(own, "mini"), tmp_path / "base")
    said = json.loads((folder / "config.json").read_bytes())["quantization_config"]
    assert (said["quant_method"], said["desc_act"], said["lm_head"], "dynamic" in said) == ("gptq", False, False, False)
    assert "packing_format" not in said

    def judged(found: Path) -> Checked:
        with open_reader(str(found)) as theirs, open_reader(str(tmp_path / "base")) as ours:
            return check(theirs, ours, recipe=own, tiny=True)

    assert judged(folder).outcome == "clean"
    name, made = next(iter(target_of(own, "mini").plan.packed)), open_checkpoint(folder)
    file, held = next((file, held) for file, held in made.shards.items() if f"{name}.g_idx" in held)
    groups = held[f"{name}.g_idx"]
    moved = Tensor(groups.spec, Held(b"\1" + groups.read()[1:]))
    altered = Checkpoint({**made.shards, file: {**held, f"{name}.g_idx": moved}}, made.files)
    write_checkpoint(altered, tmp_path / "moved")
    assert {each.tensor for each in judged(tmp_path / "moved").findings} == {f"{name}.qweight"}


def test_awq_has_whole_groups_only(refuses: Refuses) -> None:
    recipe = read_recipe(ROOT / "builds" / "ec")
    plan = Plan({}, {}, (), {"a.b": Layer((64, 192), "", None), "a.c": Layer((64, 100), "odd", None)})
    for packing_format, group_size in ((GPTQ, 128), (AWQ, 64), (AWQ, -1)):
        form = Form(packing_format, 4, group_size, symmetric=True)
        confirm_groups(recipe, Target(plan, table_of({"model_type": "llama"}), (), "none", form))
    form = Form(AWQ, 4, 128, symmetric=True)
    with refuses(RecipeError):
        confirm_groups(recipe, Target(plan, table_of({"model_type": "llama"}), (), "none", form))


def test_a_plan_refuses_what_its_locked_autoround_cannot_export(tmp_path: Path, refuses: Refuses) -> None:
    shutil.copytree(ROOT / "builds", tmp_path / "builds")
    shutil.copytree(ROOT / "lockfiles", tmp_path / "lockfiles")
    file = tmp_path / "builds" / "gb10" / "recipe.toml"
    file.write_text(re.sub(r"(?m)^format = .*", 'format = "auto_gptq"', file.read_text()).replace('"rtn"', '"bf16"'))
    assert target_of(read_recipe(file), "mini").plan.packed
    file.write_text(file.read_text().replace('name = "W4A16"', 'name = "W3A16"'))
    for size in ("mini", None):
        with refuses(RecipeError):
            target_of(read_recipe(file), size)
    read_recipe(file).confirm_export("0.16.1")


def test_a_format_that_cannot_hold_a_scheme_is_refused_before_anything_is_written(
    tmp_path: Path, refuses: Refuses
) -> None:
    model, project = base("llama", tmp_path / "model"), tmp_path / "project"
    with refuses(UsageError):
        new(str(model), "mine", project, scheme="W8A16", packing_format="auto_round:auto_awq")
    with refuses(UsageError):
        new(str(model), "mine", project, symmetric=False, packing_format="auto_round:auto_gptq")
    with refuses(UsageError):
        new(str(model), "mine", project, symmetric=False, packing_format="auto_gptq")
    with refuses(UsageError):  # where AutoRound 0.12.2 would tune and then end
        new(str(model), "mine", project, scheme="W3A16", packing_format="auto_gptq", environment="cpu")
    assert not project.exists()
