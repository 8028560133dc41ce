"""GGUF files that the package `gguf` writes, held against the bases that they were made from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tests.checkpoints import shard

from requant.check import check
from requant.check.checked import Checked, Outcome
from requant.check.reader import open_reader
from requant.errors import CheckpointError
from requant.formats.codec import Array, narrow, widen

HIDDEN, INNER, WORDS, HEADS, SHARED, EXPERTS = 256, 512, 64, 4, 2, 3
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
INSIDE = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
}
DENSE = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
SPARSE = {"mlp.gate": "ffn_gate_inp"}
SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens": (WORDS, HIDDEN),
    "model.norm": (HIDDEN,),
    "lm_head": (WORDS, HIDDEN),
    "input_layernorm": (HIDDEN,),
    "post_attention_layernorm": (HIDDEN,),
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN * SHARED // HEADS, HIDDEN),
    "self_attn.v_proj": (HIDDEN * SHARED // HEADS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate": (EXPERTS, HIDDEN),
    "gate_proj": (INNER, HIDDEN),
    "up_proj": (INNER, HIDDEN),
    "down_proj": (HIDDEN, INNER),
}


def shape_of(name: str) -> tuple[int, ...]:
    return next(shape for key, shape in SHAPES.items() if name.endswith(key))


def base(architecture: str) -> dict[str, Array]:
    """Weights as float32 that are BF16, by the base's names without `.weight`."""
    inside = [*INSIDE, *DENSE]
    if architecture == "qwen3moe":
        split = [f"mlp.experts.{i}.{name}_proj" for i in range(EXPERTS) for name in ("gate", "up", "down")]
        inside = [*INSIDE, *SPARSE, *split]
    names = [*OUTSIDE, *(f"model.layers.{block}.{name}" for block in range(2) for name in inside)]
    drawn = np.random.default_rng(3)
    return {
        each: widen(narrow(drawn.normal(0, 0.02, shape_of(each)).astype(np.float32), "BF16"), "BF16") for each in names
    }


def stored(architecture: str, weights: dict[str, Array]) -> dict[str, Array]:
    """The same by GGUF's names: rows of q and k in llama's order, experts stacked."""
    made = {}
    for name, values in weights.items():
        block = name.split(".")[2] if name.startswith("model.layers.") else ""
        inner = name.partition(f"layers.{block}.")[2] if block else name
        if ".experts." in name:
            continue
        if architecture == "llama" and inner in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = HEADS if inner.endswith("q_proj") else SHARED
            values = values.reshape(heads, 2, -1, HIDDEN).swapaxes(1, 2).reshape(values.shape)
        target = OUTSIDE[name] if not block else f"blk.{block}.{(INSIDE | DENSE | SPARSE)[inner]}"
        made[f"{target}.weight"] = values
    if architecture == "qwen3moe":
        for number in range(2):
            for name in ("gate", "up", "down"):
                some = [weights[f"model.layers.{number}.mlp.experts.{i}.{name}_proj"] for i in range(EXPERTS)]
                made[f"blk.{number}.ffn_{name}_exps.weight"] = np.stack(some)
    return made


MODEL_TYPES = {"llama": "llama", "qwen3": "qwen3", "qwen3moe": "qwen3_moe"}
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PIECES = [{"type": "Split", "pattern": {"Regex": QWEN2}}, {"type": "ByteLevel"}]
SPECIAL = {"<|end|>": WORDS - 4, "<|pad|>": WORDS - 3}
TOKENIZER = {
    "model": {
        "type": "BPE",
        "vocab": {chr(0x100 + number): number for number in range(WORDS - 4)},
        "merges": [["a", "b"], ["\u0120", "c"], ["d d", "e"]],
    },
    "added_tokens": [{"content": text, "id": number, "special": True} for text, number in SPECIAL.items()],
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": PIECES},
}
TOKENIZER_CONFIG = {"eos_token": "<|end|>", "pad_token": {"content": "<|pad|>"}, "add_bos_token": False}
TOKENIZER_CONFIG |= {"chat_template": "{{ messages }}\n"}


def config(architecture: str) -> dict[str, Any]:
    stated = {
        "model_type": MODEL_TYPES[architecture],
        "num_hidden_layers": 2,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_attention_heads": HEADS,
        "num_key_value_heads": SHARED,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 1_000_000.0, "rope_type": "yarn", "factor": 4.0},
        "vocab_size": WORDS,
    }
    moe = {"num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": INNER}
    return stated | (moe if architecture == "qwen3moe" else {})


