"""Every broken twin is found under its own rule, and a healthy one has what its recipe's baseline says."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cases.mutations import CASES, Case
from tests.cases.twins import healthy
from tests.conftest import ROOT
from typer.testing import CliRunner

from requant.baseline import expected as baseline
from requant.baseline import read_baseline
from requant.build import Built
from requant.checkpoint import write_checkpoint
from requant.cli import app
from requant.defects import DEFECTS
from requant.findings import Expected
from requant.headers import read_headers
from requant.inspect import Inspection, inspect
from requant.loaders import LOADERS, TENSOR_PARALLEL, named
from requant.recipe import read_recipe

NAMES = ("ec", "gb10", "intel")


def known(name: str) -> Expected:
    return baseline(read_baseline(read_recipe(ROOT / "builds" / name)))


@pytest.fixture(scope="session")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A healthy twin of each recipe, written once."""
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
def test_a_healthy_twin_has_its_baseline_and_nothing_else(name: str, on_disk: Callable[[str], Path]) -> None:
    found = inspect(read_headers(on_disk(name)), LOADERS, TENSOR_PARALLEL, look_at_values=True, known=known(name))
    assert unknown(found) == set()
    assert not inspect(read_headers(on_disk(name))).errors


@pytest.mark.room
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
    from_twins = {"D09", "D11", "D24"}  # a healthy twin has them
    assert {case.rule for case in CASES} | from_twins == {name for name, entry in DEFECTS.items() if entry.in_files}


@pytest.mark.parametrize("name", sorted(DEFECTS))
def test_every_defect_is_explained(name: str) -> None:
    shown = CliRunner().invoke(app, ["inspect", "--explain", name])
    assert shown.exit_code == 0 and name in shown.output and "Repair" in shown.output


def test_the_command_folds_what_is_equal(on_disk: Callable[[str], Path], tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["inspect", str(on_disk("ec")), "--recipe", str(ROOT / "builds" / "ec")])
    assert shown.exit_code == 0
    assert "no errors" in shown.output
    assert "model.language_model.layers.*.mlp.experts (4)" in shown.output
