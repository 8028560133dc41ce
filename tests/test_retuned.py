"""What was tuned again is judged by what its inputs allow: equal is identical, one step is found, nobody is accused."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.cases.audits import AUDIT

from requant.audit.challenge import Challenge
from requant.audit.distance import Distance, distance
from requant.audit.retuned import Judgement, Retuned, judge, settle
from requant.audit.untuned import Deviation, Untuned
from requant.checkpoint.checkpoint import Held, Tensor
from requant.checkpoint.manifest import FileRecord, Manifest, TensorRecord
from requant.checkpoint.safetensors import Spec
from requant.formats import gptq
from requant.verdict import Outcome

WORDS = np.arange(24, dtype="<u4").reshape(3, 8)
SCALES = np.array([[0.5, -0.25, 1.0, 2.0]], "<f2")
NORM = np.array([1, 2, 3], "<u2")


def tensor(dtype: str, values: np.ndarray) -> Tensor:
    return Tensor(Spec(dtype, values.shape), Held(values.tobytes()))


TUNED = {
    "b.q.qweight": tensor("I32", WORDS),
    "b.q.scales": tensor("F16", SCALES),
    "b.norm": tensor("BF16", NORM),
}


def test_equal_tensors_are_not_apart() -> None:
    assert distance(TUNED, {**TUNED}) is None
    assert distance({}, {}) is None


def test_one_step_of_one_code_is_found_with_its_sign() -> None:
    words = WORDS.copy()
    words[1, 2] += 1 << 4  # 10 is 0xa: its second code 0 becomes 1
    published = {**TUNED, "b.q.qweight": tensor("I32", words)}
    assert distance(TUNED, published) == Distance("b.q.qweight", 1, 1, {1: 1})
    assert distance(published, TUNED) == Distance("b.q.qweight", 1, 1, {-1: 1})


@pytest.mark.parametrize(("bits", "step"), [(2, 3), (3, -7), (8, 200)])
def test_steps_of_codes_of_another_width(bits: int, step: int) -> None:
    """Of 8 bits, steps of more than 15 are counted as 15."""
    codes = np.full((4, 64), max(0, -step), np.uint8)
    other = codes.copy()
    other[3, 10] = max(0, -step) + step
    ours, theirs = ({"q.qweight": tensor("I32", gptq.pack(each, bits))} for each in (codes, other))
    assert distance(ours, theirs, lambda _: bits) == Distance("q.qweight", 1, 1, {max(-15, min(step, 15)): 1})


def test_scales_differ_in_ulp() -> None:
    scales = SCALES.copy()
    scales[0, 3] = np.nextafter(scales[0, 3], np.float16(9))
    scales[0, 0] = np.nextafter(np.nextafter(scales[0, 0], np.float16(9)), np.float16(9))
    assert distance(TUNED, {**TUNED, "b.q.scales": tensor("F16", scales)}) == Distance("b.q.scales", 1, scales=2, ulp=2)


def test_codes_of_several_tensors_add_up_and_the_first_is_named() -> None:
    names = ("z.qweight", "a.qweight")
    zeros = np.zeros((1, 2), "<u4")
    words = np.array([[0x10F, 0]], "<u4")
    ours = {name: tensor("I32", zeros) for name in names}
    assert distance(ours, {name: tensor("I32", words) for name in names}) == Distance("a.qweight", 2, 4, {1: 2, 15: 2})


def test_other_bytes_shapes_types_and_names_are_counted() -> None:
    for published in (
        {**TUNED, "b.norm": tensor("BF16", NORM + np.uint16(1))},
        {**TUNED, "b.norm": tensor("F16", NORM)},
        {**TUNED, "b.norm": tensor("BF16", NORM.reshape(3, 1))},
        {name: each for name, each in TUNED.items() if name != "b.norm"},
    ):
        assert distance(TUNED, published) == distance(published, TUNED) == Distance("b.norm", 1)


@given(data=st.data())
def test_any_flipped_bit_sets_apart(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(TUNED)))
    spoilt = bytearray(TUNED[name].read())
    spoilt[data.draw(st.integers(0, len(spoilt) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    found = distance(TUNED, {**TUNED, name: Tensor(TUNED[name].spec, Held(bytes(spoilt)))})
    assert found
    assert (found.first, found.tensors) == (name, 1)
    assert (found.codes, found.scales) == (int(name.endswith("qweight")), int(name.endswith("scales")))


DISTANCE = Distance("b.q.qweight", 1, 1, {1: 1})


@pytest.mark.parametrize(
    ("inputs", "outputs", "tensors", "unlike", "expected"),
    [
        (True, True, None, "", "identical"),
        (True, True, None, "another class", "identical"),
        (None, None, None, "", "identical"),
        (None, None, None, "another class", "identical"),
        (True, True, DISTANCE, "", "different"),
        (True, False, None, "", "different"),
        (True, False, DISTANCE, "", "different"),
        (None, None, DISTANCE, "", "different"),
        (False, True, DISTANCE, "", "unjudged"),
        (False, False, None, "", "unjudged"),
        (False, True, None, "", "unjudged"),
        (True, False, DISTANCE, "another class", "inconclusive"),
        (True, False, None, "another class", "inconclusive"),
        (False, False, DISTANCE, "another class", "inconclusive"),
        (None, None, DISTANCE, "another class", "inconclusive"),
    ],
)
def test_a_block_is_judged_by_what_its_inputs_allow(
    inputs: bool | None, outputs: bool | None, tensors: Distance | None, unlike: str, expected: str
) -> None:
    found = judge("b", 3, inputs_agree=inputs, outputs_agree=outputs, distance=tensors, unlike=unlike)
    assert (found.block, found.index, found.judgement, found.distance) == ("b", 3, expected, tensors)
    speaks_for_itself = expected == "identical" or (expected == "different" and tensors is not None)
    assert bool(found.reason) is not speaks_for_itself


def test_before_the_first_block_there_is_no_block_to_look_at() -> None:
    first, later = (
        judge("b", index, inputs_agree=False, outputs_agree=False, distance=None, unlike="") for index in (0, 1)
    )
    assert "base, text or model code" in first.reason
    assert "a block before it" in later.reason


def blocks(**judgements: str) -> tuple[Retuned, ...]:
    return tuple(
        Retuned(name, int(name[1:]), Judgement(each), "", DISTANCE if each == "different" else None)
        for name, each in judgements.items()
    )


def judgements(some: tuple[Retuned, ...]) -> list[str]:
    return [str(each.judgement) for each in some]


def test_without_a_journal_only_the_first_different_block_is_accused() -> None:
    some = blocks(b1="identical", b2="different", b3="different", b5="identical", b6="inconclusive")
    assert judgements(settle(some)) == ["identical", "different", "unjudged", "identical", "inconclusive"]
    assert judgements(settle(some[::-1])) == ["inconclusive", "identical", "unjudged", "different", "identical"]
    assert settle(()) == ()


def test_without_a_journal_the_first_is_accused_alone_where_all_before_it_are_identical() -> None:
    for some, sure in (
        (blocks(b0="identical", b1="identical", b2="different"), True),
        (blocks(b0="different"), True),
        (blocks(b1="identical", b2="different"), False),
        (blocks(b0="identical", b1="inconclusive", b2="different"), False),
        (blocks(b2="different"), False),
    ):
        last = settle(some)[-1]
        assert last.judgement is Judgement.DIFFERENT
        assert last.reason == ("" if sure else "or a block before it: there is no journal")


@pytest.mark.parametrize(
    ("some", "outcome", "status", "first"),
    [
        (blocks(b0="identical", b1="identical"), Outcome.IDENTICAL, 0, None),
        (blocks(b0="identical", b2="different", b3="unjudged"), Outcome.DIFFERENT, 1, "b2"),
        (blocks(b3="different", b2="different"), Outcome.DIFFERENT, 1, "b2"),
        (blocks(b0="identical", b1="unjudged"), Outcome.INCONCLUSIVE, 3, None),
        (blocks(b0="inconclusive", b1="identical"), Outcome.INCONCLUSIVE, 3, None),
        ((), Outcome.INCONCLUSIVE, 3, None),
    ],
)
def test_an_audit_is_as_good_as_its_blocks(
    some: tuple[Retuned, ...], outcome: Outcome, status: int, first: str | None
) -> None:
    audit = replace(AUDIT, blocks=some, untuned=Untuned())
    assert (audit.outcome, audit.exit_status, audit.first_divergence) == (outcome, status, first)
    assert audit.as_json()["outcome"] == outcome


def test_what_a_person_reads() -> None:
    lines = replace(AUDIT, count=40, challenge=Challenge("drand 5000000", 4)).text()
    assert lines == [
        "layers.0: identical",
        "layers.2: different, tensors 2, first layers.2.q.qweight; codes 3, by steps -1: 1, +2: 2; "
        "scales 1, by 7 ULP at most",
        "not tuned: different",
        "  changed tensor: lm_head.weight: other bytes",
        "2 of 40 blocks tuned again, drawn from 'drand 5000000': one bad block is found with 10%",
        "not judged: blocks 1, 3-39; files that no loader reads: README.md",
        "first divergence: layers.2; what comes after it is not accused",
    ]
    assert replace(AUDIT, blocks=blocks(b3="unjudged", b4="unjudged")).text()[-1] == "next: audit the blocks before b3"
    assert "hardware class" in replace(AUDIT, blocks=blocks(b3="inconclusive")).text()[-1]
    assert replace(AUDIT, blocks=blocks(b3="identical"), untuned=Untuned(), companions=()).text() == [
        "b3: identical",
        "not tuned: identical",
        "1 of 4 blocks tuned again",
        "not judged: blocks 0-2",
    ]
    all_of_it = blocks(b0="identical", b1="identical", b2="identical", b3="identical")
    lines = replace(AUDIT, blocks=all_of_it, untuned=Untuned(open="no version"), companions=()).text()
    assert lines[4:] == ["not tuned: inconclusive; no version", "4 of 4 blocks tuned again"]


@pytest.mark.parametrize(
    ("judged", "untuned", "outcome"),
    [
        ("identical", Untuned(), Outcome.IDENTICAL),
        ("identical", Untuned((Deviation("extra file", "x"),), 1), Outcome.DIFFERENT),
        ("identical", Untuned((Deviation("extra file", "x"),), 1, "open"), Outcome.DIFFERENT),
        ("identical", Untuned(open="open"), Outcome.INCONCLUSIVE),
        ("unjudged", Untuned((Deviation("extra file", "x"),), 1), Outcome.DIFFERENT),
        ("different", Untuned(), Outcome.DIFFERENT),
    ],
)
def test_an_audit_speaks_of_its_blocks_and_of_all_that_is_not_tuned(
    judged: str, untuned: Untuned, outcome: Outcome
) -> None:
    audit = replace(AUDIT, blocks=blocks(b0=judged), untuned=untuned)
    assert audit.outcome is outcome
    assert audit.first_divergence == ("b0" if judged == "different" else None)


def manifest(file: str = "a.safetensors", dtype: str = "U8", name: str = "t", digest: str = "01") -> Manifest:
    return Manifest({file: FileRecord(9, "ab" * 32)}, {name: TensorRecord(file, dtype, (1,), digest * 32)})


def test_a_checkpoint_is_its_weight_files_and_no_record_of_a_tensor_changes_that() -> None:
    one = manifest()
    assert {each.identity for each in (manifest(dtype="I8"), manifest(name="u"), manifest(digest="02"))} == {
        one.identity
    }
    assert one.weights == {"a.safetensors": "ab" * 32}
    assert Manifest({**one.files, "config.json": FileRecord(1, "cd" * 32)}, one.tensors).identity == one.identity
    changed = Manifest({"a.safetensors": FileRecord(9, "ac" * 32)}, one.tensors)
    assert len({each.identity for each in (one, manifest("b.safetensors"), changed, Manifest({}, {}))}) == 4
    assert replace(AUDIT, files={"config.json": "cd" * 32, **one.weights}).checkpoint == one.identity
