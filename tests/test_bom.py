"""Bills of materials: valid as their formats have it, with every fact once, and the same whenever they are made."""

import json
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from spdx_python_model import v3_0_1
from tests.conftest import ROOT, Refuses
from tests.test_card import facts, records
from typer.testing import CliRunner

from requant.card.bom import said
from requant.card.cyclonedx import cyclonedx
from requant.card.facts import Facts, facts_of
from requant.card.records import Records
from requant.card.spdx import spdx
from requant.cli.options import app
from requant.digest import sha256
from requant.errors import UsageError
from requant.evidence import private

BILLS = {"cyclonedx": cyclonedx, "spdx": spdx}
forms = pytest.mark.parametrize("form", BILLS)


def full() -> Records:
    """A build of the base itself is recorded nowhere yet: one with another's records."""
    return replace(records("ec", None), recorded=records("ec").recorded)


@pytest.fixture(params=["mini", *(pytest.param(name, marks=pytest.mark.full) for name in ("llama-current", "full"))])
def build(request: pytest.FixtureRequest) -> tuple[Records, Facts]:
    if request.param == "full":
        made = full()
        return made, facts_of(made)
    name = "ec" if request.param == "mini" else request.param
    return records(name), facts(name)


def texts(value: Any) -> Iterator[str]:
    """Every text of a document that is a value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from texts(each)
    elif isinstance(value, str):
        yield value


def test_cyclonedx_is_valid(build: tuple[Records, Facts]) -> None:
    made, validator = cyclonedx(*build), JsonStrictValidator(SchemaVersion.V1_7)
    assert validator.validate_str(made) is None
    for change in (('"SHA-256"', '"SHA-257"'), ('"slice"', '"slices"'), ('"attestation"', '"attested"')):
        assert made != made.replace(*change) and validator.validate_str(made.replace(*change)) is not None
    value = json.loads(made)
    named = [each["bom-ref"] for each in parts(value)]
    assert len(named) == len(set(named))
    for each in value["dependencies"]:
        assert {each["ref"], *each["dependsOn"]} <= {*named}


def parts(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if "bom-ref" in value:
            yield value
        value = list(value.values())
    for each in value if isinstance(value, list) else ():
        yield from parts(each)


def read_spdx(made: str) -> Any:
    """Read by SPDX's own bindings, which are made from its model: they refuse what it does not allow."""
    read = v3_0_1.SHACLObjectSet()
    v3_0_1.JSONLDDeserializer().read(BytesIO(made.encode()), read)
    v3_0_1.JSONLDSerializer().write(read, BytesIO())
    return read


def test_spdx_is_valid(build: tuple[Records, Facts]) -> None:
    made = spdx(*build)
    assert read_spdx(made).missing_ids == set()
    for change in (
        ('"sha256"', '"sha257"'),
        ('"relationshipType": "contains"', '"relationshipType": "holds"'),
        ('"hashValue"', '"hashed"'),
        ('"build_buildType"', '"build_kind"'),
        ('"software_primaryPurpose": "model"', '"software_primaryPurpose": "checkpoint"'),
    ):
        assert made != made.replace(*change)
        with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
            read_spdx(made.replace(*change))
    lost = json.loads(made)
    lost["@graph"] = [each for each in lost["@graph"] if not each.get("spdxId", "").endswith("#calibration")]
    assert read_spdx(json.dumps(lost)).missing_ids


@forms
def test_every_fact_is_there(form: str, build: tuple[Records, Facts]) -> None:
    stated = "\n".join(texts(json.loads(BILLS[form](*build)))).casefold()
    for key, fact in build[1].items():
        assert said(fact.value).casefold() in stated, key


@forms
def test_a_fact_has_one_place(form: str, build: tuple[Records, Facts]) -> None:
    """Change a fact, and its old value is nowhere, unless it was another's too."""
    made_of, known = build
    values = [said(fact.value) for fact in known.values()]
    elsewhere = ("package.", "license.", "journal.sha256")  # which other fields name as well
    for key, fact in [*known.items()][::2]:
        old = said(fact.value)
        if isinstance(fact.value, bool) or values.count(old) > 1 or len(old) < 6 or key.startswith(elsewhere):
            continue
        changed = {**known, key: replace(fact, value="1999-01-01T00:00:00Z")}
        assert old not in [*texts(json.loads(BILLS[form](made_of, changed)))], key
    assert len(values) > 100


@forms
def test_every_file_by_its_digest(form: str, build: tuple[Records, Facts]) -> None:
    made = json.loads(BILLS[form](*build))
    recorded = build[0].recorded
    assert recorded
    if form == "cyclonedx":
        listed = {each["name"]: each["hashes"][0]["content"] for each in made["metadata"]["component"]["components"]}
    else:
        files = [each for each in made["@graph"] if each["type"] == "software_File"]
        listed = {each["name"]: each["verifiedUsing"][0]["hashValue"] for each in files}
    assert listed == {path: each.sha256 for path, each in recorded.manifest.files.items()}


@forms
def test_records_are_named_by_their_digest(form: str) -> None:
    made = BILLS[form](records("ec"), facts("ec"))
    for suffix in ("manifest.json", "journal.jsonl", "intoto.jsonl"):
        data = (ROOT / "builds" / "ec" / f"mini.{suffix}").read_bytes()
        assert f"mini.{suffix}" in made and sha256(data) in made


@forms
def test_the_same_whenever_it_is_made(form: str) -> None:
    made = BILLS[form](records("ec"), facts("ec"))
    assert made == BILLS[form](records("ec"), facts("ec"))
    renamed = BILLS[form](records("ec"), facts("ec"), "ada/model")
    ours, other = (serials(form, json.loads(each)) for each in (made, renamed))
    assert len(ours) == len(other) == 1 and ours != other
    found = private.in_record(json.dumps(json.loads(made)).encode())
    assert [each for each in found if not each.startswith("pkg:")] == []  # whose @ is no address
    assert made.isascii()


def serials(form: str, value: Any) -> set[str]:
    if form == "cyclonedx":
        return {value["serialNumber"]}
    return {each["spdxId"].partition("#")[0] for each in value["@graph"] if "spdxId" in each}


@pytest.mark.full
def test_a_tiny_model_is_no_descendant() -> None:
    assert '"descendantOf"' not in spdx(records("ec"), facts("ec"))
    made = full()
    assert '"descendantOf"' in spdx(made, facts_of(made))
    held = json.loads(cyclonedx(made, facts_of(made)))["metadata"]["component"]["pedigree"]["ancestors"][0]
    assert {each["name"] for each in held["components"]} == {*made.base.files}
    assert (held["name"], held["version"]) == (made.recipe.base.repository, made.recipe.base.revision)


@forms
def test_the_command(form: str, refuses: Refuses, tmp_path: Any) -> None:
    words = ["card", str(ROOT / "builds" / "ec"), "--tiny", "--size", "mini", "--form", form]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and done.stdout == BILLS[form](records("ec"), facts("ec"))
    path = tmp_path / "bom.json"
    assert CliRunner().invoke(app, [*words, "--out", str(path)]).exit_code == 0
    assert path.read_text() == done.stdout
    for more in (["--json"], ["--compare", str(ROOT / "README.md")]):
        assert isinstance(CliRunner().invoke(app, [*words, *more]).exception, UsageError)
    with refuses(UsageError):
        BILLS[form](records("ec", None), facts("ec", None))
