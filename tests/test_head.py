"""A head of a scheme of its own where blocks are tuned: one more block, the last, that AutoRound would tune alike."""

from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from tests.owned import built_and_recorded, computes, found_within_reach, hold
from tests.test_adapters import accumulating, heard, of_one_s_own

from requant.build import build
from requant.build.survey import record as renew
from requant.checkpoint.checkpoint import open_checkpoint
from requant.formats import PACKED
from requant.model.base_config import base_config
from requant.new import EnvironmentName
from requant.progress import Progress
from requant.recipe import Recipe
from requant.verdict import Outcome

pytestmark = pytest.mark.worker

HEAD = '\n[layers.schemes]\nlm_head = { name = "W4A16", symmetric = true, group_size = 128 }\n'
TRIED: Mapping[str, tuple[EnvironmentName, str, Callable[[str], str]]] = {
    "llama": ("cpu", "llama", str),
    "experts, accumulating": ("cpu", "qwen3_5_moe", accumulating),
    "llama by 0.16, accumulating": ("current", "llama", accumulating),
    "experts by 0.16": ("current", "qwen3_5_moe", str),
}


def planned(folder: Path, name: str) -> Recipe:
    """Return a recipe that asks for a head in codes, and its plan."""
    environment, architecture, edit = TRIED[name]
    recipe = of_one_s_own(folder, architecture, environment, lambda text: edit(text) + HEAD)
    renew(recipe)
    return recipe


@pytest.mark.full
def test_what_a_head_is_given_follows_from_what_the_last_block_puts_out(ask: Callable[..., Any]) -> None:
    found = ask("given")
    assert {name: each["a tuple"] for name, each in found.items()} == {"llama": False, "falcon": True, "gptj": True}
    assert all(each["equal"] and each["as before"] for each in found.values())
    assert {each["refused"].partition(":")[0] for each in found.values()} == {"unused"}


@pytest.fixture(scope="module", params=TRIED)
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return planned(tmp_path_factory.mktemp("own"), request.param)


@pytest.fixture(scope="module")
def first(own: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_and_recorded(own, tmp_path_factory.mktemp("first"))


@pytest.mark.full
def test_it_is_heard_resumed_audited_and_what_autoround_makes_left_to_itself(
    own: Recipe, first: Path, ask: Callable[..., Any], tmp_path: Path
) -> None:
    *blocks, head = heard(first, own)
    assert (head.block, {*head.tensors}) == ("lm_head", {f"lm_head.{part}" for part in PACKED})

    def stopping(now: Progress) -> None:
        if now.stage == "tuning" and now.done >= len(blocks) - 1:  # the head may be tuned between two looks
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(own, tiny="mini", out=tmp_path / "stopped", tell=stopping)
    assert build(own, tiny="mini", out=tmp_path / "stopped").verdict.outcome is Outcome.IDENTICAL
    hold(own, first, tmp_path)
    if base_config(own)["model_type"] == "llama":  # left to itself AutoRound wants a processor for models that see
        theirs = ask("alone", own.path, tmp_path / "base", tmp_path / "theirs", environment=own.environment)
        made = open_checkpoint(first).tensors
        assert theirs == {name: sha256(made[name].read()).hexdigest() for name in made if name.endswith(PACKED)}


@pytest.mark.full
def test_a_code_of_it_that_was_changed_within_reach_is_found(own: Recipe, first: Path, tmp_path: Path) -> None:
    found_within_reach(own, first, "lm_head", "lm_head", tmp_path)


@pytest.mark.full
def test_transformers_computes_with_it(own: Recipe, first: Path, ask: Callable[..., Any], tmp_path: Path) -> None:
    computes(own, first, ask, tmp_path)
