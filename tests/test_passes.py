"""What AutoRound leaves behind, on its real output, and what the passes make of it.

Each defect is named as in docs/claims.md's sources: D01 to D22. Two loads are looked at: the one that the worker uses
(the whole class), and AutoRound on what `AutoModelForCausalLM` loads, as a published snippet does.
"""

import json
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from tests.tiny import tiny, write_tiny

from requant.build import Built, beside
from requant.checkpoint.checkpoint import INDEX, Checkpoint, Held, Tensor, open_checkpoint, write_checkpoint
from requant.checkpoint.manifest import make_manifest
from requant.checkpoint.safetensors import Spec, read_header
from requant.digest import sha256
from requant.errors import BuildError, CheckpointError
from requant.evidence.journal import Journal, read_journal
from requant.formats import PACKED
from requant.formats.gptq import bfloat16_to_float32, pack, round_to_nearest
from requant.inspect.anatomy import LM, MTP, VISUAL
from requant.model.target import target_of
from requant.passes import PASSES, Context, apply
from requant.passes.context import EXTRAS, MAIN
from requant.recipe import read_recipe

pytestmark = pytest.mark.worker

BUILDS = Path(__file__).parent.parent / "builds"
RAW = "model.safetensors"
"""AutoRound's only main file: the tiny model is small."""


@dataclass(frozen=True)
class Pair:
    """AutoRound's raw output, the finished checkpoint, and what led from one to the other."""

    raw: Checkpoint
    final: Checkpoint
    context: Context
    journal: Journal
    built: Built

    @property
    def base(self) -> Checkpoint:
        return self.context.base


def pair_of(name: str, built: Callable[[str], Built]) -> Pair:
    done = built(name)
    recipe = read_recipe(BUILDS / name)
    raw = open_checkpoint(beside(done.folder, "raw"))
    version = json.loads(raw.file("quantization_config.json"))["autoround_version"]
    context = Context(tiny("mini"), target_of(recipe, "mini"), recipe, recipe.effort(tiny=True), version)
    return Pair(raw, open_checkpoint(done.folder), context, read_journal(beside(done.folder, "journal.jsonl")), done)


@pytest.fixture(scope="module", params=["ec", "gb10"])
def pair(request: pytest.FixtureRequest, built: Callable[[str], Built]) -> Pair:
    return pair_of(request.param, built)


@pytest.fixture(scope="module")
def ec(built: Callable[[str], Built]) -> Pair:
    return pair_of("ec", built)


@pytest.fixture(scope="module")
def gb10(built: Callable[[str], Built]) -> Pair:
    return pair_of("gb10", built)


