"""A checkpoint opened as a model of floats, and measured beside its base by the worker."""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import test_binding, test_gguf_check
from tests.cases.tiny_models import healthy
from tests.checkpoints import Tensors, on_disk, shard, write
from tests.conftest import ROOT, Refuses
from tests.fixture import load
from tests.formats import COLUMNS, CONFIGS, LAYERS, ROWS, made_by
from tests.releases import importable
from tests.test_formats import base_of, in_tiles, tensors
from tests.tiny import tiny, write_tiny

import requant.evaluate
from requant import check
from requant.check.reader import open_reader
from requant.checkpoint.checkpoint import INDEX, Checkpoint, Held, Tensor, write_checkpoint
from requant.checkpoint.manifest import make_manifest
from requant.digest import canonical_json, sha256
from requant.environment import Environment
from requant.errors import BuildError, CheckpointError, NotModelledError, RequantError, UsageError
from requant.evaluate import evaluate, held_out
from requant.evaluate.evaluation import Evaluation, Precision, read_evaluation
from requant.evaluate.measures import Interval
from requant.evaluate.opened import Arranged, activations, arrange
from requant.formats.codec import Array, widen
from requant.model.target import target_of, tiny_model
from requant.model.tiny import calibration_text
from requant.progress import Progress, Tell, silent
from requant.recipe import read_recipe
from requant.worker.evaluate import choose

PACKED, OUTPUTS = (f"model.language_model.layers.3.self_attn.{name}_proj" for name in "ko")


def opened(
    theirs: Path, ours: Path, folder: Path, precision: Precision = "float32"
) -> tuple[Arranged, dict[str, Array]]:
    """Open a checkpoint; return what was arranged, and the tensors of the model as float32 by name."""
    with open_reader(str(theirs)) as one, open_reader(str(ours)) as two:
        arranged = arrange(one, two)
        arranged.write(folder, precision, silent)
    found: dict[str, Array] = {}
    for path in sorted(folder.glob("*.safetensors")):
        held = load(path)
        found |= {
            name: widen(each, held.specs[name].dtype) if held.specs[name].dtype in ("F32", "BF16") else each
            for name, each in held.tensors.items()
        }
    return arranged, found


def floats(checkpoint: Checkpoint, name: str) -> Array:
    """A tensor of floats, as float32."""
    tensor = checkpoint.tensors[name]
    kind = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}[tensor.spec.dtype]
    return widen(np.frombuffer(tensor.read(), kind), tensor.spec.dtype).reshape(tensor.spec.shape)


