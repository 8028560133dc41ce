import json
import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.checkpoints import nobody, on_a_disk, on_disk
from tests.conftest import Refuses

from requant.digest import canonical_json, sha256
from requant.errors import CheckpointError
from requant.evidence.statements import Provenance, hardware_of, statement

BUILT = Provenance(
    recipe="01" * 32,
    tiny="mini",
    environment="02" * 32,
    lock="03" * 32,
    hardware={"device": "cpu", "model": 85, "capped": True, "precision": None, "flags": ["avx2"]},
    versions={"torch": "2.13.0+cpu"},
    taints=("tiny model: mini, instead of the base",),
    dependencies={"base/config.json": "05" * 32, "calibration": "04" * 32},
    journal="06" * 32,
    log="07" * 32,
    started="2026-04-24T00:00:00Z",
    finished="2026-04-24T00:00:09Z",
    worker={"seconds": {"tuning": 2.5}, "blocks": [0.25, 1.0], "peak_memory_bytes": 1 << 40},
    sandbox={"kind": "venv"},
    requant="0.1.0",
)
SUBJECTS = {"model.safetensors": "0a" * 32, "config.json": "0b" * 32}


def made(subjects: dict[str, str] = SUBJECTS, **changes: Any) -> dict[str, Any]:
    value = json.loads(statement(subjects, replace(BUILT, **changes)))
    assert isinstance(value, dict)
    return value


def test_a_statement_is_one_line_of_canonical_json() -> None:
    text = statement(SUBJECTS, BUILT)
    assert text == canonical_json(json.loads(text)) + b"\n"
    assert statement(dict(reversed(SUBJECTS.items())), BUILT) == text


def is_resource(value: dict[str, Any]) -> bool:
    """Whether this is an in-toto ResourceDescriptor v1: one of uri, digest and content; known keys, hexadecimal."""
    return (
        bool(value.keys() & {"uri", "digest", "content"})
        and value.keys() <= {"name", "uri", "digest", "content", "downloadLocation", "mediaType", "annotations"}
        and isinstance(value.get("annotations", {}), dict)
        and all(re.fullmatch("[0-9a-f]{64}", each) for each in value.get("digest", {}).values())
    )


def test_a_statement_has_what_in_toto_requires() -> None:
    value = made()
    assert value.keys() == {"_type", "subject", "predicateType", "predicate"}
    assert value["_type"] == "https://in-toto.io/Statement/v1"
    assert value["predicateType"] == "https://slsa.dev/provenance/v1"
    assert value["subject"] == [
        {"name": "config.json", "digest": {"sha256": "0b" * 32}},
        {"name": "model.safetensors", "digest": {"sha256": "0a" * 32}},
    ]


def test_a_predicate_has_what_slsa_requires() -> None:
    predicate = made()["predicate"]
    assert predicate.keys() == {"buildDefinition", "runDetails"}
    definition, run = predicate["buildDefinition"], predicate["runDetails"]
    assert definition.keys() == {"buildType", "externalParameters", "internalParameters", "resolvedDependencies"}
    assert run.keys() == {"builder", "metadata", "byproducts"}
    assert run["builder"].keys() == {"id", "version"}
    for uri in (definition["buildType"], run["builder"]["id"]):
        assert re.fullmatch(r"[a-z][a-z0-9+.-]*:[!-~]+", uri)  # RFC 3986
    assert all(map(is_resource, definition["resolvedDependencies"] + run["byproducts"]))
    assert [each["name"] for each in definition["resolvedDependencies"]] == ["base/config.json", "calibration", "lock"]
    times = [datetime.fromisoformat(run["metadata"][key]) for key in ("startedOn", "finishedOn")]
    assert all(each.tzinfo for each in times)
    assert times == sorted(times)


def test_everything_that_a_build_reports_is_in_its_statement() -> None:
    """A value that changes, changes the statement."""
    for name, value in vars(BUILT).items():
        other: Any = {"other": "ff" * 32} if isinstance(value, dict) else ("other",) if value == BUILT.taints else "ff"
        assert made(**{name: other}) != made(), name


def test_no_number_with_a_fraction_is_written() -> None:
    worker = made()["predicate"]["runDetails"]["byproducts"][2]
    assert worker["annotations"] == {
        "seconds": {"tuning": "2.500"},
        "blocks": ["0.250", "1.000"],
        "peak_memory_bytes": 1 << 40,
    }
    assert worker["digest"] == {"sha256": sha256(canonical_json(worker["annotations"]))}


classes = st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text()))


@on_a_disk
@given(hardware=classes)
def test_the_hardware_class_is_read_back(hardware: dict[str, Any]) -> None:
    with on_disk({"intoto.jsonl": statement(SUBJECTS, replace(BUILT, hardware=hardware))}) as folder:
        assert hardware_of(folder / "intoto.jsonl") == hardware


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b"7",
        b'"predicate"',
        b'{"predicate":[]}',
        b'{"predicate":{"buildDefinition":{}}}',
        b'{"predicate":{"buildDefinition":{"internalParameters":{"hardware":null}}}}',
        b'{"predicate":{"buildDefinition":{"internalParameters":{"hardware":["cpu"]}}}}',
        b'{"predicate":{"buildDefinition":{"internalParameters":{"hardware":{},"hardware":{}}}}}',
        b'{"predicate":{"buildDefinition":{"internalParameters":{"hardware":{"memory":NaN}}}}}',
        b'{"predicate":{"buildDefinition":{"internalParameters":{"hardware":{"model":"\\ud800"}}}}}',
        b"[" * 100_000,
        b"\xff",
        statement(SUBJECTS, BUILT)[:-9],
        statement(SUBJECTS, BUILT) * 2,
    ],
)
def test_what_states_no_hardware_class_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "intoto.jsonl").write_bytes(text)
    with pytest.raises(CheckpointError, match=r"intoto\.jsonl: ") as caught:
        hardware_of(tmp_path / "intoto.jsonl")
    assert str(caught.value).isprintable()


def test_what_cannot_be_opened_is_named(tmp_path: Path, refuses: Refuses) -> None:
    for name in ("absent", "."):
        with refuses(CheckpointError):
            hardware_of(tmp_path / name)
    with on_disk({"locked": statement(SUBJECTS, BUILT)}) as folder:
        (folder / "locked").chmod(0)
        with nobody(), refuses(CheckpointError):
            hardware_of(folder / "locked")
