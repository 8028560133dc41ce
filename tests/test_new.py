"""A model of one's own, from `new` to `audit`: what works for one architecture works for four."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Refuses
from tests.owned import base, computes, hold
from tests.test_schemas import held
from typer.testing import CliRunner

import requant.build.survey
from requant.build import beside, build, record
from requant.build.inputs import pinned_given
from requant.check import check
from requant.check.reader import open_reader
from requant.checkpoint.checkpoint import write_checkpoint
from requant.cli.options import app
from requant.digest import sha256
from requant.errors import BuildError, CheckpointError, RecipeError, UsageError
from requant.model.plan import Plan
from requant.model.target import target_of, tiny_model
from requant.model.tiny import calibration_text
from requant.new import new
from requant.progress import silent
from requant.recipe import Recipe, read_recipe

FULL = pytest.mark.full
ARCHITECTURES = (
    "qwen3",
    *(pytest.param(each, marks=FULL) for each in ("llama", "llama_tied", "qwen3moe", "qwen3_5_moe")),
)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, worker: Path) -> Recipe:
    """A recipe of one's own, in a project of one's own, without a clone of this one."""
    del worker
    folder = tmp_path_factory.mktemp("own")
    words = ["new", base(request.param, folder / "model"), "--name", "mine", "--project", folder / "project"]
    (folder / "texts.jsonl").write_bytes(calibration_text())
    words += ["--text", folder / "texts.jsonl"]
    shown = CliRunner().invoke(app, [*map(str, words), "--environment", "cpu", "--sandbox", "venv", "--json"])
    assert shown.exit_code == 0, shown.output
    document = json.loads(shown.stdout)
    assert document["schema"] == "requant.new/1"
    held(document["schema"], document)
    assert document["download_bytes"] == 0  # base and text are here
    assert document["disk_bytes"] > sum(path.stat().st_size for path in (folder / "model").glob("*.safetensors"))
    return read_recipe(Path(document["recipe"]))


@pytest.fixture(scope="module")
def first(own: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of its tiny model mini, recorded."""
    folder = build(own, tiny="mini", out=tmp_path_factory.mktemp("first") / "built").folder
    record(own, "mini", folder)
    return folder


@pytest.mark.worker
def test_a_model_of_ones_own_is_built_and_checked(own: Recipe, first: Path, tmp_path: Path) -> None:
    write_checkpoint(tiny_model(own, "mini"), tmp_path / "base")
    with open_reader(str(first)) as theirs, open_reader(str(tmp_path / "base")) as ours:
        assert check(theirs, ours, recipe=own, tiny=True).outcome == "clean"


@pytest.mark.worker
@pytest.mark.full
def test_all_of_it_is_calibrated_on_a_text_of_ones_own(own: Recipe, tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(own.lockfiles.parent, project, ignore=shutil.ignore_patterns("*.manifest.json", "out"))
    file = project / "builds" / "mine" / "recipe.toml"
    for key, value in (("iterations", 2), ("samples", 8), ("sequence_length", 32), ("environment", '"cpu"')):
        file.write_text(re.sub(rf"^{key} = .*$", f"{key} = {value}", file.read_text(), flags=re.MULTILINE))
    recipe, model = read_recipe(file), own.lockfiles.parent.parent / "model"
    built = build(recipe, tiny=None, out=tmp_path / "built", base=model)
    stated = json.loads(beside(built.folder, "intoto.jsonl").read_text())["predicate"]["buildDefinition"]
    names = {each["name"]: each["digest"]["sha256"] for each in stated["resolvedDependencies"]}
    assert names["calibration"] == sha256(calibration_text())
    with open_reader(str(built.folder)) as theirs, open_reader(str(model)) as ours:
        assert check(theirs, ours, recipe=recipe).outcome == "clean"


@pytest.mark.worker
@pytest.mark.full
def test_a_model_of_ones_own_is_built_twice_resumed_checked_and_audited(
    own: Recipe, first: Path, tmp_path: Path
) -> None:
    hold(own, first, tmp_path)


@pytest.mark.worker
@pytest.mark.full
def test_transformers_computes_with_the_weights_that_the_files_decode_to(
    own: Recipe, first: Path, ask: Callable[..., Any], tmp_path: Path
) -> None:
    computes(own, first, ask, tmp_path)
    config = json.loads((first / "config.json").read_text())
    overrides = config["quantization_config"]["extra_config"]
    if any(name.endswith("mlp.gate") for name in overrides if not name.startswith("mtp.")):
        # As AutoRound declares it, its own loader makes a packed layer of each router: of so few experts it cannot.
        overrides.clear()
        (tmp_path / "altered" / "config.json").write_text(json.dumps(config))
        with pytest.raises(BuildError, match="auto-round-lib"):
            ask("logits", first, tmp_path / "altered", tmp_path / "again")


@pytest.mark.worker
@pytest.mark.full
def test_a_build_stops_where_autoround_packs_something_else(own: Recipe, tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(own.lockfiles.parent, project, ignore=shutil.ignore_patterns("*.manifest.json", "out"))
    folder = project / "builds" / "mine"
    plan = json.loads((folder / "plan.json").read_text())
    template = next(each for each in plan["mini"]["layers"] if not each[2])
    template[2] = "left alone"
    (folder / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(BuildError, match="is packed, against the plan"):
        build(read_recipe(folder), tiny="mini", out=tmp_path / "out")


def test_what_new_refuses_it_refuses_before_it_writes(tmp_path: Path, refuses: Refuses) -> None:
    model, project = base("llama", tmp_path / "model"), tmp_path / "project"
    with refuses(UsageError):
        new(str(model), "../up", project)
    with refuses(CheckpointError):
        new(str(tmp_path), "mine", project)
    text = tmp_path / "texts.jsonl"
    for lines in (b"", b'{"text": "one"}\n{"words": "two"}\n', b"[" * 100_000, b'\xef\xbb\xbf{"text": "one"}'):
        text.write_bytes(lines)
        with refuses(UsageError):
            new(str(model), "mine", project, text=text)
    with refuses(UsageError):
        new(str(model), "mine", project, text=tmp_path)
    os.mkfifo(tmp_path / "pipe.jsonl")
    with refuses(UsageError):
        new(str(model), "mine", project, text=tmp_path / "pipe.jsonl")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "quantization_config": {"bits": 4}}))
    with refuses(RecipeError):
        new(str(model), "mine", project)
    assert not project.exists()


