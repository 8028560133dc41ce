"""What AWQ leaves, by the real tools: healthy ones are nearest to the base, and every damage is found."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.channels import CONFIG, GROUP, HIDDEN, HYBRID, MIXTRAL, base, hybrid, mixtral
from tests.checkpoints import shard

from requant.check import check
from requant.check.checked import Checked, Outcome
from requant.check.findings import CONVERTED, COPIED, RETURNED, SCALED, SMOOTHED
from requant.check.makers import made_again
from requant.check.reader import open_reader
from requant.checkpoint.safetensors import header_text, parse_header

FIXTURES = Path(__file__).parent / "fixtures" / "awq"
WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": GROUP}
STATED: dict[str, dict[str, Any]] = {
    "auto_awq": {"bits": 4, "group_size": GROUP, "quant_method": "awq", "version": "gemm", "zero_point": True},
    "llm_compressor": {
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS}},
        "format": "pack-quantized",
        "ignore": ["lm_head"],
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    },
}
CODES, SCALES, ZEROS = (
    {"auto_awq": name, "llm_compressor": other}
    for name, other in (("qweight", "weight_packed"), ("scales", "weight_scale"), ("qzeros", "weight_zero_point"))
)
Held = dict[str, tuple[str, list[int], bytearray]]


MIN_MAX, TWO, EXPERTS = "compressed-tensors, min-max", "llm_compressor_hybrid", "auto_awq_mixtral"


def stored(tool: str) -> Held:
    """The tensors of a fixture, to be damaged."""
    path = FIXTURES / f"{tool}.safetensors"
    found, _ = parse_header(path, *header_text(path))
    data = path.read_bytes()
    return {
        name: (spec.dtype, [*spec.shape], bytearray(data[stretch.start : stretch.stop]))
        for name, (spec, stretch) in found.items()
    }


def checked(folder: Path, tool: str, held: Held, **changed: str) -> Checked:
    config, weights = {TWO: (HYBRID, hybrid), EXPERTS: (MIXTRAL, mixtral)}.get(tool, (CONFIG, base))
    for name, tensors, said in (
        ("base", {key: ("BF16", [*bits.shape], bits.tobytes()) for key, bits in weights().items()}, {}),
        (
            "made",
            {key: (dtype, shape, bytes(data)) for key, (dtype, shape, data) in held.items()},
            {"quantization_config": STATED[tool.removesuffix("_hybrid").removesuffix("_mixtral")]},
        ),
    ):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(shard(tensors))
        stated = config | changed | said
        (folder / name / "config.json").write_text(json.dumps(stated))
    with open_reader(str(folder / "made")) as theirs, open_reader(str(folder / "base")) as ours:
        return check(theirs, ours, threads=1)


@pytest.mark.parametrize("tool", STATED)
def test_what_the_tools_made_is_nearest_to_the_base(tool: str, tmp_path: Path) -> None:
    found = checked(tmp_path, tool, stored(tool))
    assert found.findings == ()
    assert found.outcome == Outcome.NOT_MODELLED  # its scales come from a calibration that nobody has
    assert (
        found.ways
        == {
            "auto_awq": {SMOOTHED: 7, SCALED: 3, CONVERTED: 5},
            "llm_compressor": {SMOOTHED: 6, SCALED: 2, COPIED: 6, MIN_MAX: 1},  # o_proj as it is
        }[tool]
    )
    near = [each["near"] for each in found.statistics.values() if "near" in each]
    assert all(each.missed < 1.01 * each.best for each in near)  # the best that codes with these scales can do
    assert all(each.farthest < 0.3 for each in near)


def test_experts_of_mixtral_have_factors_of_their_own(tmp_path: Path) -> None:
    """The router is the base's and reads what was scaled: AutoAWQ leaves it so, and it accuses nobody."""
    found = checked(tmp_path, EXPERTS, stored(EXPERTS))
    assert found.findings == () and found.outcome == Outcome.NOT_MODELLED
    assert {way: found.ways[way] for way in (SMOOTHED, SCALED, CONVERTED)} == {SMOOTHED: 13, SCALED: 2, CONVERTED: 3}
    near = [each["near"] for each in found.statistics.values() if "near" in each]
    assert all(each.missed < 1.01 * each.best and each.farthest < 0.3 for each in near)
    (router,) = (each for each in found.unmodelled if each.detail != SMOOTHED)
    assert (router.tensor, router.detail) == (ROUTER, "the base's, and not scaled as what is before it")


