"""A build with hints is tuned again on hardware of another class to the same bits, and what is not so is found.

The auditor's numerics are those of a worker without caps, on whatever machine this is.
"""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT, Refuses
from tests.owned import alter
from tests.test_adapters import accumulating, of_one_s_own
from tests.test_build import project
from tests.test_head import HEAD

import requant.audit
from requant.audit.pool import Setting, prepare
from requant.audit.portable import confirm
from requant.audit.references import known
from requant.audit.retuned import Audit
from requant.build import beside, build
from requant.build.inputs import tiny_inputs
from requant.build.survey import record as renew
from requant.checkpoint.checkpoint import open_checkpoint
from requant.digest import sha256
from requant.errors import CheckpointError, UsageError
from requant.evidence.journal import Writer, read_journal
from requant.new import EnvironmentName
from requant.progress import Progress, silent
from requant.protocol import HINTS
from requant.recipe import Recipe, read_recipe

pytestmark = pytest.mark.worker
Ask = Callable[..., Any]

SSE = {"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "SSE4_2"}
"""What makes a CPU one of another class: of what every x86-64 CPU has."""


def hinted(text: str) -> str:
    """A recipe whose build writes hints."""
    text, count = re.subn(r"^patience = -1.*$", r"\g<0>\nhints = true", text, flags=re.MULTILINE)
    assert count == 1
    return text


def of_two_steps(text: str) -> str:
    """The same, of two steps an iteration."""
    return accumulating(hinted(text))


def of_a_head(text: str) -> str:
    """The same, with a head in codes, and rates at which a loss falls in few iterations."""
    text, count = re.subn(r'^(minmax_)?learning_rate = "1/iterations"', r"\1learning_rate = 0.005", text, flags=re.M)
    assert count == 2
    return hinted(text) + HEAD


def of_one_sample(text: str) -> str:
    """The same recipe, of one sample an iteration."""
    text, count = re.subn(r"^batch_size = .*$", "batch_size = 1", text, flags=re.MULTILINE)
    assert count == 1
    return text


@dataclass(frozen=True)
class Hinted:
    """A tiny build with hints."""

    recipe: Recipe
    folder: Path
    setting: Setting

    def audit(self, folder: Path, work: Path, *chosen: int, hints: Path | None = None) -> Audit:
        """Audit a folder by hints; those beside it are its own."""
        reference = known(self.recipe, "mini", folder)
        hints = hints or beside(folder, HINTS)
        confirm(hints, reference.lines)
        return requant.audit.audit(
            folder,
            self.setting,
            reference,
            chosen=chosen or tuple(range(len(self.setting.names))),
            challenge=None,
            auditor="tests",
            make_pool=requant.audit.local(1),
            work=work,
            hints=hints,
        )

    def copied(self, folder: Path) -> Path:
        """Return a copy of the checkpoint, and of what lies beside it."""
        for each in ("", "journal.jsonl", "intoto.jsonl", HINTS):
            there, here = (beside(place, each) if each else place for place in (self.folder, folder))
            shutil.copytree(there, here) if there.is_dir() else shutil.copyfile(there, here)
        return folder


def made(recipe: Recipe, folder: Path) -> Hinted:
    """Build the tiny model mini of a recipe."""
    built = build(recipe, tiny="mini", out=folder / "out")
    inputs = tiny_inputs(recipe, "mini", folder / "inputs", silent)
    return Hinted(recipe, built.folder, prepare(recipe, "mini", inputs, silent, "venv", portable=True))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Hinted:
    folder = tmp_path_factory.mktemp("llama")
    return made(of_one_s_own(folder, "llama", "cpu", hinted), folder)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Hinted:
    """Four experts, two for each token, which the newest AutoRound runs together."""
    folder = tmp_path_factory.mktemp("mixture")
    return made(of_one_s_own(folder, "qwen3moe", "current", hinted), folder)


def judgements(audit: Audit) -> list[str]:
    return [str(each.judgement) for each in audit.blocks]


def identical(audit: Audit) -> None:
    """Every block was followed to its end, and came out the same."""
    assert audit.outcome == "identical", audit.text()
    for each in audit.blocks:
        assert each.hinted and each.hinted.decided
        assert (each.hinted.inconclusive, each.hinted.beyond) == ("", "")
        assert each.hinted.furthest_percent <= 50


def step(folder: Path, name: str) -> None:
    """Move the first code of a layer that can be by one step, which tuning could have done."""

    def edit(data: bytes) -> bytes:
        at = next(place for place, byte in enumerate(data) if 0 < byte & 15 < 14)
        return data[:at] + bytes([data[at] + 1]) + data[at + 1 :]

    alter(folder, f"{name}.qweight", edit)


def test_every_block_is_identical(llama: Hinted, tmp_path: Path) -> None:
    identical(llama.audit(llama.folder, tmp_path))


def test_a_code_within_reach_is_found_in_its_block(llama: Hinted, tmp_path: Path) -> None:
    """Whoever looks at the journal knows it without any tuning; the blocks behind are not accused."""
    copy = llama.copied(tmp_path / "out")
    layer = next(each for each in llama.setting.target.plan.packed if each.startswith(f"{llama.setting.names[0]}."))
    step(copy, layer)
    found = llama.audit(copy, tmp_path / "work")
    first, second = found.blocks
    assert found.first_divergence == llama.setting.names[0]
    assert (str(first.judgement), first.reason) == ("different", f"{layer}.qweight is not the journal's")
    assert second.judgement != "different"


@pytest.mark.full
@pytest.mark.parametrize(("built", "part"), [("llama", ""), ("mixture", "mlp.experts.3.")])
def test_a_journal_of_other_codes_is_found(
    built: str, part: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A journal that was made to fit: the decisions that it states give the codes that were tuned."""
    one: Hinted = request.getfixturevalue(built)
    copy = one.copied(tmp_path / "out")
    block = one.setting.names[-1]
    layer = next(each for each in one.setting.target.plan.packed if each.startswith(f"{block}.{part}"))
    step(copy, layer)
    name = f"{layer}.qweight"
    journal = read_journal(beside(copy, "journal.jsonl"))
    beside(copy, "journal.jsonl").unlink()
    with Writer(beside(copy, "journal.jsonl"), journal.header) as writer:
        for line in journal.blocks:
            other = {name: sha256(open_checkpoint(copy).tensors[name].read())} if line.block == block else {}
            writer.append(replace(line, tensors={**line.tensors, **other}))
    (found,) = one.audit(copy, tmp_path / "work", len(journal.blocks) - 1).blocks
    assert (str(found.judgement), found.reason) == (
        "different",
        "the decisions that the journal states give other codes",
    )
    assert found.distance and (found.distance.first, found.distance.steps) == (name, {1: 1})


def test_hints_must_be_the_journal_s(llama: Hinted, tmp_path: Path, refuses: Refuses) -> None:
    journal = read_journal(beside(llama.folder, "journal.jsonl"))
    for name, harm in (("changed", b"\1"), ("gone", b"")):
        folder = tmp_path / name
        shutil.copytree(beside(llama.folder, HINTS), folder)
        if harm:
            data = bytearray((folder / "00001").read_bytes())
            data[len(data) // 2] ^= harm[0]
            (folder / "00001").write_bytes(data)
        else:
            (folder / "00001").unlink()
        with pytest.raises(CheckpointError, match=r"00001: (not the hints of the journal|No such file)"):
            confirm(folder, journal)
    without = replace(journal, blocks=tuple(replace(each, hints=None) for each in journal.blocks))
    with pytest.raises(UsageError, match="no journal of a build with hints"):
        confirm(tmp_path / "changed", None)
    with refuses(UsageError):
        confirm(tmp_path / "changed", without)


@pytest.mark.full
def test_a_resumed_build_writes_the_same_hints(llama: Hinted, tmp_path: Path) -> None:
    def stopping(now: Progress) -> None:
        if now.stage == "tuning" and now.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(llama.recipe, tiny="mini", out=tmp_path / "out", tell=stopping)
    told = list[Progress]()
    build(llama.recipe, tiny="mini", out=tmp_path / "out", tell=told.append)
    assert any(each.stage.startswith("resuming after block") for each in told)
    first, second = (beside(each, HINTS) for each in (llama.folder, tmp_path / "out"))
    names = [each.name for each in sorted(first.iterdir())]
    assert names == [each.name for each in sorted(second.iterdir())] == ["00000", "00001"]
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.mark.full
def test_a_builder_that_lies_is_named_or_not_believed(llama: Hinted, ask: Ask) -> None:
    """A sign further from zero than rounding explains, a best iteration that was not; and files that make no sense."""
    found = ask(
        "lies",
        llama.recipe.path.parent,
        llama.setting.inputs.base,
        0,
        *("honest", "one", "clamped", "within", "the worst iteration", "a capacity", "garbled", "cut short"),
    )
    honest = found["honest"]
    assert honest["same"]
    assert (honest["hinted"]["inconclusive"], honest["hinted"]["beyond"]) == ("", "")
    layer = f"{llama.setting.names[0]}.mlp.down_proj"
    assert found["one"]["hinted"]["beyond"].startswith(f"iteration 0: {layer}: its hints change the sign of value ")
    assert found["one"]["hinted"]["beyond"].endswith(" times as far from zero as rounding explains")
    assert found["clamped"]["hinted"]["beyond"].startswith(f"iteration 0: {layer}: its hints change the sign of value ")
    assert found["clamped"]["hinted"]["beyond"].endswith(", whose gradient is zero on every machine")
    within = found["within"]
    assert within["same"], "what rounding explains is not accused"
    assert 0 < within["altered"] < 1e-4
    assert within["hinted"]["furthest_percent"] <= 100
    assert "was the best, whose loss is" in found["the worst iteration"]["hinted"]["beyond"]
    for name, says in {
        "a capacity": "its hints end before its tuning does",
        "garbled": "differences, and there are more",
        "cut short": "its hints end before its tuning does",
    }.items():
        hinted = found[name]["hinted"]
        assert (hinted["beyond"], hinted["inconclusive"].endswith(says)) == ("", True), hinted
    assert found["MiB"] < 2000


@pytest.mark.full
def test_hints_change_no_byte_of_the_checkpoint(llama: Hinted, tmp_path: Path) -> None:
    text = llama.recipe.path.read_text()
    without = of_one_s_own(tmp_path, "llama", "cpu")
    assert hinted(without.path.read_text()) == text
    plain = build(without, tiny="mini", out=tmp_path / "out").folder
    assert not beside(plain, HINTS).exists()
    assert {file.name: file.read_bytes() for file in plain.iterdir()} == {
        file.name: file.read_bytes() for file in llama.folder.iterdir()
    }


@pytest.mark.full
@pytest.mark.parametrize("name", ["ec", "gb10", "intel"])
def test_recorded_recipes_with_hints_are_audited(name: str, tmp_path: Path) -> None:
    folder = project(tmp_path, name, patience=("patience = -1", "patience = -1\nhints = true"))
    one = made(read_recipe(folder), tmp_path)
    found = one.audit(one.folder, tmp_path / "work")
    identical(found)
    recorded = read_journal(ROOT / "builds" / name / "mini.journal.jsonl").blocks
    journal = read_journal(beside(one.folder, "journal.jsonl")).blocks
    assert [each.tensors for each in journal] == [each.tensors for each in recorded]


SCHEMES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "asymmetric": {"symmetric": False},
    "one group per output": {"group_size": -1},
    "2 bits in groups of 32": {"scheme": "W2A16", "group_size": 32},
}


@pytest.mark.full
@pytest.mark.parametrize("scheme", SCHEMES)
def test_of_every_scheme_each_block_is_identical(scheme: str, tmp_path: Path) -> None:
    one = made(of_one_s_own(tmp_path, "llama", "cpu", hinted, **SCHEMES[scheme]), tmp_path)
    identical(one.audit(one.folder, tmp_path / "work"))


@pytest.mark.full
@pytest.mark.parametrize("name", ["llama", "qwen3_5_moe"])
def test_with_the_newest_autoround_each_block_is_identical(name: str, tmp_path: Path) -> None:
    one = made(of_one_s_own(tmp_path, name, "current", hinted), tmp_path)
    identical(one.audit(one.folder, tmp_path / "work"))


@pytest.mark.full
@pytest.mark.parametrize("scheme", ["as it is", "asymmetric"])
@pytest.mark.parametrize("environment", ["cpu", "current"])
def test_of_two_steps_an_iteration_each_block_is_identical(
    environment: EnvironmentName, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their losses are sums, and many gradients of ranges are beyond float16."""
    one = made(of_one_s_own(tmp_path, "llama", environment, of_two_steps, **SCHEMES[scheme]), tmp_path)
    for name, value in SSE.items():
        monkeypatch.setenv(name, value)
    identical(one.audit(one.folder, tmp_path / "work"))


@pytest.mark.full
@pytest.mark.parametrize(("environment", "edit"), [("cpu", str), ("cpu", of_one_sample), ("current", accumulating)])
def test_a_head_in_codes_is_a_block_like_others(
    environment: EnvironmentName,
    edit: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ask: Ask,
) -> None:
    """AutoRound tunes it by other functions, in steps of one sample each."""
    recipe = of_one_s_own(tmp_path, "llama", environment, lambda text: edit(of_a_head(text)))
    renew(recipe)
    one = made(recipe, tmp_path)
    head = len(one.setting.names) - 1
    assert one.setting.names[head] == "lm_head"
    lies = "honest", "one", "clamped", "within", "the worst iteration", "cut short"
    found = ask("lies", recipe.path.parent, one.setting.inputs.base, head, *lies, environment=environment)
    turned = r"iteration 0: lm_head: its hints change the sign of value \d+, whose gradient is "
    for name, says in {
        "one": rf"{turned}\S+ times as far from zero as rounding explains",
        "clamped": f"{turned}zero on every machine",
        "the worst iteration": r"its hints say that iteration \d was the best, whose loss is .*",
    }.items():
        assert re.fullmatch(says, found[name]["hinted"]["beyond"])
    for name in ("honest", "within"):
        assert found[name]["best"] > 0
        assert found[name]["same"]
        assert (found[name]["hinted"]["inconclusive"], found[name]["hinted"]["beyond"]) == ("", "")
    assert found["within"]["altered"] > 0
    assert found["cut short"]["hinted"]["inconclusive"] == "its hints end before its tuning does"
    for name, value in SSE.items():
        monkeypatch.setenv(name, value)
    identical(one.audit(one.folder, tmp_path / "work"))


def test_a_gradient_that_is_no_number_is_told_as_what_it_does(ask: Ask) -> None:
    """It moves nothing; and one that is near to where float16 ends can be beyond it elsewhere."""
    found = ask("explained", "numbers")
    assert found["told"] == [0, 1, -1, 0, 0, 1, -1, 0, 0]  # the last two have none
    assert found["told"][:7] == found["moved"]
    assert found["near"] == [[True, True, False], [False, False, False]]


def test_what_drifts_explains_more(ask: Ask) -> None:
    """A token is sent elsewhere, over a distance that is beyond nine deviations of four drifts of 0.01, not of 0.1."""
    found = ask("explained", "far")
    assert found.keys() == {"0.0", "0.01"}
    assert all("to other experts" in each for each in found.values())


@pytest.mark.full
def test_a_gradient_passes_the_ends_of_codes_as_it_does_in_the_torch_at_hand(ask: Ask) -> None:
    """Up to torch 2.13 it does, since 2.14 it does not; where nothing passes no hint may move the weight."""
    found = ask("explained", "ends")
    for name, passes in {"1.0": 1, "0.5": 0.5, "0.0": 0, "torch": found["torch"]["passes"][0]}.items():
        assert found[name].pop("passes") == [passes, passes]
        for each in found[name].values():
            assert each["same"]
            assert 0 < each["zero"] < each["at an end"] if passes else each["zero"] == each["at an end"]
            assert max(each["off"]) < 1e-3  # a place of float16


@pytest.mark.full
def test_a_range_whose_gradient_is_no_number_moves_nowhere(tmp_path: Path, ask: Ask) -> None:
    recipe = of_one_s_own(tmp_path, "llama", "cpu", of_two_steps)
    inputs = tiny_inputs(recipe, "mini", tmp_path / "inputs", silent)
    found = ask("lies", recipe.path.parent, inputs.base, 0, "honest", "no number")
    assert found["honest"]["same"]
    assert (found["honest"]["hinted"]["inconclusive"], found["honest"]["hinted"]["beyond"]) == ("", "")
    assert re.fullmatch(
        r"iteration 0: \S+\.mlp\.down_proj: its hints change the sign of (min|max)_scale \d+, "
        r"whose gradient is beyond what float16 holds, on every machine",
        found["no number"]["hinted"]["beyond"],
    )


@pytest.mark.full
def test_experts_that_run_together_have_the_bounds_of_experts_that_run_one_by_one(
    mixture: Hinted, tmp_path: Path, ask: Ask
) -> None:
    found = ask("together", mixture.recipe.path.parent, mixture.setting.inputs.base, environment="current")
    assert found.pop("experts") == 3 * 4 * 3
    assert found.keys() == {"value", "min_scale", "max_scale"}
    for each in found.values():
        assert each["layers"] == 3 * 4 + 4
        assert each["apart"] < 0.01  # the longest path through the block, which counts, is another one
    assert 0 < found["value"]["free"] < 0.01


@pytest.mark.full
def test_a_builder_that_lies_about_experts_that_run_together_is_named(mixture: Hinted, ask: Ask) -> None:
    names = ("honest", "one", "clamped", "within")
    found = ask("lies", mixture.recipe.path.parent, mixture.setting.inputs.base, 0, *names, environment="current")
    layer = rf"iteration 0: {re.escape(mixture.setting.names[0])}\.mlp\.experts\.\d+\.down_proj"
    for name, says in {
        "one": r"is \S+ times as far from zero as rounding explains",
        "clamped": "is zero on every machine",
    }.items():
        beyond = found[name]["hinted"]["beyond"]
        assert re.fullmatch(rf"{layer}: its hints change the sign of value \d+, whose gradient {says}", beyond)
    for name in ("honest", "within"):
        assert found[name]["same"]
        assert (found[name]["hinted"]["inconclusive"], found[name]["hinted"]["beyond"]) == ("", "")
    assert 0 < found["within"]["altered"] < 1e-4
