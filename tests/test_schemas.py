"""Every document that requant prints or writes is as docs/schemas says, and names its schema."""

import json
import re
import shutil
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from tests.cases.audits import AUDIT, DRAWN, FOLLOWED, STEPPED
from tests.cases.mutations import CASES
from tests.cases.tiny_models import healthy
from tests.conftest import ROOT
from tests.processes import requant
from tests.schemas import FOLDER, PRINTED, WRITTEN, schema, schemas, text
from tests.test_coverage import audit, copied
from tests.test_measures import evaluation
from tests.tiny import write_tiny
from typer.testing import CliRunner

from requant.audit.audits import statement, write_audit
from requant.build import Built
from requant.build.rebuild import Rebuilt
from requant.build.trial import Projection, Trial
from requant.checkpoint.checkpoint import write_checkpoint
from requant.checkpoint.manifest import make_manifest, read_manifest
from requant.cli.options import app
from requant.diff.divergence import Divergence
from requant.environment.image.evidence import Evidence, Image
from requant.environment.update import Change, Update
from requant.evidence.keys import read_private, write_key
from requant.evidence.signatures import sign_file
from requant.protocol import Seconds, Spent
from requant.recipe import read_recipe
from requant.verdict import Difference, Outcome, Verdict

EC = ROOT / "builds" / "ec"
ELSEWHERE = {"requant.new/1", "requant.publish/1", "requant.standing/1", "requant.fetch/1"}
"""What tests/test_new.py and tests/test_published.py hold against its schema."""
VERDICT = Verdict(
    Outcome.DIFFERENT,
    (Difference("changed tensor", "a", "a.safetensors", "F16 [2] 01", "F16 [2] 02"),),
    ("another hardware class",),
)
EVIDENCE = Evidence("01" * 32, "cpu", "linux/amd64", "sha256:02", False, "sha256:03", "sha256:04", None, "docker", "05")
Documents = dict[str, list[Any]]


def test_the_published_schemas_are_those_of_the_code() -> None:
    """`nox -s schemas` writes them anew."""
    assert {path.name: path.read_text() for path in FOLDER.iterdir()} == {
        name: text(value) for name, value in schemas().items()
    }


def test_the_published_schemas_are_schemas() -> None:
    for value in schemas().values():
        Draft202012Validator.check_schema(value)


def test_every_document_that_is_printed_has_a_schema() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "src" / "requant" / "cli").glob("*.py"))
    assert {*re.findall(r'print_json\(\s*"([^"]+)"', sources)} == {*PRINTED}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Documents:
    """What each verb prints with `--json`; what takes a worker, an engine or a registry is stood in for."""
    folder = tmp_path_factory.mktemp("documents")
    base, ours, theirs = folder / "base", folder / "ours", folder / "theirs"
    write_tiny("mini", base)
    write_checkpoint(healthy("ec"), ours)
    write_checkpoint(healthy("gb10"), theirs)
    broken = folder / "broken"
    write_checkpoint(next(case for case in CASES if case.repairable).mutate(healthy("ec")), broken)
    (folder / "ours.manifest.json").write_bytes(make_manifest(ours).to_json())
    (folder / "ec").mkdir()
    recorded = copied(folder / "ec")
    write_audit(recorded, audit({0: "identical", 1: "different"}))
    write_audit(recorded, audit({0: "identical"}, recipe="00" * 32))
    write_key(folder / "ada", "ed25519")
    shutil.copyfile(EC / "mini.intoto.jsonl", folder / "mini.intoto.jsonl")
    bundle = sign_file(folder / "mini.intoto.jsonl", read_private(folder / "ada.key"))
    for number, name in enumerate(("one", "other")):
        (folder / f"{name}.evaluation.json").write_text(evaluation(number).to_text())
    tiny = ("--tiny", "--size", "mini")
    with pytest.MonkeyPatch.context() as patch:
        _stand_in(patch, ours)
        return _run(
            ("verify", ours, folder / "ours.manifest.json"),
            ("verify", theirs, folder / "ours.manifest.json"),
            ("diff", ours, theirs),
            ("check", ours, "--base", base),
            ("check", broken, "--base", base),
            ("check", ours, "--base", base, "--sample", "0.1", "--fresh"),
            ("inspect", ours, "--recipe", EC),
            ("inspect", broken, "--all"),
            ("inspect", "--explain", "D01"),
            ("identify", ours),
            ("identify", ours, "--base", base),
            ("repair", broken, "--base", base, "--out", folder / "mended"),
            ("repair", ours, "--base", base),
            ("plan", EC, *tiny),
            ("plan", EC, *tiny, "--layers"),
            ("evaluate", folder / "one.evaluation.json", "--against", folder / "other.evaluation.json"),
            ("evaluate", folder / "other.evaluation.json"),
            ("coverage", folder / "ec", *tiny),
            ("coverage", EC),
            ("card", EC, *tiny),
            ("card", EC, *tiny, "--compare", ROOT / "tests" / "fixtures" / "cards" / "ec.md"),
            ("report", EC, *tiny, "--out", folder / "report.html"),
            ("report", broken, "--recipe", EC, *tiny, "--out", folder / "broken.html"),
            ("board", folder, "--out", folder / "site"),
            ("coverage", folder / "ec", *tiny, "--require", "1"),
            ("verify", ours, folder / "ec" / "mini.manifest.json", "--trust", folder / "ada.pub"),
            ("show", "journal", EC / "mini.journal.jsonl"),
            ("show", "bundle", bundle, "--key", folder / "ada.pub"),
            ("audit", ours, "--recipe", EC, *tiny, "--all"),
            ("challenge", ours, "--recipe", EC, *tiny, "--text", "drand 1"),
            ("respond", ours, "--recipe", EC, *tiny, "--challenge", folder / "c", "--out", folder / "r"),
            ("judge", ours, folder / "r", "--recipe", EC, *tiny, "--challenge", folder / "c"),
            ("build", EC, *tiny),
            ("trial", EC, "--work", folder / "trial"),
            ("rebuild", EC, *tiny),
            ("image", "cpu"),
            ("pins", ROOT),
            ("update", "images"),
        ) | {"requant.error/1": [json.loads(requant(*words, "--json").stdout) for words in (("x",), ("lock", "no"))]}


