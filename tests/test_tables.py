"""On a narrow terminal a table folds what does not fit: two rows that differ never look equal."""

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from requant.card import Claim
from requant.cli.tables import claims_table, findings_table, plan_table, repair_table
from requant.inspect import Inspection
from requant.inspecting.findings import Finding, Severity
from requant.plan import Plan, Size
from requant.repair import Repair

WIDTHS = (60, 40)
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
        cast(Plan, SimpleNamespace(recipe="r", base="b", quantized=1, linears=1, sizes={name: Size(1, 2, size)}))
    )


TABLES: dict[str, Callable[[str], Iterable[RenderableType]]] = {
    "plan": lambda name: [planned(name)],
    "plan, numbers": lambda name: [planned("x", 10**20 + name.endswith("one"))],
    "findings": lambda name: findings_table(finding(name)),
    "repair": lambda name: repair_table(Repair(1, "0" * 64, None, (name,), (), (), (), ())),
    "claims": lambda name: [claims_table((Claim(1, "a claim", "refuted", name),))],
}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("table", TABLES)
def test_what_differs_at_its_end_looks_different(table: str, width: int) -> None:
    one, two = (shown(TABLES[table](name), width) for name in ENDS)
    assert one != two
