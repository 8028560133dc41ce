import hashlib
import json
import os
import struct
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import config, tiny, write_tiny

from requant.checkpoint.checkpoint import Checkpoint, open_checkpoint
from requant.checkpoint.files import SUFFIX, listing
from requant.checkpoint.manifest import Manifest, make_manifest, read_file
from requant.digest import sha256
from requant.inspect.anatomy import MTP, VISUAL
from requant.model.rules import SIZES
from requant.model.tiny import SPECIALS, calibration_text
from requant.recipe import read_recipe

BUILDS = Path(__file__).parent.parent / "builds"

# The tiny model is the same bytes for ever. Where a digest below must change, every recorded manifest changes with it:
# say so under "Changes that change bytes" in CHANGELOG.md.
MANIFESTS = {
    "mini": "c753389a1fb0d165fd9d1ff6d18dc4766e5a6a86ab00a692c8281217f7b89d6e",
    "demo": "84946c9b3ca2b43db87039b302233a1adde6ff504a4b12e7aff0c1436fc13157",
}
WIDE = "model.language_model.layers.0.linear_attn.in_proj_z.weight"
WIDE_SHA256 = "970a1a464b15c08126715e78021868c8888d5f7bb1c9cb958e4716a2bdd89e61"
CALIBRATION_SHA256 = "0f8134e2d81931b233d5e2c348c14960db78d34b9fba5af4cd3d403b5ab36d58"


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny models") / "mini"
    write_tiny("mini", folder)
    return folder


# The bytes.


@pytest.mark.parametrize("size", MANIFESTS)
def test_every_byte_is_frozen(size: str, tmp_path: Path) -> None:
    write_tiny(size, tmp_path / size)
    made = make_manifest(tmp_path / size)
    card, _ = read_file(tmp_path / size / "README.md", "README.md")  # a companion, frozen all the same
    assert sha256(Manifest({**made.files, "README.md": card}, made.tensors).to_json()) == MANIFESTS[size]


def test_a_wide_tensor_is_frozen() -> None:
    """Eight messages of SHAKE-256 make one tensor: the smaller sizes need one only."""
    assert sha256(tiny("wide").tensors[WIDE].read()) == WIDE_SHA256


def test_the_calibration_text_is_frozen() -> None:
    assert sha256(calibration_text()) == CALIBRATION_SHA256


def test_where_it_is_made_changes_nothing(mini: Path, tmp_path: Path) -> None:
    words = ["requant", "tiny", str(BUILDS / "ec"), "--size", "mini", "--out", "t"]
    code = f"import os, sys; os.umask(0o077); sys.argv = {words!r}; from requant.cli import main; main()"
    strange = {"TZ": "Asia/Kathmandu", "LC_ALL": "C", "PYTHONHASHSEED": "7", "PYTHONUTF8": "0", "USER": "another"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | strange, check=True)
    assert make_manifest(tmp_path / "t") == make_manifest(mini)


@pytest.mark.parametrize(
    ("name", "factor", "offset"),
    [
        ("lm_head.weight", 2**-12, 0),
        ("mtp.fc.weight", 2**-12, 0),
        ("mtp.norm.weight", 2**-12, 0),
        ("model.visual.blocks.0.norm1.weight", 2**-12, 4096),
        ("model.visual.blocks.0.norm1.bias", 2**-12, 0),
        ("model.language_model.layers.0.linear_attn.norm.weight", 2**-12, 4096),
        ("model.language_model.layers.0.linear_attn.A_log", 2**-9, -1024),
        ("model.language_model.layers.0.linear_attn.dt_bias", 2**-9, 0),
        ("model.language_model.layers.0.linear_attn.conv1d.weight", 2**-9, 0),
    ],
)
def test_weights_follow_their_definition(name: str, factor: float, offset: int) -> None:
    """Four bytes of the stream make a number; its bfloat16 is the nearest, ties to even."""
    tensor = tiny("mini").tensors[name]
    stream = hashlib.shake_256(f"requant twin/mini/{name}/0".encode()).digest(4 * tensor.spec.size)
    expected = []
    for i in range(0, len(stream), 4):
        bits = struct.unpack("<I", struct.pack("<f", (sum(stream[i : i + 4]) - 510 + offset) * factor))[0]
        upper, lower = divmod(bits, 2**16)
        expected.append(upper + (lower > 2**15 or (lower == 2**15 and upper % 2)))
    assert tensor.read() == struct.pack(f"<{tensor.spec.size}H", *expected)


def test_no_two_tensors_share_their_bytes() -> None:
    tensors = [tensor for tensor in tiny("mini").tensors.values() if tensor.spec.size >= 32]
    assert len({sha256(tensor.read()) for tensor in tensors}) == len(tensors)


# What makes the base hard.


@pytest.mark.parametrize("size", SIZES)
def test_it_has_the_architecture_of_the_base(size: str) -> None:
    text, vision = config(size)["text_config"], config(size)["vision_config"]
    base = config(None)
    for key in ("architectures", "model_type", "tie_word_embeddings"):
        assert config(size)[key] == base[key]
    assert [*base["text_config"]] == [*text]
    assert [*base["vision_config"]] == [*vision]
    assert text["layer_types"][:4] == ["linear_attention"] * 3 + ["full_attention"]
    for key in ("linear_num_value_heads", "linear_num_key_heads", "mtp_num_hidden_layers", "full_attention_interval"):
        assert text[key] == base["text_config"][key]
    assert vision["intermediate_size"] % 128
    assert all(text[key] % 128 == 0 for key in ("hidden_size", "moe_intermediate_size"))


