"""The experiment on a trained model: its texts, its model, and that docs/quality.md says what was measured."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT
from tests.quality import DOCS, END, PICTURE, RESULTS, START, picture, tables

from requant import programs
from requant.checkpoint.checkpoint import open_checkpoint
from requant.digest import sha256_file
from requant.environment.install import bytecode
from requant.model.shrink import shrink
from requant.model.target import target_of
from requant.new import new

PLACE = ROOT / "benchmarks" / "quality"
BASE = PLACE / "base"
SHORTEST = 200
Program = Callable[..., str]


@pytest.fixture(scope="module")
def program(worker: Path) -> Program:
    """Run a program of the experiment in the locked environment."""

    def run(name: str, *words: object) -> str:
        env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT / "src"), "PYTHONPYCACHEPREFIX": str(bytecode(worker))}
        env |= {"HF_HUB_OFFLINE": "1", "LC_ALL": "C.UTF-8"}
        return programs.run([str(worker), "-s", str(PLACE / name), *map(str, words)], env=env)

    return run


@pytest.fixture(scope="module")
def texts(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    program("texts.py", folder)
    return folder


@pytest.mark.worker
@pytest.mark.full
def test_the_text_is_what_its_digest_says_and_no_docstring_of_it_stands_in_two_parts(texts: Path) -> None:
    recorded = json.loads((PLACE / "texts.json").read_text())
    assert {path.stem: sha256_file(path) for path in texts.glob("*.jsonl")} == recorded
    seen: dict[str, str] = {}
    for name in recorded:
        lines = [json.loads(line)["text"] for line in (texts / f"{name}.jsonl").read_text().splitlines()]
        assert {len(each) for each in lines} == {1024}
        docstrings = "".join(lines).split("\n\n\n")[:-1]  # the last one is cut off
        assert all(each.isascii() and len(each) >= SHORTEST for each in docstrings)
        for each in docstrings:
            assert seen.setdefault(hashlib.sha256(each.encode()).hexdigest(), name) == name
    assert {name: sum(each == name for each in seen.values()) > 300 for name in recorded} == dict.fromkeys(
        recorded, True
    )


def test_the_model_is_the_one_that_was_measured() -> None:
    found = json.loads(RESULTS.read_text())
    assert found["base"] == {path.name: sha256_file(path) for path in BASE.glob("*.safetensors")}
    assert found["texts"] == json.loads((PLACE / "texts.json").read_text())
    config = json.loads((BASE / "config.json").read_text())
    assert config["text_config"]["layer_types"] == ["linear_attention", "linear_attention", "full_attention"]
    assert shrink(config, "mini")["text_config"]["layer_types"] == config["text_config"]["layer_types"]
    tensors = open_checkpoint(BASE).tensors
    assert {tensor.spec.dtype for tensor in tensors.values()} == {"BF16"}
    assert 1e6 < sum(tensor.spec.size for tensor in tensors.values()) < 4e6
    assert sum(path.stat().st_size for path in BASE.iterdir()) < 5 << 20


def test_the_page_says_what_was_measured() -> None:
    found = json.loads(RESULTS.read_text())
    assert DOCS.read_text().partition(START)[2].partition(END)[0] == tables(found)
    assert PICTURE.read_text() == picture(found)


def test_what_was_measured_holds() -> None:
    """The model has learnt. Recipes that differ in their MTP block alone are alike in all else, and tuned is better."""
    found = json.loads(RESULTS.read_text())
    assert found["rtn built by itself is the same files"] is True
    rows = {(row["recipe"], row["seed"]): row for row in found["rows"]}
    for (recipe, seed), row in rows.items():
        measures = row["measures"]
        assert measures["base_perplexity"][2] < 8
        assert measures["base_drafted"][1] > 0.4
        if recipe in ("rtn", "bf16"):
            calibrated = rows["calibrated", seed]
            assert calibrated["measures"]["divergence"] == measures["divergence"]
        if recipe == "rtn":
            assert rows["calibrated", seed]["bytes"] == row["bytes"]
    less = {(row["recipe"], row["less"], row["seed"]): row["differences"] for row in found["differences"]}
    for _, seed in {key for key in rows if key[0] == "calibrated"}:
        assert less["calibrated", "rtn", seed]["overlap"][1] > 0
        assert less["calibrated", "rounded", seed]["divergence"][2] < 0


@pytest.mark.worker
@pytest.mark.full
def test_training_repeats_bit_for_bit_and_what_it_makes_is_a_base(
    program: Program, texts: Path, ask: Callable[..., Any], tmp_path: Path
) -> None:
    for name in ("one", "two"):
        program("train.py", texts / "train.jsonl", tmp_path / name, 3)
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "base").iterdir()} for name in ("one", "two")
    )
    assert one == two
    begun = open_checkpoint(tmp_path / "one" / "start").tensors
    trained = open_checkpoint(tmp_path / "one" / "base").tensors
    same = {name for name, tensor in trained.items() if tensor.read() == begun[name].read()}
    assert {name for name in trained if name.startswith("model.visual.")} <= same
    assert not {name for name in same if name.startswith("mtp.") and not name.endswith("norm.weight")}

    made = new(str(tmp_path / "one" / "base"), "trained", tmp_path / "project", environment="cpu", sandbox="venv")
    target = target_of(made.recipe, None)
    assert "mtp.layers.0.self_attn.o_proj" in target.rounded
    assert {layer.split(".")[-2] for layer in target.plan.packed} >= {"linear_attn", "self_attn", "shared_expert"}
    shutil.rmtree(tmp_path / "project")
