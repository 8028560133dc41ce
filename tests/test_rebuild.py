"""A rebuild is held against manifest and journal, anybody's; where the two part ways is named."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT, Refuses, Worded
from tests.processes import requant
from typer.testing import CliRunner

from requant.build import RECORDED, Built, beside, compare
from requant.build.rebuild import find, judge, rebuild
from requant.checkpoint.manifest import read_manifest
from requant.cli.options import app
from requant.errors import CheckpointError, NotAvailableError, UsageError
from requant.evidence.journal import Journal, Writer, read_journal
from requant.recipe import read_recipe
from requant.verdict import Difference, Outcome, Verdict

EC = ROOT / "builds" / "ec"
JOURNAL = read_journal(EC / "mini.journal.jsonl")
CHANGED = Difference("changed tensor", "a", "model.safetensors")


def write(path: Path, journal: Journal) -> None:
    path.unlink(missing_ok=True)
    with Writer(path, journal.header) as writer:
        for block in journal.blocks:
            writer.append(block)


def with_tensor(journal: Journal) -> Journal:
    """One tensor of block 2 has another digest, as where one code of it was tuned otherwise."""
    block = journal.blocks[2]
    changed = replace(block, tensors={**block.tensors, min(block.tensors): "ab" * 32})
    return replace(journal, blocks=(*journal.blocks[:2], changed, *journal.blocks[3:]))


def with_environment(journal: Journal) -> Journal:
    return replace(journal, header=replace(journal.header, environment="ab" * 32))


@pytest.mark.parametrize(
    ("outcome", "edit", "expected", "said"),
    [
        ("identical", None, "identical", ""),
        ("identical", with_tensor, "equivalent", "journal, line 4: model.language_model.layers.2: tensors"),
        ("identical", with_environment, "equivalent", "journal, line 1: header: environment"),
        ("equivalent", None, "equivalent", "the builds part ways after tuning"),
        ("different", None, "different", "the builds part ways after tuning"),
        ("different", with_tensor, "different", "its inputs and losses agree, its tensors do not"),
        ("different", with_environment, "inconclusive", "journal, line 1: header: environment"),
        ("inconclusive", with_tensor, "inconclusive", "journal, line 4"),
    ],
)
def test_one_verdict_comes_of_bytes_and_journal(
    outcome: str, edit: Callable[[Journal], Journal] | None, expected: str, said: str, tmp_path: Path
) -> None:
    write(beside(tmp_path / "ours", "journal.jsonl"), JOURNAL)
    write(beside(tmp_path / "theirs", "journal.jsonl"), edit(JOURNAL) if edit else JOURNAL)
    on_bytes = Verdict(Outcome(outcome), () if outcome == "identical" else (CHANGED,), ("known before",))
    verdict, divergences = judge(on_bytes, tmp_path / "ours", tmp_path / "theirs")
    assert (verdict.outcome, verdict.differences) == (expected, on_bytes.differences)
    assert verdict.reasons[0] == "known before"
    assert [said in reason for reason in verdict.reasons[1:]] == ([True] if said else [])
    assert len(divergences) == (edit is not None)


def test_without_a_journal_the_bytes_decide_and_that_is_said(tmp_path: Path) -> None:
    write(beside(tmp_path / "ours", "journal.jsonl"), JOURNAL)
    verdict, divergences = judge(Verdict(Outcome.IDENTICAL), tmp_path / "ours", tmp_path / "theirs")
    assert (verdict.outcome, divergences) == (Outcome.IDENTICAL, ())
    assert "only bytes were compared" in verdict.reasons[0]


def test_a_spoilt_journal_is_an_error_and_no_verdict(tmp_path: Path, refuses: Refuses) -> None:
    write(beside(tmp_path / "ours", "journal.jsonl"), JOURNAL)
    data = (EC / "mini.journal.jsonl").read_bytes()
    beside(tmp_path / "theirs", "journal.jsonl").write_bytes(data.replace(b"layers.1", b"layers.9", 1))
    with refuses(CheckpointError):
        judge(Verdict(Outcome.IDENTICAL), tmp_path / "ours", tmp_path / "theirs")


def test_a_build_is_found_in_a_folder_or_beside_a_checkpoint(tmp_path: Path, refuses: Refuses) -> None:
    assert find(EC, "mini") == EC / "mini"
    assert find(EC, "demo") == EC / "demo"
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs.manifest.json").write_text("")
    assert find(tmp_path / "theirs", "mini") == tmp_path / "theirs"
    for nowhere in (tmp_path / "nowhere", EC / "mini.manifest.json", Path()):
        with refuses(UsageError):
            find(nowhere, "mini")
    with refuses(UsageError):
        find(EC, None)


def test_what_it_is_compared_with_is_not_replaced(tmp_path: Path, refuses: Refuses) -> None:
    """Else a rebuild would be held against itself."""
    shutil.copyfile(EC / "mini.manifest.json", tmp_path / "out.manifest.json")
    (tmp_path / "link").symlink_to(tmp_path)
    for against in (tmp_path / "out", tmp_path / "link" / "out"):
        with refuses(UsageError):
            rebuild(read_recipe(EC), against, tiny="mini", out=tmp_path / "out", replace_existing=True)


@pytest.mark.parametrize("arguments", ["--against docs --tiny", "", "--tiny --size wide"])
def test_nothing_is_built_where_there_is_nothing_to_compare_with(arguments: str, worded: Worded) -> None:
    done = requant("rebuild", "builds/ec", *arguments.split())
    assert (done.returncode, done.stdout) == (2, "")
    worded(done.stderr)


@pytest.mark.parametrize(("against", "tiny"), [(None, None), ("theirs", None), ("theirs", "--tiny")])
def test_who_forgets_the_tiny_model_is_told_before_hours_of_tuning(
    against: str | None, tiny: str | None, tmp_path: Path, worded: Worded
) -> None:
    for name in RECORDED:
        shutil.copyfile(EC / f"mini.{name}", tmp_path / f"theirs.{name}")
    words = ("--against", str(tmp_path / against)) if against else ()
    done = requant("rebuild", "builds/ec", *words, *filter(None, [tiny]))
    assert (done.returncode, done.stdout) == (2, "")
    worded(done.stderr)


def test_a_machine_without_the_gpu_is_told_what_it_can_rebuild(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    monkeypatch.setattr("requant.sandbox.preflight.accelerators", list)
    shutil.copyfile(EC / "mini.manifest.json", tmp_path / "checkpoint.manifest.json")
    with refuses(NotAvailableError):
        rebuild(read_recipe(EC), tmp_path, tiny=None, out=tmp_path / "out")


@pytest.fixture
def theirs(built: Callable[[str], Built], tmp_path: Path) -> Path:
    """Somebody's recorded build of the tiny model mini of ec, which a test may spoil."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    for name in RECORDED:
        shutil.copyfile(beside(built("ec").folder, name), folder / f"mini.{name}")
    return folder


