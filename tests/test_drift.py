"""How far what a block is given drifts apart on two machines is measured on one."""

from collections.abc import Callable
from typing import Any

Ask = Callable[..., Any]


def test_drift_is_what_machines_differ_by_that_add_up_in_other_orders(ask: Ask) -> None:
    found = ask("drift")
    assert [each for each, right in found["operations"].items() if not right] == []
    chain = found["chain"]
    assert chain[-1]["apart"] > 5 * chain[0]["apart"], "a chain that does not drift shows nothing"
    for each in chain:  # two machines of the same exactness are apart by the root of two of what one is off by
        assert 0.5 < each["apart"] / each["measured"] < 3
    routes = found["routes"]
    assert routes["left alone"] > 1
    assert routes["with the same experts"] == 0