def multiplied(checkpoint: Checkpoint, layer: str) -> Array:
    """What four-bit words and scales of a symmetric layer say, by shifts and in float32."""
    parts = {}
    for suffix, kind in (("qweight", "<u4"), ("scales", "<f2")):
        tensor = checkpoint.tensors[f"{layer}.{suffix}"]
        parts[suffix] = np.frombuffer(tensor.read(), kind).reshape(tensor.spec.shape)
    codes = np.stack([(parts["qweight"] >> np.uint32(4 * number)) & np.uint32(15) for number in range(8)], axis=1)
    codes = codes.reshape(-1, codes.shape[-1]).T.astype(np.float32) - 8
    scales = parts["scales"].astype(np.float32).T.repeat(-(-codes.shape[1] // len(parts["scales"])), axis=1)
    return codes * scales[:, : codes.shape[1]]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model, and a checkpoint of it that was rounded."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_tiny("mini", folder / "base")
    write_checkpoint(healthy("ec"), folder / "rounded")
    return folder


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_has_the_bases_tensors_in_its_files_and_what_codes_decode_to(
    precision: Precision, places: Path, tmp_path: Path
) -> None:
    arranged, found = opened(places / "rounded", places / "base", tmp_path, precision)
    base, rounded, target = tiny("mini"), healthy("ec"), target_of(read_recipe(ROOT / "builds" / "ec"), "mini")
    assert (arranged.mtp, arranged.unread, arranged.activations) == (True, (), "")
    packed = {**target.plan.packed, **target.rounded}
    wanted = {name: floats(base, name).copy() for name in base.tensors}
    for name, layer in packed.items():
        assert layer.source
        rows = wanted[layer.source.tensor].reshape(-1, layer.shape[1])
        first, last = layer.source.flat_rows(base.tensors[layer.source.tensor].spec.shape, layer.shape[0])
        rows[first:last] = multiplied(rounded, name)
    assert {path.name for path in tmp_path.iterdir()} == {*base.shards, INDEX, "config.json"}
    for file, inside in base.shards.items():
        assert [*load(tmp_path / file).specs] == [*inside]
        for name, tensor in inside.items():
            assert load(tmp_path / file).specs[name].shape == tensor.spec.shape
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        if precision == "bfloat16" and base.tensors[name].spec.dtype != "F32":
            bits = values.astype("<f4").view("<u4").astype(np.uint64)
            values = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype("<u4").view("<f4")
        assert np.array_equal(found[name], values), name
    assert json.loads((tmp_path / INDEX).read_text())["weight_map"] == {
        name: file for file, inside in sorted(base.shards.items()) for name in sorted(inside)
    }
    assert (tmp_path / "config.json").read_bytes() == (places / "base" / "config.json").read_bytes()


def toy(folder: Path, base: Tensors, theirs: Tensors, config: Mapping[str, Any]) -> tuple[Path, Path]:
    for name, some, said in (("base", base, {}), ("theirs", theirs, {"quantization_config": config})):
        text = json.dumps({"model_type": "toy", **said}).encode()
        write(folder / name, {"model.safetensors": shard(some), "config.json": text})
    return folder / "theirs", folder / "base"


@pytest.mark.parametrize("name", CONFIGS)
def test_every_format_is_decoded_window_by_window(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "CODED", 64 * COLUMNS)
    codec, known = made_by(CONFIGS[name])
    arranged, found = opened(
        *toy(tmp_path, base_of("BF16"), made := tensors(codec, known[0], "BF16"), CONFIGS[name]), tmp_path
    )
    stored = load(tmp_path / "theirs" / "model.safetensors")
    assert made.keys() == stored.tensors.keys()
    for layer in LAYERS:
        parts = codec.parts(ROWS, COLUMNS, "BF16")
        whole = {suffix: stored.tensors[f"{layer}.{suffix}" if suffix else layer] for suffix in parts}
        assert np.array_equal(found[f"{layer}.weight"], codec.decode(whole, COLUMNS)), layer
    quantized = name.startswith(("FP8", "NVFP4")) and "input_activations" in json.dumps(CONFIGS[name])
    assert bool(arranged.activations) == (quantized or name in ACTIVE)


ACTIVE = {"FP8 of DeepSeek", "FP8 of AutoFP8", "FP8 of ModelOpt", "NVFP4 of ModelOpt", "int8 by rows"}


@pytest.mark.parametrize(
    ("said", "key"),
    [
        ({"config_groups": {"group_0": {"input_activations": {"num_bits": 8}}}}, "config_groups.input_activations"),
        ({"config_groups": {"group_0": {"input_activations": None}}}, ""),
        ({"config_groups": [3]}, ""),
        ({"quant_method": "fp8"}, "activation_scheme"),
        ({"quant_method": "modelopt", "quant_algo": "W4A16_NVFP4"}, ""),
        ({"quantization": {"quant_algo": "NVFP4"}}, "quant_algo"),
        ({"act_bits": 8}, "act_bits"),
        ({"act_bits": 16}, ""),
        ({"act_bits": "8"}, ""),
    ],
)
def test_quantized_activations_are_told(said: dict[str, Any], key: str) -> None:
    from requant.check.declared import Scheme

    assert activations(Scheme(said)) == key


@pytest.mark.parametrize("architecture", ["llama", "qwen3moe"])
def test_a_gguf_files_rows_are_put_back(architecture: str, tmp_path: Path) -> None:
    weights = test_gguf_check.base(architecture)
    test_gguf_check.checked(tmp_path, architecture, test_gguf_check.stored(architecture, weights), "BF16")
    _, found = opened(tmp_path / "model.gguf", tmp_path / "base", tmp_path / "opened")
    assert found.keys() == {f"{name}.weight" for name in weights}
    assert all(np.array_equal(found[f"{name}.weight"], each) for name, each in weights.items())


@pytest.mark.parametrize("symmetric", [True, False])
def test_inputs_in_another_order_are_put_back(symmetric: bool, tmp_path: Path) -> None:
    made, base = test_binding.shuffled(symmetric)
    told = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": symmetric, "desc_act": True}
    theirs, ours = toy(tmp_path, base, made, told)
    _, found = opened(theirs, ours, tmp_path / "opened")
    stored = load(theirs / "model.safetensors").tensors
    words, points, scales, groups = (stored[f"x.0.p.{name}"] for name in ("qweight", "qzeros", "scales", "g_idx"))

    def nibbles(values: Array, axis: int) -> Array:
        some = [(values.view("<u4") >> np.uint32(4 * number)) & np.uint32(15) for number in range(8)]
        return np.stack(some, axis=axis)

    codes = nibbles(words, 1).reshape(-1, words.shape[1])
    zeros = nibbles(points, 2).reshape(len(points), -1) + 1
    wanted = (codes.astype(np.float32) - zeros[groups].astype(np.float32)) * scales[groups].astype(np.float32)
    assert np.array_equal(found["x.0.p.weight"], wanted.T)


def test_experts_that_lie_transposed_are_put_back(tmp_path: Path) -> None:
    random, shape = np.random.default_rng(0), (2, 64, 96)  # experts, inputs, outputs
    blocks = random.integers(0, 256, (2, 96, 2, 16), np.uint8)
    scales = random.integers(120, 124, (2, 96, 2), np.uint8)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    theirs = {
        f"{name}_blocks": ("U8", [2, 96, 2, 16], blocks.tobytes()),
        f"{name}_scales": ("U8", [2, 96, 2], scales.tobytes()),
    }
    base = {name: ("BF16", [*shape], bytes(2 * 2 * 64 * 96))}
    _, found = opened(*toy(tmp_path, base, theirs, {"quant_method": "mxfp4"}), tmp_path / "opened")
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
    values = table[np.stack([blocks & 15, blocks >> 4], -1).reshape(2, 96, 2, 32)]
    wanted = (values * np.float32(2) ** (scales.astype(np.float32) - 127)[..., None]).reshape(2, 96, 64)
    assert np.array_equal(found[name], wanted.transpose(0, 2, 1))


def test_what_holds_no_floats_is_copied_as_it_is(tmp_path: Path) -> None:
    ids = np.arange(6, dtype="<i8").tobytes()
    numbers = np.array([1.5, -2, 3], "<f2")
    base: Tensors = {"ids": ("I64", [6], ids), "norm": ("BF16", [3], bytes(6))}
    theirs: Tensors = {"ids": ("I64", [6], ids), "norm": ("F16", [3], numbers.tobytes())}
    _, found = opened(*toy(tmp_path, base, theirs, {}), tmp_path / "opened")
    assert found["ids"].tolist() == [*range(6)] and found["norm"].tolist() == numbers.tolist()


def altered(places: Path, folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """The rounded checkpoint with other tensors."""
    checkpoint = healthy("ec")
    shards = {file: dict(inside) for file, inside in checkpoint.shards.items()}
    for inside in shards.values():
        change(inside)
    write_checkpoint(replace(checkpoint, shards=shards), folder)
    return folder


def lacking(*names: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda inside: [inside.pop(name, None) for name in names]


def filled(name: str, place: int, value: float) -> Callable[[dict[str, Tensor]], object]:
    def change(inside: dict[str, Tensor]) -> None:
        if name in inside:
            values = np.frombuffer(inside[name].read(), "<f2").copy()
            values[place] = value
            inside[name] = Tensor(inside[name].spec, Held(values.tobytes()))

    return change


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lacking("model.language_model.norm.weight"), CheckpointError),
        (lacking(*(f"{PACKED}.{suffix}" for suffix in ("qweight", "qzeros", "scales"))), CheckpointError),
        (lacking(f"{PACKED}.scales"), CheckpointError),
        (filled(f"{PACKED}.scales", 5, float("nan")), CheckpointError),
        (filled(f"{PACKED}.scales", 6, float("inf")), CheckpointError),
    ],
    ids=["a norm is gone", "a layer is gone", "its scales are", "a scale is none", "a scale is infinite"],
)
def test_what_cannot_be_run_is_refused(
    change: Callable[[dict[str, Tensor]], object],
    error: type[RequantError],
    places: Path,
    tmp_path: Path,
    refuses: Refuses,
) -> None:
    folder = altered(places, tmp_path / "altered", change)
    with refuses(error):
        opened(folder, places / "base", tmp_path / "opened")
    assert not any((tmp_path / "opened").glob("*norm*"))


@pytest.mark.parametrize(
    ("said", "other"),
    [(b'"quant_type": "nf4"', b'"quant_type": "fp4"'), (b'"blocksize": 64', b'"blocksize": 32')],
    ids=["another code", "smaller blocks"],
)
def test_codes_that_a_loader_reads_otherwise_are_refused(
    said: bytes, other: bytes, tmp_path: Path, refuses: Refuses
) -> None:
    codec, known = made_by(CONFIGS["nf4"])
    made, name = dict(tensors(codec, known[0], "BF16")), f"{LAYERS[0]}.weight.quant_state.bitsandbytes__nf4"
    made[name] = (*made[name][:2], made[name][2].replace(said, other))
    with refuses(CheckpointError):
        opened(*toy(tmp_path, base_of("BF16"), made, CONFIGS["nf4"]), tmp_path / "opened")


@pytest.mark.parametrize(("moved", "error"), [(True, NotModelledError), (False, CheckpointError)])
def test_int8_that_does_not_lie_in_rows_is_refused(
    moved: bool, error: type[Exception], tmp_path: Path, refuses: Refuses
) -> None:
    with refuses(error):
        opened(
            *toy(tmp_path, base_of("BF16"), in_tiles(2, LAYERS[1:2], moved=moved), CONFIGS["int8 by rows"]), tmp_path
        )


def test_without_its_mtp_block_it_has_none_and_the_rest_is_the_same(places: Path, tmp_path: Path) -> None:
    folder = altered(places, tmp_path / "altered", lacking("mtp.fc.weight"))
    arranged, found = opened(folder, places / "base", tmp_path / "opened")
    _, whole = opened(places / "rounded", places / "base", tmp_path / "whole")
    assert not arranged.mtp
    assert found.keys() == {name for name in whole if not name.startswith("mtp.")}
    assert all(np.array_equal(each, whole[name]) for name, each in found.items())


def test_a_tensor_that_the_base_has_no_place_for_is_told(places: Path, tmp_path: Path) -> None:
    stray = Tensor(tiny("mini").tensors["mtp.fc.weight"].spec, tiny("mini").tensors["mtp.fc.weight"].content)
    seen: list[int] = []

    def change(inside: dict[str, Tensor]) -> None:
        if not seen:
            inside["stray.weight"] = stray
            seen.append(1)

    arranged, _ = opened(altered(places, tmp_path / "altered", change), places / "base", tmp_path / "opened")
    assert arranged.unread == ("stray.weight",)


@pytest.mark.parametrize("config", [{"quant_method": "quip"}, {"quant_method": "awq", "version": "gemv"}])
def test_a_format_that_is_not_modelled_is_named(config: dict[str, Any], tmp_path: Path, refuses: Refuses) -> None:
    theirs: Tensors = {"x.0.p.weight_packed": ("U8", [4, 4], bytes(16))}
    with refuses(NotModelledError):
        opened(*toy(tmp_path, {"x.0.p.weight": ("BF16", [4, 8], bytes(64))}, theirs, config), tmp_path / "opened")


def test_a_base_that_is_quantized_is_none(places: Path, tmp_path: Path, refuses: Refuses) -> None:
    with refuses(NotModelledError):
        opened(places / "rounded", places / "rounded", tmp_path)


def test_a_file_that_is_there_is_not_written_again(places: Path, tmp_path: Path) -> None:
    opened(places / "rounded", places / "base", tmp_path)
    first, *others = sorted(tmp_path.glob("*.safetensors"))
    before = {path: path.stat().st_mtime_ns for path in others}
    data = first.read_bytes()
    first.unlink()
    (tmp_path / f".{first.name}.part").write_bytes(b"of a run that was stopped")
    opened(places / "rounded", places / "base", tmp_path)
    assert first.read_bytes() == data
    assert before == {path: path.stat().st_mtime_ns for path in others}
    assert not [*tmp_path.glob(".*")]


# The text.


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def __call__(self, text: str, *, truncation: bool, max_length: int) -> dict[str, list[int]]:
        assert truncation
        return {"input_ids": [*text.encode()][:max_length]}


def least(texts: Sequence[str], samples: int, length: int) -> list[str]:
    """The texts that are to be chosen: those that are long enough, each once, by SHA-256."""
    long = {each for each in texts if len(each.encode()) >= length}
    return sorted(long, key=lambda each: sha256(each.encode()))[:samples]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=30), st.integers(1, 5), st.integers(1, 6))
