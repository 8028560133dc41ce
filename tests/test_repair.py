"""Every repairable tiny model becomes one that `inspect` passes, with every tuned byte where it was."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.cases.mutations import CASES, Case, indexed, second_copy
from tests.cases.tiny_models import healthy
from tests.conftest import ROOT, Refuses
from tests.test_inspect import unknown
from tests.tiny import write_tiny
from typer.testing import CliRunner

from requant.build import Built
from requant.checkpoint.checkpoint import Checkpoint, Held, open_checkpoint, write_checkpoint
from requant.checkpoint.manifest import make_manifest
from requant.cli.options import app
from requant.errors import CheckpointError, NotModelledError, UsageError
from requant.inspect import inspect
from requant.inspect.baseline import expected as baseline
from requant.inspect.baseline import read_baseline
from requant.inspect.headers import read_headers
from requant.recipe import read_recipe
from requant.repair import repair

REPAIRABLE = [case for case in CASES if case.repairable]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "mini"
    write_tiny("mini", folder)
    return folder


@pytest.mark.parametrize("case", REPAIRABLE, ids=lambda case: f"{case.rule}: {case.name}")
def test_a_repaired_tiny_model_passes(case: Case, base: Path, tmp_path: Path) -> None:
    write_checkpoint(case.mutate(healthy(case.recipe)), tmp_path / "broken")
    before = make_manifest_or_none(tmp_path / "broken")
    done = repair(tmp_path / "broken", base, out=tmp_path / "mended")
    known = baseline(read_baseline(read_recipe(ROOT / "builds" / case.recipe)))
    found = inspect(read_headers(tmp_path / "mended"), look_at_values=True, known=known)
    assert unknown(found) == set(), found.findings
    assert done.needed and done.before == done.after and done.kept
    assert make_manifest_or_none(tmp_path / "broken") == before


def make_manifest_or_none(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    "case", [case for case in CASES if not case.repairable and case.tp == 1], ids=lambda case: case.name
)
def test_what_only_a_build_can_mend_is_told(case: Case, base: Path, tmp_path: Path) -> None:
    write_checkpoint(case.mutate(healthy(case.recipe)), tmp_path / "broken")
    with pytest.raises((CheckpointError, NotModelledError)):
        repair(tmp_path / "broken", base, out=tmp_path / "mended")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


@pytest.mark.parametrize("name", ["ec", "gb10", "intel"])
def test_a_healthy_tiny_model_stays_as_it_is(name: str, base: Path, tmp_path: Path) -> None:
    write_checkpoint(healthy(name), tmp_path / "tiny")
    assert not repair(tmp_path / "tiny", base).needed
    repair(tmp_path / "tiny", base, out=tmp_path / "again")
    assert make_manifest(tmp_path / "tiny") == make_manifest(tmp_path / "again")


def test_what_was_not_looked_at_is_not_called_healthy(base: Path, tmp_path: Path) -> None:
    """A tuned code that is wrong is no repair's business: it is `check` that finds it."""
    tiny = healthy("ec")
    name = "model.language_model.layers.0.linear_attn.out_proj.qweight"
    (file,) = (file for file, held in tiny.shards.items() if name in held)
    spoilt = replace(tiny.shards[file][name], content=Held(bytes(reversed(tiny.shards[file][name].read()))))
    shards = {**tiny.shards, file: {**tiny.shards[file], name: spoilt}}
    write_checkpoint(Checkpoint(shards, tiny.files), tmp_path / "wrong")
    words = ["repair", str(tmp_path / "wrong"), "--base", str(base)]
    said = CliRunner().invoke(app, words).output
    assert "nothing needs repair" in said and "configuration" in said and "`requant check`" in said
    assert "written" not in said
    said = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "copy")]).output
    assert "nothing needed repair" in said and "`requant check`" in said and f"{tmp_path}/copy" in said


