"""Our resolver against the released ones: their own functions run, with stand-ins for all that they import."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conftest import Refuses
from tests.releases import Ask, oracle, tried
from tests.tiny import config

from requant.errors import CheckpointError, UsageError
from requant.inspect.loaders import LOADERS, Loader, named
from requant.inspect.loaders.declared import read_declared
from requant.inspect.loaders.modules import modules
from requant.inspect.loaders.resolver import Conflict, is_harmless, renamed, resolve
from requant.model.skeleton import skeleton

MODELLED = [loader for loader in LOADERS if loader.dialect]
MODEL = skeleton(config("mini"))
LM = "model.language_model.layers."
FLOAT = {"bits": 16, "data_type": "fp"}
BLOCKS = [LM.rstrip("."), "mtp.layers", "model.visual.blocks", "model.layers", f"{LM}1", "mtp", "language_model.model"]

GLOBAL = {
    "quant_method": "auto-round",
    "packing_format": "auto_round:auto_gptq",
    "bits": 4,
    "group_size": 128,
    "sym": True,
}
BY_HAND: dict[str, dict[str, Any]] = {
    "the recipes' own": {"block_name_to_quantize": [LM.rstrip("."), "mtp.layers"], "extra_config": {"mtp.fc": FLOAT}},
    "no blocks": {},
    "blocks as text": {"block_name_to_quantize": f"{LM.rstrip('.')},mtp.layers"},
    "blocks of an empty name": {"block_name_to_quantize": ""},
    "no blocks, in a list": {"block_name_to_quantize": []},
    "the older key": {"to_quant_block_names": "mtp.layers"},
    "the older key behind a null": {"block_name_to_quantize": None, "to_quant_block_names": "mtp.layers"},
    "overrides of null": {"extra_config": None},
    "another prefix": {"block_name_to_quantize": "model.layers"},
    "a prefix without a dot": {"block_name_to_quantize": [f"{LM}1"]},
    "visual": {"block_name_to_quantize": [LM.rstrip("."), "model.visual.blocks"]},
    "both halves": {"extra_config": {f"{LM}0.linear_attn.in_proj_{half}": FLOAT for half in "ab"}},
    "one half": {"extra_config": {f"{LM}0.linear_attn.in_proj_a": FLOAT}},
    "the fused name": {"extra_config": {f"{LM}0.linear_attn.in_proj_ba": FLOAT}},
    "one of q, k, v": {"extra_config": {f"{LM}3.self_attn.q_proj": FLOAT}},
    "half of qkvz": {"extra_config": {f"{LM}0.linear_attn.in_proj_z": FLOAT}},
    "one expert": {"extra_config": {f"{LM}0.mlp.experts.0.up_proj": FLOAT}},
    "two experts": {"extra_config": {f"{LM}0.mlp.experts.{i}.up_proj": {"bits": 8 * (i + 1)} for i in range(2)}},
    "all experts": {"extra_config": {f"{LM}0.mlp.experts": FLOAT}},
    "regex with prefix": {"extra_config": {r"model\.language_model\.layers\.\d+\.mlp.*": FLOAT}},
    "regex without": {"extra_config": {r".*shared_expert.*": FLOAT}},
    "regex of a part": {"extra_config": {r"in_proj_[ab]$": FLOAT}},
    "no regex": {"extra_config": {"shared_expert.": FLOAT, "[": FLOAT}},
    "head": {"extra_config": {"lm_head": {"bits": 8}}},
    "short keys": {"extra_config": {"mlp.shared_expert.down_proj": FLOAT, "fc": FLOAT, "experts": FLOAT}},
    "model before it": {"extra_config": {"model.mtp.fc": FLOAT, "model.visual.merger.linear_fc1": FLOAT}},
    "no bits": {"extra_config": {f"{LM}3.self_attn.o_proj": {"group_size": 32}, "mtp.fc": {}}},
}


@pytest.fixture(scope="module", params=tried(MODELLED))
def released(request: pytest.FixtureRequest) -> Iterator[tuple[Loader, Ask]]:
    with oracle(request.param.name) as ask:
        yield request.param, ask


def compare(loader: Loader, ask: Ask, declared: dict[str, Any]) -> int:
    """Hold both against each other for every module; returns how many pairs that were."""
    assert loader.dialect
    ours = renamed(read_declared(GLOBAL | declared), loader.dialect)  # type: ignore[arg-type]
    built = [m for m in modules(MODEL, loader.names) if m.kind != "head" or loader.head_has_precision]
    theirs = ask(
        GLOBAL | declared, [(m.name, m.kind, m.packed == loader.names.drafter and "mtp" in m.name) for m in built]
    )
    for module, answer in zip(built, theirs, strict=True):
        found = resolve(ours, module, loader.dialect)
        if isinstance(found, Conflict):
            assert answer == "conflict", (module.name, found)
        else:
            form = "packed" if found.packed else "float"
            assert answer != "conflict" and answer[0] == form, (module.name, answer, found)
            if form == "packed":
                assert answer[1:] == list(asdict(found).values()), module.name
    return len(built)


def test_agreement_by_hand(released: tuple[Loader, Ask]) -> None:
    assert sum(compare(*released, declared) for declared in BY_HAND.values()) >= 200


def parts() -> list[str]:
    return sorted({part for module in modules(MODEL, MODELLED[0].names) for part in module.parts})


def keys() -> st.SearchStrategy[str]:
    names = st.sampled_from([*parts(), *(m.name for m in modules(MODEL, MODELLED[0].names)), "lm_head", "mtp.fc"])
    below = st.builds(
        "{}.{}.{}".format,
        st.sampled_from([p for p in parts() if "experts" in p]),
        st.integers(0, 3),
        st.sampled_from(["up_proj", "down_proj"]),
    )
    shorter = names.map(lambda name: name.partition(".")[2] or name)
    regex = st.sampled_from(
        [".*in_proj_[ab].*", ".*shared_expert.*", r"mtp\..*", r"layers\.[01]\.", "qkv$", "^visual", "(q|k)_proj", "["]
    )
    return st.one_of(names, below, shorter, regex)


overrides = st.dictionaries(
    keys(),
    st.fixed_dictionaries(
        {},
        optional={"bits": st.sampled_from([4, 8, 16]), "group_size": st.sampled_from([32, 128]), "sym": st.booleans()},
    ),
    max_size=5,
)
blocks = st.none() | st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=3) | st.sampled_from(BLOCKS)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(blocks=blocks, extra=overrides)
def test_agreement_on_any_configuration(released: tuple[Loader, Ask], blocks: Any, extra: dict[str, Any]) -> None:
    compare(*released, {"block_name_to_quantize": blocks, "extra_config": extra})


def test_numbers_are_numbers_for_vllm() -> None:
    files = ["model-10.safetensors", "model-9.safetensors", "model_extra_tensors.safetensors"]
    order = {loader.program: loader.order(files) for loader in LOADERS}
    assert order["vllm"] == [files[1], files[0], files[2]]
    assert order["transformers"] == order["sglang"] == sorted(files)


def test_a_loader_is_named_as_a_requirement(refuses: Refuses) -> None:
    assert {named(loader.name) for loader in LOADERS} == set(LOADERS)
    with refuses(UsageError):
        named("vllm==0.1")


@pytest.mark.parametrize(
    "value",
    [
        [],
        "x",
        {"bits": True, "group_size": 128},
        {"bits": 4},
        {"bits": 4, "group_size": 128, "extra_config": [1]},
        {"bits": 4, "group_size": 128, "extra_config": {"a": 1}},
        {"bits": 4, "group_size": 128, "block_name_to_quantize": 3},
        {"bits": 4, "group_size": 128, "extra_config": []},
        {"bits": 4, "group_size": 128, "extra_config": {"a": {"sym": 1}}},
        {"bits": 4, "group_size": 128, "extra_config": {"a": {"bits": "4"}}},
    ],
)
def test_a_configuration_that_is_none_is_refused(value: Any, refuses: Refuses) -> None:
    with refuses(CheckpointError):
        read_declared(value)


ENDLESS = ["(a+)+$", "(.*)*x", ".*" * 9, "a" * 600 + "*", "(a|a)*b", ".?" * 26 + "Z", "(.|.)" * 26 + "Z", "(a?){9}"]


@pytest.mark.parametrize("key", ENDLESS)
def test_an_expression_that_may_not_end_is_not_tried(key: str) -> None:
    assert not is_harmless(key)


@pytest.mark.parametrize(
    "key", [".*mlp.gate.*", r".*layers\.(1|2)\..*(q|k)_proj.*", r"(?:re)?.*self_attn\.(q|k|v|o)_proj", r".*lm_head\?"]
)
def test_an_expression_that_people_write_is_tried(key: str) -> None:
    assert is_harmless(key)
