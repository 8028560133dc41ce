"""Which layers a configuration of another tool means: as vLLM 0.33.0's own functions say, run beside ours."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.releases import HERE, release

from requant.formats import compressed_tensors, fp8, modelopt

Ask = Callable[[str, list[list[str]], list[str]], list[Any]]
NAMES = ["lm_head", "model.layers.0.mlp.gate", "model.layers.0.mlp.gate_proj", "model.layers.1.self_attn.q_proj"]
NAMES += ["model.layers.10.mlp.experts.3.up_proj", "model.visual.merger.linear_fc1", "mtp.fc", "language_model.lm_head"]
PARTS = ["lm_head", "model.layers.0.mlp.gate", "model.layers.1", "gate", "self_attn", "mtp.fc", "experts", "Linear"]
EXPRESSIONS = ["re:.*lm_head", "re:.*mlp.gate$", r"re:model\.layers\.1\..*", "re:gate", "re:.*(q|k|v)_proj", "re:^mtp"]
WILD = ["*lm_head*", "model.layers.1*", "*.mlp.gate", "*", "model.layers.[01].*"]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    command = [sys.executable, str(HERE / "targets.py"), str(release("vllm==0.33.0"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def put(kind: str, lists: list[list[str]], names: list[str]) -> list[Any]:
            assert process.stdin and process.stdout
            print(json.dumps([kind, lists, names]), file=process.stdin, flush=True)
            answers: list[Any] = json.loads(process.stdout.readline())
            return answers

        yield put


several = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@several
@given(
    ignore=st.lists(st.sampled_from([*PARTS, *EXPRESSIONS]), max_size=3),
    groups=st.lists(st.lists(st.sampled_from([*PARTS, *EXPRESSIONS]), min_size=1, max_size=3), min_size=1, max_size=3),
)
def test_compressed_tensors_means_what_vllm_finds(ignore: list[str], groups: list[list[str]], ask: Ask) -> None:
    config = {
        "format": "pack-quantized",
        "config_groups": {
            str(number): {"targets": some, "weights": {"num_bits": 4, "strategy": "group", "group_size": 32 << number}}
            for number, some in enumerate(groups)
        },
        "ignore": ignore,
    }
    targets = {each: number for number, some in enumerate(groups) for each in some}  # a later group takes it over
    ours = compressed_tensors.read(config)
    for name, (ignored, target) in zip(NAMES, ask("compressed-tensors", [ignore, [*targets]], NAMES), strict=True):
        codec = ours.codec(name)
        wanted = None if ignored or target is None else f"groups of {32 << targets[target]}"
        assert (codec.name.rpartition(", ")[2] if codec else None) == wanted, name


@several
@given(excluded=st.lists(st.sampled_from([*PARTS[:-1], *WILD]), max_size=3))
def test_modelopt_means_the_layers_that_vllm_finds(excluded: list[str], ask: Ask) -> None:
    ours = modelopt.read({"quant_algo": "FP8", "ignore": excluded})
    for name, out in zip(NAMES, ask("modelopt", [excluded], NAMES), strict=True):
        assert (ours.codec(name) is None) == (out or "visual" in name), (
            name
        )  # of the visual tower vLLM makes no kernels


@several
@given(ignored=st.lists(st.sampled_from([*PARTS[:2], "mtp.fc"]), max_size=3))
def test_fp8_leaves_out_what_vllm_skips_by_its_whole_name(ignored: list[str], ask: Ask) -> None:
    ours = fp8.read({"modules_to_not_convert": ignored, "weight_block_size": [128, 128]})
    for name, out in zip(NAMES, ask("fp8", [ignored], NAMES), strict=True):
        if out:
            assert ours.codec(name) is None, name