def test_a_repair_names_the_folder_that_it_wrote(base: Path, tmp_path: Path) -> None:
    write_checkpoint(REPAIRABLE[0].mutate(healthy(REPAIRABLE[0].recipe)), tmp_path / "broken")
    words = ["repair", str(tmp_path / "broken"), "--base", str(base), "--out", str(tmp_path / "mended")]
    said = CliRunner().invoke(app, words).output
    assert f"{tmp_path}/mended" in said and "nothing needed repair" not in said


@pytest.mark.worker
@pytest.mark.parametrize("name", ["ec", "gb10", "intel"])
def test_raw_output_becomes_the_build(name: str, built: Callable[[str], Built], base: Path, tmp_path: Path) -> None:
    """What AutoRound left is repaired to what the build made of it, byte for byte where tuning decides."""
    folder = built(name).folder
    policy = read_recipe(ROOT / "builds" / name).mtp.policy
    repair(folder.with_name(f"{name}.raw"), base, out=tmp_path / "mended", policy=policy)
    mended, made = make_manifest(tmp_path / "mended").tensors, make_manifest(folder).tensors
    assert {key: record.sha256 for key, record in mended.items()} == {
        key: record.sha256 for key, record in made.items()
    }


def test_the_policy_of_mtp_can_be_chosen(base: Path, tmp_path: Path) -> None:
    write_checkpoint(healthy("ec"), tmp_path / "ec")
    repair(tmp_path / "ec", base, out=tmp_path / "float", policy="bf16")
    float_names = {name for name in open_checkpoint(tmp_path / "float").tensors if name.startswith("mtp.")}
    assert float_names == {name for name in open_checkpoint(base).tensors if name.startswith("mtp.")}
    repair(tmp_path / "float", base, out=tmp_path / "packed", policy="rtn")
    assert make_manifest(tmp_path / "packed").tensors == make_manifest(tmp_path / "ec").tensors


def test_the_tuned_copy_is_kept(base: Path, tmp_path: Path) -> None:
    """The second copy, in the extras, is the one that loaders would have read last."""
    tiny = healthy("ec")
    name = "model.language_model.layers.0.linear_attn.out_proj.qweight"
    other = "model.language_model.layers.1.linear_attn.out_proj.qweight"
    spoilt = second_copy(Checkpoint(tiny.shards, tiny.files), other, name)
    write_checkpoint(indexed(spoilt), tmp_path / "broken")
    done = repair(tmp_path / "broken", base, out=tmp_path / "mended")
    assert open_checkpoint(tmp_path / "mended").tensors[name].read() == tiny.tensors[name].read()
    assert any(name in each for each in done.dropped)


def test_a_crash_leaves_nothing(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(healthy("gb10"), tmp_path / "tiny")

    def crash(file: str) -> None:
        if "extra" in file:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repair(tmp_path / "tiny", base, out=tmp_path / "mended", progress=crash)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.parametrize("inside", ["", "new"])
def test_the_input_is_never_written_to(base: Path, tmp_path: Path, inside: str) -> None:
    write_checkpoint(healthy("gb10"), tmp_path / "tiny")
    with pytest.raises(UsageError):
        repair(tmp_path / "tiny", base, out=tmp_path / "tiny" / inside)


def test_another_base_is_refused(tmp_path: Path, refuses: Refuses) -> None:
    write_checkpoint(healthy("gb10"), tmp_path / "tiny")
    write_tiny("demo", tmp_path / "demo")
    with refuses(CheckpointError):
        repair(tmp_path / "tiny", tmp_path / "demo")


def test_the_command_is_dry_by_default(base: Path, tmp_path: Path) -> None:
    write_checkpoint(CASES[0].mutate(healthy("ec")), tmp_path / "broken")
    shown = CliRunner().invoke(app, ["repair", str(tmp_path / "broken"), "--base", str(base)])
    assert shown.exit_code == 0 and "nothing was written" in shown.output and "keep their bytes" in shown.output
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]
