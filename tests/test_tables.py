"""On a narrow terminal a table folds what does not fit, at word ends: two rows that differ never look equal."""

import re
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from requant.audit.coverage import Coverage, Covered, Label
from requant.audit.parties import Party
from requant.cli.coverage import coverage_table
from requant.cli.folding import Folded, name
from requant.cli.inspect import findings_table
from requant.cli.plan import plan_table
from requant.cli.repair import repair_table
from requant.cli.terminal import Terminal
from requant.inspect import Inspection
from requant.inspect.findings import Finding, Severity, Target
from requant.model.summary import Size, Summary
from requant.repair import Repair
from requant.verdict import Outcome

WIDTHS = (60, 50, 40)
LONG = "model.layers.0.mlp.shared_expert"


def shown(rendered: Iterable[RenderableType], width: int) -> str:
    """What the terminal gets, without the white space that folding adds."""
    console = Console(width=width, soft_wrap=True, emoji=False, color_system=None)
    with console.capture() as capture:
        for each in rendered:
            console.print(each)
    text = capture.get()
    assert "…" not in text
    return "".join(text.split())


def finding(*subjects: str) -> Inspection:
    found = Finding("D18", Severity.ERROR, subjects, "It is missing.")
    return Inspection("x", 1, 1, 0, ("vllm==0.33.0",), (1,), True, (found,))


names = st.text("abc.0_", min_size=1, max_size=90)


@pytest.mark.parametrize("width", WIDTHS)
@given(st.lists(names, min_size=1, max_size=4, unique=True))
def test_every_name_of_a_finding_is_whole(width: int, subjects: list[str]) -> None:
    text = shown(findings_table(finding(*(f"{LONG}.{each}" for each in subjects))), width)
    assert all(f"{LONG}.{each}" in text for each in subjects)


@pytest.mark.parametrize("width", WIDTHS)
def test_names_that_differ_at_their_ends_stay_different(width: int) -> None:
    ends = [f"{LONG}.{half}_proj.qzeros" for half in ("down", "gate", "up")]
    text = shown(findings_table(finding(*ends)), width)
    assert all(each in text for each in ends)


ENDS = (f"{LONG}.down_proj.scales.one", f"{LONG}.down_proj.scales.two")


def planned(name: str, size: int = 1) -> RenderableType:
    return plan_table(
        cast(
            Summary,
            SimpleNamespace(
                recipe="r", base="b", quantized=1, linears=1, schemes=("W4A16",), sizes={name: Size(1, 2, size)}
            ),
        )
    )


TABLES: dict[str, Callable[[str], Iterable[RenderableType]]] = {
    "plan": lambda name: [planned(name)],
    "plan, numbers": lambda name: [planned("x", 10**20 + name.endswith("one"))],
    "findings": lambda name: findings_table(finding(name)),
    "repair": lambda name: repair_table(Repair(1, "0" * 64, None, (name,), (), (), (), ()), None),
}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("table", TABLES)
def test_what_differs_at_its_end_looks_different(table: str, width: int) -> None:
    one, two = (shown(TABLES[table](name), width) for name in ENDS)
    assert one != two


def rows(rendered: Iterable[RenderableType], width: int) -> list[str]:
    """What a person sees: lines, of whose right ends nobody sees the spaces."""
    console = Terminal(width=width, soft_wrap=True, emoji=False, color_system=None, force_terminal=True)
    with console.capture() as capture:
        console.lines(rendered)
    return [line.rstrip() for line in capture.get().splitlines()]


def covered(block: str) -> Iterable[RenderableType]:
    row = Covered(block, {"cpu": ("Ada",)}, {}, (), (), ())
    none, rebuilt = (Covered(each, {}, {}, (), (), ()) for each in ("not tuned", "rebuilt"))
    hardware: dict[str, dict[str, str]] = {f"class {number} of machines": {} for number in range(4)}
    return coverage_table(Coverage("ec", "mini", "cpu", (row,), none, rebuilt, {"a": LABEL}, {}, hardware, 1, None, ""))


