"""Workflows for other people's CI: what of them a machine without GitHub can tell."""

import json
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema.validators import validator_for
from tests.commands import commands, parse
from tests.conftest import ROOT
from tests.test_render import shellcheck

FILES = sorted((ROOT / "examples" / "github").glob("*.yml"))
files = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def jobs(file: Path) -> Iterator[dict[str, Any]]:
    yield from yaml.safe_load(file.read_text())["jobs"].values()


def runs(file: Path) -> list[str]:
    return [step["run"] for job in jobs(file) for step in job["steps"] if "run" in step]


def faults(value: dict[Any, Any]) -> list[str]:
    """What GitHub's schema of workflows, as check-jsonschema brings it, has against one."""
    place = resources.files("check_jsonschema").joinpath("builtin_schemas", "vendor", "github-workflows.json")
    schema = json.loads(place.read_text())
    spelled = {"on" if key is True else key: each for key, each in value.items()}  # YAML 1.1's word for true
    return [each.message for each in validator_for(schema)(schema).iter_errors(spelled)]


def test_they_fit_the_schema_of_workflows() -> None:
    assert [file.stem for file in FILES] == ["audit", "publish"]
    for file in FILES:
        value = yaml.safe_load(file.read_text())
        assert faults(value) == []
        next(iter(value["jobs"].values()))["runs"] = "ubuntu-latest"
        assert faults(value)


@files
def test_shellcheck_has_nothing_to_say(file: Path, tmp_path: Path) -> None:
    for run in runs(file):
        assert shellcheck(f"#!/usr/bin/env bash\n{run}", tmp_path) == ""


@files
def test_every_command_is_one(file: Path) -> None:
    typed = yaml.safe_load(file.read_text())[True]["workflow_dispatch"]["inputs"]
    values = {name.upper(): str(each.get("default", "text")) for name, each in typed.items()}
    found = [words for run in runs(file) for words in commands(run)]
    assert len(found) > 2
    for words in found:
        parse([re.sub(r"\$(\w+)", lambda match: values.get(match[1], "text"), word) for word in words])
    with pytest.raises(ValueError, match="No such option"):
        parse([*found[0], "--no-such-option"])


@files
def test_what_is_typed_in_is_no_part_of_a_script(file: Path) -> None:
    """Inputs reach scripts as variables: put in by GitHub, they would be run."""
    assert not any("${{" in run for run in runs(file))


@files
def test_actions_are_pinned_and_may_do_little(file: Path) -> None:
    text, value = file.read_text(), yaml.safe_load(file.read_text())
    uses = [step["uses"] for job in jobs(file) for step in job["steps"] if "uses" in step]
    for each in uses:
        assert re.search(rf"{re.escape(each)} # v\d+\.\d+\.\d+$", text, re.M)
        assert re.fullmatch(r"[\w/.-]+@[0-9a-f]{40}", each)
    assert uses and value["permissions"] == {}
    for job in jobs(file):
        assert job["permissions"]["id-token"] == "write"
        assert {*job["permissions"]} <= {"contents", "id-token"}


def test_the_hubs_token_is_seen_by_the_last_step_alone() -> None:
    (job,) = jobs(ROOT / "examples" / "github" / "publish.yml")
    seen = [step["name"] for step in job["steps"] if "secrets." in str(step)]
    assert seen == [job["steps"][-1]["name"]] == ["Send"] and "secrets" not in str(job["env"])
