"""A journal in words: losses as cards quote them, and exactly as they are in JSON."""

import json
from pathlib import Path

import pytest
from tests.conftest import ROOT, Worded
from tests.processes import requant
from tests.test_divergence import JOURNAL

from requant.errors import UsageError
from requant.evidence.journal import read_journal
from requant.evidence.show import journal_json, journal_lines


def test_losses_read_as_cards_quote_them() -> None:
    assert journal_lines(JOURNAL)[-3:] == [f"layer {i} loss 1.500000→0.500000, best of iteration 3" for i in range(3)]
    assert journal_lines(JOURNAL)[:2] == ["recipe recipe", "tiny mini"]


@pytest.mark.parametrize("name", ["ec", "gb10", "intel"])
def test_recorded_journals_show(name: str) -> None:
    path = ROOT / "builds" / name / "mini.journal.jsonl"
    done = requant("show", "journal", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == journal_lines(read_journal(path))
    losses = [each["loss"] for each in json.loads(requant("show", "journal", str(path), "--json").stdout)["blocks"]]
    recorded = [json.loads(line)["loss"] for line in path.read_bytes().splitlines()[1:]]
    assert [float.hex(each["best"]) for each in losses] == [each["best"] for each in recorded]
    assert [float.hex(each["initial"]) for each in losses] == [each["initial"] for each in recorded]


def test_json_leaves_the_journal_as_it_was() -> None:
    assert journal_json(JOURNAL) == journal_json(JOURNAL)
    loss = JOURNAL.blocks[0].loss
    assert loss
    assert loss.best == (0.5).hex()


def test_a_spoilt_journal_is_an_error_in_words(tmp_path: Path, worded: Worded) -> None:
    data = (ROOT / "builds" / "ec" / "mini.journal.jsonl").read_bytes()
    (tmp_path / "j").write_bytes(data.replace(b"layers.1", b"layers.7", 1))
    for path in (tmp_path / "j", tmp_path / "absent"):
        done = requant("show", "journal", str(path))
        assert (done.returncode, done.stdout) == (6, "")
        worded(done.stderr)


def test_a_manifest_is_not_called_a_journal_of_another_schema(worded: Worded) -> None:
    done = requant("show", "journal", str(ROOT / "builds" / "ec" / "mini.manifest.json"))
    assert done.returncode == UsageError.exit_status
    worded(done.stderr)


def test_a_checkpoints_folder_leads_to_the_journal_beside_it(tmp_path: Path, worded: Worded) -> None:
    """`build` writes `ec-tiny.journal.jsonl` beside `ec-tiny`: a shell completes the folder first."""
    folder, beside = tmp_path / "ec-tiny", tmp_path / "ec-tiny.journal.jsonl"
    folder.mkdir()
    done = requant("show", "journal", str(folder))
    assert done.returncode == UsageError.exit_status
    worded(done.stderr)
    beside.write_bytes((ROOT / "builds" / "ec" / "mini.journal.jsonl").read_bytes())
    done = requant("show", "journal", f"{folder}/")
    assert done.returncode == UsageError.exit_status
    assert f"requant show journal {beside}" in " ".join(done.stderr.split())
