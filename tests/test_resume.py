"""A build that was stopped, at any moment and by anything, ends in the bytes of one that was not."""

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.checkpoints import on_a_disk, on_disk
from tests.conftest import ROOT, Refuses
from tests.processes import LIMIT, all_ended, awaited, signalled, started
from tests.test_build import project

from requant.build import Built, beside, build
from requant.build.workplace import kept, scratch, workplace
from requant.errors import BuildError, CheckpointError, UsageError
from requant.evidence.journal import Block, Header, Loss, Writer, read_journal
from requant.progress import Progress
from requant.protocol import JOURNAL
from requant.recipe import read_recipe

KILLS = 10
"""Of each of two builds, which run side by side."""
PHASES = (("tiny model mini", 0), ("tuning", 0), ("tuning", 1), ("tuning", 3), ("passes", 0))
"""What a build tells of when it is killed: a stage, and how much is done in it."""


def command(name: str, out: Path) -> list[str]:
    return [sys.executable, "-m", "requant", *words(name, out)]


def words(name: str, out: Path) -> list[str]:
    words = ["build", str(ROOT / "builds" / name), "--tiny", "--size", "mini"]
    return [*words, "--out", str(out), "--keep-raw", "--sandbox", "venv"]


def tuned(out: Path) -> int:
    """Return how many blocks a stopped build has."""
    path = out.with_name(f".{out.name}.unfinished") / JOURNAL
    return path.read_bytes().count(b"\n") - 1 if path.exists() else -1


