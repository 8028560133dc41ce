"""What the documentation lists is what there is."""

import re
from dataclasses import fields, is_dataclass
from typing import get_type_hints

from tests.commands import commands, parse
from tests.conftest import ROOT
from tests.schemas import WRITTEN

from requant.cli.terminal import ERRORS
from requant.errors import RequantError
from requant.passes import PASSES
from requant.recipe import Recipe
from requant.verdict import EXIT_STATUS


def test_every_key_of_a_recipe_is_described() -> None:
    page = (ROOT / "docs" / "recipe.md").read_text()
    for table, kind in get_type_hints(Recipe).items():
        if is_dataclass(kind):
            for field in fields(kind):
                assert f"`{table}.{field.name}`" in page
    assert re.findall(r"^\| `([a-z_]+)` \|", page.partition("## Passes")[2], re.M) == list(PASSES)


def test_links_lead_somewhere() -> None:
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page}: {target}"


def test_every_command_is_one() -> None:
    """In what is set as code, each line that begins with requant is read by the command line itself."""
    count = 0
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")):
        for words in commands("\n".join(re.findall(r"^(?: {4}|\t)(.*)$", page.read_text(), re.M))):
            parse(words)
            count += 1
    assert count > 60


def test_every_exit_status_has_its_line() -> None:
    page = (ROOT / "docs" / "exit-statuses.md").read_text()
    lines = dict(re.findall(r"^\| (\d+) \| (\w*) ?\|", page, re.M))
    assert {str(status) for status in EXIT_STATUS.values()} <= lines.keys()
    assert {str(status): name for status, name in ERRORS.items()}.items() <= lines.items()
    assert {str(each.exit_status) for each in RequantError.__subclasses__()} <= lines.keys()


def test_every_verb_that_judges_has_its_line_of_exit_statuses() -> None:
    page = (ROOT / "docs" / "exit-statuses.md").read_text()
    for verb in ("build", "rebuild", "verify", "diff", "check", "inspect", "audit", "coverage", "image", "pins"):
        assert re.search(rf"^\| .*`{verb}\b", page, re.M), verb


def test_every_page_is_listed_and_every_schema_of_a_file_named() -> None:
    listed = (ROOT / "docs" / "README.md").read_text()
    for page in ROOT.glob("docs/*.md"):
        assert page.name == "README.md" or f"]({page.name}) |" in listed, page
    described = (ROOT / "docs" / "json.md").read_text()
    for name in WRITTEN:
        assert f" `{name.partition('/')[0]}` |" in described


def test_the_glossary_is_in_order_and_has_the_words_of_the_code() -> None:
    words = re.findall(r"^\| ([a-zA-Z ]+) \|", (ROOT / "docs" / "glossary.md").read_text(), re.M)[1:]
    assert words == sorted(words, key=str.casefold)
    assert {"tiny model", "worker", "sandbox", "worker pool", "block inputs", "resume state", "span"} <= {*words}
    assert {"source", "taint", "pass", "party", "reach"} <= {*words}


def test_every_row_of_the_threat_model_names_tests_that_exist() -> None:
    page = (ROOT / "docs" / "threats.md").read_text()
    rows: list[str] = re.findall(r"^\| (?!-|what they)(.*) \|$", page, re.M)
    assert len(rows) > 20
    for row in rows:
        *_, proof = row.split(" | ")
        named = re.findall(r"`(test_\w+)\.py::(test_\w+)`", proof)
        assert named or proof == "nothing", row
        for module, test in named:
            assert re.search(rf"^def {test}\(", (ROOT / "tests" / f"{module}.py").read_text(), re.M), row


def test_tests_that_the_claims_name_exist() -> None:
    for name in set(re.findall(r"`(tests/[a-z_]+\.py)`", (ROOT / "docs" / "claims.md").read_text())):
        assert (ROOT / name).exists(), name
