"""What a build in bfloat16 pays for its commitments: `python benchmarks/commitments.py`.

Signs are packed and hashed in each iteration, the parameters in every eighth. The peer is what an iteration cannot do
without, in the same run: the products of the layers of a block as wide as Qwen3-0.6B's, forward and backward. CPU
seconds of one thread, medians of `RUNS`, in the Python of the environment `cpu`.
"""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
RUNS = 3
TOKENS = 64
GROUP = 128
WIDTHS = ((2048, 1024), (1024, 1024), (1024, 1024), (1024, 2048), (3072, 1024), (3072, 1024), (1024, 3072))
"""Outputs and inputs of each layer: q, k, v, o, gate, up, down."""


def main() -> None:
    """Print what commitments take, and how much that is of an iteration of so many tokens."""
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
    token = seconds(multiply) / TOKENS
    print(f"products {token:.4f} s for each token\n")
    print("| tokens of an iteration | commitments, of its products |\n|---|---|")
    for tokens in (1024, 4096, 16384):
        print(f"| {tokens:,} | {each_iteration / (token * tokens):.2%} |")


def multiply() -> None:
    """Compute the products of all layers in bfloat16, and the gradients of inputs and weights."""
    import torch

    for rows, columns in WIDTHS:
        given, weight = (
            torch.full(shape, 0.01, dtype=torch.bfloat16, requires_grad=True)
            for shape in ((TOKENS, columns), (rows, columns))
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
        main()
    else:
        from requant.environment.install import bytecode, virtual_environment
        from requant.environment.lock import read_lock

        python = virtual_environment(read_lock(ROOT / "lockfiles", "cpu"))
        env = {"PYTHONPATH": str(ROOT / "src"), "PYTHONPYCACHEPREFIX": str(bytecode(python)), "REQUANT_WITHIN": "torch"}
        os.execve(python, [str(python), "-s", __file__], {**os.environ, **env})  # noqa: S606 (this file)
