"""Measure how far blocks drift apart, and hold that against what machines are that add up in other orders."""

from collections.abc import Callable
from typing import Any

import torch
from tests.worker.prepared import answer
from torch.utils._python_dispatch import _get_current_dispatch_mode

from requant.worker.autoround import drift

BLOCKS, SAMPLES, TOKENS, HIDDEN, WIDE = 8, 2, 64, 128, 512
MACHINES = 3


def found() -> dict[str, Any]:
    """Answer all of it."""
    torch.manual_seed(7)
    torch.set_grad_enabled(False)
    return {"chain": chain(), "routes": routes(), "operations": operations()}


def chain() -> list[dict[str, float]]:
    """Say of each block of a chain how far it is measured to drift, and how far machines are from each other."""

    def block(up: Any, down: Any, inner: Any, outer: Any) -> Any:
        """Return what puts out the same, but for its roundings, by the order of the terms of its sums."""
        up, down = up[:, outer][inner], down[:, inner]

        def one(x: Any) -> Any:
            return torch.sin(4 * torch.nn.functional.layer_norm(x, (HIDDEN,))[..., outer] @ up.T) @ down.T

        return lambda stream: [one(each) for each in stream]

    own = [torch.randn(1, TOKENS, HIDDEN) for _ in range(SAMPLES)]
    other, machines = own, [own] * MACHINES
    told = []
    for _ in range(BLOCKS):
        up, down = torch.randn(WIDE, HIDDEN) / HIDDEN**0.5, torch.randn(HIDDEN, WIDE) / WIDE**0.5
        plain = block(up, down, torch.arange(WIDE), torch.arange(HIDDEN))
        other, size = drift.behind(plain, own, other)
        own = plain(own)
        machines = [block(up, down, torch.randperm(WIDE), torch.randperm(HIDDEN))(each) for each in machines]
        told.append({"measured": size, "apart": max(drift.apart(own, each) for each in machines)})
    return told


def routes() -> dict[str, float]:
    """Say how far a block drifts whose router decides otherwise where each operation is rounded once."""

    def run(stream: list[Any]) -> list[Any]:
        turned = isinstance(_get_current_dispatch_mode(), drift.RoundedOnce)
        scores = torch.tensor([[0.4, 0.6]] if turned else [[0.6, 0.4]]).expand(TOKENS, 2)
        chosen = torch.topk(scores, 1, dim=-1).indices
        return [x * (1 + 9 * chosen) for x in stream]

    own = [torch.randn(1, TOKENS, HIDDEN)]
    return {
        "with the same experts": drift.behind(run, own, own)[1],
        "left alone": drift.apart(run(own), alone(run, own)),
    }


def alone(run: Any, stream: list[Any]) -> list[Any]:
    """Let a stream pass with each operation rounded once."""
    with drift.RoundedOnce():
        found: list[Any] = run(stream)
    return found


def operations() -> dict[str, bool]:
    """Say of operations whether they are in float64 and rounded once, and give the dtypes that they give."""
    x, y = torch.randn(8, 256), torch.randn(256, 8)
    cases: dict[str, Callable[[Any, Any], Any]] = {
        "product": lambda a, b: a @ b,
        "softmax": lambda a, b: torch.softmax(a, -1, dtype=a.dtype),
        "mean": lambda a, b: a.mean(-1),
        "norm": lambda a, b: torch.nn.functional.layer_norm(a, (a.shape[-1],)),
        "attention": lambda a, b: torch.nn.functional.scaled_dot_product_attention(*[a.view(1, 1, *a.shape)] * 3),
        "convolution": lambda a, b: torch.nn.functional.conv1d(a[None], b[:16, :, None]),
        "words": lambda a, b: a.to(torch.bfloat16).float(),
    }
    told = dict[str, bool]()
    for name, case in cases.items():
        with drift.RoundedOnce():
            once = case(x, y)
        told[name] = once.dtype == torch.float32 and torch.equal(once, case(x.double(), y.double()).float())
    with drift.RoundedOnce():
        told["one that float64 has not"] = torch.equal(halved(x), x / 2)
    return told


@torch.library.custom_op("requant_tests::halved", mutates_args=())  # type: ignore[untyped-decorator]
def halved(given: torch.Tensor) -> torch.Tensor:
    """Return half of a tensor in float32; raise RuntimeError for another one."""
    if given.dtype != torch.float32:
        raise RuntimeError("float32 alone")
    return given / 2


if __name__ == "__main__":
    answer(found)