@pytest.fixture(scope="module")
def text_only(worker: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """AutoRound's output where only the text model was loaded; without tuning, which changes no name and no shape."""
    folder = tmp_path_factory.mktemp("text_only")
    write_tiny("mini", folder / "base")
    code = (
        "from auto_round import AutoRound\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model, tokenizer = AutoModelForCausalLM.from_pretrained('base'), AutoTokenizer.from_pretrained('base')\n"
        "tuner = AutoRound(model, tokenizer, scheme='W4A16', iters=0, disable_opt_rtn=True, device_map='cpu')\n"
        "tuner.quantize_and_save('raw', format='auto_round')\n"
    )
    env = {"HOME": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2", "PATH": "/usr/bin:/bin"}
    subprocess.run([worker, "-s", "-P", "-c", code], cwd=folder, env=env, capture_output=True, check=True)
    return open_checkpoint(folder / "raw")


def part(tensors: Mapping[str, Tensor], prefix: str | tuple[str, ...]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def packed(tensors: Iterable[str]) -> set[str]:
    return {name for name in tensors if name.endswith(PACKED)}


def quantization(checkpoint: Checkpoint) -> tuple[Any, Any]:
    """Return what `config.json` and the side file say."""
    return (
        json.loads(checkpoint.file("config.json"))["quantization_config"],
        json.loads(checkpoint.file("quantization_config.json")),
    )


def is_declared_packed(layer: str, config: Mapping[str, Any]) -> bool:
    """Resolve a layer as loaders do: inside a block by prefix, and no override by name or expression."""
    blocks = config["block_name_to_quantize"]
    blocks = blocks.split(",") if isinstance(blocks, str) else blocks
    floats = config["extra_config"]
    expressions = [key for key in floats if "*" in key]
    return (
        any(layer.startswith(f"{block}.") for block in blocks)
        and layer not in floats
        and not any(re.fullmatch(key, layer) for key in expressions)
    )


def is_packed(layer: str, checkpoint: Checkpoint) -> bool:
    return f"{layer}.qweight" in checkpoint.tensors


def words(checkpoint: Mapping[str, Tensor]) -> set[int]:
    """Return the values of all words of all zero points."""
    found = [tensor.read() for name, tensor in checkpoint.items() if name.endswith(".qzeros")]
    return {int(word) for data in found for word in np.unique(np.frombuffer(data, "<u4"))}


def canonical(name: str) -> str:
    """Return the one name of a module that its tensor's name means: prefixes and suffixes differ by writer."""
    name = re.sub(r"^(model\.language_model\.|language_model\.model\.|model\.)(?!visual)", "", name)
    return name.rpartition(".")[0] if name.endswith((*PACKED, "weight")) else name


def winners(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the file that each module is loaded from: loaders read files in sorted order, the last one wins."""
    return {canonical(name): file for file in sorted(checkpoint.shards) for name in checkpoint.shards[file]}


# D01: the whole model a second time.


def test_d01_a_text_only_load_is_copied_a_second_time(text_only: Checkpoint) -> None:
    """Under its other prefix: 71 of 71 language tensors, both embeddings packed. The head alone is spared, by name."""
    main, extras = text_only.shards[RAW], text_only.shards[EXTRAS]
    assert part(main, ("model.layers.", "model.embed_tokens.", "model.norm.")).keys() == main.keys() - {
        "lm_head.weight"
    }
    source = {name.removesuffix(".weight") for name in part(tiny("mini").tensors, LM)}
    copied = {re.sub(r"\.(weight|qweight|qzeros|scales)$", "", name) for name in part(extras, LM)}
    assert copied == source
    assert len(copied) == 71
    assert "model.language_model.embed_tokens.qweight" in extras


def test_d01_it_cannot_become_a_checkpoint(text_only: Checkpoint, ec: Pair) -> None:
    with pytest.raises(BuildError, match=r"^model\.\S+: AutoRound wrote it, the recipe leaves no place for it"):
        PASSES["tuned"](text_only, ec.context)


def test_d01_no_tensor_stands_twice(pair: Pair) -> None:
    """In our raw output neither: the worker loads the whole class, whose names are the base's."""
    for checkpoint in (pair.raw, pair.final):
        names = [name for shard in checkpoint.shards.values() for name in shard]
        assert len(names) == len(set(names))
        assert {name.split(".")[0] for name in names} == {"model", "mtp", "lm_head"}
        assert all(name.startswith((LM, VISUAL)) for name in names if name.startswith("model."))
        suffixes = Counter((canonical(name), name.rpartition(".")[2]) for name in names)
        assert set(suffixes.values()) == {1}
        assert not {(module, "weight") for module, suffix in suffixes if suffix == "qweight"} & suffixes.keys()
    assert pair.final.tensors.keys() == pair.context.target.main.keys() | pair.context.target.extras.keys()


# D02: the last file wins.


def test_d02_the_untuned_copy_wins(text_only: Checkpoint) -> None:
    """Every layer that stands twice is loaded from the extras: `_` sorts behind `-` and `.`."""
    twice = {canonical(name) for name in text_only.shards[RAW]} & {canonical(name) for name in text_only.shards[EXTRAS]}
    assert "layers.3.self_attn.q_proj" in twice
    assert {winners(text_only)[module] for module in twice} == {EXTRAS}


def test_d02_the_file_that_wins_is_the_one_in_the_index(pair: Pair) -> None:
    """In our raw output too, as nothing stands twice in it."""
    for checkpoint in (pair.raw, pair.final):
        weight_map = json.loads(checkpoint.file(INDEX))["weight_map"]
        assert weight_map == {name: file for file, shard in checkpoint.shards.items() for name in shard}
        assert winners(checkpoint) == {canonical(name): file for name, file in weight_map.items()}


# D03: the visual tower.


def test_d03_a_text_only_load_packs_the_visual_tower(text_only: Checkpoint) -> None:
    """Its inner width 336 is padded to 384: 48 rows, where a loader has place for 336 / 8 = 42."""
    visual = part(text_only.shards[EXTRAS], VISUAL)
    assert len(packed(visual)) == 3 * (2 * 4 + 2 + 1)
    assert "model.visual.pos_embed.qweight" in visual
    assert visual["model.visual.blocks.0.mlp.linear_fc2.qweight"].spec == Spec("I32", (48, 128))
    assert any(block.startswith("model.visual") for block in quantization(text_only)[0]["block_name_to_quantize"])


def test_d03_the_visual_tower_is_the_bases(pair: Pair) -> None:
    """Our raw output has all of it, unpacked, but among the main tensors and in the precision of the tuning."""
    base = part(pair.base.tensors, VISUAL)
    raw = part(pair.raw.shards[RAW], VISUAL)
    assert raw.keys() == base.keys()
    assert {tensor.spec.dtype for tensor in raw.values()} == {"F32"}
    final = part(pair.final.shards[EXTRAS], VISUAL)
    assert final.keys() == base.keys() == part(pair.final.tensors, VISUAL).keys()
    for name, tensor in final.items():
        assert tensor.spec == base[name].spec == Spec("BF16", raw[name].spec.shape)
        assert tensor.read() == base[name].read()


# D04: two configurations.


def test_d04_config_and_side_file_agree(pair: Pair) -> None:
    """Raw, the side file is older: it knows nothing of the MTP block that is declared packed in `config.json`."""
    config, side = quantization(pair.raw)
    assert {key for key in config | side if config.get(key) != side.get(key)} == {
        "block_name_to_quantize",
        "extra_config",
    }
    assert (config["block_name_to_quantize"], side["block_name_to_quantize"]) == (
        [f"{LM}layers", "mtp.layers"],
        f"{LM}layers",
    )
    assert side["extra_config"].items() < config["extra_config"].items()
    assert all(key.startswith(MTP) for key in config["extra_config"].keys() - side["extra_config"].keys())
    assert len({json.dumps(each) for each in quantization(pair.final)}) == 1


def test_d04_the_rest_of_config_json_is_the_bases(pair: Pair) -> None:
    final, base = (json.loads(each.file("config.json")) for each in (pair.final, pair.base))
    assert {key: value for key, value in final.items() if key != "quantization_config"} == base
    assert {key: value for key, value in json.loads(pair.raw.file("config.json")).items() if key in base} != base


# D05, D06: layers that loaders fuse.


def test_d05_the_fused_layer_is_declared_like_its_halves(gb10: Pair) -> None:
    """Raw, only the halves are; older vLLM looks for the fused name."""
    halves = {f"{LM}layers.{i}.linear_attn.in_proj_{half}" for i in range(3) for half in "ab"}
    fused = {f"{LM}layers.{i}.linear_attn.in_proj_ba" for i in range(3)}
    raw, final = quantization(gb10.raw)[0]["extra_config"], quantization(gb10.final)[0]["extra_config"]
    assert halves < raw.keys()
    assert not fused & raw.keys()
    assert halves | fused < final.keys()
    assert all(final[name] == {"bits": 16, "data_type": "fp"} for name in halves | fused)
    assert not any(is_packed(name, gb10.final) for name in halves)


def test_d05_packed_halves_need_no_override(ec: Pair) -> None:
    assert all(is_packed(f"{LM}layers.{i}.linear_attn.in_proj_{half}", ec.final) for i in range(3) for half in "ab")
    assert not [name for name in quantization(ec.final)[0]["extra_config"] if "in_proj" in name]


GROUPS = {
    *(("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")),
    *(("in_proj_qkv", "in_proj_z"), ("in_proj_a", "in_proj_b")),
}


def test_d06_what_is_fused_has_one_form(pair: Pair) -> None:
    """In our raw output too, apart from MTP's experts, which stay fused and float (D08)."""
    layers = {**pair.context.target.plan.layers, **pair.context.target.mtp}
    for checkpoint in (pair.raw, pair.final):
        config = quantization(checkpoint)[0]
        for group in GROUPS:
            for name in (name for name in layers if name.endswith(f".{group[0]}") and not name.startswith(VISUAL)):
                members = [name.removesuffix(group[0]) + each for each in group]
                assert len({is_packed(each, checkpoint) for each in members}) == 1, members
                assert len({is_declared_packed(each, config) for each in members}) == 1, members


# D07, D08: the MTP block.


def test_d07_the_mtp_block_is_whole(pair: Pair) -> None:
    """In our raw output too: transformers drops it on load, and AutoRound copies it from the base at the end."""
    base = {canonical(name) for name in part(pair.base.tensors, MTP)}
    assert {canonical(name) for name in part(pair.raw.shards[EXTRAS], MTP)} == base
    experts = {f"mtp.layers.0.mlp.experts.{each}" for each in ("gate_up_proj", "down_proj")}
    split = {f"mtp.layers.0.mlp.experts.{i}.{half}_proj" for i in range(4) for half in ("gate", "up", "down")}
    expected = base if pair.context.recipe.mtp.policy == "bf16" else base - experts | split
    assert {canonical(name) for name in part(pair.final.tensors, MTP)} == expected
    assert part(pair.final.tensors, MTP).keys() == part(pair.final.shards[EXTRAS], MTP).keys()


def test_d08_autoround_leaves_experts_fused_in_a_packed_block(pair: Pair) -> None:
    config = quantization(pair.raw)[0]
    fused = pair.raw.shards[EXTRAS]["mtp.layers.0.mlp.experts.gate_up_proj"]
    assert fused.spec == Spec("BF16", (4, 256, 256))
    assert is_declared_packed("mtp.layers.0.mlp.experts.0.gate_proj", config)
    assert not is_packed("mtp.layers.0.mlp.experts.0.gate_proj", pair.raw)


def test_d08_every_layer_is_what_it_is_declared_to_be(pair: Pair) -> None:
    layers = {**pair.context.target.plan.layers, **pair.context.target.mtp}
    config = quantization(pair.final)[0]
    assert {name for name in layers if is_declared_packed(name, config)} == {
        name for name in layers if is_packed(name, pair.final)
    }
    overrides = {name for name in config["extra_config"] if not name.endswith("in_proj_ba")}
    routers = {name for name in overrides if name.endswith(".mlp.gate")}
    assert overrides - routers <= layers.keys()
    assert routers == {name for name in routers if name.startswith(MTP)}, "only where a block is declared by prefix"
    assert bool(routers) == (pair.context.recipe.mtp.policy == "rtn")
    assert not any(is_packed(name, pair.final) for name in overrides)


def test_d08_policy_bf16_copies_the_block(gb10: Pair) -> None:
    """Raw, its attention is packed, against the card: AutoRound rounds what no pattern names."""
    assert is_packed("mtp.layers.0.self_attn.q_proj", gb10.raw)
    base, final = part(gb10.base.tensors, MTP), part(gb10.final.tensors, MTP)
    assert {name: (tensor.spec, tensor.read()) for name, tensor in final.items()} == {
        name: (tensor.spec, tensor.read()) for name, tensor in base.items()
    }
    assert quantization(gb10.final)[0]["block_name_to_quantize"] == [f"{LM}layers"]


def test_d08_policy_rtn_packs_each_expert(ec: Pair) -> None:
    final = part(ec.final.tensors, MTP)
    assert len(packed(final)) == 3 * (7 + 3 * 4)
    assert final["mtp.layers.0.mlp.experts.3.down_proj.qweight"].spec == Spec("I32", (128 // 8, 256))
    left = {name for name in final if name not in packed(final)}
    assert {name: final[name].read() for name in left} == {name: ec.base.tensors[name].read() for name in left}


def test_rounding_is_autorounds_own(ec: Pair) -> None:
    """The seven layers that AutoRound rounds too have its bits; only the zero points differ (D10)."""
    raw, final = ec.raw.shards[EXTRAS], ec.final.shards[EXTRAS]
    assert len(packed(raw)) == 3 * 7
    for name in packed(raw):
        assert raw[name].spec == final[name].spec
        assert (raw[name].read() == final[name].read()) == (not name.endswith(".qzeros")), name


def test_each_expert_is_rounded_from_its_own_rows(ec: Pair) -> None:
    """Of `gate_up_proj` [experts, rows, in] the first half of an expert's rows is its gate, the second its up."""

    def fused(name: str) -> np.ndarray:
        tensor = ec.base.tensors[f"mtp.layers.0.mlp.experts.{name}"]
        return bfloat16_to_float32(tensor.read()).reshape(tensor.spec.shape)

    gate, up = np.split(fused("gate_up_proj"), 2, axis=1)
    for half, weights in {"gate": gate, "up": up, "down": fused("down_proj")}.items():
        for expert, weight in enumerate(weights):
            codes, scales = round_to_nearest(weight, 128)
            layer = f"mtp.layers.0.mlp.experts.{expert}.{half}_proj"
            assert ec.final.tensors[f"{layer}.qweight"].read() == pack(codes).tobytes()
            assert ec.final.tensors[f"{layer}.scales"].read() == scales.tobytes()


# D10: two conventions of zero points.


def test_d10_zero_points_have_one_convention(pair: Pair) -> None:
    """Raw, tuned layers store 8 less one, and rounded ones 8 itself."""
    assert words(pair.raw.shards[RAW]) == {0x77777777}
    assert words(pair.raw.shards[EXTRAS]) == {0x88888888}
    assert words(pair.final.tensors) == {0x77777777}


# D13: the precision of what is not packed.


def test_d13_what_is_not_packed_is_the_bases(pair: Pair) -> None:
    """Raw, it has the precision of the tuning, with the base's values."""
    raw = pair.raw.shards[RAW]
    names = raw.keys() - packed(raw)
    assert {raw[name].spec.dtype for name in names} == {"F32"}
    for name in names:
        base = pair.base.tensors[name]
        assert raw[name].read() == bfloat16_to_float32(base.read()).tobytes()
        assert pair.final.tensors[name].spec == base.spec
        assert pair.final.tensors[name].read() == base.read()


# D21: side files.


def test_d21_side_files_are_the_bases(pair: Pair) -> None:
    """Raw, two tokenizer files are rewritten, for a class that older transformers lack, and five files are missing."""
    own = {"config.json", "quantization_config.json", "processor_config.json", INDEX}
    copied = pair.base.files.keys() - {"README.md", *own}
    assert pair.final.files.keys() == copied | own
    assert all(pair.final.file(path) == pair.base.file(path) for path in copied)
    changed = {path for path in copied & pair.raw.files.keys() if pair.raw.file(path) != pair.base.file(path)}
    assert changed == {"tokenizer.json", "tokenizer_config.json"}
    assert json.loads(pair.raw.file("tokenizer_config.json"))["tokenizer_class"] == "TokenizersBackend"
    assert copied - pair.raw.files.keys() == {
        *("LICENSE", "merges.txt", "vocab.json", "preprocessor_config.json", "video_preprocessor_config.json")
    }
    processor = json.loads(pair.final.file("processor_config.json"))
    assert processor["image_processor"] == json.loads(pair.base.file("preprocessor_config.json"))


# D22: the index.


def test_d22_the_index_sums_every_byte(pair: Pair) -> None:
    """Raw, its total is 0: AutoRound writes that where one main file and the extras make two."""
    assert json.loads(pair.raw.file(INDEX))["metadata"] == {"total_size": 0}
    total = sum(tensor.spec.nbytes for tensor in pair.final.tensors.values())
    assert json.loads(pair.final.file(INDEX))["metadata"] == {"total_size": total}
    assert total == sum(spec.nbytes for spec in (pair.context.target.main | pair.context.target.extras).values())


# Tuned tensors keep their bytes.


def test_tuned_tensors_keep_their_bytes(pair: Pair) -> None:
    raw, final = pair.raw.shards[RAW], part(pair.final.tensors, LM)
    assert packed(raw) == packed(final)
    assert all(raw[name].spec == final[name].spec for name in packed(raw))
    assert all(raw[name].read() == final[name].read() for name in packed(raw))


def test_the_journal_has_the_digest_of_each_tuned_tensor(pair: Pair) -> None:
    heard = {name: digest for block in pair.journal.blocks for name, digest in block.tensors.items()}
    final = part(pair.final.tensors, LM)
    assert packed(heard) == packed(final)
    assert {name: heard[name] for name in packed(heard)} == {name: sha256(final[name].read()) for name in packed(final)}


def test_scales_are_finite_and_some_are_negative(pair: Pair) -> None:
    """AutoRound's symmetric scales take the sign of the larger end (D11); rounding to nearest makes none."""
    scales = {
        name: np.frombuffer(tensor.read(), "<f2") for name, tensor in pair.final.tensors.items() if "scales" in name
    }
    tuned = np.concatenate([values for name, values in scales.items() if name.startswith(LM)])
    assert np.isfinite(tuned).all()
    assert 0.4 < (tuned < 0).mean() < 0.6
    assert all((values > 0).all() for name, values in scales.items() if name.startswith(MTP))


# The finished checkpoint.


def test_it_has_the_recipes_number_of_main_files(pair: Pair) -> None:
    main = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert list(pair.final.shards) == [*main, EXTRAS]
    assert [name for file in main for name in pair.final.shards[file]] == list(pair.context.target.main)
    assert list(pair.final.shards[EXTRAS]) == list(pair.context.target.extras)
    specs = {name: tensor.spec for name, tensor in pair.final.tensors.items()}
    assert specs == pair.context.target.main | pair.context.target.extras
    assert all(read_header(pair.built.folder / file)[1] == {"format": "pt"} for file in pair.final.shards)


def test_shares_are_even(pair: Pair) -> None:
    """A file may exceed its share by at most the tensor that it ends with."""
    main = [shard for file, shard in pair.final.shards.items() if file != EXTRAS]
    share = sum(tensor.spec.nbytes for shard in main for tensor in shard.values()) / len(main)
    largest = max(tensor.spec.nbytes for shard in main for tensor in shard.values())
    assert all(abs(sum(tensor.spec.nbytes for tensor in shard.values()) - share) <= largest for shard in main)


# Each pass alone: values in, values out.


def frozen(checkpoint: Checkpoint) -> Checkpoint:
    """Return the same checkpoint, which raises TypeError where it is changed."""
    shards = {file: MappingProxyType(dict(shard)) for file, shard in checkpoint.shards.items()}
    return Checkpoint(MappingProxyType(shards), MappingProxyType(dict(checkpoint.files)))


def stages(pair: Pair) -> Iterator[tuple[str, Checkpoint]]:
    """Yield each pass with what it is given."""
    checkpoint = pair.raw
    for name in PASSES:
        yield name, checkpoint
        checkpoint = PASSES[name](checkpoint, pair.context)


def content(checkpoint: Checkpoint) -> dict[str, Any]:
    tensors = {
        (file, name): (tensor.spec, sha256(tensor.read()))
        for file, shard in checkpoint.shards.items()
        for name, tensor in shard.items()
    }
    return {"tensors": list(tensors.items()), "files": {path: checkpoint.file(path) for path in checkpoint.files}}


def test_a_pass_does_not_change_what_it_is_given(pair: Pair) -> None:
    context = replace(pair.context, base=frozen(pair.base))
    for name, given in stages(pair):
        before = content(given)
        first = content(PASSES[name](frozen(given), context))
        assert content(given) == before, name
        assert content(PASSES[name](frozen(given), context)) == first, name


def test_the_passes_together_are_a_function_of_the_raw_output(pair: Pair, tmp_path: Path) -> None:
    write_checkpoint(apply(frozen(pair.raw), pair.context), tmp_path)
    assert make_manifest(tmp_path) == pair.built.manifest


def test_each_pass_does_its_own_part(ec: Pair) -> None:
    after = dict(stages(ec))
    given = {name: after[name] for name in after}
    assert list(given["untouched"].shards) == [MAIN]
    assert not given["untouched"].files
    assert {tensor.spec.dtype for tensor in given["untouched"].tensors.values()} == {"F16", "F32", "I32"}
    assert {tensor.spec.dtype for tensor in given["visual"].tensors.values()} == {"BF16", "F16", "I32"}
    assert given["mtp"].shards[EXTRAS].keys() == part(ec.base.tensors, VISUAL).keys()
    assert list(given["shards"].shards) == [MAIN, EXTRAS]
    assert len(given["quantization_config"].shards) == 3 + 1
    assert given["side_files"].files.keys() == {"config.json", "quantization_config.json"}
    assert INDEX not in given["index"].files


# What is wrong is named.

QZEROS = f"{LM}layers.1.mlp.experts.2.up_proj.qzeros"
SCALES = f"{LM}layers.3.self_attn.k_proj.scales"
QWEIGHT = f"{LM}layers.0.linear_attn.out_proj.qweight"
FLOAT = f"{LM}layers.2.mlp.gate.weight"


def changed(raw: Checkpoint, **shards: Mapping[str, Tensor | None]) -> Checkpoint:
    """Return the raw output with tensors added to a file, or, where there is None, taken from it."""
    result = {file: dict(shard) for file, shard in raw.shards.items()}
    for stem, tensors in shards.items():
        shard = {**result.get(f"{stem}.safetensors", {}), **tensors}
        result[f"{stem}.safetensors"] = {name: tensor for name, tensor in shard.items() if tensor is not None}
    return Checkpoint(result, raw.files)


def with_bytes(tensor: Tensor, position: int, data: bytes) -> Tensor:
    old = tensor.read()
    return Tensor(tensor.spec, Held(old[:position] + data + old[position + len(data) :]))


def finish(raw: Checkpoint, context: Context) -> Checkpoint:
    return apply(raw, context, ("tuned", "untouched", "visual", "mtp", "shards"))


@pytest.mark.parametrize("name", [QZEROS, SCALES, QWEIGHT, FLOAT, "lm_head.weight"])
def test_a_missing_tensor_is_named(name: str, ec: Pair) -> None:
    with pytest.raises(BuildError, match=f"^{re.escape(name)}: AutoRound did not write it"):
        finish(changed(ec.raw, model={name: None}), ec.context)


@pytest.mark.parametrize("name", [QWEIGHT, FLOAT])
def test_a_tensor_in_two_main_files_is_named(name: str, ec: Pair) -> None:
    raw = changed(ec.raw, another={name: ec.raw.tensors[name]})
    with pytest.raises(BuildError, match=f"^{re.escape(name)}: stands in two of AutoRound's files"):
        finish(raw, ec.context)


@pytest.mark.parametrize(
    "name",
    ["model.layers.0.mlp.gate.weight", f"{LM}layers.4.mlp.gate.weight", f"{FLOAT[:-7]}.bias", f"{QWEIGHT[:-8]}.weight"],
)
def test_an_unknown_tensor_is_named(name: str, ec: Pair) -> None:
    raw = changed(ec.raw, model={name: ec.raw.tensors[FLOAT]})
    with pytest.raises(BuildError, match=f"^{re.escape(name)}: AutoRound wrote it, the recipe leaves no place for it"):
        finish(raw, ec.context)


@pytest.mark.parametrize("name", [QZEROS, SCALES, QWEIGHT, FLOAT])
def test_another_shape_is_named(name: str, ec: Pair) -> None:
    tensor = ec.raw.tensors[name]
    turned = Tensor(Spec(tensor.spec.dtype, tensor.spec.shape[::-1]), tensor.content)
    with pytest.raises(BuildError, match=f"^{re.escape(name)}: "):
        finish(changed(ec.raw, model={name: turned}), ec.context)


@pytest.mark.parametrize(("name", "dtype"), [(QZEROS, "F32"), (SCALES, "BF16"), (QWEIGHT, "U32"), (FLOAT, "I32")])
def test_another_type_is_named(name: str, dtype: str, ec: Pair) -> None:
    tensor = ec.raw.tensors[name]
    with pytest.raises(BuildError, match=f"^{re.escape(name)}: "):
        finish(changed(ec.raw, model={name: Tensor(Spec(dtype, tensor.spec.shape), tensor.content)}), ec.context)


@pytest.mark.parametrize("data", [b"\x88\x88\x88\x88", b"\x77\x77\x77\x78"])
@pytest.mark.parametrize("position", [0, -4])
def test_another_zero_point_is_named(data: bytes, position: int, ec: Pair) -> None:
    tensor = ec.raw.tensors[QZEROS]
    broken = with_bytes(tensor, position % tensor.spec.nbytes, data)
    with pytest.raises(BuildError, match=rf"^{re.escape(QZEROS)}: not 0x77777777 throughout"):
        finish(changed(ec.raw, model={QZEROS: broken}), ec.context)


@pytest.mark.parametrize("scale", [0.0, -0.0, float("nan"), float("inf"), float("-inf")])
def test_a_scale_that_means_nothing_is_named(scale: float, ec: Pair) -> None:
    broken = with_bytes(ec.raw.tensors[SCALES], 10, np.float16(scale).astype("<f2").tobytes())
    with pytest.raises(BuildError, match=f"^{re.escape(SCALES)}: has scales that are zero or not finite"):
        finish(changed(ec.raw, model={SCALES: broken}), ec.context)


@pytest.mark.parametrize("name", [FLOAT, "lm_head.weight", f"{LM}layers.0.linear_attn.A_log"])
@pytest.mark.parametrize("bit", [0, 15, 16, 31])
def test_one_bit_of_a_float_tensor_is_named(name: str, bit: int, ec: Pair) -> None:
    """In float32 the lower half of a bfloat16 value is zero: a bit there is a change, too."""
    tensor = ec.raw.tensors[name]
    old = tensor.read()[-4:]
    new = (int.from_bytes(old, "little") ^ 1 << bit).to_bytes(4, "little")
    broken = with_bytes(tensor, tensor.spec.nbytes - 4, new)
    with pytest.raises(BuildError, match=f"^{re.escape(name)}: the tuning has changed it"):
        finish(changed(ec.raw, model={name: broken}), ec.context)


def test_a_tuning_in_bfloat16_writes_the_bases_bytes(ec: Pair) -> None:
    """As it does on a GPU: the same passes take them, and refuse one bit less of it."""
    tensor = ec.base.tensors[FLOAT]
    assert content(finish(changed(ec.raw, model={FLOAT: tensor}), ec.context)) == content(finish(ec.raw, ec.context))
    broken = with_bytes(tensor, 6, bytes([tensor.read()[6] ^ 1]))
    with pytest.raises(BuildError, match=f"^{re.escape(FLOAT)}: "):
        finish(changed(ec.raw, model={FLOAT: broken}), ec.context)


def test_nothing_that_autoround_adds_later_is_used(pair: Pair) -> None:
    """A broken visual tower, wrong extras and wrong side files in the raw output change nothing."""
    junk = Tensor(Spec("F32", (1,)), Held(b"junk"))
    visual = dict.fromkeys(part(pair.raw.tensors, VISUAL), None)
    raw = changed(pair.raw, model=visual, model_extra_tensors={FLOAT: junk, "mtp.fc.weight": junk, "new": junk})
    raw = Checkpoint(raw.shards, {path: Held(b"junk") for path in raw.files})
    assert content(apply(raw, pair.context)) == content(apply(pair.raw, pair.context))


@pytest.mark.parametrize("name", [FLOAT, "model.visual.pos_embed.weight", "mtp.layers.0.mlp.experts.down_proj"])
def test_a_base_that_is_not_its_config_is_named(name: str, ec: Pair) -> None:
    tensor = ec.base.tensors[name]
    transposed = Tensor(Spec("BF16", tensor.spec.shape[::-1]), tensor.content)
    other = Tensor(Spec("F16", tensor.spec.shape), tensor.content)
    for wrong in (None, transposed, other):
        shards = {
            file: {key: each for key, each in {**shard, **({name: wrong} if name in shard else {})}.items() if each}
            for file, shard in ec.base.shards.items()
        }
        context = replace(ec.context, base=Checkpoint(shards, ec.base.files))
        with pytest.raises(BuildError, match=f"^{re.escape(name)}: the base has "):
            finish(ec.raw, context)


def test_a_tensor_of_the_base_without_a_place_is_named(ec: Pair) -> None:
    base = changed(ec.base, more={"mtp.layers.1.self_attn.q_proj.weight": ec.base.tensors[FLOAT]})
    with pytest.raises(BuildError, match=r"^mtp\.layers\.1\.self_attn\.q_proj\.weight: .* says no such tensor"):
        finish(ec.raw, replace(ec.context, base=base))


def test_more_files_than_tensors_are_refused(ec: Pair) -> None:
    context = replace(ec.context, effort=replace(ec.context.effort, shards=10_000))
    with pytest.raises(CheckpointError, match="would be empty"):
        finish(ec.raw, context)


def test_a_base_without_a_side_file_is_refused(ec: Pair) -> None:
    files = {path: value for path, value in ec.base.files.items() if path != "preprocessor_config.json"}
    context = replace(ec.context, base=Checkpoint(ec.base.shards, files))
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json: not in the checkpoint"):
        PASSES["side_files"](ec.final, context)
