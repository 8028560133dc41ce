"""The promise itself: builds repeat byte for byte, and what is not equal is found, named and judged."""

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT, Refuses
from tests.hub import running
from tests.processes import LIMIT, all_ended, signalled, started
from tests.tiny import write_tiny

from requant import programs
from requant.build import Built, _watching, beside, build, compare, record, recorded
from requant.checkpoint.checkpoint import open_checkpoint
from requant.checkpoint.manifest import read_manifest
from requant.digest import sha256_file
from requant.environment import Environment
from requant.environment import install as installation
from requant.errors import BuildError, CheckpointError, LockError, NotAvailableError, RecipeError, UsageError
from requant.evidence import private
from requant.evidence.journal import Block, Header, Loss, Writer, read_journal
from requant.evidence.statements import hardware_of
from requant.hub.pinned import read_pins
from requant.model.tiny import CALIBRATION, calibration_text
from requant.progress import Progress
from requant.recipe import read_recipe
from requant.sandbox.preflight import resume_bytes
from requant.verdict import Outcome

pytestmark = pytest.mark.worker
NAMES = ("ec", "gb10", "intel")
BASE = read_pins(ROOT / "builds" / "bases" / "qwen3.6-35b-a3b.json")
DATA = read_pins(ROOT / "builds" / "datasets" / "pile-10k.json")


@pytest.mark.parametrize("name", NAMES)
def test_mini_build_is_the_recorded_one(name: str, built: Callable[[str], Built]) -> None:
    result = built(name)
    assert result.verdict.outcome is Outcome.IDENTICAL, result.verdict
    written = beside(result.folder, "journal.jsonl")
    assert written.read_bytes() == recorded(read_recipe(ROOT / "builds" / name), "mini", "journal.jsonl").read_bytes()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", ["mini", "demo"])
def test_records_are_of_this_recipe_and_this_environment(name: str, size: str) -> None:
    recipe = read_recipe(ROOT / "builds" / name)
    header = read_journal(recorded(recipe, size, "journal.jsonl")).header
    assert header.recipe == recipe.digest
    assert header.environment == Environment.load(recipe.lockfiles, recipe.tiny.environment).digest


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", ["mini", "demo"])
def test_tuning_bites(name: str, size: str) -> None:
    """In most blocks the best iteration is not the first, so equal bits are evidence about tuning."""
    blocks = read_journal(recorded(read_recipe(ROOT / "builds" / name), size, "journal.jsonl")).blocks
    assert sum(block.loss is not None and block.loss.best_iteration > 0 for block in blocks) > len(blocks) / 2


def test_chain_of_outputs_and_inputs(built: Callable[[str], Built]) -> None:
    """What a block puts out is what the next one is given, in both streams; all else is given to each block alike."""
    blocks = read_journal(beside(built("ec").folder, "journal.jsonl")).blocks
    for before, after in pairwise(blocks):
        assert {**before.outputs, "others": before.inputs["others"]} == after.inputs


