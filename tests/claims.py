"""Both published cards, held against the builds of their recipes: what docs/claims.md has of it.

`nox -s claims`, or `python -m tests.claims`, writes it.
"""

from functools import cache

from tests.conftest import ROOT

from requant.card.compare import Comparison, compare
from requant.card.facts import facts_of
from requant.card.markdown import read_card
from requant.card.records import read_records
from requant.recipe import read_recipe

DOCS = ROOT / "docs" / "claims.md"
CARDS = ROOT / "tests" / "fixtures" / "cards"
NAMES = ("ec", "gb10")
START, END = "<!-- `nox -s claims` writes what follows: {} -->\n", "<!-- until here -->\n"


@cache
def compared(name: str) -> Comparison:
    """Return a card held against the full build of its recipe."""
    records = read_records(read_recipe(ROOT / "builds" / name), None)
    return compare(read_card(CARDS / f"{name}.md"), records, facts_of(records))


def table(name: str) -> str:
    """Return the comparison as a table, and how many lines were not compared."""
    found = compared(name)
    rows = (
        f"| {each.line} | {each.key} | {each.stated} | {_verdict(each.verdict)} | {each.recorded} | {each.source} |"
        for each in found.statements
    )
    lines = len({each.line for each in found.uncompared} - {each.line for each in found.statements})
    head = "| line | fact | the card says | verdict | recorded | in |\n|---|---|---|---|---|---|\n"
    return f"{head}{chr(10).join(rows)}\n\nNot compared: {lines} lines.\n"


def _verdict(verdict: str) -> str:
    return f"**{verdict}**" if verdict == "wrong" else verdict


def written(page: str) -> str:
    """Return the page with the comparisons written anew."""
    for name in NAMES:
        before, start, rest = page.partition(START.format(name))
        page = before + start + table(name) + END + rest.partition(END)[2]
    return page


if __name__ == "__main__":
    DOCS.write_text(written(DOCS.read_text()))