def numbers(held: Held, name: str, dtype: str) -> Any:
    return np.frombuffer(held[name][2], dtype)


def _a_code(held: Held, tool: str, layer: str) -> None:
    words = numbers(held, f"{layer}.{CODES[tool]}", "<u4")
    words[len(words) // 3] ^= 2 << 12  # by two: some codes are between two numbers


def _a_scale(held: Held, tool: str, layer: str) -> None:
    bits = numbers(held, f"{layer}.{SCALES[tool]}", "<u2")
    bits[len(bits) // 3] += {"auto_awq": 1 << 8, "llm_compressor": 1 << 5}[tool]  # by a fifth, about


def _a_zero_point(held: Held, tool: str, layer: str) -> None:
    numbers(held, f"{layer}.{ZEROS[tool]}", "<u4")[1] ^= 1 << 8


BLOCK = "model.layers.0"
LAYERS = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
FIRST = {"self_attn.o_proj": "self_attn.v_proj", "mlp.down_proj": "mlp.up_proj"}
EXPERT, ROUTER = "block_sparse_moe.experts.1", f"{BLOCK}.block_sparse_moe.gate.weight"
FIRST[f"{EXPERT}.w2"] = f"{EXPERT}.w3"
CASES = [(tool, layer) for tool in STATED for layer in LAYERS] + [(EXPERTS, f"{EXPERT}.w{each}") for each in (1, 2, 3)]


@pytest.mark.parametrize(("tool", "layer"), CASES)
@pytest.mark.parametrize("damage", [_a_code, _a_scale, _a_zero_point])
def test_damage_is_named(tool: str, damage: Callable[[Held, str, str], None], layer: str, tmp_path: Path) -> None:
    held = stored(tool)
    damage(held, tool.removesuffix("_mixtral"), f"{BLOCK}.{layer}")
    found = checked(tmp_path, tool, held)
    named = {each.tensor.removeprefix(f"{BLOCK}.").rpartition(".")[0] for each in found.findings}
    assert layer in named
    assert named <= {layer, FIRST.get(layer, layer)}  # so few rows as here leave factors that are off


@pytest.mark.parametrize(("one", "other"), [("self_attn.q_proj", "self_attn.k_proj"), ("mlp.gate_proj", "mlp.up_proj")])
@pytest.mark.parametrize("tool", STATED)
def test_layers_that_were_swapped_are_named(tool: str, one: str, other: str, tmp_path: Path) -> None:
    held = stored(tool)
    pairs = [(f"model.layers.0.{one}.{each[tool]}", f"model.layers.0.{other}.{each[tool]}") for each in (CODES, SCALES)]
    for first, second in pairs:
        held[first], held[second] = held[second], held[first]
    found = checked(tmp_path, tool, held)
    assert found.outcome == Outcome.VIOLATIONS
    assert set(pairs[0]) <= {each.tensor for each in found.findings}


@pytest.mark.parametrize(("one", "other"), [("w1", "w3"), ("w1", "w1"), ("w2", "w2")])
def test_experts_that_were_swapped_are_named(one: str, other: str, tmp_path: Path) -> None:
    held, moe = stored(EXPERTS), f"{BLOCK}.block_sparse_moe.experts"
    layers = f"{moe}.0.{one}", f"{moe}.{0 if one != other else 2}.{other}"
    for suffix in ("qweight", "qzeros", "scales"):
        first, second = (f"{layer}.{suffix}" for layer in layers)
        held[first], held[second] = held[second], held[first]
    found = checked(tmp_path, EXPERTS, held)
    assert found.outcome == Outcome.VIOLATIONS
    assert {f"{layer}.qweight" for layer in layers} <= {each.tensor for each in found.findings}


@pytest.mark.parametrize("name", [ROUTER, f"{BLOCK}.post_attention_layernorm.weight"])
def test_a_number_beside_experts_is_named(name: str, tmp_path: Path) -> None:
    held = stored(EXPERTS)
    numbers(held, name, "<u2")[5] += 1 << 7
    found = checked(tmp_path, EXPERTS, held)
    assert found.outcome == Outcome.VIOLATIONS
    named = {each.tensor for each in found.findings}
    inputs = {
        f"{BLOCK}.block_sparse_moe.experts.{number}.{name}.qweight" for number in range(3) for name in ("w1", "w3")
    }
    assert named == ({ROUTER} if name == ROUTER else inputs)
    if name == ROUTER:
        assert [(each.count, each.index) for each in found.findings] == [(1, (0, 5))]


@pytest.mark.parametrize("tool", STATED)
def test_a_norm_and_a_bias_must_fit_what_is_beside_them(tool: str, tmp_path: Path) -> None:
    held = stored(tool)
    for name in ("input_layernorm.weight", "self_attn.v_proj.bias"):
        numbers(held, f"model.layers.0.{name}", "<u2")[5] += {"auto_awq": 1 << 7, "llm_compressor": 1 << 4}[tool]
    found = checked(tmp_path, tool, held)
    layers = {f"model.layers.0.self_attn.{name}_proj.{CODES[tool]}" for name in "qkv"}
    assert {each.tensor for each in found.findings} == {*layers, "model.layers.0.self_attn.v_proj.bias"}
    assert all(each.count <= HIDDEN for each in found.findings)  # the one channel


@pytest.mark.parametrize("tool", STATED)
def test_a_norm_that_no_layer_fits_is_not_the_bases(tool: str, tmp_path: Path) -> None:
    held = stored(tool)
    name = "model.layers.0.post_attention_layernorm.weight"
    np.random.default_rng(0).shuffle(numbers(held, name, "<u2"))
    assert name in {each.tensor for each in checked(tmp_path, tool, held).findings}


@pytest.mark.parametrize("tool", STATED)
def test_a_tensor_that_is_not_there_is_missed(tool: str, tmp_path: Path) -> None:
    held = stored(tool)
    del held[name := f"model.layers.0.mlp.up_proj.{SCALES[tool]}"]
    assert name in {each.tensor for each in checked(tmp_path, tool, held).findings}


def test_another_order_of_words_is_not_modelled(tmp_path: Path) -> None:
    STATED["gemv"] = STATED["auto_awq"] | {"version": "gemv"}
    try:
        found = checked(tmp_path, "gemv", stored("auto_awq"))
    finally:
        del STATED["gemv"]
    assert found.outcome == Outcome.NOT_MODELLED and found.findings == ()


@pytest.mark.parametrize("tool", STATED)
def test_no_formula_is_taken_for_a_fingerprint(tool: str, tmp_path: Path) -> None:
    checked(tmp_path, tool, stored(tool))
    with open_reader(str(tmp_path / "made")) as theirs, open_reader(str(tmp_path / "base")) as ours:
        (made,), _ = made_again(theirs, ours, 1)
    given = {"auto_awq": 0, "llm_compressor": 1}[tool]  # o_proj, which was not scaled
    assert max(made.gave.values(), default=0) == given
    assert made.ways[SMOOTHED] == made.layers - given


def test_norms_that_add_one(tmp_path: Path) -> None:
    """What was scaled behind them is found; those that were not are the base's, 1 added and taken off in BF16."""
    found = checked(tmp_path, TWO, stored(TWO))
    assert found.findings == () and found.outcome == Outcome.NOT_MODELLED
    made = {SMOOTHED: 11, SCALED: 6, RETURNED: 3, COPIED: 6, MIN_MAX: 2}
    assert found.ways == made


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("model.norm.weight", {"model.norm.weight"}),
        ("model.layers.1.self_attn.q_norm.weight", {"model.layers.1.self_attn.q_norm.weight"}),
        ("model.layers.0.linear_attn.norm.weight", {"model.layers.0.linear_attn.norm.weight"}),
        (
            "model.layers.0.input_layernorm.weight",
            {f"model.layers.0.linear_attn.in_proj_{each}" for each in ("qkv.weight_packed", "z.weight_packed")}
            | {f"model.layers.0.linear_attn.in_proj_{each}.weight" for each in "ab"},
        ),
        ("model.layers.0.linear_attn.in_proj_b.weight", {"model.layers.0.linear_attn.in_proj_b.weight"}),
    ],
)
def test_a_number_that_was_changed_is_named(name: str, where: set[str], tmp_path: Path) -> None:
    held = stored(TWO)
    numbers(held, name, "<u2")[7] ^= 1 << 5
    found = checked(tmp_path, TWO, held)
    assert found.outcome == Outcome.VIOLATIONS
    assert {each.tensor for each in found.findings} == where


def test_where_no_norm_adds_one_none_is_returned(tmp_path: Path) -> None:
    """The same numbers in a model that multiplies by them alone are not the base's."""
    found = checked(tmp_path, TWO, stored(TWO), model_type="qwen3_text")
    assert RETURNED not in found.ways and SCALED not in found.ways
    assert {"model.norm.weight", "model.layers.1.self_attn.q_norm.weight"} <= {each.tensor for each in found.findings}