def describe(writer: gguf.GGUFWriter, base_folder: Path, architecture: str) -> None:
    """Add what llama.cpp's conversion adds, by the package's own names and its reading of the tokenizer."""
    stated = config(architecture)
    writer.add_name("a model")
    writer.add_file_type(7)
    writer.add_block_count(2)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(SHARED)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_key_length(HIDDEN // HEADS)
    writer.add_vocab_size(WORDS)
    if "num_experts" in stated:
        writer.add_expert_count(EXPERTS)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(INNER)
    tokens = [chr(0x100 + number) for number in range(WORDS - 4)] + [*SPECIAL]
    types = [gguf.TokenType.NORMAL] * (WORDS - 4) + [gguf.TokenType.CONTROL] * 2
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*tokens, f"[PAD{WORDS - 2}]", f"[PAD{WORDS - 1}]"])
    writer.add_token_types([*types, gguf.TokenType.UNUSED, gguf.TokenType.UNUSED])
    gguf.SpecialVocab(base_folder, load_merges=True).add_to_gguf(writer, quiet=True)


Change = Callable[[gguf.GGUFWriter], object]


def write(path: Path, architecture: str, tensors: dict[str, Array], kind: str, change: Change | None = None) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    if (path.parent / "base").exists():
        describe(writer, path.parent / "base", architecture)
    else:
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(SHARED)
    if change:
        change(writer)
    for name, values in tensors.items():
        if values.ndim == 1 or "ffn_gate_inp" in name:
            writer.add_tensor(name, values)
        else:
            of = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quants.quantize(values, of), raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def checked(
    folder: Path, architecture: str, tensors: dict[str, Array], kind: str, change: Change | None = None
) -> Checked:
    weights = base(architecture)
    (folder / "base").mkdir()
    bits = {name: narrow(each, "BF16") for name, each in weights.items()}
    held = {f"{name}.weight": ("BF16", list(each.shape), each.tobytes()) for name, each in bits.items()}
    (folder / "base" / "model.safetensors").write_bytes(shard(held))
    files = {"config": config(architecture), "tokenizer": TOKENIZER, "tokenizer_config": TOKENIZER_CONFIG}
    for name, value in files.items():
        (folder / "base" / f"{name}.json").write_text(json.dumps(value))
    write(folder / "model.gguf", architecture, tensors, kind, change)
    with open_reader(str(folder / "model.gguf")) as theirs, open_reader(str(folder / "base")) as ours:
        return check(theirs, ours)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "qwen3moe"])
def test_what_was_quantized_is_exact(architecture: str, kind: str, tmp_path: Path) -> None:
    found = checked(tmp_path, architecture, stored(architecture, base(architecture)), kind)
    assert found.findings == ()
    assert found.unmodelled == ()
    # A Llama's rows are put in another order, by a rule of its own, so its layers count where the others are copied.
    copied = kind in ("F16", "BF16") and architecture != "llama"
    assert found.outcome == (Outcome.NOTHING if copied else Outcome.CLEAN)


def _another_order(tensors: dict[str, Array]) -> None:
    name = "blk.1.attn_q.weight"
    tensors[name] = tensors[name].reshape(HEADS, -1, 2, HIDDEN).swapaxes(1, 2).reshape(HIDDEN, HIDDEN)


def _swapped(tensors: dict[str, Array]) -> None:
    one, two = "blk.0.ffn_up.weight", "blk.1.ffn_up.weight"
    tensors[one], tensors[two] = tensors[two], tensors[one]


def _moved(tensors: dict[str, Array]) -> None:
    tensors["blk.1.ffn_down.weight"] = tensors["blk.1.ffn_down.weight"].copy()
    tensors["blk.1.ffn_down.weight"][7, 40] += 0.05


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_another_order, {"model.layers.1.self_attn.q_proj.weight"}),
        (_swapped, {"model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"}),
        (_moved, {"model.layers.1.mlp.down_proj.weight"}),
        (lambda tensors: tensors.pop("blk.1.ffn_gate.weight"), {"model.layers.1.mlp.gate_proj.weight"}),
    ],
)
def test_damage_is_named_by_the_bases_tensor(
    damage: Callable[[dict[str, Array]], object], named: set[str], tmp_path: Path
) -> None:
    tensors = stored("llama", base("llama"))
    damage(tensors)
    found = checked(tmp_path, "llama", tensors, "Q8_0")
    assert found.outcome == Outcome.VIOLATIONS
    assert {each.tensor for each in found.findings} == named


def _set(key: str, value: object) -> Change:
    """Say something else under a key that is there already."""

    def change(writer: gguf.GGUFWriter) -> None:
        held = writer.kv_data[0]
        held[key] = gguf.GGUFValue(value=value, type=held[key].type, sub_type=held[key].sub_type)

    return change


