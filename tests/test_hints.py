"""What a portable audit says of a block, by what came of its hints, and which hints it takes."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.cases.audits import HINTED
from tests.conftest import Refuses
from tests.test_journal import BLOCK, JOURNAL
from tests.test_retuned import TUNED

from requant.audit.distance import Distance
from requant.audit.portable import confirm, judge, unlike, unlike_devices
from requant.audit.retuned import Judgement
from requant.digest import sha256
from requant.errors import CheckpointError, UsageError
from requant.evidence.journal import Journal
from requant.protocol import Hinted, label

LOST, BEYOND = replace(HINTED, inconclusive="too many"), replace(HINTED, beyond="iteration 3: too far")
APART = Distance("b.q.qweight", 1, 1, {1: 1})


@pytest.mark.parametrize(
    ("hinted", "distance", "changed", "doubt", "judgement", "reason"),
    [
        (HINTED, None, "", "", Judgement.IDENTICAL, ""),
        (HINTED, None, "", "another environment", Judgement.IDENTICAL, ""),
        (HINTED, APART, "", "", Judgement.DIFFERENT, "the decisions that the journal states give other codes"),
        (HINTED, APART, "", "another environment", Judgement.INCONCLUSIVE, "another environment"),
        (LOST, None, "", "", Judgement.INCONCLUSIVE, "too many"),
        (LOST, None, "", "another environment", Judgement.INCONCLUSIVE, "too many; another environment"),
        (BEYOND, None, "", "", Judgement.DIFFERENT, "iteration 3: too far"),
        (BEYOND, None, "", "a GPU", Judgement.INCONCLUSIVE, "iteration 3: too far; a GPU"),
        (HINTED, None, "b.q.scales", "", Judgement.DIFFERENT, "b.q.scales is not the journal's"),
        (LOST, None, "b.q.scales", "a GPU", Judgement.DIFFERENT, "b.q.scales is not the journal's"),
    ],
)
def test_what_came_of_hints_is_judged(
    hinted: Hinted, distance: Distance | None, changed: str, doubt: str, judgement: Judgement, reason: str
) -> None:
    found = judge("b", 0, hinted, distance, unlike=changed, doubt=doubt)
    assert (found.judgement, found.hinted, found.distance) == (judgement, hinted, distance)
    assert found.reason.endswith(reason)


def test_a_published_tensor_that_is_not_the_journal_s_is_named() -> None:
    digests = {name: sha256(each.read()) for name, each in TUNED.items()}
    assert unlike(replace(BLOCK, tensors=digests), TUNED) == ""
    for name in ("b.q.qweight", "b.q.scales"):
        assert unlike(replace(BLOCK, tensors={**digests, name: "0" * 64}), TUNED) == name
        assert (
            unlike(replace(BLOCK, tensors=digests), {key: each for key, each in TUNED.items() if key != name}) == name
        )
    other = {**digests, "b.norm": "0" * 64}  # not tuned: compared with the base, not with the journal
    assert unlike(replace(BLOCK, tensors=other), TUNED) == ""


def test_a_cpu_and_a_gpu_are_unlike_and_two_of_a_kind_are_not() -> None:
    cpu, gpu = {"accelerator": "cpu"}, {"accelerator": "NVIDIA H200"}
    assert unlike_devices(cpu, {**cpu, "vendor": "another"}) == unlike_devices(gpu, {**gpu, "driver": "2"}) == ""
    assert unlike_devices(cpu, gpu) == unlike_devices(gpu, cpu) != ""


def test_only_the_hints_of_the_journal_are_taken(tmp_path: Path, refuses: Refuses) -> None:
    data = [f"hints of block {number}".encode() for number in range(3)]
    lines = tuple(replace(each, hints=sha256(some)) for each, some in zip(JOURNAL.blocks, data, strict=True))
    journal = Journal(JOURNAL.header, lines)
    for number, some in enumerate(data):
        (tmp_path / label(number)).write_bytes(some)
    confirm(tmp_path, journal)
    for none in (None, JOURNAL, Journal(JOURNAL.header, (*lines[:2], JOURNAL.blocks[2]))):
        with refuses(UsageError, shared=True):
            confirm(tmp_path, none)
    (tmp_path / label(1)).write_bytes(b"others")
    with refuses(CheckpointError):
        confirm(tmp_path, journal)
    (tmp_path / label(1)).unlink()
    with refuses(CheckpointError):
        confirm(tmp_path, journal)
