"""Any block is tuned again to the same bits; a changed one is found, named, and no other is accused of it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import ROOT
from tests.test_build import project

from requant import audit as auditing
from requant import programs
from requant.audit import references
from requant.audit.pool import Setting, prepare
from requant.audit.retuned import Audit, Judgement
from requant.audit.untuned import Untuned
from requant.build import Built, beside
from requant.build.inputs import tiny_given, tiny_inputs
from requant.check import check
from requant.check.reader import open_reader
from requant.checkpoint.checkpoint import open_checkpoint, write_file
from requant.checkpoint.safetensors import Spec, read_header
from requant.cli.audit import numbers
from requant.errors import BuildError, CheckpointError, NotAvailableError, RecipeError, RequantError, UsageError
from requant.evidence.journal import Writer, read_journal
from requant.evidence.statements import hardware_of
from requant.recipe import read_recipe
from requant.verdict import Outcome

pytestmark = pytest.mark.worker
LAYER = "model.language_model.layers."
Judged = Callable[..., Audit]


@pytest.fixture(scope="session")
def setting(worker: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Setting]:
    folder = tmp_path_factory.mktemp("audited")
    inputs = tiny_inputs(read_recipe(ROOT / "builds" / "ec"), "mini", folder, lambda _: None)

    def of(name: str) -> Setting:
        return prepare(read_recipe(ROOT / "builds" / name), "mini", inputs, lambda _: None)

    return of


@pytest.fixture
def judged(setting: Callable[[str], Setting], tmp_path: Path) -> Judged:
    """Audit a checkpoint of the tiny model mini."""

    def run(
        name: str, folder: Path, *blocks: int, journal: Path | None, workers: int = 1, compared: bool = True
    ) -> Audit:
        return auditing.audit(
            folder,
            setting(name),
            references.reference(journal, compared=compared),
            chosen=blocks,
            challenge=None,
            auditor="tests",
            make_pool=auditing.local(workers),
            work=tmp_path / "work",
        )

    return run


def judgements(audit: Audit) -> dict[int, str]:
    return {each.index: str(each.judgement) for each in audit.blocks}


@pytest.mark.full  # of blocks 0 to 3 the tests below audit each, in one build or another
@pytest.mark.parametrize("name", ["ec", "gb10", "intel"])
def test_all_blocks_are_identical(name: str, built: Callable[[str], Built], judged: Judged, tmp_path: Path) -> None:
    folder = built(name).folder
    audit = judged(name, folder, 0, 1, 2, 3, journal=beside(folder, "journal.jsonl"), workers=2)
    assert judgements(audit) == dict.fromkeys(range(4), "identical")
    assert (audit.outcome, audit.untuned) == (Outcome.IDENTICAL, Untuned())
    assert audit.checkpoint == built(name).manifest.identity
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.full
def test_ruined_around_a_healthy_block_it_is_different(
    built: Callable[[str], Built], judged: Judged, tmp_path: Path
) -> None:
    """All that tuning decides is the honest build's; what it does not decide is ruined in every way at once.

    The journal's second block was given other position embeddings: they are no stream, and yet decide its bits.
    """
    copy = tmp_path / "ruined"
    shutil.copytree(built("ec").folder, copy)
    zeroed = {"lm_head.weight", "model.language_model.embed_tokens.weight", "model.language_model.norm.weight"}
    zeroed |= {"mtp.fc.weight", "model.visual.merger.norm.weight", f"{LAYER}2.input_layernorm.weight"}
    for path in copy.glob("*.safetensors"):
        for name, (_, stretch) in read_header(path)[0].items():
            if name in zeroed:
                with path.open("r+b") as file:
                    file.seek(stretch.start)
                    file.write(b"\0" * (stretch.stop - stretch.start))
    write_file(copy / "more.safetensors", {"model.language_model.more": (Spec("F32", (1,)), [b"\0" * 4])})
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["rms_norm_eps"] = 0.1
    (copy / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    journal = read_journal(beside(built("ec").folder, "journal.jsonl"))
    with Writer(tmp_path / "ec.journal.jsonl", journal.header) as writer:
        for number, block in enumerate(journal.blocks):
            others = "0" * 64 if number == 1 else block.inputs["others"]
            writer.append(replace(block, inputs={**block.inputs, "others": others}))
    shutil.copyfile(beside(built("ec").folder, "intoto.jsonl"), tmp_path / "ec.intoto.jsonl")
    audit = judged("ec", copy, 0, 1, journal=tmp_path / "ec.journal.jsonl")
    assert judgements(audit) == {0: "identical", 1: "unjudged"}
    assert (audit.outcome, audit.first_divergence) == (Outcome.DIFFERENT, None)
    assert {(each.kind, each.name) for each in audit.untuned.deviations} == {
        *(("changed tensor", name) for name in zeroed),
        ("extra tensor", "model.language_model.more"),
        ("extra file", "more.safetensors"),
        ("changed file", "config.json"),
    }
    changed = next(each.detail for each in audit.untuned.deviations if each.name == "config.json")
    assert changed == "text_config.rms_norm_eps: 1e-06 -> 0.1"


@pytest.fixture(scope="session")
def altered(
    built: Callable[[str], Built], setting: Callable[[str], Setting], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A build of `ec` in which one code of block 2 is one step off, within what tuning can reach."""
    copy = tmp_path_factory.mktemp("altered") / "ec"
    shutil.copytree(built("ec").folder, copy)
    name = f"{LAYER}2.mlp.shared_expert.down_proj.qweight"
    stretch = next(tensors[name][1] for path in copy.glob("*.safetensors") if name in (tensors := read_header(path)[0]))
    for at in range(0, 400, 4):
        data = stretch.path.read_bytes()
        word = int.from_bytes(data[stretch.start + at : stretch.start + at + 4], "little")
        if word & 15 < 14:
            with stretch.path.open("r+b") as file:
                file.seek(stretch.start + at)
                file.write((word + 1).to_bytes(4, "little"))
            with open_reader(str(copy)) as ours, open_reader(str(setting("ec").inputs.base)) as base:
                if check(ours, base, recipe=setting("ec").recipe, tiny=True).clean:
                    return copy
            stretch.path.write_bytes(data)
    pytest.fail("no code of the first hundred can be changed within reach")


