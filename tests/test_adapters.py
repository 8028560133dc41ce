"""What an adapter of a quantizer lets the worker do, in each environment whose lock is of a CPU: docs/adr/0022.

Heard: each block's loss, its iterations, the random state and the digest of all it saw and wrote. Chained: a block is
given what the one before it put out. Resumed: stopped after a block, it ends in the same bytes. Replayed: each block
alone, from published codes, is tuned to the same bits.
"""

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT
from tests.owned import base, hold
from tests.tiny import write_tiny

from requant.build import beside, build, record
from requant.checkpoint.checkpoint import open_checkpoint
from requant.digest import sha256_chunks
from requant.environment.lock import read_lock
from requant.evidence.journal import Block, read_journal
from requant.new import ENVIRONMENTS, EnvironmentName, new
from requant.recipe import Recipe, read_recipe
from requant.verdict import Outcome

pytestmark = pytest.mark.worker

CPU = [name for name, (accelerator, _) in ENVIRONMENTS.items() if not accelerator]
"""A GPU's cannot be run here."""


def of_one_s_own(
    folder: Path, name: str, environment: EnvironmentName, edit: Callable[[str], str] = str, **options: Any
) -> Recipe:
    """A recipe for a base of the corpus, made with these options of `new`, and edited."""
    return for_base(base(name, folder / "model"), folder / "project", environment, edit, **options)


def for_base(
    model: Path, project: Path, environment: EnvironmentName, edit: Callable[[str], str] = str, **options: Any
) -> Recipe:
    """A recipe for a base, made with these options of `new`, and edited."""
    recipe = new(str(model), "mine", project, environment=environment, sandbox="venv", **options)
    file = recipe.recipe.path
    file.write_text(edit(file.read_text()))
    return read_recipe(file)


def accumulating(text: str) -> str:
    """A recipe whose iterations have two steps."""
    for key, value in (("batch_size", 4), ("gradient_accumulation", 2)):
        text, count = re.subn(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.MULTILINE)
        assert count == 1
    return text


def logged(folder: Path) -> list[tuple[float, int, float]]:
    """Return the losses in AutoRound's own log, block by block: initial, iteration of the best, best."""
    found = re.findall(r"loss iter 0: (\S+) -> iter (\d+): ([\d.e+-]+)", beside(folder, "log").read_text())
    return [(float(initial), int(iteration), float(best)) for initial, iteration, best in found]


def heard(folder: Path, recipe: Recipe) -> tuple[Block, ...]:
    """Hold a journal against AutoRound's own log and output, and against itself; return its blocks."""
    journal = read_journal(beside(folder, "journal.jsonl"))
    assert journal.header.blocks == len(journal.blocks) > 1
    said = logged(folder)
    assert len(said) == len(journal.blocks)
    for block, (initial, iteration, best) in zip(journal.blocks, said, strict=True):
        assert block.loss
        assert float.fromhex(block.loss.initial) == pytest.approx(initial, rel=1e-3)
        assert float.fromhex(block.loss.best) == pytest.approx(best, rel=1e-3)
        assert block.loss.best_iteration == iteration < recipe.tiny.iterations
    raw = open_checkpoint(beside(folder, "raw"))
    written = {name: tensor for shard in raw.shards.values() for name, tensor in shard.items()}
    for block in journal.blocks:
        assert any(name.endswith(".qweight") for name in block.tensors)
        for name, digest in block.tensors.items():
            assert sha256_chunks([written[name].read()]) == digest, name
    first, *_ = journal.blocks
    assert first.inputs["full"] == first.inputs["quantized"]
    for before, after in pairwise(journal.blocks):
        assert {**after.inputs, "others": ""} == {**before.outputs, "others": ""}
        assert before.outputs["full"] != before.outputs["quantized"]
    assert len({block.random_state for block in journal.blocks}) == len(journal.blocks)
    return journal.blocks


@pytest.mark.parametrize("name", ["llama-current", pytest.param("qwen3.6-35b-a3b-cu130", marks=pytest.mark.full)])
def test_a_build_with_the_newest_autoround_is_what_was_recorded(name: str, tmp_path: Path) -> None:
    recipe, out = read_recipe(ROOT / "builds" / name), tmp_path / "out"
    assert build(recipe, tiny="mini", out=out, keep_raw=True).verdict.outcome is Outcome.IDENTICAL
    assert heard(out, recipe) == read_journal(recipe.beside("mini.journal.jsonl")).blocks


@pytest.mark.full
@pytest.mark.parametrize("edit", [str, accumulating])
@pytest.mark.parametrize("architecture", ["llama", "qwen3_5_moe", "qwen3moe"])
@pytest.mark.parametrize("environment", CPU)
def test_an_adapter_is_heard_chained_resumed_and_replayed(
    environment: EnvironmentName, architecture: str, edit: Callable[[str], str], tmp_path: Path
) -> None:
    own = of_one_s_own(tmp_path, architecture, environment, edit)
    first = build(own, tiny="mini", out=tmp_path / "first", keep_raw=True).folder
    heard(first, own)
    record(own, "mini", first)
    hold(own, first, tmp_path)


def test_environments_of_a_cpu_are_those_without_cuda() -> None:
    locks = {file.stem: read_lock(file.parent, file.stem) for file in (ROOT / "lockfiles").glob("*.files")}
    assert sorted(ENVIRONMENTS) == sorted(locks)
    plain = [name for name, lock in locks.items() if not any(pin.name.startswith("nvidia-") for pin in lock.pins)]
    assert sorted(plain) == sorted(CPU)


@pytest.mark.full
@pytest.mark.parametrize("environment", CPU)
def test_an_adapter_stops_where_autoround_would_go_on(
    ask: Callable[..., Any], environment: str, tmp_path: Path
) -> None:
    """Where memory ends it would go on with the CPU, and where the model fails, with fewer samples."""
    write_tiny("mini", tmp_path / "base")
    found = ask("endings", tmp_path / "base", "ec", tmp_path / "out", environment=environment)
    assert found["another"].startswith("AutoRound 0.14.2: this worker knows 0.12, 0.13.0+g2dda035b275a, 0.16 | ")
    assert found["healthy"] == "tuned"
    assert "ran out of memory on cpu while it made what the first block is given" in found["out of memory"]
    # 0.12 hands the model's own error on; 0.16 logs it.
    assert found["a failed pass"] == "no room" or "gives it 8, expected 16 samples" in found["a failed pass"]
    assert all(module.startswith("auto_round.") for module in found["restored"])