LABEL = Label(
    what="audit",
    outcome=Outcome.IDENTICAL,
    auditor="Ada",
    party=Party("", "Ada"),
    hardware="cpu",
    environment="",
    own_environment=True,
    journal="none",
    finished="",
    portable=False,
)
TABLES |= {"coverage": covered}
strange = st.text("aB0._-/ :(漢", min_size=1, max_size=90)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("table", sorted(TABLES.keys() - {"plan, numbers", "plan"}))
@given(strange, strange)
def test_no_two_names_become_equal_rows(table: str, width: int, one: str, two: str) -> None:
    assume(one != two)
    assert rows(TABLES[table](one), width) != rows(TABLES[table](two), width)


@pytest.mark.parametrize("width", WIDTHS)
@given(st.lists(names, min_size=2, max_size=4, unique=True))
def test_names_are_told_apart_from_what_they_go_on_with(width: int, subjects: list[str]) -> None:
    """Several names never look like other ones, of which one goes on where another begins."""
    joined = ["".join(subjects[:2]), *subjects[2:]]
    assert rows(findings_table(finding(*subjects)), width) != rows(findings_table(finding(*joined)), width)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("table", TABLES)
def test_no_word_is_broken_that_fits_a_line(table: str, width: int) -> None:
    """In a name, words are what ends in a dot. Where rows stand below each other, the columns' names are labels."""
    made = list(TABLES[table]("model.language_model.layers.*.linear_attn.in_proj_qkv"))
    words = {word for line in rows(made, 300) for word in WORDS.findall(line)}
    words |= {f"{label}:" for label in words}
    said = rows(made, width)
    assert all(len(line) <= width for line in said)
    broken = {word for line in said for word in WORDS.findall(line)} - words
    assert all(re.fullmatch("[0-9a-f]+", word) for word in broken), broken  # a digest is longer than a line


WORDS = re.compile(r"[^\s.]+\.?")


def test_a_table_that_fits_stays_one() -> None:
    assert rows([planned("base")], 60)[1].split() == ["tensors", "parameters", "bytes"]


@pytest.mark.parametrize("width", [*WIDTHS, 9, 4, 1])
@given(st.text("ab.漢 _0", max_size=200))
def test_folding_loses_nothing(width: int, text: str) -> None:
    text = name(text)
    assume(width > 1 or text.isascii())
    console = Console(width=width, soft_wrap=True, emoji=False, color_system=None)
    with console.capture() as capture:
        console.print(Folded(text))
    assert "".join(capture.get().split()) == "".join(text.split())


@pytest.mark.parametrize("terminal", [True, False])
def test_lines_are_folded_for_a_person_alone(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    console = Terminal(width=40, soft_wrap=True, force_terminal=terminal, color_system=None)
    with console.capture() as capture:
        console.lines([f"missing tensor: {LONG}.down_proj.weight"])
    assert (len(capture.get().splitlines()) > 1) == terminal


def many(*consequences: str) -> Inspection:
    made = [
        Finding("D10", Severity.ERROR, (f"{LONG}.{number}",), each, (Target("vllm==0.33.0", 1),))
        for number, each in enumerate(consequences)
    ]
    return Inspection("x", 1, 1, 0, ("vllm==0.33.0",), (1,), True, tuple(made))


def test_findings_that_differ_only_in_values_are_one_line() -> None:
    found = many(*(f"Found {number:#010x}, expected 0x77777777." for number in range(98)))
    said = "\n".join(rows(findings_table(found), 100))
    assert said.count("D10") == 1 and "and 97 more like this" in said
    assert f"{LONG}.0" in said and "and 94 more" in said and "98 errors" in said
    assert len(found.as_json()["findings"]) == 98


def test_findings_that_say_something_else_are_lines_of_their_own() -> None:
    found = many("Found 1.", "Found 2.", "Lost 1.", "Lost it.", "Found nothing.")
    said = "\n".join(rows(findings_table(found), 100))
    assert said.count("D10") == 5 and "more like this" not in said
