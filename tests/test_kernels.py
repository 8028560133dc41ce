"""Which degrees of parallelism serve the real EC checkpoint, release by release: the table that is published facts."""

import pytest
from tests.tiny import config

from requant.inspect.loaders import LOADERS, TENSOR_PARALLEL
from requant.inspect.loaders.modules import Module, modules
from requant.inspect.rules.kernels import verdict
from requant.model.skeleton import skeleton

MODEL = skeleton(config(None))
VLLM = [loader for loader in LOADERS if loader.program == "vllm"]


def module(end: str) -> Module:
    return next(each for each in modules(MODEL, VLLM[0].names) if each.name.endswith(end))


@pytest.mark.parametrize("loader", VLLM, ids=lambda loader: loader.name)
@pytest.mark.parametrize(
    ("end", "old", "new"),
    [
        ("linear_attn.in_proj_ba", "runs fails fails fails", "runs runs runs runs"),
        ("shared_expert.down_proj", "runs runs runs fails", "runs runs runs fails"),
        ("mlp.experts", "runs runs runs slower", "runs runs runs slower"),
        ("linear_attn.in_proj_qkvz", "runs runs runs runs", "runs runs runs runs"),
        ("self_attn.o_proj", "runs runs runs runs", "runs runs runs runs"),
    ],
)
def test_the_table(loader: object, end: str, old: str, new: str) -> None:
    release = next(each for each in VLLM if each is loader)
    found = " ".join(verdict(module(end), 128, release, degree) for degree in TENSOR_PARALLEL)
    assert found == (old if release.version == "0.19.1" else new)


def test_fused_widths() -> None:
    widths = {end: (module(end).inputs, module(end).outputs) for end in ("in_proj_qkvz", "in_proj_ba", "qkv_proj")}
    assert widths == {"in_proj_qkvz": (2048, 12288), "in_proj_ba": (2048, 64), "qkv_proj": (2048, 9216)}
    assert (module("shared_expert.gate_up_proj").inputs, module("shared_expert.gate_up_proj").outputs) == (2048, 1024)
