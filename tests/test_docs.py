"""What the documentation lists is what there is."""

import re
from dataclasses import fields, is_dataclass
from typing import get_type_hints

from tests.conftest import ROOT

import requant
from requant.passes import PASSES
from requant.recipe import Recipe


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


def test_tests_that_the_claims_name_exist() -> None:
    for name in set(re.findall(r"`(tests/[a-z_]+\.py)`", (ROOT / "docs" / "claims.md").read_text())):
        assert (ROOT / name).exists(), name


def test_the_map_names_every_module_once() -> None:
    lines = str(requant.__doc__).split("\n\n")[2].splitlines()
    named = [name for line in lines for name in re.findall(r"\w+", line[21:])]
    package = ROOT / "src" / "requant"
    there = [path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    assert sorted(named) == sorted({*there} - {"__init__", "__main__", "quantizer"})