def test_a_code_within_reach_is_caught_and_its_successor_not_blamed(
    altered: Path, built: Callable[[str], Built], judged: Judged
) -> None:
    audit = judged("ec", altered, 1, 2, 3, journal=beside(built("ec").folder, "journal.jsonl"))
    assert judgements(audit) == {1: "identical", 2: "different", 3: "unjudged"}
    assert audit.first_divergence == f"{LAYER}2"
    distance = audit.blocks[1].distance
    assert distance is not None
    assert (distance.first, distance.tensors, distance.codes, distance.steps) == (
        f"{LAYER}2.mlp.shared_expert.down_proj.qweight",
        1,
        1,
        {1: 1},
    )


@pytest.mark.full
def test_without_tuning_it_the_changed_block_is_named(
    altered: Path, built: Callable[[str], Built], judged: Judged
) -> None:
    """Its published codes do not give the journal's outputs: that needs forward passes only."""
    audit = judged("ec", altered, 3, journal=beside(built("ec").folder, "journal.jsonl"))
    assert judgements(audit) == {2: "different", 3: "unjudged"}
    assert audit.first_divergence == f"{LAYER}2"


def test_honest_codes_in_a_hidden_folder_do_not_vouch_for_others(
    altered: Path, built: Callable[[str], Built], judged: Judged, tmp_path: Path
) -> None:
    """Weights count wherever they stand, so it is not for the audit to choose between two."""
    copy = tmp_path / "ec"
    shutil.copytree(altered, copy)
    shutil.copytree(built("ec").folder, copy / ".cache" / "huggingface" / "download")
    with pytest.raises(CheckpointError, match="stands in"):
        judged("ec", copy, 3, journal=beside(built("ec").folder, "journal.jsonl"))


@pytest.mark.full
def test_without_a_journal_what_follows_is_not_accused(
    altered: Path, built: Callable[[str], Built], judged: Judged
) -> None:
    """The changed block is, as far as the statement says on what hardware it was tuned."""
    audit = judged("ec", altered, 1, 2, 3, journal=beside(built("ec").folder, "journal.jsonl"), compared=False)
    assert audit.journal is None
    assert judgements(audit) == {1: "identical", 2: "different", 3: "unjudged"}
    alone = judged("ec", altered, 2, journal=None)
    assert judgements(alone) == {2: "inconclusive"}


