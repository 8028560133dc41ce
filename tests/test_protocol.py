"""What host and worker tell each other comes back as it was said, and what is malformed is refused, and named."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.checkpoints import on_a_disk, on_disk
from tests.conftest import Refuses

from requant.errors import BuildError
from requant.evidence.journal import Block
from requant.protocol import (
    PASSED,
    REPORT,
    REQUEST,
    TASKS,
    Answers,
    Ended,
    Hinted,
    Layer,
    Own,
    Passed,
    Replay,
    Report,
    Seconds,
    Source,
    Spent,
    Steps,
    Task,
    Tuning,
    ask,
    asked,
    label,
    passed,
    read,
    say_passed,
    write,
)
from requant.records import record


def dictionaries(kind: Any) -> st.SearchStrategy[Any]:
    return st.dictionaries(*map(st.from_type, get_args(kind)), max_size=2)


st.register_type_strategy(float, st.floats(allow_nan=False))
st.register_type_strategy(Mapping, dictionaries)
hardware = st.dictionaries(st.text(), st.one_of(st.booleans(), st.integers(), st.text(), st.none()))
spent = st.one_of(st.none(), st.from_type(Spent))
reports = st.builds(Report, hardware=hardware, spent=spent)


@on_a_disk
@given(task=st.one_of(*map(st.from_type, TASKS.values())))
def test_a_task_is_read_as_it_was_asked(task: Task) -> None:
    with on_disk({}) as folder:
        ask(folder, task)
        assert asked(folder) == task


@on_a_disk
@given(value=st.one_of(reports, *map(st.from_type, (Answers, Ended, Block, Passed, Steps, Hinted))))
def test_a_value_is_read_as_it_was_written(value: Any) -> None:
    with on_disk({}) as folder:
        write(folder / "said.json", value)
        assert read(folder / "said.json", type(value)) == value
        assert [path.name for path in folder.iterdir()] == ["said.json"]


def test_passed_blocks_are_read_line_by_line(tmp_path: Path, refuses: Refuses) -> None:
    said = [Passed({"full": f"{number}"}, "state") for number in range(3)]
    assert passed(tmp_path) == ()
    for number, each in enumerate(said, 1):
        say_passed(tmp_path, each)
        assert passed(tmp_path) == tuple(said[:number])
    with (tmp_path / PASSED).open("a") as file:
        file.write('{"inputs": {}')
    assert passed(tmp_path) == tuple(said)
    with (tmp_path / PASSED).open("a") as file:
        file.write("}\n")
    with refuses(BuildError):
        passed(tmp_path)


OWN = Own(8, 32, True, "why")
TUNING = Tuning(None, "base", "text", "e", "b", "", ("a.0",), ("a.0.w",), {"a.0.w": OWN})
GIVEN = {"tuning": {**vars(TUNING), "blocks": ["a.0"], "packed": ["a.0.w"], "own": {"a.0.w": vars(OWN)}}}
REPLAY = {"task": "replay", **GIVEN, "checkpoint": ["x"], "blocks": [3], "waiting": 2, "hints": None, "reveal": False}


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "retire"},
        {"task": ["tune"]},
        {"task": "tune"},
        {"blocks": ["3"]},
        {"blocks": [True]},
        {"waiting": 2.0},
        {"checkpoint": "x"},
        {"tuning": None},
        {"tuning": {**GIVEN["tuning"], "tiny": 1}},
    ],
)
def test_a_malformed_task_is_named(changes: dict[str, Any], tmp_path: Path, refuses: Refuses) -> None:
    (tmp_path / REQUEST).write_text(json.dumps(REPLAY))
    assert asked(tmp_path) == Replay(TUNING, ("x",), (3,), 2)
    (tmp_path / REQUEST).write_text(json.dumps(REPLAY | changes))
    with refuses(BuildError):
        asked(tmp_path)


def test_no_task_at_all_is_named(tmp_path: Path, refuses: Refuses) -> None:
    for text in (None, "", "[]", "{}"):
        if text is not None:
            (tmp_path / REQUEST).write_text(text)
        with refuses(BuildError):
            asked(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"hardware": {}}',
        '{"hardware": {}, "versions": {"torch": 2}, "absent": [], "autoround_version": "", "spent": null}',
        '{"hardware": {}, "versions": {}, "absent": [], "autoround_version": "", "spent": {}}',
    ],
)
def test_a_malformed_report_is_named(text: str, tmp_path: Path, refuses: Refuses) -> None:
    (tmp_path / REPORT).write_text(text)
    with refuses(BuildError):
        read(tmp_path / REPORT, Report)


def test_what_was_not_said_is_named(tmp_path: Path, refuses: Refuses) -> None:
    with refuses(BuildError):
        read(tmp_path / REPORT, Report)


def test_a_layer_in_a_table_is_named(refuses: Refuses) -> None:
    layer = {"shape": [8, 4], "reason": "", "source": {**vars(Source("w")), "index": []}, "own": None}
    told = {"tensors": {"w": ["BF16", [8, 4]]}, "blocks": [], "layers": {"a": layer}, "unloaded": [], "tied": {}}
    told["elsewhere"] = {}
    found = record(Answers, {"versions": {}, "models": {"base": told}})
    assert found.models["base"].layers["a"] == Layer((8, 4), "", Source("w"))
    for key, value in (("shape", [8]), ("source", {})):
        wrong = told | {"layers": {"a": layer | {key: value}}}
        with refuses(ValueError):
            record(Answers, {"versions": {}, "models": {"base": wrong}})


def test_folders_of_blocks_sort_as_their_numbers() -> None:
    assert [label(number) for number in (3, 20, 99_999)] == ["00003", "00020", "99999"]


def test_seconds_that_a_task_does_not_have_are_none() -> None:
    assert Seconds(total=2.0, preparing=1.0).tuning == ()


def test_of_a_matrix_of_many_the_rows_are_counted_through() -> None:
    assert Source("w", (7,), 1, 2).flat_rows((256, 1024, 2048), 512) == (7 * 1024 + 512, 8 * 1024)
    assert Source("w").flat_rows((96, 64), 96) == (0, 96)
    assert Source("w", part=1, parts=2, interleaved=True).rows(4) == slice(1, None, 2)
