"""What of decoded weights accuses where no formula makes them, and what a calibration may leave."""

from collections.abc import Callable

import numpy as np
import pytest

from requant.check.distance import STRETCH, far_from, squares
from requant.check.findings import FAR, STRANGE, STRAY, Finding
from requant.formats.codec import Array

ROWS, COLUMNS = 128, 6 * STRETCH


def told(decoded: Array, weights: Array) -> list[Finding]:
    return [*far_from("x", 256, decoded, weights, *squares(decoded, weights))]


def drawn(seed: int, wide: float = 1.0) -> Array:
    return np.random.default_rng(seed).normal(0, wide, (ROWS, COLUMNS)).astype(np.float32)


def mirrored(decoded: Array) -> None:
    """Exchange the first two stretches of all outputs."""
    decoded[:, : 2 * STRETCH] = np.roll(decoded[:, : 2 * STRETCH], STRETCH, axis=1)


def outputs(decoded: Array) -> None:
    """Exchange two outputs: one in 64."""
    decoded[[3, 9]] = decoded[[9, 3]]


def large(decoded: Array) -> None:
    """Make a stretch of one output 16 times as large, as a bit of a scale's exponent does."""
    decoded[5, STRETCH : 2 * STRETCH] *= 16


def no_number(decoded: Array) -> None:
    decoded[5, STRETCH + 9] = np.nan


@pytest.mark.parametrize("damage", [mirrored, outputs, large, no_number], ids=lambda each: str(each.__name__))
@pytest.mark.parametrize("error", [0.1, 1.1], ids=["4 bits", "2 bits"])
def test_what_no_calibration_leaves_accuses(damage: Callable[[Array], None], error: float) -> None:
    weights = drawn(0)
    decoded = weights + drawn(1, error)
    assert {each.kind for each in told(decoded, weights)} == ({FAR} if error > 1 else set())
    damage(decoded)
    assert STRANGE in {each.kind for each in told(decoded, weights)}


def test_a_single_output_or_stretch_is_a_note() -> None:
    """As GPTQ leaves them, of few tokens or outputs that are next to nothing."""
    weights = drawn(0)
    decoded = weights + drawn(1, 0.1)
    decoded[7] = drawn(2)[7]
    decoded[9, :STRETCH] = drawn(3)[9, :STRETCH]
    assert [(each.kind, each.count, each.index) for each in told(decoded, weights)] == [
        (FAR, 7, (263, 0)),
        (STRAY, 1, (263, 0)),
    ]


def test_inputs_without_a_calibration_may_be_zeros() -> None:
    weights = drawn(0)
    decoded = weights + drawn(1, 0.1)
    decoded[:, STRETCH : 2 * STRETCH] = 0
    assert told(decoded, weights) == []
