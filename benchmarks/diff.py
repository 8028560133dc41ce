"""`diff` against diffoscope on a pair of 64 MB, and against `verify` on one block of real width.

    python benchmarks/diff.py [FOLDER]

In the pair of 64 MB every tenth code differs by a step. The block differs from its copy in one shard's last tensor.
"""

import shutil
import time
from pathlib import Path

import layers
import numpy as np
import peers

from requant.checkpoint.checkpoint import Checkpoint, Held, Tensor, write_checkpoint
from requant.checkpoint.manifest import make_manifest
from requant.checkpoint.safetensors import Spec
from requant.diff import diff
from requant.verify import verify

SPEC = Spec("I32", (4096, 4096))


def small_pair(folder: Path) -> tuple[Path, Path]:
    """Write 64 MB of codes, and the same with a step on every tenth."""
    random = np.random.default_rng(0)
    codes = random.integers(1, 15, (SPEC.size, 8), dtype=np.uint32)
    shifts = np.arange(8, dtype=np.uint32) * 4
    moved = codes + (random.random(codes.shape) < 0.1)
    paths = folder / "small-a", folder / "small-b"
    for path, values in zip(paths, (codes, moved), strict=True):
        shutil.rmtree(path, ignore_errors=True)
        words = (values.astype(np.uint32) << shifts).sum(axis=1, dtype=np.uint32)
        write_checkpoint(
            Checkpoint({"model.safetensors": {"x.qweight": Tensor(SPEC, Held(words.tobytes()))}}, {}), path
        )
    return paths


def main() -> None:
    """Measure and print."""
    folder = peers.folder()
    _, tuned = layers.write_pair(folder, 1)
    copy = folder / "tuned-copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(tuned, copy)
    with (copy / "model-0.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\1\2\3\4")
    manifest = make_manifest(tuned)
    assert len(diff(tuned, copy).tensors) == 1
    medians = peers.compare(
        "diff, one block",
        peers.size(tuned),
        {"requant verify": lambda: verify(tuned, manifest), "requant diff": lambda: diff(tuned, copy)},
    )
    ratios = {"diff/verify": medians["requant diff"] / medians["requant verify"]}
    pair = small_pair(folder)
    measured = {"requant diff": lambda: diff(*pair)}
    ours = peers.compare("diff, 64 MB", peers.size(*pair), measured)["requant diff"]
    if diffoscope := peers.installed("diffoscope"):
        started = time.perf_counter()  # once: it takes its time
        peers.run([diffoscope, "--text", "/dev/null", *map(str, pair)], status=(0, 1))()
        theirs = time.perf_counter() - started
        print(f"diffoscope, once: {theirs:.1f} s")
        ratios["diffoscope/diff"] = theirs / ours
    peers.told(ratios)


if __name__ == "__main__":
    main()