@pytest.mark.worker
def test_a_text_of_ones_own_lies_in_the_project_and_is_taken_as_pinned_or_not_at_all(
    own: Recipe, tmp_path: Path
) -> None:
    project, model = tmp_path / "project", own.lockfiles.parent.parent / "model"
    shutil.copytree(own.lockfiles.parent, project, ignore=shutil.ignore_patterns("*.manifest.json", "out"))
    recipe = read_recipe(project / "builds" / "mine")
    assert recipe.calibration.dataset == "local/mine"
    given = pinned_given(recipe, model, None, silent)
    assert given.text == project / "builds" / "mine" / ".." / "datasets" / "mine" / "text.jsonl"
    assert given.text.read_bytes() == calibration_text()
    assert given.digests["calibration"] == sha256(calibration_text())

    given.text.write_bytes(calibration_text().replace(b"build", b"Build", 1))
    with pytest.raises(CheckpointError, match=r"text\.jsonl: found"):
        pinned_given(recipe, model, None, silent)
    with pytest.raises(CheckpointError, match=r"text\.jsonl: not here"):  # the other one was moved aside
        pinned_given(recipe, model, None, silent)


@pytest.mark.worker
def test_the_base_of_a_full_build_has_to_be_named_where_it_is_a_folder(own: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="its base is a folder of yours"):
        build(own, tiny=None, out=tmp_path / "out")
    with pytest.raises(CheckpointError, match="lacks LICENSE"):
        build(own, tiny=None, out=tmp_path / "out", base=tmp_path)


@pytest.mark.worker
@pytest.mark.full
def test_a_recipe_that_was_edited_is_asked_about_again(
    own: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AutoRound is asked once, by `--record`; `--ask` is given the same answer again, for it asks for less."""
    project = tmp_path / "project"
    shutil.copytree(own.lockfiles.parent, project, ignore=shutil.ignore_patterns("*.manifest.json", "out"))
    folder = project / "builds" / "mine"
    text = (folder / "recipe.toml").read_text()
    (folder / "recipe.toml").write_text(text.replace("group_size = 128", "group_size = 64"))
    with pytest.raises(RecipeError, match="was asked for with"):
        target_of(read_recipe(folder), "mini")
    answers: list[dict[str, Plan]] = []
    real = requant.build.survey.ask

    def once(*given: Any, **options: Any) -> dict[str, Plan]:
        answers.extend(() if answers else [real(*given, **options)])
        return answers[0]

    monkeypatch.setattr(requant.build.survey, "ask", once)
    words = ["plan", str(folder), "--sandbox", "venv"]
    shown = CliRunner().invoke(app, [*words, "--record"])
    assert shown.exit_code == 0, shown.output
    assert target_of(read_recipe(folder), "mini").form.group_size == 64

    shown = CliRunner().invoke(app, [*words, "--ask"])
    assert shown.exit_code == 0, shown.output
    layers = target_of(read_recipe(folder), None).plan.packed
    assert f"itself packs these {len(layers)} layers, from these places in the base" in shown.output

    plan = json.loads((folder / "plan.json").read_text())
    template = next(each for each in plan["base"]["layers"] if not each[2])
    template[2] = "left alone"
    (folder / "plan.json").write_text(json.dumps(plan))
    (name, *_) = sorted(layers.keys() - target_of(read_recipe(folder), None).plan.packed.keys())
    shown = CliRunner().invoke(app, [*words, "--ask"])
    assert shown.exit_code == 1, shown.output
    assert "and not as planned" in shown.output
    assert f"{name}: packed, and not planned" in shown.output
