"""A tiny model's config: small and whole for every base, and an error for what is neither."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import Refuses
from tests.full_size import BASES

from requant.errors import RecipeError, UsageError
from requant.model.rules import SIZES
from requant.model.shrink import shrink
from requant.model.tiny import SPECIALS

QWEN = BASES["Qwen3.6-35B-A3B"]
LLAMA = BASES["Llama-3.1-8B"]
NARROW = {
    "hidden_size": 256,
    "head_dim": 64,
    "num_attention_heads": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "shared_expert_intermediate_size": 128,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
"""The widths of the recipes' base that `wide` keeps, in the smaller tiny models."""
PLAIN = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no table, by its keys."""
    if not isinstance(value, dict):
        yield path, value
        return
    for key, inner in value.items():
        yield from leaves(inner, f"{path}.{key}".strip("."))


def mini(**changes: Any) -> dict[str, Any]:
    return shrink(PLAIN | changes, "mini")


@pytest.mark.parametrize("size", SIZES)
def test_the_base_of_the_recipes_keeps_what_makes_it_hard(size: str) -> None:
    """Of mini and demo, every byte is frozen by test_tiny.py; here is what the rules did for it."""
    was, small = dict(leaves(QWEN)), dict(leaves(shrink(QWEN, size)))
    narrow = NARROW if size != "wide" else {}
    twice = {"num_hidden_layers": 8, "num_experts": 8} if size == "demo" else {}
    text = {"num_hidden_layers": 4, "vocab_size": 320, "max_position_embeddings": 4096, **narrow, **twice}
    vision = {"depth": 2, "hidden_size": 128, "intermediate_size": 336, "num_heads": 4, "num_position_embeddings": 64}
    changed: dict[str, Any] = {f"text_config.{key}": value for key, value in text.items()}
    changed |= {f"vision_config.{key}": value for key, value in vision.items()}
    changed["text_config.layer_types"] = QWEN["text_config"]["layer_types"][: text["num_hidden_layers"]]
    changed |= {"text_config.eos_token_id": 256, "image_token_id": 261, "video_token_id": 262}
    changed |= {"vision_start_token_id": 259, "vision_end_token_id": 260}
    if narrow:
        changed |= {"text_config.rope_parameters.mrope_section": [4, 2, 2], "vision_config.out_hidden_size": 256}
    assert {key: value for key, value in small.items() if was[key] != value} == changed


EXPECTED: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B": {
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 256,
        "eos_token_id": [258, 256],
        "rope_scaling.original_max_position_embeddings": 256,
        "rope_scaling.factor": 8.0,
    },
    "Qwen3-0.6B": {"head_dim": 64, "tie_word_embeddings": True, "max_window_layers": 28},
    "Qwen3-30B-A3B": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128},
    "Mixtral-8x7B": {"num_local_experts": 4, "num_experts_per_tok": 2, "bos_token_id": 256},
    "gpt-oss-20b": {
        "intermediate_size": 320,  # 2880 is 22.5 groups of 128, and this is 2.5
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 32,
        "initial_context_length": 128,
        "rope_scaling.original_max_position_embeddings": 128,
    },
    "gemma-3-4b": {
        "text_config.num_hidden_layers": 6,
        "vision_config.num_hidden_layers": 2,
        "vision_config.intermediate_size": 336,
        "vision_config.image_size": 112,
        "mm_tokens_per_image": 4,
        "image_token_index": 261,
    },
    "Phi-3-mini-128k": {"num_key_value_heads": 4, "original_max_position_embeddings": 128, "sliding_window": 32},
    "DeepSeek-V3": {
        "num_hidden_layers": 4,
        "first_k_dense_replace": 3,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "q_lora_rank": 128,
        "kv_lora_rank": 128,
        "qk_nope_head_dim": 32,
        "num_nextn_predict_layers": 1,
    },
    "Qwen2-0.5B": {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 256},
    "Qwen2.5-VL-7B": {
        "rope_scaling.mrope_section": [8, 12, 12],
        "vision_config.depth": 8,
        "vision_config.fullatt_block_indexes": [7],
        "vision_config.intermediate_size": 348,
        "vision_config.out_hidden_size": 256,
    },
    "Qwen3.6-35B-A3B": {"text_config.linear_num_value_heads": 32, "text_config.linear_value_head_dim": 16},
}


@pytest.mark.parametrize("name", BASES)
def test_full_size_models(name: str) -> None:
    small = dict(leaves(shrink(BASES[name], "mini")))
    assert {key: small[key] for key in EXPECTED[name]} == EXPECTED[name]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", BASES)
def test_shrinking_again_changes_nothing_nor_does_it_grow(name: str, size: str) -> None:
    base = copy.deepcopy(BASES[name])
    small = shrink(base, size)
    assert base == BASES[name]
    assert shrink(small, size) == small
    assert json.dumps(shrink(base, size)) == json.dumps(small)
    was = dict(leaves(base))
    assert list(dict(leaves(small))) == list(was)
    for key, value in leaves(small):
        if "_token_" in key:
            ids = value if isinstance(value, list) else [value]
            assert all(256 <= each < 320 for each in ids if each is not None)
        elif isinstance(value, int) and not isinstance(value, bool):
            assert value <= was[key], key
        elif isinstance(value, list):
            assert len(value) <= len(was[key]), key
        else:
            assert value == was[key], key


def test_wide_keeps_the_language_models_widths() -> None:
    wide = dict(leaves(shrink(BASES["DeepSeek-V3"], "wide")))
    changed = {key for key, value in leaves(BASES["DeepSeek-V3"]) if wide[key] != value}
    assert changed == {
        *("bos_token_id", "eos_token_id", "max_position_embeddings", "num_hidden_layers", "vocab_size"),
        "rope_scaling.original_max_position_embeddings",
    }


SMALL: dict[str, dict[str, Any]] = {
    name: base
    for name, base in json.loads((Path(__file__).parent / "small_bases.json").read_text()).items()
    if name != "generator"
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SMALL)
def test_small_bases_hardly_change(name: str, size: str) -> None:
    small = shrink(SMALL[name], size)
    assert shrink(small, size) == small
    changed = {key: dict(leaves(small))[key] for key, value in leaves(SMALL[name]) if dict(leaves(small))[key] != value}
    expected = {"sliding_window": 32} if name in ("gemma3", "gptoss") else {}
    if size != "wide" and name not in ("gptoss", "mixtral", "qwen3_5_moe"):
        expected["intermediate_size"] = 256
    if (name, size) == ("qwen3moe", "mini"):
        expected["num_local_experts"] = 4
    assert changed == expected


def test_ids_are_the_tokenizers() -> None:
    small = shrink(QWEN, "mini")
    names = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    names |= {"vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}
    assert {name: small[f"{name}_token_id"] - 256 for name in names} == {
        name: SPECIALS.index(text) for name, text in names.items()
    }
    assert [SPECIALS[each - 256] for each in mini(eos_token_id=[7, 8, 9])["eos_token_id"]] == [
        "<|im_end|>",
        "<|endoftext|>",
    ]


def test_longrope_keeps_its_range() -> None:
    was, scaling = (config["rope_scaling"]["long_factor"] for config in (BASES["Phi-3-mini-128k"],) * 2)
    small = shrink(BASES["Phi-3-mini-128k"], "mini")["rope_scaling"]["long_factor"]
    assert len(small) == 32  # half of a head's 64, as 48 was of 96
    assert small[0] == was[0]
    assert small == sorted(set(small))
    assert set(small) <= set(scaling)


@pytest.mark.parametrize(
    ("changes", "depth"),
    [
        ({}, 2),
        ({"num_hidden_layers": 1}, 1),
        ({"layer_types": ["a", "b"] * 12}, 2),
        ({"layer_types": ["a"] * 8 + ["b"] * 16}, 9),
        ({"full_attention_interval": 4}, 4),
        ({"sliding_window_pattern": 6}, 6),
        ({"_sliding_window_pattern": 6}, 6),
        ({"first_k_dense_replace": 1}, 2),
        ({"first_k_dense_replace": 3, "moe_layer_freq": 1}, 4),
        ({"moe_layer_freq": [0, 0] + [1] * 22}, 3),
        ({"mlp_only_layers": [0, 5]}, 2),
        ({"mlp_only_layers": [3]}, 4),
        ({"decoder_sparse_step": 1}, 2),
        ({"decoder_sparse_step": 3}, 3),
        ({"no_rope_layers": [1, 1, 1, 0] * 6}, 4),
        ({"interleave_moe_layer_step": 2, "no_rope_layer_interval": 4}, 4),
        ({"attn_layer_period": 8, "attn_layer_offset": 4, "expert_layer_period": 2, "expert_layer_offset": 1}, 5),
        ({"use_sliding_window": False, "max_window_layers": 20}, 2),
        ({"use_sliding_window": True, "max_window_layers": 20}, 21),
        ({"hybrid_override_pattern": "M-M-M-M*-" + "M-M" * 5}, 8),
    ],
)
def test_the_shortest_prefix_with_every_kind(changes: dict[str, Any], depth: int) -> None:
    small = mini(**changes)
    assert small["num_hidden_layers"] == depth
    demo = shrink(PLAIN | changes, "demo")
    assert demo["num_hidden_layers"] == min(2 * depth, changes.get("num_hidden_layers", 24))
    for key, value in changes.items():
        if key == "mlp_only_layers":
            assert small[key] == [layer for layer in value if layer < depth]
        elif isinstance(value, list | str):
            assert small[key] == value[:depth]


@pytest.mark.parametrize(
    ("heads", "groups", "expected"),
    [(16, 16, (4, 4)), (16, 4, (4, 2)), (16, 1, (4, 1)), (9, 3, (4, 2)), (2, 1, (2, 1)), (3, 3, (2, 2))],
)
def test_heads_stay_grouped(heads: int, groups: int, expected: tuple[int, int]) -> None:
    small = mini(num_attention_heads=heads, num_key_value_heads=groups)
    assert (small["num_attention_heads"], small["num_key_value_heads"]) == expected


def test_what_is_small_stays() -> None:
    small = {**PLAIN, "hidden_size": 192, "intermediate_size": 100, "num_attention_heads": 6, "num_hidden_layers": 2}
    small |= {"vocab_size": 320, "num_key_value_heads": 3, "num_experts": 3, "num_experts_per_tok": 1}
    assert {shrink(small, size) == small for size in SIZES} == {True}


@pytest.mark.parametrize("experts", range(1, 65))
@pytest.mark.parametrize("size", ["mini", "demo"])
def test_groups_of_experts_stay_valid(experts: int, size: str) -> None:
    for groups in (n for n in range(1, experts + 1) if experts % n == 0 and experts // n > 1):
        for chosen in range(1, groups + 1):
            stated = {"n_routed_experts": experts, "n_group": groups, "topk_group": chosen, "num_experts_per_tok": 2}
            small = shrink(PLAIN | stated, size)
            assert small["n_routed_experts"] % small["n_group"] == 0
            each = small["n_routed_experts"] // small["n_group"]
            assert each >= 2
            assert 1 <= small["topk_group"] <= small["n_group"]
            assert small["topk_group"] * each >= small["num_experts_per_tok"]


def test_widths_listed_per_layer() -> None:
    assert mini(intermediate_size=[4096 + i for i in range(24)])["intermediate_size"] == [256, 257]


@pytest.mark.parametrize(
    "changes",
    [
        {"quantization_config": {"quant_method": "fp8"}},
        {"adapter_dim": 513},
        {"grids": [[336, 672]]},
        {"extra": {"inner": {"width": 4096}}},
        {"extra_config": {"width": 4096}},
        {"rope_parameters": {"table": 9999}},
        {"num_kv_shared_layers": 15},
        {"num_hidden_layers": None},
        {"vocab_size": None},
        {"hidden_size": 0},
        {"vocab_size": 300},
        {"depth": 3},
        {"num_hidden_layers": 10**6},
        {"layer_types": ["a"] * 23},
        {"intermediate_size": "4096"},
        {"intermediate_size": True},
        {"num_key_value_heads": -1},
        {"hidden_size": 4096.0},
        {"eos_token_id": "x"},
        {"mlp_only_layers": 3},
        {"hidden_size": 10**5000},
        {"hidden_size": {1}},
        {"vision_config": {"hidden_size": 1024, "out_hidden_size": 512}},
    ],
)
def test_refused(changes: dict[str, Any], refuses: Refuses) -> None:
    with refuses(RecipeError):
        mini(**changes)


def test_nested_too_deep(refuses: Refuses) -> None:
    value: Any = 1
    for _ in range(100_000):
        value = [value]
    with refuses(RecipeError):
        mini(x=value)


def test_no_such_size_and_no_object(refuses: Refuses) -> None:
    with refuses(UsageError):
        shrink(PLAIN, "huge")
    with refuses(RecipeError):
        shrink([], "mini")  # type: ignore[arg-type]


HOSTILE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5000)
    | st.sampled_from([10**30, 2**62])
    | st.floats()
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)
PLACES = [(name, path) for name in BASES for path, _ in leaves(BASES[name])]


@given(
    st.sampled_from(PLACES),
    st.lists(st.tuples(st.sampled_from([path.rsplit(".", 1)[-1] for _, path in PLACES]), HOSTILE), max_size=3),
    HOSTILE,
    st.sampled_from(SIZES),
)
def test_hostile_values_are_errors_or_small(
    place: tuple[str, str], others: list[tuple[str, Any]], value: Any, size: str
) -> None:
    base = copy.deepcopy(BASES[place[0]])
    *parents, key = place[1].split(".")
    part = base
    for parent in parents:
        part = part[parent]
    part |= {**dict(others), key: value}
    try:
        small = shrink(base, size)
    except RecipeError as error:
        assert "config.json: " in str(error)
    else:
        assert shrink(small, size) == small or "nan" in str(small)
