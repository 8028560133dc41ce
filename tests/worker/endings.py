"""`BASE`: what an adapter refuses: another series, memory that ends, and samples that are not there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tests.worker.prepared import answer, prepare

from requant.errors import BuildError
from requant.worker.autoround import caching, hooks, series


def refusal(action: Callable[[], Any]) -> str:
    try:
        action()
    except BuildError as error:
        return f"{error} | {error.advice}"
    except ValueError as error:  # of the model, as `failing` raises it
        return str(error)
    return ""


def endings(base: str, recipe: str, out: str) -> dict[str, Any]:
    installed = metadata.version("auto-round")
    with patch.object(metadata, "version", lambda _: "0.14.2"):
        another = refusal(series.installed)
    return {
        "version": installed,
        "another": another,
        "healthy": built(base, recipe, out, whole),
        "out of memory": built(base, recipe, out, out_of_memory),
        "a failed pass": built(base, recipe, out, failing),
        "restored": [
            getattr(each.owner, each.name).__module__ for each in places(prepare(recipe, Path(base)).autoround)
        ],
    }


def places(autoround: Any) -> list[series.Place]:
    found = series.installed()
    return [found.tuning(autoround), found.loss(autoround), found.writing(), *found.caching(autoround)]


class _Tuned(Exception):  # noqa: N818
    """The first block would be tuned."""


def built(base: str, recipe: str, out: str, ruined: Callable[[Any], Any]) -> str:
    """Answer what AutoRound says on its way to the first block, which it does not tune."""
    autoround = prepare(recipe, Path(base)).autoround
    tuning = series.installed().tuning(autoround)

    def tuned(*_: Any, **__: Any) -> None:
        raise _Tuned

    def run() -> None:
        heard = hooks.listening(autoround, Nobody(), save=False)
        with ruined(autoround), tuning.replaced(tuned), caching.confirmed(autoround), heard:
            autoround.quantize_and_save(out, format="auto_round:auto_gptq")

    try:
        return refusal(run)
    except _Tuned:
        return "tuned"


class Nobody:
    def keep(self, *_: Any) -> None:
        raise AssertionError("no block is tuned here")


@contextmanager
def whole(_: Any) -> Iterator[None]:
    yield


@contextmanager
def failing(autoround: Any) -> Iterator[None]:
    """The model fails on its second batch."""
    model, calls = type(autoround.model), list[None]()
    forward = model.forward

    def fails(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == 2:
            raise ValueError("no room")
        return forward(*args, **kwargs)

    with patch.object(model, "forward", fails):
        yield


@contextmanager
def out_of_memory(autoround: Any) -> Iterator[None]:
    """Memory ends where the model runs on the device; a layer beside the blocks makes AutoRound run it there."""
    making, _ = series.installed().caching(autoround)
    cache, calls = making.function, list[None]()

    def beside(self: Any, names: Any, count: Any, layer_names: Any = None, **rest: Any) -> Any:
        return cache(self, names, count, layer_names=["lm_head"], **rest)

    def ends(*_: Any, **__: Any) -> Any:
        calls.append(None)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with making.replaced(beside), patch.object(making.owner, "cache_inter_data", ends):
        yield
    assert len(calls) == 1


if __name__ == "__main__":
    answer(endings)