def _stand_in(patch: pytest.MonkeyPatch, folder: Path) -> None:
    spent = Spent(Seconds(total=1.0, preparing=0.5), 1, 0)
    built = Built(
        folder, read_manifest(EC / "mini.manifest.json"), VERDICT, ("tiny model: mini",), {"worker": 1.0}, spent
    )
    effort = read_recipe(EC).effort(tiny=True)
    tried = Trial("mini", effort, VERDICT, 1, 0.5, 2.0, 1, 0, (9.0, 9.5), Projection(7.5, None))
    divergence = Divergence(3, "layers.1", "loss", "best", "0x1p-3", "0x1p-4")
    patch.setattr("requant.build.build", lambda *_, **__: built)
    patch.setattr("requant.build.trial.trial", lambda *_, **__: tried)
    patch.setattr(
        "requant.build.rebuild.rebuild", lambda *_, **__: Rebuilt(built, Path("theirs"), VERDICT, (divergence,))
    )
    patch.setattr("requant.cli.audit.inputs_for", lambda *_, **__: None)
    patch.setattr("requant.cli.audit.prepare", lambda *_, **__: SimpleNamespace(names=("layers.0", "layers.1")))
    patch.setattr("requant.audit.confirm", lambda *_, **__: None)
    for verb in ("respond", "judge"):
        patch.setattr(f"requant.cli.{verb}.inputs_for", lambda *_, **__: None)
        patch.setattr(f"requant.cli.{verb}.prepare", lambda *_, **__: None)
    patch.setattr("requant.cli.judge.confirm", lambda *_, **__: None)
    patch.setattr("requant.audit.steps.challenge", lambda *_, **__: DRAWN)
    patch.setattr("requant.audit.steps.read_challenge", lambda *_, **__: DRAWN)
    patch.setattr("requant.audit.steps.confirm_response", lambda *_, **__: None)
    patch.setattr("requant.audit.steps.respond", lambda *_, **__: ("layers.0",))
    patch.setattr("requant.audit.steps.judge", lambda *_, **__: STEPPED)
    patch.setattr("requant.audit.audit", lambda *_, **__: AUDIT)
    patch.setattr("requant.cli.image.find", lambda: None)
    patch.setattr("requant.environment.image.build_image", lambda *_, **__: Image("requant/cpu:01", EVIDENCE))
    change = Change("lockfiles/images.toml", "debian", "sha256:01", "sha256:02")
    patch.setattr("requant.cli.update.update_images", lambda *_: Update((change,), {Path("images.toml"): ""}))


def _run(*commands: tuple[str | Path, ...]) -> Documents:
    found: Documents = {}
    for words in commands:
        done = CliRunner().invoke(app, [*map(str, words), "--json"])
        assert done.exit_code in (0, 1, 3), f"{words}: {done.output}{done.exception}"
        document = json.loads(done.stdout)
        found.setdefault(document["schema"], []).append(document)
    return found


@pytest.mark.parametrize("name", sorted({*PRINTED} - ELSEWHERE))
def test_what_is_printed_is_as_its_schema_says(name: str, printed: Documents) -> None:
    """With no key that the schema does not name, though a reader must bear one."""
    for document in printed[name]:
        assert next(iter(document)) == "schema"
        held(name, document)


@cache
def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(schema(name, closed=True))


def held(name: str, document: Any) -> None:
    """Hold a document against its schema, and see that each key of it counts."""
    assert [each.message for each in validator(name).iter_errors(document)] == []
    for spoiled in _spoiled(document):
        assert not validator(name).is_valid(spoiled), spoiled


def _spoiled(document: dict[str, Any]) -> Iterator[Any]:
    yield {**document, "unheard of": 1}
    for key in document:
        yield {each: value for each, value in document.items() if each != key}
        yield {**document, key: object()}


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


FILES: dict[str, Callable[[], list[Any]]] = {
    "audit-statement": lambda: [json.loads(statement(AUDIT))],
    "portable-audit-statement": lambda: [json.loads(statement(FOLLOWED))],
    "step-audit-statement": lambda: [json.loads(statement(STEPPED))],
    "build-statement": lambda: [each for path in ROOT.glob("builds/*/*.intoto.jsonl") for each in lines(path)],
    "image-evidence": lambda: [json.loads(EVIDENCE.to_json())],
    "journal-line": lambda: [each for path in ROOT.glob("builds/*/*.journal.jsonl") for each in lines(path)],
    "manifest": lambda: [each for path in ROOT.glob("builds/*/*.manifest.json") for each in lines(path)],
    "pins-file": lambda: [
        json.loads((ROOT / "builds" / name).read_text())
        for name in ("bases/qwen3.6-35b-a3b.json", "datasets/pile-10k.json")
    ],
    "recipe": lambda: [tomllib.loads(path.read_text()) for path in ROOT.glob("builds/*/recipe.toml")],
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_is_as_its_schema_says(name: str) -> None:
    documents = FILES[name.partition("/")[0]]()
    assert documents
    for document in documents:
        held(name, document)