def test_texts_are_chosen_by_their_digests_whatever_their_order(texts: list[str], samples: int, length: int) -> None:
    wanted = least(texts, samples, length)
    with on_disk({"a.jsonl": b"".join(json.dumps({"text": each}).encode() + b"\n" for each in texts)}) as folder:
        if len(wanted) < samples:
            with pytest.raises(BuildError, match="texts of"):
                choose(Bytes(), folder / "a.jsonl", samples, length)
            return
        found = choose(Bytes(), folder / "a.jsonl", samples, length)
    assert found.texts == tuple(sha256(each.encode()) for each in wanted)
    assert found.tokens == tuple(tuple(each.encode()[:length]) for each in wanted)


def test_parquet_is_read_as_lines_are(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    texts = [f"the {number}th text" for number in range(40)]
    parquet.write_table(pyarrow.table({"text": [*texts, None], "more": [1] * 41}), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("\n\n".join(json.dumps({"text": each}) for each in texts))
    one, other = (choose(Bytes(), tmp_path / f"a.{kind}", 7, 9) for kind in ("parquet", "jsonl"))
    assert one == other and len(one.texts) == 7


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", b'{"text": "enough of it"}\n{"other": 1}'),
        ("a.jsonl", b'{"text": 3}'),
        ("a.jsonl", b"[1]"),
        ("a.jsonl", b'{"text": "no end'),
        ("a.jsonl", b"\xff\xfe"),
        ("a.jsonl", b'{"text": "enough of it \\ud800"}'),
        ("a.jsonl", b"[" * 200_000),
        ("a.parquet", b"PAR1 and nothing"),
        ("a.jsonl", b'{"text": "short"}'),
    ],
    ids=[
        "no text",
        "a number",
        "a list",
        "no end",
        "no Unicode",
        "half a character",
        "nested",
        "no Parquet",
        "too short",
    ],
)
def test_a_text_that_cannot_be_read_is_named(name: str, data: bytes, tmp_path: Path, refuses: Refuses) -> None:
    (tmp_path / name).write_bytes(data)
    with refuses(BuildError):
        choose(Bytes(), tmp_path / name, 1, 10)


