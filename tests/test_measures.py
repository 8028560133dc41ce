"""What is computed of sequences: values, percentiles and intervals, and the results that say them."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import Refuses, Worded

from requant.errors import CheckpointError, UsageError
from requant.evaluate.evaluation import Digests, Evaluation, Settings, read_evaluation
from requant.evaluate.measures import (
    MEASURES,
    RESAMPLES,
    SEED,
    Interval,
    Measured,
    differences,
    measured,
    measures,
    rank,
    word,
)
from requant.protocol import Scored

SEQUENCES, TOKENS = 12, 100


def scored(seed: int, more: float = 0.0, sequences: int = SEQUENCES, tokens: int = TOKENS) -> list[Scored]:
    """What a model could make of some sequences; `more` is how much worse it is."""
    drawn = np.random.default_rng(seed)

    def some(scale: float) -> tuple[float, ...]:
        return tuple((drawn.gamma(2, scale, tokens) + more).tolist())

    def chosen(share: float) -> tuple[bool, ...]:
        return tuple((drawn.random(tokens) < share).tolist())

    return [
        Scored("0" * 64, 0, some(1.0), some(0.01), chosen(0.9), chosen(0.6), tuple(drawn.random(tokens).tolist()))
        for _ in range(sequences)
    ]


def rows(seed: int = 0, more: float = 0.0, mtp: bool = True) -> tuple[Measured, ...]:
    base, model = scored(99), scored(seed, more)
    if not mtp:
        model = [replace(each, drafted=(), overlaps=()) for each in model]
    return measured([f"{number:064x}" for number in range(SEQUENCES)], base, model)


def drawn(sequences: int) -> Any:
    """Which sequences each draw has, as the module says it."""
    raw = np.random.PCG64(SEED).random_raw(RESAMPLES * sequences)
    return (raw % sequences).astype(int).reshape(RESAMPLES, sequences)


def interval(values: Any) -> tuple[float, float]:
    return tuple(np.quantile(values, [0.025, 0.975], method="inverted_cdf").tolist())


def test_values_and_intervals_are_those_of_all_tokens_drawn_by_sequence() -> None:
    """Done here with every token of every draw."""
    base, model = scored(99), scored(0)
    found = measures(rows(), TOKENS)
    divergences = np.array([each.divergences for each in model])
    own, ours = (np.array([each.surprises for each in some]) for some in (model, base))
    drafted, before = (np.array([each.drafted for each in some]) for some in (model, base))
    wanted: dict[str, Callable[[Any], float]] = {
        "divergence": lambda index: divergences[index].mean(),
        "divergence_99_9": lambda index: np.quantile(divergences[index], 0.999, method="inverted_cdf"),
        "agreement": lambda index: np.array([each.agreed for each in model])[index].mean(),
        "base_perplexity": lambda index: math.exp(ours[index].mean()),
        "perplexity": lambda index: math.exp(own[index].mean()),
        "perplexity_ratio": lambda index: math.exp((own - ours)[index].mean()),
        "base_drafted": lambda index: before[index].mean(),
        "drafted": lambda index: drafted[index].mean(),
        "drafted_change": lambda index: drafted[index].mean() - before[index].mean(),
        "overlap": lambda index: np.array([each.overlaps for each in model])[index].mean(),
    }
    index = drawn(SEQUENCES)
    assert found.keys() == MEASURES.keys()
    for name, of in wanted.items():
        low, high = interval([of(each) for each in index])
        said = (of(np.arange(SEQUENCES)), low, high)
        assert [found[name].value, found[name].low, found[name].high] == pytest.approx(said, rel=1e-12), name


@given(st.integers(2, 40), st.integers(1, 400))
def test_the_rank_is_that_of_the_percentile(sequences: int, tokens: int) -> None:
    values = np.random.default_rng(sequences * tokens).permutation(sequences * tokens)
    wanted = np.quantile(values, 0.999, method="inverted_cdf")
    assert np.sort(values)[::-1][rank(sequences, tokens) - 1] == wanted


@settings(max_examples=10)
@given(
    st.integers(2, 6).flatmap(
        lambda count: st.lists(st.lists(st.floats(0, 9), min_size=5, max_size=5), min_size=count, max_size=count)
    )
)
def test_the_percentile_of_a_draw_needs_no_more_than_is_kept(values: list[list[float]]) -> None:
    some = [Scored("", 0, (1.0,) * 5, tuple(each), (True,) * 5) for each in values]
    found = measures(measured([""] * len(some), some, some), 5)["divergence_99_9"]
    every = [np.quantile(np.array(values)[each], 0.999, method="inverted_cdf") for each in drawn(len(some))]
    assert (found.low, found.high) == interval(every)


def test_a_model_that_is_its_base_differs_in_nothing() -> None:
    same = [replace(each, divergences=(0.0,) * TOKENS, agreed=(True,) * TOKENS) for each in scored(99)]
    found = measures(measured(["a"] * SEQUENCES, scored(99), same), TOKENS)
    none, all_of_it = Interval(0, 0, 0), Interval(1, 1, 1)
    wanted = dict.fromkeys(("divergence", "divergence_99_9", "drafted_change", "overlap_change"), none)
    wanted |= dict.fromkeys(("agreement", "perplexity_ratio"), all_of_it)
    assert {name: found[name] for name in wanted} == wanted


def test_without_an_mtp_block_nothing_is_said_of_drafts() -> None:
    assert {*measures(rows(mtp=False), TOKENS)} == {
        name for name in MEASURES if name.startswith("base_") or not name.startswith(("drafted", "overlap"))
    }


def test_most_intervals_hold_what_is_true() -> None:
    """Of 80 samples of a known law: 95% of intervals, but for what chance and the small sample take of it."""
    held = 0
    for seed in range(80):
        some = [
            replace(each, divergence=float(value))
            for each, value in zip(rows() * 3, np.random.default_rng(seed).normal(1, 0.3, 36), strict=True)
        ]
        found = measures(some, TOKENS)["divergence"]
        held += found.low <= 1 <= found.high
    assert 68 <= held <= 79


def test_a_perplexity_beyond_all_numbers_is_no_error_here() -> None:
    worse = tuple(replace(each, surprise=1e6) for each in rows())
    found = measures(worse, TOKENS)
    assert math.isinf(found["perplexity"].value) and math.isinf(found["perplexity_ratio"].value)
    assert math.isfinite(found["base_perplexity"].value)


def test_differences_are_paired() -> None:
    """Of two models whose sequences differ by the same amount everywhere nothing is left to chance."""
    worse = tuple(replace(each, divergence=each.divergence + 0.25) for each in rows())
    found = differences(worse, rows(), TOKENS)
    assert found["divergence"].value == pytest.approx(0.25)
    assert (found["divergence"].low, found["divergence"].high) == pytest.approx((0.25, 0.25))
    back = differences(rows(), worse, TOKENS)
    assert back["divergence"].value == -found["divergence"].value
    assert {name for name in found if name.startswith("base_")} == set()
    alone = measures(worse, TOKENS)["divergence"]
    assert alone.high - alone.low > 0.001


@pytest.mark.parametrize(
    ("name", "ends", "said"),
    [
        ("divergence", (-2.0, -3.0, -1.0), "better"),
        ("divergence", (2.0, 1.0, 3.0), "worse"),
        ("agreement", (2.0, 1.0, 3.0), "better"),
        ("agreement", (-2.0, -3.0, -1.0), "worse"),
        ("perplexity", (1.0, -1.0, 3.0), "not told apart"),
        ("perplexity", (0.0, 0.0, 0.0), "not told apart"),
    ],
)
def test_a_difference_is_told_where_its_interval_leaves_out_nothing(
    name: str, ends: tuple[float, float, float], said: str
) -> None:
    assert word(name, Interval(*ends)) == said


def evaluation(seed: int = 0, more: float = 0.0, digests: Mapping[str, str] = MappingProxyType({})) -> Evaluation:
    some = rows(seed, more)
    names = ("base", "checkpoint", "checkpoint_files", "text", "tokens", "reference", "harness")
    told = {name: f"{number}" * 64 for number, name in enumerate(names)} | {"checkpoint": f"{seed:064x}", **digests}
    return Evaluation(
        requant="0.1.0",
        digests=Digests(**told),
        settings=Settings(SEQUENCES, TOKENS + 1, "float32", "cpu", "cpu"),
        versions={"torch": "2.13.0"},
        hardware={"base": {"accelerator": "cpu"}, "checkpoint": {"accelerator": "cpu"}},
        taints=(),
        activations="",
        unread=(),
        mtp="both",
        measures=measures(some, TOKENS),
        sequences=some,
    )


def test_it_is_told_to_people(worded: Worded) -> None:
    one = replace(evaluation(), activations="quant_algo", unread=("k_scale", "v_scale"))
    worded("\n".join(one.compared(evaluation(1, 0.002)).text()))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    for number, each in enumerate((evaluation(), evaluation(3).compared(evaluation()))):
        path = tmp_path / f"{number}.json"
        path.write_text(each.to_text())
        assert read_evaluation(path) == each


def moved(key: str, value: object, *where: str | int) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        inside: Any = document
        for each in where:
            inside = inside[each]
        inside[key] = value

    return change


def _against(measure: str, **words: str) -> dict[str, Any]:
    differences = {measure: {"value": 1.0, "low": 0.5, "high": 2.0}}
    return {"checkpoint": "1" * 64, "harness": "2" * 64, "differences": differences, "words": words}


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a measure was edited": moved("value", 0.001, "measures", "divergence"),
    "an interval was": moved("high", 0.5, "measures", "perplexity_ratio"),
    "a measure is gone": lambda document: document["measures"].pop("agreement"),
    "a sequence is gone": lambda document: document["sequences"].pop(),
    "another schema": moved("schema", "requant.check/1"),
    "no schema": lambda document: document.pop("schema"),
    "an unknown key": moved("more", 1),
    "a text for a number": moved("divergence", "0", "sequences", 3),
    "the greatest are too few": moved("largest", [], "sequences", 0),
    "no sequences": lambda document: (document["sequences"].clear(), document["settings"].update(samples=0)),
    "no tokens": moved("length", 1, "settings"),
    "a share of more than all": moved("agreement", 5.0, "sequences", 0),
    "a divergence below 0": moved("divergence", -1.0, "sequences", 0),
    "the greatest are less than their mean": moved("divergence", 9.0, "sequences", 0),
    "a number beyond all": moved("base", {"memory": 1e999}, "hardware"),
    "a sum beyond all": lambda document: [each.update(surprise=1e308) for each in document["sequences"]],
    "one text twice": lambda document: document["sequences"][1].update(text=document["sequences"][0]["text"]),
    "words that do not follow": moved("against", _against("divergence", divergence="better")),
    "a difference without a word": moved("against", _against("divergence")),
    "a difference of nothing": moved("against", _against("loss", loss="better")),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_result_that_contradicts_itself_is_none(
    change: Callable[[dict[str, Any]], object], tmp_path: Path, refuses: Refuses
) -> None:
    document = json.loads(evaluation().to_text())
    change(document)
    path = tmp_path / "result.json"
    path.write_text(json.dumps(document).replace("Infinity", "1e999"))  # JSON, and infinity to Python
    with refuses(CheckpointError):
        read_evaluation(path)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b"null", b'{"schema": "requant.evaluation/1"}', b'{"a": NaN}', b"[" * 100_000, b"\xff"]
)
def test_what_is_no_result_is_named(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"result\.json: not a result"):
        read_evaluation(path)
    with pytest.raises(CheckpointError, match="No such file"):
        read_evaluation(tmp_path / "none.json")


@pytest.mark.parametrize("name", ["base", "text", "tokens", "reference"])
def test_results_of_other_things_do_not_compare(name: str, refuses: Refuses) -> None:
    with refuses(UsageError):
        evaluation().compared(evaluation(1, digests={name: "f" * 64}))


@pytest.mark.parametrize("change", [{"precision": "bfloat16"}, {"device": "cuda"}])
def test_results_that_were_run_otherwise_do_not_compare(change: dict[str, Any], refuses: Refuses) -> None:
    other = evaluation(1)
    with refuses(UsageError, shared=True):
        evaluation().compared(replace(other, settings=replace(other.settings, **change)))


def test_results_of_other_sequences_do_not_compare_whatever_their_digests_say(refuses: Refuses) -> None:
    one, fewer = evaluation(), evaluation().sequences[1:]
    with refuses(UsageError, shared=True):
        one.compared(replace(one, sequences=fewer))
    with refuses(UsageError, shared=True):
        one.compared(replace(one, settings=replace(one.settings, length=one.settings.length + 1)))


def test_a_worse_model_is_found_worse() -> None:
    found = evaluation(0, 0.01).compared(evaluation(1)).against
    assert found and (found.words["divergence"], found.words["perplexity"]) == ("worse", "not told apart")
    assert asdict(found)["checkpoint"] == f"{1:064x}"