def _changed(key: str, place: int, value: object) -> Change:
    def change(writer: gguf.GGUFWriter) -> None:
        some = [*writer.kv_data[0][key].value]
        some[place] = value
        _set(key, some)(writer)

    return change


DAMAGES: dict[str, Change] = {
    "qwen3.attention.head_count": _set("qwen3.attention.head_count", HEADS * 2),
    "qwen3.attention.layer_norm_rms_epsilon": _set("qwen3.attention.layer_norm_rms_epsilon", 1e-5),
    "qwen3.context_length": _set("qwen3.context_length", 4096),
    "qwen3.rope.freq_base": lambda writer: writer.kv_data[0].pop("qwen3.rope.freq_base"),
    "qwen3.rope.scaling.type": _set("qwen3.rope.scaling.type", "linear"),
    "qwen3.rope.scaling.factor": _set("qwen3.rope.scaling.factor", 8.0),
    "tokenizer.chat_template": _set("tokenizer.chat_template", "{{ message }}"),
    "tokenizer.ggml.add_bos_token": _set("tokenizer.ggml.add_bos_token", True),
    "tokenizer.ggml.eos_token_id": _set("tokenizer.ggml.eos_token_id", WORDS - 3),
    "tokenizer.ggml.merges": _changed("tokenizer.ggml.merges", 1, "\u0120 d"),
    "tokenizer.ggml.model": _set("tokenizer.ggml.model", "llama"),
    "tokenizer.ggml.pre": _set("tokenizer.ggml.pre", "llama-bpe"),
    "tokenizer.ggml.token_type": _changed("tokenizer.ggml.token_type", WORDS - 4, 1),
    "tokenizer.ggml.tokens": _changed("tokenizer.ggml.tokens", 7, "x"),
}


@pytest.mark.parametrize("key", DAMAGES)
def test_a_key_value_that_is_not_the_bases_is_named(key: str, tmp_path: Path) -> None:
    found = checked(tmp_path, "qwen3", stored("qwen3", base("qwen3")), "Q8_0", DAMAGES[key])
    assert [(each.kind, each.tensor) for each in found.findings] == [("differs from the base", key)]


def test_a_file_of_another_architecture_is_named(tmp_path: Path) -> None:
    weights = stored("qwen3", base("qwen3"))
    found = checked(tmp_path, "qwen3", weights, "Q8_0", _set("general.architecture", "qwen2"))
    assert "general.architecture" in {each.tensor for each in found.findings}


def test_a_list_that_is_too_short_is_named(tmp_path: Path) -> None:
    weights = stored("qwen3", base("qwen3"))
    change = _set("tokenizer.ggml.merges", ["a b", "\u0120 c"])
    (found,) = checked(tmp_path, "qwen3", weights, "Q8_0", change).findings
    assert found.detail == "2 of them, the base has 3"


def test_a_key_that_is_not_known_is_not_modelled(tmp_path: Path) -> None:
    weights = stored("qwen3", base("qwen3"))
    found = checked(tmp_path, "qwen3", weights, "Q8_0", lambda writer: writer.add_uint32("qwen3.swin_norm", 1))
    assert found.outcome == Outcome.NOT_MODELLED
    assert [each.tensor for each in found.unmodelled] == ["qwen3.swin_norm"]


def test_a_tensor_of_no_base_is_not_modelled(tmp_path: Path) -> None:
    tensors = {**stored("llama", base("llama")), "rope_freqs.weight": np.ones(32, np.float32)}
    found = checked(tmp_path, "llama", tensors, "Q8_0")
    assert found.outcome == Outcome.NOT_MODELLED and "rope_freqs.weight" in {each.tensor for each in found.unmodelled}


def test_parts_are_read_together_and_several_models_are_not(tmp_path: Path) -> None:
    tensors = stored("llama", base("llama"))
    first = dict(list(tensors.items())[:7])
    for number, some in enumerate((first, {name: each for name, each in tensors.items() if name not in first}), 1):
        write(tmp_path / f"m-0000{number}-of-00002.gguf", "llama", some, "Q8_0")
    with open_reader(str(tmp_path)) as all_of_it:
        assert len(all_of_it.tensors) == len(tensors)
    with open_reader(str(tmp_path / "m-00002-of-00002.gguf")) as the_same:
        assert the_same.tensors.keys() == all_of_it.tensors.keys()
    write(tmp_path / "other.gguf", "llama", first, "F16")
    with pytest.raises(CheckpointError, match="holds 3 models"):
        open_reader(str(tmp_path))
    (tmp_path / "m-00001-of-00002.gguf").unlink()
    with pytest.raises(CheckpointError, match="m-00001-of-00002"):
        open_reader(str(tmp_path / "m-00002-of-00002.gguf"))