def verdict_on(built: Built, theirs: Path) -> Verdict:
    record = find(theirs, "mini")
    return judge(compare(read_recipe(EC), "mini", built.folder, record), built.folder, record)[0]


def edit(path: Path, change: Callable[[Any], object]) -> None:
    value = json.loads(path.read_bytes())
    change(value)
    path.write_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n")


@pytest.mark.worker
def test_somebody_s_build_is_compared_byte_by_byte_and_line_by_line(
    built: Callable[[str], Built], theirs: Path
) -> None:
    ours = built("ec")
    assert verdict_on(ours, theirs).outcome is Outcome.IDENTICAL
    journal = read_journal(theirs / "mini.journal.jsonl")
    name = min(journal.blocks[2].tensors)
    write(theirs / "mini.journal.jsonl", with_tensor(journal))
    assert verdict_on(ours, theirs).outcome is Outcome.EQUIVALENT
    edit(theirs / "mini.manifest.json", lambda value: value["tensors"][name].update(sha256="ab" * 32))
    file = read_manifest(theirs / "mini.manifest.json").tensors[name].file
    edit(theirs / "mini.manifest.json", lambda value: value["files"][file].update(sha256="cd" * 32))
    verdict = verdict_on(ours, theirs)
    assert verdict.outcome is Outcome.DIFFERENT
    assert [each.name for each in verdict.differences if each.kind == "changed tensor"] == [name]
    assert name in verdict.reasons[0]
    statement = theirs / "mini.intoto.jsonl"
    statement.write_text(statement.read_text().replace('"accelerator"', '"elsewhere":true,"accelerator"'))
    assert verdict_on(ours, theirs).outcome is Outcome.INCONCLUSIVE


@pytest.mark.worker
@pytest.mark.full
def test_rebuild_repeats_a_build(built: Callable[[str], Built], theirs: Path, tmp_path: Path) -> None:
    """The whole verb once, against what somebody left beside a checkpoint, whose journal says otherwise."""
    for name in RECORDED:
        shutil.copyfile(theirs / f"mini.{name}", beside(tmp_path / "published", name))
    command = ("rebuild", str(EC), "--against", str(tmp_path / "published"), "--tiny", "--size", "mini", "--json")
    write(tmp_path / "published.journal.jsonl", with_tensor(read_journal(theirs / "mini.journal.jsonl")))
    done = CliRunner().invoke(app, [*command, "--sandbox", "venv", "--out", str(tmp_path / "again")])
    assert done.exit_code == 1, done.output
    value = json.loads(done.stdout)
    assert value["outcome"] == "equivalent"
    assert [(each["line"], each["field"]) for each in value["divergences"]] == [(4, "tensors")]
    shutil.copyfile(theirs / "mini.journal.jsonl", tmp_path / "published.journal.jsonl")
    again = Path(value["folder"])
    verdict, divergences = judge(
        compare(read_recipe(EC), "mini", again, tmp_path / "published"), again, tmp_path / "published"
    )
    assert (verdict, divergences) == (Verdict(Outcome.IDENTICAL), ())
