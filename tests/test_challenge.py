"""A draw is one that anybody can repeat, that nobody can steer, and that is worth what the odds say."""

import hashlib
import itertools
import re
import subprocess
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import ROOT, Refuses

from requant.audit.challenge import MAX_TEXT, Challenge, draw, odds
from requant.errors import UsageError

NAMES = tuple(f"model.language_model.layers.{i}" for i in range(40))
seeds = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("a public text", (5, 16, 27, 35)),
        ("drand 5000000", (8, 9, 23, 36)),
        ("Zürich", (1, 18, 19, 31)),
    ],
)
def test_vectors(text: str, drawn: tuple[int, ...]) -> None:
    assert draw(NAMES, Challenge(text, 4)) == tuple(NAMES[i] for i in drawn)


PAGE = (ROOT / "docs" / "audit.md").read_text()


def test_the_line_of_shell_in_the_docs_draws_the_same() -> None:
    (line,) = re.findall(r"^    (for i in .*)$", PAGE, re.M)
    for text in ("a public text", "drand 5000000", "Zürich", "100% \\n $HOME"):
        done = subprocess.run(["bash", "-c", line], env={"TEXT": text, "PATH": "/usr/bin:/bin"}, capture_output=True)
        assert draw(NAMES, Challenge(text, 4)) == tuple(NAMES[int(i)] for i in done.stdout.split())
    assert "`drand 5000000` that draws 8, 9, 23 and 36" in PAGE


@given(text=seeds, count=st.integers(1, 40), data=st.data())
def test_a_draw_is_of_so_many_blocks_in_their_order_and_of_no_other(text: str, count: int, data: st.DataObject) -> None:
    drawn = draw(NAMES, Challenge(text, count))
    assert len(drawn) == count
    assert list(drawn) == sorted({*drawn}, key=NAMES.index)
    shuffled = data.draw(st.permutations(NAMES))
    assert {*draw(shuffled, Challenge(text, count))} == {*drawn}
    if count > 1:
        assert {*draw(NAMES, Challenge(text, count - 1))} < {*drawn}


@given(text=seeds)
def test_the_rule_stands_in_the_hash_alone(text: str) -> None:
    first = min(NAMES, key=lambda name: hashlib.sha256(text.encode() + b"\n" + name.encode()).digest())
    assert draw(NAMES, Challenge(text, 1)) == (first,)


def test_no_block_is_drawn_more_often_than_another() -> None:
    """4 of 40 from 5,000 texts: each block 500 times, give or take; chi squared of 39 degrees stays below 80."""
    counts = Counter(name for i in range(5000) for name in draw(NAMES, Challenge(f"round {i}", 4)))
    assert sum((counts[name] - 500) ** 2 / 450 for name in NAMES) * 39 / 40 < 80
    assert sum(counts.values()) == 20_000


@pytest.mark.parametrize("text", ["", "\ud800", "two\nlines", "\x1b[2J", "x" * (MAX_TEXT + 1)])
def test_a_text_that_cannot_be_recorded_is_refused(text: str, refuses: Refuses) -> None:
    with refuses(UsageError, vary="'.*'", shared=True):
        draw(NAMES, Challenge(text, 4))


@pytest.mark.parametrize("count", [0, -1, 41])
def test_a_draw_of_more_blocks_than_there_are_is_refused(count: int, refuses: Refuses) -> None:
    with refuses(UsageError):
        draw(NAMES, Challenge("text", count))


def test_odds_of_the_docs() -> None:
    drawn = [int(each) for each in re.findall(r"(\d+) drawn \|", PAGE)]
    rows = [row.split(" | ") for row in re.findall(r"^\| (\d.*%) \|$", PAGE, re.M)]
    assert len(rows) == 4
    for bad, *chances in rows:
        assert chances == [f"{odds(40, each, int(bad)):.1%}" for each in drawn]
    assert odds(40, 4, 1) == 0.1
    assert f"{1 - (1 - odds(40, 4, 1)) ** 10:.0%}" == "65%"


@given(data=st.data(), blocks=st.integers(0, 8))
def test_odds_are_the_share_of_draws_that_catch_one(data: st.DataObject, blocks: int) -> None:
    drawn, bad = data.draw(st.integers(0, blocks)), data.draw(st.integers(0, blocks))
    draws = list(itertools.combinations(range(blocks), drawn))
    assert odds(blocks, drawn, bad) == sum(any(each < bad for each in some) for some in draws) / len(draws)


@pytest.mark.parametrize("numbers", [(4, 5, 1), (4, 1, 5), (4, -1, 1), (4, 1, -1)])
def test_odds_of_nothing_possible(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=f"of {numbers[0]}"):
        odds(*numbers)
