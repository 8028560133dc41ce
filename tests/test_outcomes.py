"""What `verify`, `check`, `audit` and `rebuild` say is signed, for and against, of the files that they judged."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.cases.audits import AUDIT, FOLLOWED
from tests.checkpoints import frame, shard, write
from tests.conftest import ROOT, Refuses, Worded
from tests.test_check import WAYS, pair
from typer.testing import CliRunner, Result

from requant.audit.retuned import Judgement
from requant.build import RECORDED, Built
from requant.build.rebuild import Rebuilt
from requant.checkpoint.files import listing
from requant.checkpoint.manifest import make_manifest, read_manifest
from requant.cli.options import app
from requant.diff.divergence import Divergence
from requant.digest import canonical_json, sha256, sha256_file
from requant.errors import CheckpointError, UsageError
from requant.evidence import private
from requant.evidence.keys import read_private, write_key
from requant.evidence.outcomes import LONGEST, NAMED, RESULTS, TEST_RESULT, Judged, short, told
from requant.evidence.signatures import Signed, verify_file, write_signed
from requant.evidence.statements import in_toto
from requant.protocol import Seconds, Spent
from requant.recipe import read_recipe
from requant.verdict import Difference, Outcome, Verdict

EC = ROOT / "builds" / "ec"
F32 = ("F32", [1], b"abcd")
TWO = {"model.safetensors": shard({"a": F32, "b": F32}), "config.json": b"{}", "README.md": b"a card"}


@pytest.fixture
def key(tmp_path: Path) -> Path:
    write_key(tmp_path / "ada", "ed25519")
    return tmp_path / "ada.key"


def ran(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, words)])


def signed(path: Path, key: Path) -> Signed:
    """What a bundle says, its signature verified; nothing of this machine is in it."""
    found = verify_file(path, [read_private(key).public])
    assert private.in_record(found.statement) == []
    assert found.predicate_type == TEST_RESULT
    return found


def by_result(found: Signed) -> dict[str, list[str]]:
    return {kind: found.predicate[f"{kind}Tests"] for kind in ("passed", "warned", "failed")}


def digests(folder: Path) -> dict[str, str]:
    return {name: sha256_file(path) for name, path in listing(folder).files.items()}


Change = Mapping[str, bytes | None]


@pytest.mark.parametrize(
    ("change", "outcome", "tests"),
    [
        ({}, "identical", {"passed": ["config.json", "model.safetensors"], "warned": [], "failed": []}),
        (
            {"model.safetensors": shard({"a": F32, "b": ("F32", [1], b"abce")})},
            "different",
            {"passed": ["config.json"], "warned": [], "failed": ["model.safetensors"]},
        ),
        (
            {"model.safetensors": shard({"a": F32}), "two.safetensors": shard({"b": F32})},
            "equivalent",
            {"passed": ["config.json"], "warned": ["model.safetensors", "two.safetensors"], "failed": []},
        ),
        (
            {"config.json": None},
            "equivalent",
            {"passed": ["model.safetensors"], "warned": ["config.json"], "failed": []},
        ),
        (
            {"model.safetensors": frame(b"no JSON")},
            "different",
            {"passed": ["config.json"], "warned": [], "failed": ["model.safetensors"]},
        ),
        (
            {"extra.bin": b"weights"},
            "different",
            {"passed": ["config.json", "model.safetensors"], "warned": [], "failed": ["extra.bin"]},
        ),
    ],
    ids=["equal", "one byte", "other files", "less", "unreadable", "more"],
)
def test_what_verify_says_is_signed(
    change: Change, outcome: str, tests: dict[str, list[str]], key: Path, tmp_path: Path
) -> None:
    folder, manifest = write(tmp_path / "x", TWO), tmp_path / "x.manifest.json"
    manifest.write_bytes(make_manifest(folder).to_json())
    for name, data in change.items():
        (folder / name).unlink(missing_ok=True) if data is None else (folder / name).write_bytes(data)
    plain, done = (ran("verify", folder, manifest, *more) for more in ((), ("--sign", key)))
    assert (done.exit_code, done.stdout) == (plain.exit_code, plain.stdout)
    assert "next: " in done.stderr and RESULTS[outcome] in done.stderr
    found = signed(tmp_path / "x.verify.sigstore.json", key)
    assert found.subjects == digests(folder)
    assert (found.predicate["result"], found.predicate["requant"]["outcome"]) == (RESULTS[outcome], outcome)
    assert by_result(found) == tests
    assert found.predicate["configuration"] == [{"name": "manifest", "digest": {"sha256": sha256_file(manifest)}}]


def test_what_nobody_can_be_told_of_is_not_signed(key: Path, tmp_path: Path) -> None:
    """in-toto says something of files: of none there is nothing to say."""
    folder, manifest = write(tmp_path / "x", TWO), tmp_path / "x.manifest.json"
    manifest.write_bytes(make_manifest(folder).to_json())
    shutil.rmtree(folder)
    folder.mkdir()
    done = ran("verify", folder, manifest, "--sign", key)
    assert isinstance(done.exception, UsageError) and "expected 1 to 1,024 files" in str(done.exception)
    assert not (tmp_path / "x.verify.sigstore.json").exists()


def test_where_it_is_written(key: Path, tmp_path: Path, refuses: Refuses) -> None:
    folder, manifest = write(tmp_path / "x", TWO), tmp_path / "x.manifest.json"
    manifest.write_bytes(make_manifest(folder).to_json())
    command = ("verify", folder, manifest, "--sign", key)
    there = tmp_path / "x.verify.sigstore.json"
    assert ran(*command).exit_code == 0
    first = there.read_bytes()
    assert ran(*command, "--bundle", tmp_path / "other.sigstore.json").exit_code == 0
    assert (tmp_path / "other.sigstore.json").read_bytes() == first
    elsewhere = ("--bundle", tmp_path / "none" / "b")
    for words in (command, (*command, *elsewhere), (*command[:3], "--sign", tmp_path / "ada.pub")):
        with refuses(UsageError):
            raise ran(*words).exception or AssertionError
    assert there.read_bytes() == first
    assert "--bundle needs --sign" in ran(*command[:3], "--bundle", "b").stderr


@pytest.mark.parametrize("spoilt", [False, True])
def test_what_check_says_is_signed(spoilt: bool, key: Path, tmp_path: Path) -> None:
    folder, base = pair(tmp_path, WAYS[0])
    if spoilt:
        (file,) = folder.iterdir()
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    done = ran("check", folder, "--base", base, "--sign", key)
    assert done.exit_code == int(spoilt), done.output
    found = signed(tmp_path / "made.check.sigstore.json", key)
    assert found.subjects == digests(folder)
    ours = found.predicate["requant"]
    assert (found.predicate["result"], ours["outcome"]) == (("FAILED", "violations") if spoilt else ("PASSED", "clean"))
    against = [{"name": "base", "digest": {"sha256": sha256(canonical_json(digests(base)))}}]
    assert found.predicate["configuration"] == against
    names = (
        {"passed": ["x.0.p"], "warned": [], "failed": ["n"]}
        if spoilt
        else {"passed": ["n", "x.0.p"], "warned": [], "failed": []}
    )
    assert by_result(found) == names
    assert ours["read"] == ours["total"]


def test_check_signs_for_no_file_that_is_elsewhere(key: Path, tmp_path: Path, refuses: Refuses) -> None:
    for words in (("owner/name@main", "--base", tmp_path), (tmp_path, "--base", "owner/name@main")):
        with refuses(UsageError):
            raise ran("check", *words, "--sign", key).exception or AssertionError


def test_what_an_audit_says_is_signed(key: Path, tmp_path: Path) -> None:
    unjudged = replace(AUDIT.blocks[0], judgement=Judgement.UNJUDGED)
    for number, (audit, result, tests) in enumerate(
        (
            (AUDIT, "FAILED", {"passed": ["layers.0"], "warned": [], "failed": ["layers.2", "not tuned"]}),
            (
                replace(FOLLOWED, untuned=replace(AUDIT.untuned, deviations=(), count=0)),
                "PASSED",
                {"passed": ["layers.0", "not tuned"], "warned": [], "failed": []},
            ),
            (
                replace(
                    AUDIT, blocks=(unjudged,), untuned=replace(AUDIT.untuned, deviations=(), count=0), journal=None
                ),
                "WARNED",
                {"passed": ["not tuned"], "warned": ["layers.0"], "failed": []},
            ),
        )
    ):
        path = tmp_path / f"{number}.sigstore.json"
        write_signed(path, audit.judged().statement(), read_private(key))
        found = signed(path, key)
        assert (found.predicate["result"], by_result(found), found.subjects) == (result, tests, audit.files)
        assert audit.auditor not in found.statement.decode()
        assert (b'"journal"' in found.statement) == (audit.journal is not None)


@pytest.fixture
def rebuilt(tmp_path: Path) -> Callable[..., Rebuilt]:
    """A rebuild that is said to have given the recorded mini model, or something else."""
    for name in RECORDED:
        shutil.copyfile(EC / f"mini.{name}", tmp_path / f"ours.{name}")
    manifest = read_manifest(EC / "mini.manifest.json")

    def said(outcome: str, *divergences: Divergence) -> Rebuilt:
        differences = () if outcome == "identical" else (Difference("changed file", "a", "a"),)
        verdict = Verdict(Outcome(outcome), differences)
        built = Built(tmp_path / "ours", manifest, verdict, (), {}, Spent(Seconds(1.0, 0.5), 1, 0))
        return Rebuilt(built, EC / "mini", verdict, divergences)

    return said


def test_what_a_rebuild_says_is_signed(rebuilt: Callable[..., Rebuilt], key: Path, tmp_path: Path) -> None:
    divergence = Divergence(3, "layers.1", "loss", "best", "0x1p-3", "0x1p-4")
    for outcome, divergences, result, tests in (
        ("identical", (), "PASSED", {"passed": ["bytes", "journal"], "warned": [], "failed": []}),
        ("different", (divergence,), "FAILED", {"passed": [], "warned": [], "failed": ["bytes", "journal"]}),
        ("inconclusive", (), "WARNED", {"passed": ["journal"], "warned": ["bytes"], "failed": []}),
    ):
        path = tmp_path / f"{outcome}.sigstore.json"
        write_signed(
            path, rebuilt(outcome, *divergences).judged(read_recipe(EC), "mini").statement(), read_private(key)
        )
        found = signed(path, key)
        assert (found.predicate["result"], by_result(found)) == (result, tests)
        files = read_manifest(EC / "mini.manifest.json").files
        assert found.subjects == {name: each.sha256 for name, each in files.items()}


def test_the_commands_sign(
    rebuilt: Callable[..., Rebuilt], key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What takes a worker is stood in for; an audit that is recorded is signed as well, for coverage counts by it."""
    monkeypatch.setattr("requant.build.rebuild.rebuild", lambda *_, **__: rebuilt("different"))
    done = ran("rebuild", EC, "--tiny", "--size", "mini", "--out", tmp_path / "ours", "--sign", key)
    assert done.exit_code == 1, done.output
    assert signed(tmp_path / "ours.rebuild.sigstore.json", key).predicate["result"] == "FAILED"
    monkeypatch.setattr("requant.cli.audit.inputs_for", lambda *_, **__: None)
    monkeypatch.setattr("requant.cli.audit.prepare", lambda *_, **__: None)
    monkeypatch.setattr("requant.audit.confirm", lambda *_, **__: None)
    monkeypatch.setattr("requant.audit.audit", lambda *_, **__: AUDIT)
    recipe = tmp_path / "ec"
    recipe.mkdir()
    for name in ("recipe.toml", "plan.json", *(f"mini.{each}" for each in RECORDED)):
        shutil.copyfile(EC / name, recipe / name)
    again = ("rebuild", recipe, "--tiny", "--size", "mini", "--out", tmp_path / "ours", "--record")
    assert "--record needs --sign" in ran(*again).stderr
    done = ran(*again, "--sign", key, "--bundle", tmp_path / "b")
    assert done.exit_code == 1, done.output
    (rebuild,) = (recipe / "rebuilds").iterdir()
    assert rebuild.name == f"{sha256_file(tmp_path / 'b')}.sigstore.json"
    assert rebuild.read_bytes() == (tmp_path / "b").read_bytes()
    monkeypatch.setattr("requant.audit.names", lambda *_: ("layers.0", "layers.1"))
    words = ("audit", tmp_path / "x", "--recipe", recipe, "--tiny", "--size", "mini", "--all", "--auditor", "Ada")
    done = ran(*words, "--record", "--sign", key)
    assert done.exit_code == 1, done.output
    assert signed(tmp_path / "x.audit.sigstore.json", key).predicate["result"] == "FAILED"
    (audit,) = (recipe / "audits").glob("*.intoto.jsonl")
    (bundle,) = (recipe / "audits").glob("*.sigstore.json")
    assert verify_file(bundle, [read_private(key).public]).statement == audit.read_bytes()