@pytest.mark.full
def test_the_environment_of_a_build_is_known_without_its_journal(
    built: Callable[[str], Built], setting: Callable[[str], Setting]
) -> None:
    journal = beside(built("ec").folder, "journal.jsonl")
    known = references.reference(journal, compared=False)
    hardware = hardware_of(beside(built("ec").folder, "intoto.jsonl"))
    assert known.unlike(setting("ec"), hardware) == ""
    other = replace(setting("ec"), environment=replace(setting("ec").environment, digest="0" * 64))
    for compared in (True, False):
        known = references.reference(journal, compared=compared)
        assert known.unlike(other, hardware).startswith("another environment")


@pytest.mark.full
def test_a_tensor_that_the_recipe_does_not_mean_is_a_difference(
    built: Callable[[str], Built], judged: Judged, tmp_path: Path
) -> None:
    """A loader may use it, whatever the block's own tensors are."""
    copy = tmp_path / "more"
    shutil.copytree(built("ec").folder, copy)
    write_file(copy / "more.safetensors", {f"{LAYER}1.mlp.gate.bias": (Spec("F32", (1,)), [b"\0" * 4])})
    audit = judged("ec", copy, 0, 1, journal=beside(built("ec").folder, "journal.jsonl"))
    assert judgements(audit) == {0: "identical", 1: "identical"}
    assert audit.outcome is Outcome.DIFFERENT
    assert [(each.kind, each.name) for each in audit.untuned.deviations] == [
        ("extra file", "more.safetensors"),
        ("extra tensor", f"{LAYER}1.mlp.gate.bias"),
    ]


@pytest.mark.full
def test_another_hardware_class_is_inconclusive_where_bits_differ(
    altered: Path, built: Callable[[str], Built], judged: Judged, tmp_path: Path
) -> None:
    folder = built("ec").folder
    for name in ("journal.jsonl", "intoto.jsonl"):
        text = beside(folder, name).read_text()
        (tmp_path / f"ec.{name}").write_text(text.replace("COMPATIBLE", "AVX2"))
    found = judged("ec", altered, 0, 2, journal=tmp_path / "ec.journal.jsonl")
    assert judgements(found) == {0: "identical", 2: "inconclusive"}
    assert "caps" in found.blocks[1].reason


@dataclass(frozen=True)
class Elsewhere:
    """Another host, in namespaces of its own: what of it could reach a byte, and must not."""

    threads: int
    folder: str
    host: str
    user: int
    zone: str
    language: str
    umask: int


MATRIX = (
    Elsewhere(2, "an other folder", "elsewhere", 1234, "Pacific/Kiritimati", "C", 0o077),
    Elsewhere(1, "a/deeper/folder", "farther", 0, "America/St_Johns", "de_DE.UTF-8", 0o022),
    Elsewhere(7, "Ordner mit Umläuten", "beyond", 65533, "UTC", "tr_TR.UTF-8", 0o000),
)
"""In no two rows is anything the same."""