def test_it_has_the_tensors_that_make_the_base_hard(mini: Path) -> None:
    tensors = {name: tensor.spec.shape for name, tensor in open_checkpoint(mini).tensors.items()}
    layer = "model.language_model.layers.0."
    assert (
        tensors[f"{layer}linear_attn.in_proj_a.weight"][0] == tensors[f"{layer}linear_attn.in_proj_b.weight"][0] == 32
    )
    assert tensors[f"{layer}mlp.experts.gate_up_proj"] == (4, 256, 256)
    assert tensors[f"{layer}mlp.shared_expert_gate.weight"] == (1, 256)
    assert tensors["mtp.layers.0.mlp.experts.down_proj"] == (4, 256, 128)
    assert tensors["model.visual.blocks.0.mlp.linear_fc2.weight"] == (128, 336)
    assert "lm_head.weight" in tensors
    assert {name.split(".")[1] for name in tensors if name.startswith(MTP)} > {"layers", "fc", "norm"}
    assert sum(name.startswith(VISUAL) for name in tensors) == 2 * 12 + 2 + 1 + 6


# The files.

SIDE_FILES = {
    *("LICENSE", "README.md", "chat_template.jinja", "config.json", "generation_config.json", "merges.txt"),
    *("model.safetensors.index.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("video_preprocessor_config.json", "vocab.json"),
}


def test_it_has_the_files_of_the_base(mini: Path) -> None:
    there = listing(mini)
    assert {name for name in there.files | there.companions if not name.endswith(SUFFIX)} == SIDE_FILES
    pinned = json.loads((BUILDS / "bases" / "qwen3.6-35b-a3b.json").read_text())["files"].keys()
    weights = {path for path in pinned if path.endswith(".safetensors")}
    assert pinned - weights - SIDE_FILES == {".gitattributes", "configuration.json"}
    assert pinned >= SIDE_FILES


def index_of(checkpoint: Checkpoint) -> Any:
    return json.loads(checkpoint.file("model.safetensors.index.json"))


def test_the_index_is_exact(mini: Path) -> None:
    checkpoint = open_checkpoint(mini)
    assert list(checkpoint.shards) == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    held = {name: file for file, shard in checkpoint.shards.items() for name in shard}
    assert index_of(checkpoint)["weight_map"] == held
    assert len(held) == sum(len(shard) for shard in checkpoint.shards.values())
    total = sum(tensor.spec.nbytes for shard in checkpoint.shards.values() for tensor in shard.values())
    assert index_of(checkpoint)["metadata"]["total_size"] == total


def test_it_is_written_into_an_empty_folder_only(mini: Path) -> None:
    with pytest.raises(FileExistsError):
        write_tiny("mini", mini)


# The text, and the tokenizer.


def test_the_calibration_text_has_long_and_short_lines() -> None:
    lines = [json.loads(line) for line in calibration_text().splitlines()]
    assert all(line.keys() == {"text"} and line["text"].isascii() for line in lines)
    lengths = [len(line["text"]) for line in lines]
    assert (sum(length >= 500 for length in lengths), sum(length < 100 for length in lengths)) == (56, 8)
    assert len({line["text"] for line in lines}) == 64


@pytest.mark.parametrize("name", ["ec", "gb10", "intel"])
def test_it_is_enough_for_every_recipe(name: str) -> None:
    wanted = read_recipe(BUILDS / name).effort(tiny=True)
    lengths = [len(json.loads(line)["text"]) for line in calibration_text().splitlines()]
    assert wanted.samples <= sum(length >= wanted.sequence_length for length in lengths)
    assert any(length < wanted.sequence_length for length in lengths)
    assert wanted.sequence_length <= config("mini")["text_config"]["max_position_embeddings"]


@pytest.mark.worker
def test_each_byte_is_a_token(mini: Path, worker: Path) -> None:
    points = chain(range(0xD800), range(0xE000, 0x10FFFF, 257))
    text = "".join(map(chr, points)) + "".join(SPECIALS)
    code = (
        "import json, sys; from transformers import AutoTokenizer\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(mini)!r}, local_files_only=True)\n"
        "ids = tokenizer(json.load(sys.stdin))['input_ids']\n"
        "print(json.dumps([ids, tokenizer.decode(ids), tokenizer.eos_token_id, len(tokenizer)]))"
    )
    done = subprocess.run(
        [worker, "-s", "-P", "-c", code], input=json.dumps(text), capture_output=True, text=True, check=True
    )
    ids, decoded, end, size = json.loads(done.stdout)
    plain = text.removesuffix("".join(SPECIALS))
    assert ids == [*plain.encode(), *range(256, 256 + len(SPECIALS))]
    assert decoded == text
    assert (end, size) == (256 + SPECIALS.index("<|im_end|>"), 256 + len(SPECIALS))
    assert size <= config("mini")["text_config"]["vocab_size"]
