"""Two journals part ways in one line and one field, and that one is named."""

from dataclasses import fields, replace
from typing import Any

import pytest

from requant.diff.divergence import FIELDS, Divergence, divergence
from requant.evidence.journal import Block, Header, Journal, Loss

LOSS = Loss((1.5).hex(), (0.5).hex(), 3)
BLOCK = Block(
    "layers.0",
    {"full": "1", "quantized": "2"},
    "3",
    LOSS,
    {"a": "4", "b": "5"},
    {"full": "6"},
)
JOURNAL = Journal(
    Header("recipe", "mini", "environment", "base", "calibration", 3),
    tuple(replace(BLOCK, block=f"layers.{i}") for i in range(3)),
)


def with_block(number: int, **changes: Any) -> Journal:
    blocks = list(JOURNAL.blocks)
    blocks[number] = replace(blocks[number], **changes)
    return replace(JOURNAL, blocks=tuple(blocks))


def test_equal_journals_do_not_part() -> None:
    assert divergence(JOURNAL, with_block(1)) == ()


def test_every_field_of_a_block_is_looked_at_causes_first() -> None:
    assert list(FIELDS) == [field.name for field in fields(Block)]


@pytest.mark.parametrize("field", [field.name for field in fields(Header)])
def test_every_field_of_the_header_is_named(field: str) -> None:
    value: Any = 4 if field == "blocks" else "other"
    found = divergence(replace(JOURNAL, header=replace(JOURNAL.header, **{field: value})), JOURNAL)
    assert found == (Divergence(1, "", field, "", str(getattr(JOURNAL.header, field)), str(value)),)
    assert str(found[0]).startswith(f"journal, line 1: header: {field} is {value}, recorded ")


@pytest.mark.parametrize(
    ("changes", "field", "name", "expected", "found"),
    [
        ({"block": "layers.9"}, "block", "", "layers.1", "layers.9"),
        ({"inputs": {"full": "1", "quantized": "9"}}, "inputs", "quantized", "2", "9"),
        ({"inputs": {"full": "1", "quantized": "2", "others": "9"}}, "inputs", "others", "absent", "9"),
        ({"random_state": "9"}, "random_state", "", "3", "9"),
        ({"loss": replace(LOSS, initial=(2.5).hex())}, "loss", "initial", (1.5).hex(), (2.5).hex()),
        ({"loss": replace(LOSS, best_iteration=4)}, "loss", "best_iteration", "3", "4"),
        ({"tensors": {"a": "4", "b": "9"}}, "tensors", "b", "5", "9"),
        ({"tensors": {"a": "4"}}, "tensors", "b", "5", "absent"),
        ({"tensors": {"a": "4", "b": "5", "c": "9"}}, "tensors", "c", "absent", "9"),
        ({"outputs": {"full": "9"}}, "outputs", "full", "6", "9"),
    ],
)
def test_the_first_field_is_named(changes: dict[str, Any], field: str, name: str, expected: str, found: str) -> None:
    assert divergence(with_block(1, **changes), JOURNAL) == (Divergence(3, "layers.1", field, name, expected, found),)


def test_a_cause_is_named_and_not_its_effects() -> None:
    changed = with_block(1, tensors={"a": "9", "b": "9"}, outputs={"full": "9"})
    changed = replace(changed, blocks=(*changed.blocks[:2], replace(changed.blocks[2], inputs={"full": "9"})))
    (found,) = divergence(changed, JOURNAL)
    assert (found.line, found.field, found.name) == (3, "tensors", "a")
    assert str(found) == (
        "journal, line 3: layers.1: tensors a is 9, recorded 4: its inputs and losses agree, its tensors do not"
    )


def test_another_environment_hides_no_block() -> None:
    changed = with_block(2, outputs={"full": "9"})
    found = divergence(replace(changed, header=replace(JOURNAL.header, environment="other")), JOURNAL)
    assert [(each.line, each.field) for each in found] == [(1, "environment"), (4, "outputs")]