@pytest.mark.full
def test_other_user_host_time_zone_umask_threads(built: Callable[[str], Built], tmp_path: Path) -> None:
    reference = built("ec")  # made with the threads that torch takes by itself
    change_host = ["unshare", "--map-root-user", "--uts", "sh", "-c", 'hostname elsewhere && exec "$@"', "sh"]
    change_user = ["unshare", "--map-user=1234", "--map-group=1234"]
    try:
        programs.run([*change_host, *change_user, "true"])
    except (BuildError, NotAvailableError) as error:
        pytest.skip(f"this kernel grants no user namespaces: {error}")
    out = tmp_path / "a folder with another name" / "x"
    command = [*change_host, *change_user, sys.executable, "-m", "requant", "build", str(ROOT / "builds" / "ec")]
    command += ["--sandbox", "venv", "--tiny", "--size", "mini", "--out", str(out), "--json"]
    env = {
        **os.environ,
        "TZ": "Pacific/Kiritimati",
        "LC_ALL": "C",
        "USER": "somebody",
        "AR_LOG_LEVEL": "debug",
        "OMP_NUM_THREADS": "2",
    }
    done = subprocess.run(command, cwd=tmp_path, env=env, umask=0o077, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outcome"] == "identical"
    for name in ("manifest.json", "journal.jsonl"):
        assert beside(out, name).read_bytes() == beside(reference.folder, name).read_bytes()


@pytest.fixture
def copy(built: Callable[[str], Built], tmp_path: Path) -> Path:
    """A copy of the ec mini build that a test may spoil, stated to come from the recorded hardware class.

    Whatever machine this is: what follows from its class is tested by stating one, and not by having one.
    """
    folder = built("ec").folder
    copied = tmp_path / "ec"
    shutil.copytree(folder, copied)
    for name in ("intoto.jsonl", "manifest.json"):
        shutil.copyfile(beside(folder, name), beside(copied, name))
    restate(copied, lambda _: hardware_of(recorded(read_recipe(ROOT / "builds" / "ec"), "mini", "intoto.jsonl")))
    return copied


def restate(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """State another hardware class of a build."""
    path = beside(folder, "intoto.jsonl")
    statement = json.loads(path.read_bytes())
    parameters = statement["predicate"]["buildDefinition"]["internalParameters"]
    parameters["hardware"] = change(parameters["hardware"])
    path.write_text(json.dumps(statement) + "\n")


OTHERS = {
    "other caps": lambda hardware: {**hardware, "caps": {**hardware["caps"], "ONEDNN_MAX_CPU_ISA": "AVX512"}},
    "another vendor": lambda hardware: {**hardware, "vendor": f"not {hardware['vendor']}", "model": "(0/0)"},
    "a GPU": lambda hardware: {"accelerator": "NVIDIA H200", "multiprocessors": 132},
}
other_class = pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def test_one_flipped_bit_is_different_and_named(copy: Path) -> None:
    shard = sorted(copy.glob("model-*.safetensors"))[1]
    flip(shard, shard.stat().st_size - 1)
    verdict = compare(read_recipe(ROOT / "builds" / "ec"), "mini", copy)
    assert verdict.outcome is Outcome.DIFFERENT
    last = list(open_checkpoint(copy).shards[shard.name])[-1]
    assert {(each.kind, each.name) for each in verdict.differences} == {
        ("changed file", shard.name),
        ("changed tensor", last),
    }


@other_class
def test_other_bits_from_another_hardware_class_are_inconclusive(
    change: Callable[[dict[str, Any]], dict[str, Any]], copy: Path
) -> None:
    flip(copy / "model_extra_tensors.safetensors", (copy / "model_extra_tensors.safetensors").stat().st_size - 1)
    restate(copy, change)
    verdict = compare(read_recipe(ROOT / "builds" / "ec"), "mini", copy)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert any("another hardware class" in reason for reason in verdict.reasons)


@other_class
def test_equal_bits_from_another_hardware_class_are_identical(
    change: Callable[[dict[str, Any]], dict[str, Any]], copy: Path
) -> None:
    restate(copy, change)
    assert compare(read_recipe(ROOT / "builds" / "ec"), "mini", copy).outcome is Outcome.IDENTICAL


def test_without_a_record_nothing_is_claimed(copy: Path) -> None:
    recipe = read_recipe(ROOT / "builds" / "ec")
    verdict = compare(recipe, "wide", copy)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert f"`requant build {recipe.path.parent} --tiny --size wide --record` records a build" in verdict.reasons[0]
    (reason,) = compare(recipe, "wide", copy, copy.parent / "theirs").reasons
    assert "--record" not in reason


def test_the_log_is_published_without_the_machine_and_named_as_it_is(built: Callable[[str], Built]) -> None:
    folder = built("ec").folder
    log = beside(folder, "log").read_text()
    assert "<work>/raw" in log
    for told in (str(folder.parent), str(Path.home()), str(installation.cache()), platform.node()):
        assert not re.search(rf"(?<![\w-]){re.escape(told)}(?![\w-])", log), told
    statement = json.loads(beside(folder, "intoto.jsonl").read_text())
    byproducts = {each["name"]: each["digest"] for each in statement["predicate"]["runDetails"]["byproducts"]}
    assert byproducts["log"] == {"sha256": sha256_file(beside(folder, "log"))}
    assert private.in_record(beside(folder, "intoto.jsonl").read_bytes()) == []


def test_a_tiny_model_says_which_values_of_the_recipe_it_did_not_use(built: Callable[[str], Built]) -> None:
    """Else a recipe with half the iterations, whose tiny model is the same, would seem to be what was recorded."""
    result = built("ec")
    (said,) = (taint for taint in result.taints if taint.startswith("not used by the tiny model: "))
    assert "iterations 400 (6)" in said
    assert "momentum" not in said
    assert said in beside(result.folder, "intoto.jsonl").read_text()


def project(tmp_path: Path, name: str = "ec", **replaced: tuple[str, str]) -> Path:
    """A project of its own with one recipe, changed, and the locks; returns the recipe's folder."""
    shutil.copytree(ROOT / "lockfiles", tmp_path / "lockfiles")
    for file in ROOT.glob("Dockerfile.*"):
        shutil.copyfile(file, tmp_path / file.name)
    folder = tmp_path / "builds" / name
    folder.mkdir(parents=True)
    (folder.parent / "bases").symlink_to(ROOT / "builds" / "bases")
    shutil.copyfile(ROOT / "builds" / name / "plan.json", folder / "plan.json")
    text = (ROOT / "builds" / name / "recipe.toml").read_text()
    for old, new in replaced.values():
        assert old in text
        text = text.replace(old, new)
    (folder / "recipe.toml").write_text(text)
    return folder


def test_recording_and_comparing_again(built: Callable[[str], Built], tmp_path: Path) -> None:
    recipe = read_recipe(project(tmp_path))
    result = built("ec")
    assert compare(recipe, "mini", result.folder).outcome is Outcome.INCONCLUSIVE
    written = record(recipe, "mini", result.folder)
    assert [path.name for path in written] == ["mini.manifest.json", "mini.journal.jsonl", "mini.intoto.jsonl"]
    assert compare(recipe, "mini", result.folder).outcome is Outcome.IDENTICAL


def test_a_stale_or_absent_lock_is_refused(tmp_path: Path, refuses: Refuses) -> None:
    recipe = read_recipe(project(tmp_path))
    with (tmp_path / "lockfiles" / "cpu.in").open("a") as file:
        file.write("# one more thing\n")
    with refuses(LockError):
        build(recipe, tiny="mini", out=tmp_path / "out")
    (tmp_path / "lockfiles" / "cpu.txt").unlink()
    with refuses(LockError):
        build(recipe, tiny="mini", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_not_touched(tmp_path: Path, refuses: Refuses) -> None:
    (tmp_path / "out").mkdir()
    with refuses(UsageError):
        build(read_recipe(ROOT / "builds" / "ec"), tiny="mini", out=tmp_path / "out")


@pytest.mark.full
def test_too_few_samples_is_an_error_and_leaves_the_log(worker: Path, tmp_path: Path) -> None:
    recipe = read_recipe(project(tmp_path, samples=("samples = 16\n", "samples = 64\n")))
    with pytest.raises(BuildError, match=r"^calibration\.jsonl: 59 sequences of 64 tokens, the recipe asks for 64$"):
        build(recipe, tiny="mini", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert "Casting the dataset" in beside(tmp_path / "out", "log").read_text()


@pytest.mark.full
@pytest.mark.parametrize("signalled_by", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_it_leaves_nothing_under_the_final_name(worker: Path, tmp_path: Path, signalled_by: int) -> None:
    out = tmp_path / "out"
    words = ("build", ROOT / "builds" / "ec", "--sandbox", "venv", "--tiny", "--size", "mini", "--out", out)
    with started(signalled(signalled_by, "tuning", 1, *words), stderr=subprocess.PIPE) as process:
        _, said = process.communicate(timeout=LIMIT)
    assert "layers.0: loss" in said
    assert process.returncode != 0
    assert not out.exists()
    if signalled_by != signal.SIGKILL:  # nobody can clean up after that, but nothing runs on
        assert {path.name for path in tmp_path.glob(".out.unfinished/*")} == {"lock", "resume"}
    assert all_ended(tmp_path), "the worker outlives its host"


def pin(kind: str, repository: str, revision: str, folder: Path) -> str:
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    value = {"schema": 1, "kind": kind, "repository": repository, "revision": revision, "files": files}
    return json.dumps({**value, "provenance": "made by a test"})


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe whose base is a tiny model on a Hub of its own: only sizes and pins differ from a real full build."""
    folder = project(
        tmp_path,
        environment=('environment = "cu124"\n', 'environment = "cpu"\n'),
        device=('device = "cuda"\n', 'device = "cpu"\n'),
        host=("host_memory_gib = 110\n", "host_memory_gib = 1\n"),
        precision=('precision = "bfloat16"\n', 'precision = "float32"\n'),
        iterations=("iterations = 400\n", "iterations = 6\n"),
        samples=("samples = 256\n", "samples = 16\n"),
        length=("sequence_length = 4096\n", "sequence_length = 64\n"),
        shards=("shards = 10\n", "shards = 3\n"),
        base=("../bases/qwen3.6-35b-a3b.json", "base.json"),
        data=("../datasets/pile-10k.json", "data.json"),
        file=("data/train-00000-of-00001-4746b8785c874cc7.parquet", CALIBRATION),
    )
    write_tiny("mini", tmp_path / "served" / "base")
    shutil.copyfile(tmp_path / "served" / "base" / "config.json", folder / "base.config.json")
    plans = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(plans | {"base": plans["mini"]}))
    (tmp_path / "served" / "data").mkdir()
    (tmp_path / "served" / "data" / CALIBRATION).write_bytes(calibration_text())
    (folder / "base.json").write_text(pin("model", BASE.repository, BASE.revision, tmp_path / "served" / "base"))
    (folder / "data.json").write_text(pin("dataset", DATA.repository, DATA.revision, tmp_path / "served" / "data"))
    cached = installation.cache() / "packages"
    (tmp_path / "cache" / "requant").mkdir(parents=True)
    (tmp_path / "cache" / "requant" / "packages").symlink_to(cached)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


@pytest.mark.full
def test_the_full_path_on_a_hub(full: Path, tmp_path: Path, built: Callable[[str], Built]) -> None:
    """Fetch, confirm, tune, finish: the same tensors as the tiny model's, whose base is generated instead."""
    recipe = read_recipe(full)
    with running() as hub:
        hub.serve("model", BASE.repository, BASE.revision, tmp_path / "served" / "base")
        hub.serve("dataset", DATA.repository, DATA.revision, tmp_path / "served" / "data")
        result = build(recipe, tiny=None, out=tmp_path / "full", endpoint=hub.url)
    assert result.manifest.tensors == built("ec").manifest.tensors
    assert not [taint for taint in result.taints if "tiny" in taint]
    header, tiny = (
        read_journal(beside(each, "journal.jsonl")).header for each in (tmp_path / "full", built("ec").folder)
    )
    assert (header.calibration, header.base, header.tiny) == (tiny.calibration, tiny.base, None)


def test_the_full_path_refuses_other_bytes(full: Path, tmp_path: Path) -> None:
    flip(tmp_path / "served" / "base" / "model-00001-of-00003.safetensors", 5000)
    with running() as hub:
        hub.serve("model", BASE.repository, BASE.revision, tmp_path / "served" / "base")
        hub.serve("dataset", DATA.repository, DATA.revision, tmp_path / "served" / "data")
        with pytest.raises(CheckpointError, match="model-00001-of-00003"):
            build(read_recipe(full), tiny=None, out=tmp_path / "full", endpoint=hub.url)
    assert not (tmp_path / "full").exists()


def test_the_real_full_build_says_what_is_missing_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    recipe = read_recipe(ROOT / "builds" / "ec")
    monkeypatch.setattr("requant.sandbox.preflight.accelerators", list)  # a machine without GPU, whatever this one is
    with refuses(NotAvailableError):
        build(recipe, tiny=None, out=tmp_path / "full")
    assert resume_bytes(recipe) == 17_467_304_960 + 2 * 8_589_934_592  # tuned blocks, and two block inputs


def test_manifest_of_a_build_is_read_back(built: Callable[[str], Built]) -> None:
    result = built("ec")
    assert read_manifest(beside(result.folder, "manifest.json")) == result.manifest


def test_progress_follows_the_journal(tmp_path: Path) -> None:
    path, told = tmp_path / "journal.jsonl", list[Progress]()
    watch = _watching(path, told.append)
    loss = Loss((0.5).hex(), (0.25).hex(), 3)
    watch()
    with Writer(path, Header("r", None, "e", "b", "c", 2)) as writer:
        watch()
        writer.append(Block("layers.0", {}, "s", loss, {}, {}))
        watch()
    watch()
    after = Progress("tuning", 1, 2, "layers.0: loss 0.500000 -> 0.250000, best of iteration 3")
    assert told == [Progress("tuning", note="loading model and text"), Progress("tuning", 0, 2), after, after]
    with Writer.reopen(path)[0] as writer:  # another run goes on
        told.clear()
        watch = _watching(path, told.append)
        watch()
        writer.append(Block("layers.1", {}, "s", loss, {}, {}))
        watch()
    resuming = [Progress("resuming after block 1 of 2"), Progress("tuning", 1, 2)]
    assert told == [*resuming, replace(after, done=2, note=after.note.replace("layers.0", "layers.1"))]


def test_an_ignore_pattern_that_matches_nothing_is_refused(tmp_path: Path, refuses: Refuses) -> None:
    recipe = read_recipe(project(tmp_path, ignore=('"mtp.fc"]', '"mtp.fc", "shared_expret"]')))
    with refuses(RecipeError):
        build(recipe, tiny="mini", out=tmp_path / "out")
    plan = json.loads(recipe.beside("plan.json").read_text())
    plan["asked"]["ignore"].append("shared_expret")
    recipe.beside("plan.json").write_text(json.dumps(plan))
    with refuses(RecipeError):
        build(recipe, tiny="mini", out=tmp_path / "out")
