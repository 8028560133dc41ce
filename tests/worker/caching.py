"""`BASE`: AutoRound's own way of making what the first block is given, on a GPU that is a stand-in.

AutoRound itself maps the model by the memory that it is told to be free, runs it, and catches the end of memory. Only
what would touch a GPU is replaced: how much of it is free, and moving the model there.
"""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from auto_round.compressors import base as compressors
from tests.worker.prepared import answer, prepare
from torch.utils._python_dispatch import TorchDispatchMode

from requant.errors import BuildError
from requant.worker.autoround import caching

GIB = 1 << 30
MOVES = {
    *("_to_copy", "_unsafe_view", "alias", "as_strided", "cat", "clone", "contiguous", "copy", "detach", "embedding"),
    *("empty", "empty_like", "expand", "index", "index_select", "lift_fresh", "permute", "reshape", "select", "slice"),
    *("split", "squeeze", "stack", "t", "transpose", "unbind", "unsqueeze", "view", "zeros", "zeros_like", "fill"),
    *("masked_scatter", "index_put", "scatter"),
}
"""Operators that take numbers from one place to another, or write constants: no device does so otherwise."""


def cachings(base: str) -> dict[str, Any]:
    made = prepare("ec", Path(base), iterations=1).autoround
    wanted = made.quant_block_list[0][0]
    made.has_qlayer_outside_block = False

    def cache() -> Any:
        made.inputs, made.batch_dim = {}, None
        return made.try_cache_inter_data_gpucpu([wanted], made.nsamples, layer_names=[])

    def attempt(**how: Any) -> str:
        with Stand(made, **how), caching.confirmed(made):
            return refusal(cache)

    return {
        "on the CPU": attempt(gpu=False),
        "whole on the GPU": attempt(),
        "no room for all of it": attempt(free=sum(each.nbytes for each in made.model.parameters()) // 2),
        "out of memory as it is moved": attempt(moving=True),
        "out of memory as it runs": attempt(running=True),
        "unconfirmed": unconfirmed(made, cache),
        "restored": type(made).__dict__.get("try_cache_inter_data_gpucpu") is ORIGINAL
        or type(made).try_cache_inter_data_gpucpu is ORIGINAL,
        "outside the rotary module": computed(made, cache, wanted),
        "inside": INSIDE,
    }


def refusal(action: Callable[[], Any]) -> str:
    try:
        action()
    except BuildError as error:
        return f"{error} | {error.advice}"
    return ""


def unconfirmed(made: Any, cache: Callable[[], Any]) -> str:
    """Answer what becomes of an end of memory where nobody confirms: AutoRound goes on."""
    with Stand(made, running=True):
        cache()
        return str(made.cache_device)


ORIGINAL: Any = compressors.BaseCompressor.try_cache_inter_data_gpucpu


class Stand:
    """A GPU with so much free memory, where AutoRound means to work; memory ends as the model is moved, or runs."""

    def __init__(
        self, made: Any, *, gpu: bool = True, free: int = 8 * GIB, moving: bool = False, running: bool = False
    ) -> None:
        self._made, self._gpu, self._free, self._moving, self._running = made, gpu, free, moving, running
        self._kept: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> None:
        if not self._gpu:
            return
        self._set(self._made, "device", "cuda:0")
        self._set(self._made, "cache_device", "cuda:0")
        # 2dda035 takes the GPU for a multimodal model; 0.12.2 where a layer outside of the blocks is tuned.
        self._set(self._made, "has_qlayer_outside_block", True)
        self._set(compressors, "parse_available_devices", lambda _: ["cuda:0"])
        self._set(compressors, "get_max_memory", lambda: {0: self._free, "cpu": 64 * GIB})
        self._set(compressors, "get_balanced_memory", lambda _, max_memory, **__: max_memory)
        self._set(compressors, "dispatch_model", self._dispatch)
        if self._running:
            self._set(type(self._made), "cache_inter_data", self._cache(type(self._made).cache_inter_data))

    def _dispatch(self, model: Any, device_map: Any, **_: Any) -> Any:
        if self._moving:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        model.hf_device_map = dict(device_map)
        return model

    @staticmethod
    def _cache(real: Any) -> Any:
        calls = Counter[str]()

        def cache(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls["all"] += 1
            if calls["all"] == 1:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return real(self, *args, **kwargs)

        return cache

    def _set(self, place: Any, name: str, value: Any) -> None:
        self._kept.append((place, name, getattr(place, name)))
        setattr(place, name, value)

    def __exit__(self, *_: object) -> None:
        for place, name, value in reversed(self._kept):
            setattr(place, name, value)
        if hasattr(self._made.model, "hf_device_map"):
            del self._made.model.hf_device_map


INSIDE: dict[str, int] = {}


class Trace(TorchDispatchMode):  # type: ignore[misc]
    """Counts the operators whose results are floats, in the rotary module and out of it."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = False
        self.counts = {True: Counter[str](), False: Counter[str]()}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        results = result if isinstance(result, list | tuple) else [result]
        if any(isinstance(each, torch.Tensor) and each.is_floating_point() for each in results):
            name = re.sub("_copy$|_$", "", function._overloadpacket.__name__)
            self.counts[self.inside][function._overloadpacket.__name__ if name == "_to" else name] += 1
        return result


def computed(made: Any, cache: Callable[[], Any], wanted: str) -> list[str]:
    """Answer which operators compute with floats before the first block, and not in the rotary module."""
    trace = Trace()
    (rotary,) = (module for name, module in made.model.named_modules() if name.endswith("language_model.rotary_emb"))
    handles = [
        rotary.register_forward_pre_hook(lambda *_: setattr(trace, "inside", True)),
        rotary.register_forward_hook(lambda *_: setattr(trace, "inside", False)),
    ]
    with trace:
        found = cache()
    for handle in handles:
        handle.remove()
    assert found[wanted]["position_embeddings"]
    INSIDE.update(trace.counts[True])
    return sorted(set(trace.counts[False]) - MOVES)


if __name__ == "__main__":
    answer(cachings)
