"""The worker from within: what is measured needs torch, so it runs in the worker's Python, from tests/worker/."""

import re
import shutil
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.tiny import write_tiny

from requant.build import Built, beside, build
from requant.checkpoint.safetensors import read_header
from requant.errors import BuildError
from requant.evidence.journal import Block, read_journal
from requant.recipe import read_recipe

ROOT = Path(__file__).parent.parent
FLOAT32, FLOAT16 = 2.0**-24, 2.0**-11
"""Unit roundoff: the greatest relative error of one rounding."""
OPERATORS = 24
TERMS = 512

pytestmark = pytest.mark.worker

Ask = Callable[..., Any]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "mini"
    write_tiny("mini", folder)
    return folder


class Pair(NamedTuple):
    """What `blocks` says of a build, and of the same build with its first two blocks exchanged."""

    built: Any
    exchanged: Any


@pytest.fixture(scope="session")
def pair(ask: Ask, base: Path, built: Callable[[str], Built], tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = built("ec").folder
    copy = tmp_path_factory.mktemp("exchanged") / "ec"
    shutil.copytree(folder, copy)
    exchange(copy, "model.language_model.layers.0.", "model.language_model.layers.1.")
    return Pair(ask("blocks", "ec", base, folder, folder, copy), ask("blocks", "ec", base, copy))


def exchange(checkpoint: Path, one: str, other: str) -> None:
    """Exchange the bytes of all tensors of two blocks of one kind."""
    tensors = {}
    for path in checkpoint.glob("*.safetensors"):
        tensors.update(read_header(path)[0])
    names = [name.removeprefix(one) for name in tensors if name.startswith(one)]
    assert names
    for name in names:
        (spec, here), (same, there) = tensors[one + name], tensors[other + name]
        assert spec == same
        content = [b"".join(stretch.chunks()) for stretch in (here, there)]
        for stretch, data in ((here, content[1]), (there, content[0])):
            with stretch.path.open("r+b") as file:
                file.seek(stretch.start)
                file.write(data)


def journal(built: Built) -> tuple[Block, ...]:
    return read_journal(beside(built.folder, "journal.jsonl")).blocks


def bound(block: int, unit: float, terms: int) -> float:
    """Bound |found - expected| / |expected| of a token behind block `block`, where both were computed in floats.

    An operator that adds up K rounded terms is off by √K u relative to the norm of its result, u being the unit
    roundoff: rounding errors are bounded by u and independent, so they grow with √K, not K (Higham and Mary, "A new
    approach to probabilistic rounding error analysis", 2019). The longest path through a block has OPERATORS of
    them: of linear attention norm (2), projection, convolution, activation, normalization, decay (2), the delta
    rule's four products, gated norm (2), projection and residual sum; of the experts norm (2), two projections,
    activation, product, weighting and the two sums. None adds up more than TERMS terms in the tiny model mini (its
    widest layer has 512 inputs; 256 hidden, 64 tokens). A norm rescales errors with what they are relative to, a
    residual sum adds no more than its branch brings: to first order errors add along the path, and from block to block.
    """
    return (block + 1) * OPERATORS * sqrt(terms) * unit


@pytest.mark.full
def test_transformers_loads_every_tensor(ask: Ask, base: Path, built: Callable[[str], Built], pair: Pair) -> None:
    gb10 = built("gb10").folder
    for found in (pair.built, ask("blocks", "gb10", base, gb10, gb10)):
        loaded = found["loaded"][0]
        for kind, names in loaded["info"].items():
            assert [name for name in names if not name.startswith("mtp")] == [], kind
        assert all(name.startswith("mtp.") for name in loaded["unread"])
        assert loaded["unread"]
        assert loaded["unstored"] == []
        assert loaded["altered"] == []
        packed = loaded["packed"] - sum(name.startswith("mtp.") and "qweight" in name for name in loaded["unread"])
        assert loaded["kinds"] == {"QuantLinear": packed}


@pytest.mark.full
@pytest.mark.parametrize("name", ["ec", "gb10", "ec-mtp"])
def test_packed_codes_give_the_journal_s_outputs_bit_for_bit(
    ask: Ask, base: Path, built: Callable[[str], Built], pair: Pair, name: str
) -> None:
    folder = built(name).folder
    found = pair.built if name == "ec" else ask("blocks", name, base, folder)
    expected = {line.block: {"inputs": line.inputs, "outputs": line.outputs} for line in journal(built(name))}
    assert found["digests"] == expected
    assert found["masks"] == 0, "AutoRound masks the last token of each sequence"


@pytest.mark.full
def test_transformers_computes_what_was_tuned(pair: Pair) -> None:
    loaded = pair.built["loaded"][0]
    for i, (wide, half) in enumerate(zip(loaded["float32"], loaded["float16"], strict=True)):
        # In float32 the weights are the tuned ones, bit for bit, and only the order of sums may differ.
        assert wide["greatest"] < bound(i, FLOAT32, TERMS)
        # In float16, as it is loaded, sums are still float32, rounded once. A token whose next best expert is
        # within that error of being chosen may take it, and is off by far, as is what later reads that token.
        assert half["greatest"] < bound(i, FLOAT16, 1)
        assert half["median"] < bound(i, FLOAT16, 1)
        assert half["settled"] > 0.5
        assert wide["settled"] == 1


@pytest.mark.full
def test_exchanged_blocks_are_noticed(pair: Pair, built: Callable[[str], Built]) -> None:
    loaded = pair.built["loaded"][1]
    for i, (wide, half) in enumerate(zip(loaded["float32"], loaded["float16"], strict=True)):
        assert wide["median"] > 1000 * bound(i, FLOAT32, TERMS)
        assert half["median"] > 10 * bound(i, FLOAT16, 1)
    for line in journal(built("ec")):
        assert pair.exchanged["digests"][line.block]["outputs"]["quantized"] != line.outputs["quantized"]


@pytest.mark.full
def test_the_mtp_block_is_what_its_formulas_say_and_no_variant_of_them(ask: Ask, base: Path, tmp_path: Path) -> None:
    found = ask("mtp", base, tmp_path)
    # The base's 256 embedding and 256 hidden numbers make the widest sum, of 512.
    assert found["off"].pop("as it is") < bound(0, FLOAT32, TERMS)
    assert {name for name, off in found["off"].items() if off < 0.01} == set(), "rounding is off by 1e-5 at most"
    assert len(found["off"]) == 6
    assert found["rows"] == [3, 32], "the last of 33 tokens has no next one"
    assert found["a beginning"] < bound(0, FLOAT32, TERMS), "a row sees none after it"
    assert found["refused"] == {
        "one tensor less": "mtp.norm.weight: the base has no such tensor, its MTP block of one layer has [256]",
        "a second layer": "mtp.layers.1.input_layernorm.weight: the base has [256], its MTP block of one layer has no "
        "such tensor",
        "another shape": "mtp.norm.weight: the base has [255], its MTP block of one layer has [256]",
    }


def test_no_operator_raises_on_cuda(ask: Ask, base: Path) -> None:
    found = ask("operators", "ec", base, "worker")
    assert found["known"] == found["document"], "torch documents other operators than tests/worker/operators.py"
    seen = found["seen"]
    assert [f"{name}: {seen[name]['place']}" for name in seen if seen[name]["fate"] == "raises"] == []
    # Nondeterministic by itself, and documented to switch to a deterministic form under strict determinism.
    assert {name for name in seen if seen[name]["fate"] == "switches"} == {
        "convolution",  # of the linear attention; cuDNN's deterministic algorithms
        "convolution_backward",
        "index_add",  # of the experts' outputs; sorts
        "index_put accumulate=True",  # backward of taking an expert's tokens; CUDA always sorts
        "index_select",  # backward of index_add, itself never differentiated
        "scatter src",  # backward of topk, each index once
    }
    # Which of the attention's kernels runs depends on the device; strict mode rules on each of them.
    assert {name for name in seen if seen[name]["fate"] == "attention"} == {
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
    }


@pytest.mark.full
def test_the_trace_sees_what_the_worker_replaces(ask: Ask, base: Path) -> None:
    seen = ask("operators", "ec", base, "torch")["seen"]
    assert [name for name in seen if seen[name]["fate"] == "raises"] == ["cumsum float"]
    assert seen["cumsum float"]["place"].endswith("torch_chunk_gated_delta_rule")


def test_strictness(ask: Ask, base: Path) -> None:
    found = ask("strictness", base)
    assert 0 < found["sums"]["error_in_bounds"] <= 1
    assert found["sums"]["whole_numbers_exact"]
    assert found["sums"]["gradient"]
    assert found["sums"]["keeps_dtype"] == "torch.bfloat16"
    assert found["replaced"] == [[1, 2, 3], [1, 2, 3], [0, 1, 3]]
    assert found["strict"] == ""
    assert "tunes in torch.float32, the recipe asks for bfloat16" in found["precision"]
    assert "relaxed torch's determinism" in found["off"]
    assert "relaxed torch's determinism" in found["relaxed"]


def test_packages_tuned_by_stopwatch_are_refused(ask: Ask, base: Path, tmp_path: Path) -> None:
    package = tmp_path / "fla"
    package.mkdir()
    (package / "__init__.py").touch()
    with pytest.raises(BuildError, match="fla: installed, and tuned by stopwatch"):
        ask("strictness", base, path=(tmp_path,))


def test_calibration_is_what_autoround_chooses(ask: Ask, base: Path, tmp_path: Path) -> None:
    found = ask("texts", base, tmp_path)
    for compared in found["compared"].values():
        assert compared["equal"]
        assert compared["ours"] == compared["theirs"] == {"input_ids": "torch.int64", "attention_mask": "torch.int64"}
    assert found["parquet"]
    assert found["digests"] == 5
    assert re.search("[0-9]+ sequences of 64 tokens, the recipe asks for 1000", found["refused"])
    assert found["restored"]


def logged(folder: Path) -> list[tuple[str, ...]]:
    """Return the losses in AutoRound's log, block by block: initial, iteration of the best, best."""
    return re.findall(r"loss iter 0: ([\d.]+) -> iter (\d+): ([\d.]+)", beside(folder, "log").read_text())


def journalled(folder: Path) -> list[tuple[str, ...]]:
    losses = [loss for line in read_journal(beside(folder, "journal.jsonl")).blocks if (loss := line.loss)]
    return [
        (f"{float.fromhex(loss.initial):.6f}", str(loss.best_iteration), f"{float.fromhex(loss.best):.6f}")
        for loss in losses
    ]


def test_losses_are_those_that_autoround_logs(built: Callable[[str], Built]) -> None:
    folder = built("ec").folder
    assert len(logged(folder)) == 4
    assert logged(folder) == journalled(folder)


@pytest.mark.full
def test_losses_of_accumulated_gradients(tmp_path: Path) -> None:
    text = (ROOT / "builds" / "ec" / "recipe.toml").read_text()
    for key, value in (("batch_size", 4), ("gradient_accumulation", 2)):
        text, count = re.subn(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.MULTILINE)
        assert count == 1
    settings, tiny = text.split("[tiny]")
    for key, value in (("iterations", 2), ("samples", 16), ("sequence_length", 32)):
        tiny, count = re.subn(rf"^{key} = .*$", f"{key} = {value}", tiny, flags=re.MULTILINE)
        assert count == 1
    recipe = tmp_path / "builds" / "accumulated" / "recipe.toml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text(f"{settings}[tiny]{tiny}")
    shutil.copyfile(ROOT / "builds" / "ec" / "plan.json", recipe.with_name("plan.json"))
    (tmp_path / "builds" / "bases").symlink_to(ROOT / "builds" / "bases")
    (tmp_path / "lockfiles").symlink_to(ROOT / "lockfiles")
    folder = build(read_recipe(recipe.parent), tiny="mini", out=tmp_path / "accumulated").folder
    assert len(logged(folder)) == 4
    assert logged(folder) == journalled(folder)


def test_streams_are_hashed_once_and_a_change_in_between_is_noticed(ask: Ask) -> None:
    found = ask("streams")
    assert found["equal"] == [{"hashed": 2, "equal": True}] * 3
    assert found["noticed"] == dict.fromkeys(found["noticed"], True)
    assert len(found["noticed"]) == 8
    assert found["forgotten"] == 2
    assert found["one stream"]
    assert found["nests"]["different"]
    assert found["nests"]["equal"]
    assert "gives its blocks a object, which has no digest" in found["nests"]["refused"]


def test_what_the_first_block_is_given_is_made_on_one_device_or_not_at_all(ask: Ask, base: Path) -> None:
    found = ask("caching", base)
    assert found["on the CPU"] == found["whole on the GPU"] == ""
    assert "mapped the model to cpu, cuda:0 while" in found["no room for all of it"]
    for how in ("is moved", "runs"):
        said = found[f"out of memory as it {how}"]
        assert "ran out of memory on cuda:0" in said
        assert "would do it again on the CPU: other bits" in said
        assert "hardware.memory_gib must be free" in said
    assert found["unconfirmed"] == "cpu", "AutoRound itself goes on, and says nothing"
    assert found["restored"]


def test_before_the_first_block_only_the_rotary_module_computes_with_floats(ask: Ask, base: Path) -> None:
    """So it alone decides what a block is given besides its streams, and by which device."""
    found = ask("caching", base)
    assert found["outside the rotary module"] == []
    assert {"cos", "sin", "bmm"} <= found["inside"].keys()


def test_only_the_gpu_that_the_host_looked_at_will_do(ask: Ask) -> None:
    found = ask("accelerators")
    assert found["the same"] == found["the same, by its whole name"] == found["a CPU"] == ""
    assert "torch takes NVIDIA H200 GPU-8b9a1c22-" in found["another"]
    assert "expected GPU-ffffffff-" in found["another"]
    assert "expected none" in found["none was named"]
    assert "torch sees no GPU" in found["none is there"]
