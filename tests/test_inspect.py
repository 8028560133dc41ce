"""Every broken tiny model is found under its own rule, and a healthy one has what its recipe's baseline says."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.cases.mutations import CASES, Case
from tests.cases.tiny_models import healthy
from tests.conftest import ROOT
from typer.testing import CliRunner

from requant.build import Built
from requant.checkpoint.checkpoint import write_checkpoint
from requant.cli.options import app
from requant.inspect import Inspection, inspect
from requant.inspect.baseline import expected as baseline
from requant.inspect.baseline import read_baseline
from requant.inspect.defects import DEFECTS
from requant.inspect.findings import Expected, fold
from requant.inspect.headers import read_headers
from requant.inspect.loaders import LOADERS, TENSOR_PARALLEL, named
from requant.recipe import read_recipe

NAMES = ("ec", "gb10", "intel")


def known(name: str) -> Expected:
    return baseline(read_baseline(read_recipe(ROOT / "builds" / name)))


@pytest.fixture(scope="session")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A healthy tiny model of each recipe, written once."""
    written: dict[str, Path] = {}

    def write(name: str) -> Path:
        if name not in written:
            written[name] = tmp_path_factory.mktemp("healthy") / name
            write_checkpoint(healthy(name), written[name])
        return written[name]

    return write


def unknown(inspection: Inspection) -> set[str]:
    return {finding.rule for finding in inspection.findings if not finding.known}


@pytest.mark.parametrize("name", NAMES)
def test_a_healthy_tiny_model_has_its_baseline_and_nothing_else(name: str, on_disk: Callable[[str], Path]) -> None:
    found = inspect(read_headers(on_disk(name)), LOADERS, TENSOR_PARALLEL, look_at_values=True, known=known(name))
    assert unknown(found) == set()
    assert not inspect(read_headers(on_disk(name))).errors


@pytest.mark.worker
@pytest.mark.parametrize("name", NAMES)
def test_a_build_has_its_baseline_and_all_of_it(name: str, built: Callable[[str], Built]) -> None:
    headers = read_headers(built(name).folder)
    found = inspect(headers, LOADERS, TENSOR_PARALLEL, look_at_values=True, known=known(name))
    assert unknown(found) == set()
    assert {each.rule for each in found.findings} == {rule for rule, _ in known(name)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.rule}: {case.name}")
def test_a_mutation_is_found_under_its_own_rule(case: Case, tmp_path: Path) -> None:
    write_checkpoint(case.mutate(healthy(case.recipe)), tmp_path / "broken")
    headers = read_headers(tmp_path / "broken")
    expected = known(case.recipe) if case.name != "a and b packed at TP 2" else {}
    found = inspect(headers, [named(case.loader)], [case.tp], look_at_values=True, known=expected)
    if expected:
        assert unknown(found) == {case.rule}, found.findings
    assert case.rule in {each.rule for each in found.findings}


def test_every_rule_about_files_has_a_case() -> None:
    from_tiny_models = {"D09", "D11", "D24"}  # a healthy tiny model has them
    from_tiny_models |= {"N01", "N02", "N03"}  # no defects: tests/test_corpus.py
    of_other_formats = {"D31", "D32", "D33", "D34", "D35"}  # tests/test_stored.py, tests/test_kv_cache.py
    assert {case.rule for case in CASES} | from_tiny_models | of_other_formats == {
        name for name, entry in DEFECTS.items() if entry.in_files
    }


@pytest.mark.parametrize("name", sorted(DEFECTS))
def test_every_defect_is_explained(name: str) -> None:
    shown = CliRunner().invoke(app, ["inspect", "--explain", name])
    assert shown.exit_code == 0 and name in shown.output and "Advice: " in shown.output


def test_the_command_folds_what_is_equal(on_disk: Callable[[str], Path], tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["inspect", str(on_disk("ec")), "--recipe", str(ROOT / "builds" / "ec")])
    assert shown.exit_code == 0
    assert "no errors" in shown.output
    assert "model.language_model.layers.*.mlp.experts (4)" in shown.output


@given(
    st.lists(
        st.builds(
            "model.layers.{}.mlp.experts.{}.{}".format, st.integers(0, 9), st.integers(0, 300), st.sampled_from("ab")
        )
    )
)
def test_folding_loses_no_name(names: list[str]) -> None:
    folded = fold(names)
    assert sum(count for _, count in folded) == len(names)
    assert len(folded) <= 2


def test_json_names_everything(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "visual biases gone")
    write_checkpoint(case.mutate(healthy("ec")), tmp_path / "broken")
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path / "broken"), "--json", "--tp", "1", "--tp", "8"])
    document = json.loads(shown.output)
    assert shown.exit_code == 1
    found = next(each for each in document["findings"] if each["rule"] == "D03")
    assert found["severity"] == "error" and found["hits"] == {"vllm==0.33.0": [1, 8]} and found["repair"]
    assert len(found["subjects"]) == sum(
        name.startswith("model.visual") and name.endswith("bias") for name in healthy("ec").tensors
    )


@pytest.mark.parametrize("arguments", [[], ["--explain", "D99"], ["x", "--loader", "vllm==1"], ["x", "--tp", "0"]])
def test_usage(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, ["inspect", *arguments]).exit_code != 0
