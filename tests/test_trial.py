"""A trial builds twice, stops and resumes once, compares, and projects; here as a rehearsal, on the CPU."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.conftest import ROOT, Refuses
from tests.test_build import flip

import requant.build.trial as trying
from requant.build import RECORDED, Built, beside
from requant.build.trial import long_texts, project, stand_in, trial
from requant.checkpoint.manifest import Manifest
from requant.errors import NotAvailableError, UsageError
from requant.model.target import config_of, target_of
from requant.progress import Progress, Tell
from requant.protocol import Seconds, Spent
from requant.recipe import read_recipe
from requant.verdict import Outcome, Verdict

EC = read_recipe(ROOT / "builds" / "ec")


@pytest.mark.full  # three builds; below is a trial of a real one, in test_resume one that is stopped and resumed
@pytest.mark.worker
def test_a_rehearsal_builds_twice_and_resumes(worker: Path, tmp_path: Path) -> None:
    tried = trial(EC, tmp_path, rehearsal=True, size="mini", iterations=3)
    assert tried.verdict.outcome is Outcome.IDENTICAL
    assert 0 < tried.stopped < 4
    assert 0 < tried.iteration < tried.block < min(tried.seconds)
    assert tried.peak_memory_bytes > 1 << 27
    assert tried.projection is None
    journals = [beside(tmp_path / name, "journal.jsonl").read_bytes() for name in ("first", "second")]
    assert journals[0] == journals[1]
    json.dumps(tried.as_json())


@pytest.mark.worker
@pytest.mark.parametrize("spoiled", [False, True])
def test_one_flipped_bit_in_the_second_build_is_different(
    spoiled: bool, built: Callable[[str], Built], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copied(_: object, *, out: Path, tell: Tell, **__: object) -> Built:
        tell(Progress("tuning", 1, 4))
        reference = built("ec")
        shutil.copytree(reference.folder, out)
        for name in RECORDED:
            shutil.copyfile(beside(reference.folder, name), beside(out, name))
        if spoiled and out.name == "second":
            flip(out / "model_extra_tensors.safetensors", 4000)
        return replace(reference, folder=out)

    monkeypatch.setattr(trying, "build", copied)
    tried = trial(EC, tmp_path, rehearsal=True, size="mini")
    assert tried.stopped == 1
    assert 0 < tried.iteration < tried.block < min(tried.seconds)
    assert tried.peak_memory_bytes > 1 << 27
    assert tried.projection is None
    assert tried.verdict.outcome is (Outcome.DIFFERENT if spoiled else Outcome.IDENTICAL)


def test_texts_are_long_enough_and_no_two_alike() -> None:
    texts = [json.loads(line)["text"] for line in long_texts(16, 4096).splitlines()]
    assert len(set(texts)) == 16
    assert min(len(text.encode()) for text in texts) >= 4096


def test_the_recipe_tried_differs_in_its_tiny_model_alone(tmp_path: Path) -> None:
    effort = replace(EC.effort(tiny=False), iterations=10, samples=16)
    tried = stand_in(EC, effort, tmp_path)
    assert tried.effort(tiny=True) == effort
    assert tried.lockfiles.resolve() == EC.lockfiles.resolve()
    same = {field: getattr(EC, field) for field in ("scheme", "tuning", "calibration", "layers", "mtp")}
    assert {field: getattr(tried, field) for field in same} == same
    assert replace(tried.base, files=EC.base.files) == EC.base
    assert target_of(tried, "wide") == target_of(EC, "wide")
    assert config_of(tried, "wide") == config_of(EC, "wide")


def test_hours_grow_with_iterations_and_samples() -> None:
    tried = replace(EC.effort(tiny=False), iterations=10, samples=16)
    found = project(EC, tried, iteration=1.0, block=12.0, price_per_hour=3.0)
    # 40 blocks of 400 iterations of a second, and 2 seconds for 16 samples where the build has 256.
    assert found.hours == pytest.approx(40 * (400 + 2 * 16) / 3600)
    assert found.price == pytest.approx(3 * found.hours)
    assert project(EC, tried, 1.0, 12.0, None).price is None


def test_without_the_recipes_gpu_it_says_what_is_lacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    monkeypatch.setattr("requant.sandbox.preflight.accelerators", list)
    with refuses(NotAvailableError):
        trial(EC, tmp_path)


@pytest.mark.parametrize(
    "words",
    [{"size": "huge"}, {"iterations": 1}],
)
def test_what_cannot_be_tried_is_refused(words: dict[str, object], tmp_path: Path, refuses: Refuses) -> None:
    with refuses(UsageError):
        trial(EC, tmp_path, rehearsal=True, **words)  # type: ignore[arg-type]


def test_a_machine_without_the_gpu_is_told_what_it_can_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    """The tiny model wide, which a trial takes unasked, is nothing for a small machine."""
    monkeypatch.setattr("requant.sandbox.preflight.accelerators", list)
    with refuses(NotAvailableError):
        trial(EC, tmp_path)


def test_a_folder_in_use_is_refused(tmp_path: Path, refuses: Refuses) -> None:
    (tmp_path / "file").touch()
    with refuses(UsageError):
        trial(EC, tmp_path, rehearsal=True, size="mini")


def test_a_trial_that_could_not_be_stopped_is_inconclusive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_quick(_: object, *, out: Path, tell: Tell, **__: object) -> Built:
        tell(Progress("tuning", 2, 2))
        seconds = Seconds(total=9.0, preparing=1.0, tuning=(2.0, 3.0), iterations=(0.5, 0.6))
        return Built(out, Manifest({}, {}), Verdict(Outcome.INCONCLUSIVE), (), {}, Spent(seconds, 1, 0))

    monkeypatch.setattr(trying, "build", too_quick)
    monkeypatch.setattr(trying, "compare", lambda *_: None)
    monkeypatch.setattr(trying, "judge", lambda *_: (Verdict(Outcome.IDENTICAL), ()))
    tried = trial(EC, tmp_path, rehearsal=True, size="mini")
    assert tried.verdict.outcome is Outcome.INCONCLUSIVE
    assert "before it could be stopped" in tried.verdict.reasons[0]


def test_only_the_recipes_own_work_is_projected() -> None:
    own = replace(EC.effort(tiny=False), iterations=10, samples=16)
    assert trying._is_full_work(EC, "wide", own)
    assert not trying._is_full_work(EC, "demo", own)
    assert not trying._is_full_work(EC, "wide", replace(own, precision="float32"))
    assert not trying._is_full_work(EC, "wide", replace(own, device="cpu"))


def test_where_nothing_is_tuned_there_is_nothing_to_time(tmp_path: Path) -> None:
    rounds = replace(EC, tuning=replace(EC.tuning, iterations=0, search_scales=False))
    with pytest.raises(UsageError, match="nothing is tuned, so no iteration can be timed"):
        trial(rounds, tmp_path)


def test_schemes_of_layers_are_tried_too(tmp_path: Path) -> None:
    scheme = {"name": "W8A16", "symmetric": True, "group_size": 32}
    for name in ("bases", "datasets"):
        (tmp_path / "builds" / name).mkdir(parents=True)
    place = tmp_path / "builds" / "mine" / "recipe.toml"
    place.parent.mkdir()
    words = "\n".join(f"{key} = {json.dumps(value)}" for key, value in scheme.items())
    text = EC.path.read_text().replace('policy = "rtn"', 'policy = "bf16"')
    place.write_text(f'{text}\n[layers.schemes."self_attn"]\n{words}\n')
    (place.parent / "plan.json").write_text("{}")
    (tmp_path / "lockfiles").mkdir()
    recipe = read_recipe(place)
    tried = stand_in(recipe, recipe.effort(tiny=True), tmp_path / "trial")
    assert tried.layers == recipe.layers
    assert tried.layers.schemes["self_attn"].bits == 8