def killed(name: str, out: Path) -> list[int]:
    """Build, killed again and again at random moments; return what each stop left of it.

    A moment is so many seconds after the start, or after the next block: both, because a machine may be so slow that
    the former never comes to a block.
    """
    moments = random.Random(name)  # noqa: S311
    found: list[int] = []
    while len(found) < KILLS:
        begun, behind = tuned(out), moments.choice((False, True))
        with started(command(name, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            assert not behind or awaited(partial(further, process, out, begun))
            try:
                assert process.wait(moments.uniform(0, 3 if behind else 10)) == 0
                shutil.rmtree(out)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                assert not out.exists()
                found.append(tuned(out))
    finish(name, out)
    return found


def further(process: subprocess.Popen[str], out: Path, begun: int) -> bool:
    """Say whether a build has tuned another block, or has ended."""
    return process.poll() is not None or tuned(out) > begun


def finish(name: str, out: Path) -> None:
    """Go on with a build to its end."""
    last = subprocess.run(command(name, out), capture_output=True, text=True)
    assert last.returncode == 0, last.stderr


def equal(ours: Path, theirs: Path) -> None:
    """Compare what two builds leave, AutoRound's own output included."""
    for end in ("manifest.json", "journal.jsonl"):
        assert beside(ours, end).read_bytes() == beside(theirs, end).read_bytes()
    for path in beside(theirs, "raw").iterdir():
        assert (beside(ours, "raw") / path.name).read_bytes() == path.read_bytes(), path.name
    assert not ours.with_name(f".{ours.name}.unfinished").exists()


def end(number: int, stage: str, done: int, out: Path) -> str:
    """Begin a build, or go on with one, that gets a signal when it is so far; return what it said."""
    command = signalled(number, stage, done, *words("ec", out))
    with started(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        _, said = process.communicate(timeout=LIMIT)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), said
    assert not out.exists()
    assert all_ended(out)
    assert max(tuned(out), 0) >= done, stage
    return said


@pytest.mark.worker
def test_killed_between_blocks_it_ends_in_the_same_bytes(built: Callable[[str], Built], tmp_path: Path) -> None:
    out = tmp_path / "ec"
    end(signal.SIGKILL, "tuning", 1, out)
    finish("ec", out)
    equal(out, built("ec").folder)


@pytest.mark.full
@pytest.mark.worker
def test_stopped_by_one_thing_after_the_other_it_ends_in_the_same_bytes(
    built: Callable[[str], Built], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, refused, interrupted, stopped at its very end, refused again: its blocks outlive all of it."""
    recipe, out = read_recipe(ROOT / "builds" / "ec"), tmp_path / "ec"
    end(signal.SIGKILL, "tuning", 1, out)

    # Another recipe does not go on with the blocks of this one.
    other = read_recipe(project(tmp_path / "other", iterations=("iterations = 6\n", "iterations = 5\n")))
    with pytest.raises(BuildError, match="was begun with another recipe") as error:
        build(other, tiny="mini", out=out)
    assert "--fresh" in error.value.advice
    assert (before := tuned(out)) >= 1

    said = end(signal.SIGINT, "tuning", 3, out)
    assert f"resuming after block {before} of 4" in said
    assert "resumes after its last completed block" in said
    assert {path.name for path in tmp_path.iterdir()} == {".ec.unfinished", "ec.log", "other"}

    # What stands under the final name has its records beside it, so its renaming is what a build ends with.
    before, told = tuned(out), list[Progress]()
    with monkeypatch.context() as patched:
        patched.setattr("requant.build.shutil.copyfile", stopped)
        with pytest.raises(KeyboardInterrupt):
            build(recipe, tiny="mini", out=out, tell=told.append)
    assert Progress(f"resuming after block {before} of 4") in told
    noted = [each.done for each in told if each.stage == "tuning" and each.note]
    assert not noted or min(noted) > before
    assert not out.exists()
    assert tuned(out) == 4

    journal = (kept := out.with_name(f".{out.name}.unfinished") / JOURNAL).read_bytes()
    with_other_others(kept)
    with pytest.raises(BuildError, match=r"layers\.2: was given other position embeddings or masks than now") as error:
        build(recipe, tiny="mini", out=out)
    assert "--fresh" in error.value.advice
    kept.write_bytes(journal)

    assert build(recipe, tiny="mini", out=out, keep_raw=True).verdict.outcome == "identical"
    equal(out, built("ec").folder)


@pytest.mark.full  # in each phase; the tests above are killed in one, and stopped in two others
@pytest.mark.worker
def test_killed_in_each_phase_it_ends_in_the_same_bytes(built: Callable[[str], Built], tmp_path: Path) -> None:
    out = tmp_path / "ec"
    for stage, done in PHASES:
        end(signal.SIGKILL, stage, done, out)
    assert tuned(out) == 4
    finish("ec", out)
    equal(out, built("ec").folder)


@pytest.mark.full
@pytest.mark.worker
def test_killed_at_any_moment_it_ends_in_the_same_bytes(built: Callable[[str], Built], tmp_path: Path) -> None:
    names = ("ec", "gb10")
    for name in names:
        built(name)
    with ThreadPoolExecutor() as pool:
        stops = list(pool.map(lambda name: killed(name, tmp_path / name), names))
    assert all(any(blocks > 0 for blocks in found) for found in stops), "no build was stopped behind a block"
    for name in names:
        equal(tmp_path / name, built(name).folder)


def with_other_others(path: Path) -> None:
    """Let a journal say, consistently, that the third block was given something else besides its streams."""
    journal = read_journal(path)
    path.unlink()
    with Writer(path, journal.header) as writer:
        for number, block in enumerate(journal.blocks):
            others = "0" * 64 if number == 2 else block.inputs["others"]
            writer.append(replace(block, inputs={**block.inputs, "others": others}))


def stopped(source: Path, target: Path) -> None:
    """Copy, but do not come to the journal, the last of a build's records."""
    if target.name.endswith("journal.jsonl"):
        raise KeyboardInterrupt
    target.write_bytes(Path(source).read_bytes())


@pytest.mark.worker
def test_a_resume_state_is_believed_only_where_it_is_what_the_journal_says(
    ask: Callable[..., dict[str, object]], tmp_path: Path
) -> None:
    found = ask("resume", tmp_path)
    assert found.pop("equal") == [True] * 5
    assert found.pop("kept") == ["00002"]
    words = {
        "a bit of a stream": "quantized.safetensors is not what was written",
        "a bit of the samples in another arithmetic": "again.safetensors is not what was written",
        "a bit of its header": "cannot be read",
        "another stream": "not what the journal's last block put out",
        "another random state": "inputs.json is not what was written",
        "no block inputs": "No such file",
        "no block": "00001.safetensors: cannot be read",
        "a block cut short": "00001.safetensors: cannot be read",
        "no json": "cannot be read",
        **{
            f"another {name}": name
            for name in ("recipe", "environment", "base", "calibration", "tiny", "hardware class")
        },
    }
    assert found.keys() == words.keys()
    for harm, says in words.items():
        assert says in str(found[harm]), harm
        assert "--fresh" in str(found[harm]), harm


def test_a_workplace_is_one_process_s(tmp_path: Path, refuses: Refuses) -> None:
    with workplace(tmp_path / "out", fresh=False) as work:
        (work / "scraps").mkdir()
        with refuses(UsageError), workplace(tmp_path / "out", fresh=True):
            pass
        assert (work / "scraps").exists()
    assert list(tmp_path.iterdir()) == []


def test_taints_outlive_a_build_that_was_stopped(tmp_path: Path, refuses: Refuses) -> None:
    place = tmp_path / "resume" / "taints.json"
    assert kept(tmp_path, ("a",)) == ("a",)
    assert kept(tmp_path, ("b",)) == ("a", "b")
    assert [path.name for path in place.parent.iterdir()] == ["taints.json"]
    for harm in (b"", b"[", b"1", b"\xff"):
        place.write_bytes(harm)
        with refuses(BuildError):
            kept(tmp_path, ())


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    left = tmp_path / "tmpleft"
    left.mkdir()
    (left / "lock").touch()
    (left / "inputs").touch()
    with scratch(tmp_path) as ours, scratch(tmp_path) as other:
        assert sorted(tmp_path.glob("*/")) == sorted((ours, other))
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.parametrize("shut", ["missing", "there"])
def test_in_a_cache_that_cannot_be_written_a_scratch_folder_is_a_temporary_one(
    shut: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "cache" / "audits"
    if shut == "missing":
        (tmp_path / "cache").touch()  # so that nothing can be made below it
    else:
        place.mkdir(parents=True)
        monkeypatch.setattr(os, "access", lambda path, mode: (Path(path), mode) != (place, os.W_OK))
    with scratch(place) as folder:
        assert folder.is_dir() and tmp_path / "cache" not in folder.parents
        (folder / "file").touch()
    assert not folder.exists()


def test_what_holds_no_block_is_not_left_behind(tmp_path: Path) -> None:
    for place, left in (("resume", False), ("resume/blocks/00001.safetensors", True)):
        with pytest.raises(KeyError), workplace(tmp_path / "out", fresh=True) as work:
            (work / place).mkdir(parents=True)
            (work / "raw").mkdir()
            raise KeyError
        assert [path.name for path in tmp_path.iterdir()] == [".out.unfinished"] * left
    with workplace(tmp_path / "out", fresh=False) as work:
        assert sorted(path.name for path in work.iterdir()) == ["lock", "resume"]
        shutil.rmtree(work / "resume")


HEADER = Header("r", None, "e", "b", "c", 3)
LINE = Block("block", {}, "s", Loss((0.5).hex(), (0.5).hex(), 0), {}, {})


@on_a_disk
@given(blocks=st.integers(0, 3), cut=st.integers(0, 400))
def test_a_journal_goes_on_behind_its_last_whole_line(blocks: int, cut: int) -> None:
    with on_disk({}) as folder:
        with Writer(folder / "whole", HEADER) as writer:
            for _ in range(3):
                writer.append(LINE)
        data = (folder / "whole").read_bytes()
        lines = data.splitlines(keepends=True)
        begun = b"".join(lines[: 1 + blocks]) + (b"".join(lines[1 + blocks :])[:cut] if blocks < 3 else b"")
        (folder / "cut").write_bytes(begun)
        writer, found = Writer.reopen(folder / "cut")
        with writer:
            for _ in range(3 - len(found.blocks)):
                writer.append(LINE)
        assert (folder / "cut").read_bytes() == data
        assert read_journal(folder / "cut").blocks == (LINE,) * 3


def test_a_journal_without_a_header_does_not_go_on(tmp_path: Path, refuses: Refuses) -> None:
    (tmp_path / "journal").write_bytes(b'{"schema":1')
    with refuses(CheckpointError):
        Writer.reopen(tmp_path / "journal")
