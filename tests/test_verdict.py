import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import Refuses

from requant.errors import NotModelledError, RequantError
from requant.verdict import EXIT_STATUS, Difference, Kind, Outcome, Verdict

differences = st.builds(Difference, st.sampled_from(get_args(Kind)), st.text(), st.text(), st.text(), st.text())
verdicts = st.builds(
    Verdict,
    st.sampled_from(Outcome),
    st.lists(differences, max_size=3).map(tuple),
    st.lists(st.text(), max_size=2).map(tuple),
    st.lists(st.text(), max_size=2).map(tuple),
)


@given(verdict=verdicts)
def test_a_verdict_is_read_back_from_its_json(verdict: Verdict) -> None:
    value = json.loads(json.dumps(verdict.as_json()))
    assert value.keys() == {"outcome", "differences", "reasons", "companions"}
    again = Verdict(
        Outcome(value["outcome"]),
        tuple(Difference(**each) for each in value["differences"]),
        tuple(value["reasons"]),
        tuple(value["companions"]),
    )
    assert again == verdict


@pytest.mark.parametrize("outcome", Outcome)
def test_a_verdict_has_no_truth_value(outcome: Outcome, refuses: Refuses) -> None:
    with refuses(TypeError, shared=True):
        bool(Verdict(outcome))


def test_every_outcome_has_an_exit_status_and_only_identical_is_success() -> None:
    assert EXIT_STATUS.keys() == set(Outcome)
    assert [outcome for outcome in Outcome if EXIT_STATUS[outcome] == 0] == [Outcome.IDENTICAL]


def test_no_error_has_the_exit_status_of_a_verdict_or_of_another_error() -> None:
    errors = [each.exit_status for each in RequantError.__subclasses__() if each is not NotModelledError]
    assert len(errors) == len(set(errors))
    assert not set(errors) & set(EXIT_STATUS.values())
    assert NotModelledError.exit_status == EXIT_STATUS[Outcome.INCONCLUSIVE]  # neither says anything about the files
