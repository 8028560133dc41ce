"""Two strings that differ in a few places become equal by a sketch of one, or it is known that they did not."""

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.worker
Ask = Callable[..., Any]


def test_changes_are_found_up_to_the_capacity_and_behind_it_nothing_is(ask: Ask) -> None:
    """Of a sketch as full as it may be one in a hundred fails at most, of one that is half full none that is drawn.

    The smallest has 53 + 59 + 61 + 67 = 240 cells for 64 changes: two of them share all four cells with a probability
    of 64**2 / 2 / (53 * 59 * 61 * 67) = 2e-4, and larger sets that cannot be told apart are as rare. Half full it is a
    quarter of that. In a hundred tries with a fixed seed that is none; one would say that something broke.
    """
    found = ask("sketch", "told")
    assert set(found["none"]) == {"right"}
    assert set(found["half"]) == {"right"}
    assert found["full"].get("nothing", 0) <= sum(found["full"].values()) / 100
    assert sum(found["full"].values()) >= 99
    assert "wrong" not in found["full"]
    assert "wrong" not in found["2"]
    assert set(found["32"]) == {"nothing"}


def test_sums_are_exact_and_the_same_in_any_chunks(ask: Ask) -> None:
    assert ask("sketch", "chunks")["equal"] == [[True] * 3] * 2


def test_a_forged_sketch_costs_two_seconds_at_most_and_gives_nothing(ask: Ask) -> None:
    found = ask("sketch", "forged")
    assert set(found["came"].values()) == {None}
    assert len(found["seconds"]) == 5
    assert max(found["seconds"].values()) < 2
    assert found["MiB"] < 100
    assert len(found["refused"]) == 4
    assert all(each.endswith(f"expected {found['size']}") for each in found["refused"])


def test_what_a_sketch_gives_is_held_against_its_digest(ask: Ask) -> None:
    found = ask("sketch", "followed")
    assert found["honest"] == "theirs"
    assert found["another digest"] == "its hints do not give the decisions that they are of"
    assert found["too many"].endswith("differences, and there are more")
    for more in ("a greater sketch", "in plain"):  # who could write them could turn as many signs
        assert found[more] == "its hints tell more differences than the 65 that rounding explains here"
    assert found["a greater sketch, of inputs that drift"] == "theirs"