def test_what_is_calibrated_on_is_not_held_out(tmp_path: Path, refuses: Refuses) -> None:
    assert held_out(None, read_recipe(ROOT / "builds" / "ec")).sha256 == held_out(None).sha256
    (tmp_path / "text.jsonl").write_bytes(calibration_text())
    with refuses(UsageError):
        held_out(tmp_path / "text.jsonl")


def test_what_a_recipe_pins_is_not_held_out(tmp_path: Path, refuses: Refuses) -> None:
    for name in ("builds", "lockfiles"):
        shutil.copytree(ROOT / name, tmp_path / name)
    recipe = read_recipe(tmp_path / "builds" / "ec")
    (tmp_path / "text.jsonl").write_text('{"text": "a"}')
    pins = recipe.beside(recipe.calibration.files)
    document = json.loads(pins.read_text())
    document["files"][recipe.calibration.file]["sha256"] = sha256(b'{"text": "a"}')
    pins.write_text(json.dumps(document))
    with refuses(UsageError):
        held_out(tmp_path / "text.jsonl", recipe)
    with refuses(CheckpointError):
        held_out(tmp_path / "none.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    with refuses(CheckpointError):
        held_out(tmp_path / "pipe.jsonl")


def test_the_own_text_is_long_enough_and_shares_nothing_with_the_calibration() -> None:
    lines = held_out(None).path.read_text().splitlines()
    texts, others = ({json.loads(each)["text"] for each in some} for some in (lines, calibration_text().splitlines()))
    assert len(texts) == len(lines) >= requant.evaluate.OWN[0] and not texts & others
    assert all(len(each.encode()) >= requant.evaluate.OWN[1] and each.isascii() for each in texts)


# The worker.

SAMPLES, LENGTH = 3, 40


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of reference logits for one test."""
    monkeypatch.setattr(requant.evaluate, "cache", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "evaluations"


def run(theirs: Path, ours: Path, tell: Tell = silent, environment: str = "cpu", **options: Any) -> Evaluation:
    locked = Environment.load(ROOT / "lockfiles", environment)
    asked: dict[str, Any] = {"samples": SAMPLES, "length": LENGTH, "sandbox": "venv", "tell": tell} | options
    with open_reader(str(theirs)) as one, open_reader(str(ours)) as two:
        return evaluate(one, two, held_out(None), locked, **asked)


@pytest.mark.worker
def test_a_tiny_model_is_measured(places: Path, alone: Path, tmp_path: Path) -> None:
    stages: dict[str, int] = {}
    found = run(places / "rounded", places / "base", lambda now: stages.update({now.stage: now.done}))
    assert (stages["run the base"], stages["run the checkpoint"]) == (SAMPLES, SAMPLES)
    texts = least([json.loads(each)["text"] for each in held_out(None).path.read_text().splitlines()], SAMPLES, LENGTH)
    tokens = [[*each.encode()[:LENGTH]] for each in texts]
    assert found.digests.tokens == sha256(canonical_json(tokens))
    assert [each.text for each in found.sequences] == [sha256(each.encode()) for each in texts]
    assert found.digests.checkpoint == make_manifest(places / "rounded").identity
    assert (found.mtp, found.unread, found.activations) == ("both", (), "")
    assert 0 < found.measures["divergence"].value < found.measures["divergence_99_9"].value < 1
    assert 0 < found.measures["agreement"].value < 1
    assert all(0 <= found.measures[name].value <= 1 for name in found.measures if name.endswith(("drafted", "overlap")))
    assert 200 < found.measures["base_perplexity"].value < 600  # of 263 tokens, by a model that knows nothing
    (reference,) = alone.glob("*/reference")
    assert [path.name for path in reference.parent.iterdir() if path.is_dir()] == ["reference"]
    path = tmp_path / "result.json"
    path.write_text(found.to_text())
    assert read_evaluation(path) == found


@pytest.mark.worker
@pytest.mark.full
def test_a_checkpoint_that_is_the_base_differs_in_nothing_and_a_damaged_scale_is_seen(
    places: Path, alone: Path, tmp_path: Path
) -> None:
    damaged = altered(places, tmp_path / "altered", filled(f"{OUTPUTS}.scales", 5, 0.5))
    same, healthy_one, other = (run(each, places / "base") for each in (places / "base", places / "rounded", damaged))
    for each in same.sequences:
        assert (each.divergence, {*each.largest}, each.agreement) == (0.0, {0.0}, 1.0)
        assert (each.surprise, each.drafted, each.overlap) == (each.base_surprise, each.base_drafted, each.base_overlap)
    assert same.measures["divergence_99_9"] == Interval(0.0, 0.0, 0.0)
    assert other.measures["divergence"].low > healthy_one.measures["divergence"].high
    beside = other.compared(healthy_one).against
    assert beside and beside.words["divergence"] == "worse"
    assert len({*(each.digests.reference for each in (same, healthy_one, other))}) == 1
    lacking_mtp = altered(places, tmp_path / "none", lacking("mtp.fc.weight"))
    found = run(lacking_mtp, places / "base")
    assert found.mtp == "base" and found.measures["divergence"] == healthy_one.measures["divergence"]
    assert "drafted" not in found.measures and found.measures["base_drafted"] == same.measures["base_drafted"]


@pytest.mark.worker
@pytest.mark.full
@pytest.mark.parametrize("stage", ["run the base", "run the checkpoint"])
def test_what_was_stopped_is_gone_on_with(stage: str, places: Path, alone: Path) -> None:
    def stopping(now: Progress) -> None:
        if now.stage == stage and now.done >= 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(places / "rounded", places / "base", stopping)
    scored = {path: path.stat().st_mtime_ns for path in alone.rglob("scored/*.json")}
    assert scored
    seen: list[tuple[str, int]] = []
    found = run(places / "rounded", places / "base", lambda now: seen.append((now.stage, now.done)))
    assert min(done for name, done in seen if name == stage) >= 1
    assert all(path.stat().st_mtime_ns == time for path, time in scored.items() if path.exists())
    shutil.rmtree(alone)
    assert run(places / "rounded", places / "base") == found


@pytest.mark.worker
@pytest.mark.full
def test_logits_that_are_no_numbers_are_no_measure(places: Path, alone: Path, tmp_path: Path, refuses: Refuses) -> None:
    name = "model.language_model.norm.weight"

    def change(inside: dict[str, Tensor]) -> None:
        if name in inside:
            bits = np.frombuffer(inside[name].read(), "<u2").copy()
            bits[3] = 0x7F80
            inside[name] = Tensor(inside[name].spec, Held(bits.tobytes()))

    with refuses(CheckpointError, vary=r"\d+ logits"):
        run(altered(places, tmp_path / "altered", change), places / "base")
    assert [path.name for path in alone.glob("*/*") if path.is_dir()] == ["reference"]


@pytest.mark.worker
@pytest.mark.full
def test_logits_that_were_altered_are_no_reference(places: Path, alone: Path, refuses: Refuses) -> None:
    run(places / "base", places / "base")
    (path,) = alone.rglob("00001.safetensors")
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with refuses(BuildError, vary=r"evaluations/\w+"):
        run(places / "rounded", places / "base")


@pytest.mark.worker
@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "precision"), [("ec", "float32"), ("ec-mtp", "bfloat16"), ("llama-current", "float32")]
)
def test_values_are_those_of_the_logits(
    name: str, precision: Precision, alone: Path, tmp_path: Path, ask: Callable[..., Any]
) -> None:
    """Computed once more, from logits that a program of the tests' own asks transformers for."""
    recipe = read_recipe(ROOT / "builds" / name)
    write_checkpoint(tiny_model(recipe, "mini"), tmp_path / "base")
    write_checkpoint(healthy(name), tmp_path / "rounded")
    found = run(tmp_path / "rounded", tmp_path / "base", precision=precision)
    opened(tmp_path / "rounded", tmp_path / "base", tmp_path / "opened", precision)
    (tokens,) = alone.rglob("tokens.json")
    told = ask("scored", tmp_path / "base", tmp_path / "opened", tokens, precision)["sequences"]
    assert found.mtp == ("none" if name == "llama-current" else "both")
    for each, wanted in zip(found.sequences, told, strict=True):
        said = asdict(each)
        assert {key: said[key] for key in wanted} == pytest.approx(wanted, rel=1e-9, abs=1e-12)
        assert wanted.keys() >= {"divergence", "agreement", "surprise", "base_surprise"}
        assert ("drafted" in wanted) == (found.mtp == "both")


@pytest.mark.worker
@pytest.mark.full
def test_perplexity_is_that_of_lm_evaluation_harness(alone: Path, tmp_path: Path, ask: Callable[..., Any]) -> None:
    """Its `loglikelihood`, given the first token of each sequence, of the base and of the opened checkpoint."""
    peer = importable("lm-eval==0.4.13")
    write_checkpoint(tiny_model(read_recipe(ROOT / "builds" / "llama-current"), "mini"), tmp_path / "base")
    write_checkpoint(healthy("llama-current"), tmp_path / "rounded")
    found = run(tmp_path / "rounded", tmp_path / "base", samples=8, length=200)
    opened(tmp_path / "rounded", tmp_path / "base", tmp_path / "opened")
    for path in (tmp_path / "base").glob("*token*"):
        shutil.copyfile(path, tmp_path / "opened" / path.name)
    texts = least([json.loads(each)["text"] for each in held_out(None).path.read_text().splitlines()], 8, 200)
    (tmp_path / "texts.json").write_text(json.dumps([each[:200] for each in texts]))
    words = (tmp_path / "texts.json", tmp_path / "base", tmp_path / "opened")
    base, rounded = ask("harness", *words, path=(peer,))["likelihoods"]
    wanted = [float(np.exp(-sum(each) / (8 * 199))) for each in (base, rounded)]
    said = [found.measures[name].value for name in ("base_perplexity", "perplexity")]
    assert said == pytest.approx(wanted, rel=1e-6) and said[0] != pytest.approx(said[1], rel=1e-4)
    for one, *likelihoods in zip(found.sequences, base, rounded, strict=True):
        both = (one.base_surprise, one.surprise)
        assert both == pytest.approx([-each / 199 for each in likelihoods], rel=1e-5)