def test_a_person_reads_it(key: Path, tmp_path: Path, worded: Worded) -> None:
    many = tuple(f"layer {number}" for number in range(NAMED + 1))
    for outcome, tests in (("violations", {"failed": many}), ("clean", {"passed": many}), ("inconclusive", {})):
        judged = Judged("check", outcome, {"a": "0a" * 32}, {"base": "0b" * 32}, **tests)  # type: ignore[arg-type]
        path = tmp_path / f"{outcome}.sigstore.json"
        write_signed(path, judged.statement(), read_private(key))
        done = ran("show", "bundle", path, "--key", key.with_suffix(".pub"))
        assert done.exit_code == 0, done.output
        worded(done.stdout, read_private(key).public.id)


def test_a_result_that_contradicts_itself_is_refused(key: Path, tmp_path: Path, refuses: Refuses) -> None:
    good = json.loads(Judged("check", "violations", {"a": "0a" * 32}, {}).statement())["predicate"]
    changes: tuple[dict[str, Any], ...] = (
        {"result": "PASSED"},
        {"result": "GOOD"},
        {"configuration": [1]},
        {"configuration": 1},
        {"failedTests": "none"},
        {"requant": {**good["requant"], "verb": "bless"}},
        {"requant": {**good["requant"], "outcome": "clean"}},
        {"requant": None},
    )
    for number, change in enumerate(changes):
        path = tmp_path / f"{number}.sigstore.json"
        write_signed(path, in_toto({"a": "0a" * 32}, TEST_RESULT, {**good, **change}), read_private(key))
        with refuses(CheckpointError):
            raise ran("show", "bundle", path, "--key", key).exception or AssertionError
    others = in_toto({"a": "0a" * 32}, TEST_RESULT, {"result": "PASSED", "configuration": []})
    write_signed(tmp_path / "b", others, read_private(key))
    assert told(signed(tmp_path / "b", key)) is None
    assert ran("show", "bundle", tmp_path / "b", "--key", key).exit_code == 0


def test_a_strangers_name_takes_no_room_and_moves_no_cursor() -> None:
    assert [short(each) for each in ("a", "a\x1b[2J", "a" * LONGEST)] == ["a", "a\\x1b[2J", "a" * LONGEST]
    assert len(short("\x1b" * 10_000)) == LONGEST and short("b" * 999).endswith("b…")
    named = json.loads(Judged("check", "violations", {"a": "0a" * 32}, {}, failed=("b" * 9999,) * 9999).statement())
    assert len(named["predicate"]["failedTests"]) == NAMED
    assert named["predicate"]["requant"]["counts"]["failed"] == 9999


def test_every_outcome_of_every_verb_is_a_result() -> None:
    from requant.check.checked import Outcome as Checked

    assert {*RESULTS} == {*map(str, Outcome), *map(str, Checked)}


def test_what_is_not_signed_needs_no_library_for_signatures() -> None:
    code = "import requant.evidence.outcomes, requant.verify, sys; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
