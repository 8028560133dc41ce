"""What a build in bfloat16 pays for its commitments: `python benchmarks/commitments.py [TOKENS ...]`.

Signs are packed and hashed in each iteration, the parameters in every eighth. The peer is what an iteration cannot do
without, in the same run: the products of the layers of a block, forward and backward, of so many tokens. The block is
as wide as one of Qwen3-0.6B. CPU seconds of one thread, medians of `RUNS`, in the Python of the environment `cpu`.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
RUNS = 3
GROUP = 128
WIDTHS = ((2048, 1024), (1024, 1024), (1024, 1024), (1024, 2048), (3072, 1024), (3072, 1024), (1024, 3072))
"""Outputs and inputs of each layer: q, k, v, o, gate, up, down."""


def main(*tokens: str) -> None:
    """Print a row for each number of tokens in an iteration."""
    import torch

    from requant.protocol import SEGMENT
    from requant.worker.autoround import hints, steps

    torch.set_num_threads(1)
    block, written = torch.nn.Module(), hints.Written("bfloat16")
    for number, (rows, columns) in enumerate(WIDTHS):
        layer = torch.nn.Module()
        ends = {key: torch.nn.Parameter(torch.ones(rows * columns // GROUP)) for key in ("min_scale", "max_scale")}
        layer.orig_layer = torch.nn.Identity()
        layer.params = {"value": torch.nn.Parameter(torch.zeros(rows, columns)), **ends}
        block.add_module(f"layer{number}", layer)
    moved = [*steps.parameters(block).values()]
    for each in moved:
        each.grad = torch.randn_like(each)
    count = sum(each.numel() for each in moved)
    signs = seconds(lambda: written.decide(hints.SIGNS, hints.signs(moved), count))
    state = seconds(lambda: written.commit(steps.digest_of(steps.state(block))))
    each_iteration = signs + state / SEGMENT
    print(
        f"signs {signs:.3f} s, a state {state:.3f} s: {each_iteration / count * 1e9:.2f} ns for each parameter",
        flush=True,
    )
    print("\n| tokens of an iteration | its products | commitments, of that |\n|---|---|---|")
    for number in map(int, tokens or ("128", "512", "2048")):
        products = seconds(lambda number=number: multiply(number))
        print(f"| {number:,} | {products:.2f} s | {each_iteration / products:.1%} |", flush=True)


def multiply(tokens: int) -> None:
    """Compute the products of all layers in bfloat16, and the gradients of inputs and weights."""
    import torch

    for rows, columns in WIDTHS:
        given, weight = (
            torch.full(shape, 0.01, dtype=torch.bfloat16, requires_grad=True)
            for shape in ((tokens, columns), (rows, columns))
        )
        out = given @ weight.T
        out.backward(torch.ones_like(out))


def seconds(work: Callable[[], object]) -> float:
    """Return the median of the CPU seconds that something takes."""
    found = []
    for _ in range(RUNS):
        begun = time.process_time()
        work()
        found.append(time.process_time() - begun)
    return statistics.median(found)


if __name__ == "__main__":
    if "torch" in os.environ.get("REQUANT_WITHIN", ""):
        main(*sys.argv[1:])
    else:
        from requant.environment.install import bytecode, virtual_environment
        from requant.environment.lock import read_lock

        python = virtual_environment(read_lock(ROOT / "lockfiles", "cpu"))
        env = {"PYTHONPATH": str(ROOT / "src"), "PYTHONPYCACHEPREFIX": str(bytecode(python)), "REQUANT_WITHIN": "torch"}
        os.execve(python, [str(python), "-s", __file__, *sys.argv[1:]], {**os.environ, **env})  # noqa: S606 (this file)