@pytest.mark.full
@pytest.mark.parametrize("there", MATRIX, ids=lambda there: there.host)
def test_elsewhere_the_bits_are_the_same(there: Elsewhere, built: Callable[[str], Built], tmp_path: Path) -> None:
    words = ["unshare", "--map-root-user", "--uts", "--net", "sh", "-c", f'hostname {there.host} && exec "$@"', "sh"]
    words += ["unshare", f"--map-user={there.user}", f"--map-group={there.user}"]
    try:
        programs.run([*words, "true"])
    except (BuildError, NotAvailableError) as error:
        pytest.skip(f"this kernel grants no namespaces: {error}")
    words += [sys.executable, "-m", "requant", "audit", str(built("ec").folder), "--tiny", "--size", "mini"]
    words += ["--sandbox", "venv", "--recipe", str(ROOT / "builds" / "ec"), "--json"]
    words += ["--sample", "1", "--seed", f"a public text, {there.host}"]
    place = tmp_path / there.folder
    place.mkdir(parents=True)
    env = {"PATH": "/usr/bin:/bin", "HOME": str(Path.home()), "TZ": there.zone, "LC_ALL": there.language}
    env |= {"OMP_NUM_THREADS": str(there.threads), "LOGNAME": there.host, "TMPDIR": str(place)}
    done = subprocess.run(words, cwd=place, env=env, umask=there.umask, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["outcome"] == "identical"
    assert said["challenge"] == {"text": f"a public text, {there.host}", "drawn": 1}
    assert (len(said["blocks"]), said["untuned"]["outcome"]) == (1, "identical")
    assert done.stderr.count(f"{LAYER}") == 0  # what came of a block is said once, as the result


def test_in_no_two_rows_is_anything_the_same() -> None:
    for field in fields(Elsewhere):
        assert len({getattr(there, field.name) for there in MATRIX}) == len(MATRIX), field.name


@pytest.mark.full
def test_what_cannot_be_audited_is_refused(
    built: Callable[[str], Built], setting: Callable[[str], Setting], judged: Judged, tmp_path: Path
) -> None:
    folder = built("ec").folder
    journal = beside(folder, "journal.jsonl")
    refusals: list[tuple[type[RequantError], str, Callable[[], Any]]] = [
        (UsageError, "blocks 0 to 3", lambda: judged("ec", folder, 4, journal=journal)),
        (UsageError, "blocks 0 to 3", lambda: judged("ec", folder, journal=journal)),
        (CheckpointError, "another recipe", lambda: judged("intel", folder, 0, journal=journal)),
        (CheckpointError, "the recipe means", lambda: judged("gb10", folder, 0, journal=None)),
        (CheckpointError, "no such folder", lambda: judged("ec", tmp_path / "none", 0, journal=None)),
    ]
    for kind, says, attempt in refusals:
        with pytest.raises(kind, match=says):
            attempt()
    patient = read_recipe(project(tmp_path / "patient", patience=("patience = -1", "patience = 3")))
    with pytest.raises(RecipeError, match="only a rebuild"):
        auditing.audit(
            folder,
            prepare(patient, "mini", setting("ec").inputs, lambda _: None),
            references.Reference(None, None),
            chosen=(0,),
            challenge=None,
            auditor="tests",
            make_pool=auditing.local(1),
            work=tmp_path / "work",
        )
    with pytest.raises(CheckpointError, match="is not the tiny model mini's"):
        tiny_given(setting("ec").recipe, "mini", folder, tmp_path / "given")
    given = tiny_given(setting("ec").recipe, "mini", setting("ec").inputs.base, tmp_path / "given again")
    assert given.base_digest == setting("ec").inputs.base_digest


@pytest.mark.full
def test_a_worker_that_cannot_tune_says_so(
    built: Callable[[str], Built], judged: Judged, setting: Callable[[str], Setting], tmp_path: Path
) -> None:
    """Scales that are not finite give no block anything to be tuned on, and nobody is accused."""
    copy = tmp_path / "spoilt"
    shutil.copytree(built("ec").folder, copy)
    name = f"{LAYER}0.mlp.shared_expert.down_proj.scales"
    stretch = next(tensors[name][1] for path in copy.glob("*.safetensors") if name in (tensors := read_header(path)[0]))
    with stretch.path.open("r+b") as file:
        file.seek(stretch.start)
        file.write(np.full((stretch.stop - stretch.start) // 2, np.nan, "<f2").tobytes())
    assert open_checkpoint(copy).tensors[name]
    with pytest.raises(BuildError, match="not finite"):
        judged("ec", copy, 1, journal=None)
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize(("text", "meant"), [("3,17", (3, 17)), ("0-3", (0, 1, 2, 3)), ("2, 1,1", (1, 2))])
def test_numbers(text: str, meant: tuple[int, ...]) -> None:
    assert numbers(text) == meant


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "1-", "1--2", "1-x", "9999999999999", "9-5", "3,9-5", "1 2", "99999-1"]
)
def test_other_numbers_are_refused(text: str) -> None:
    with pytest.raises(Exception, match="blocks"):
        numbers(text)


def test_judgements_are_words() -> None:
    assert [str(each) for each in Judgement] == ["identical", "different", "inconclusive", "unjudged"]
