"""`check` against hashing the same bytes: one block of the base's real width, then cost by bytes and by threads.

    python benchmarks/check.py [FOLDER]

The checkpoint is synthesised (layers.py). `check` is timed inside one process, after its first call; what starting
Python and importing numba costs, and what compiling cost the first time, stand apart.
"""

import subprocess
import sys
import tempfile
import time
from functools import partial

import layers
import peers

from requant import check as checking
from requant.check.reader import open_reader
from requant.rounding.reach import reach


def check(count: int, threads: int = peers.THREADS) -> None:
    """Check a pair of so many blocks within the reach of 400 iterations."""
    base, tuned = layers.write_pair(peers.folder(), count)
    with open_reader(str(tuned)) as theirs, open_reader(str(base)) as ours:
        checked = checking.check(theirs, ours, threads=threads)
    assert checked.clean, checked.findings[:3]


def main() -> None:
    """Measure and print."""
    checking.loosest = lambda: reach(400, 1 / 400, 1 / 400)  # what the checkpoint was made for; costs the same
    pair = layers.write_pair(peers.folder(), 1)
    with tempfile.TemporaryDirectory() as empty:
        command = [sys.executable, "-c", WARM]
        for name in ("first time, compiling", "afterwards, from numba's cache"):
            started = time.perf_counter()
            subprocess.run(command, env={"NUMBA_CACHE_DIR": empty, "PATH": ""}, check=True)
            print(f"start, import and kernels, {name}: {time.perf_counter() - started:.2f} s")
    check(1)
    medians = peers.compare(
        "check",
        peers.size(*pair),
        {
            "openssl dgst -sha256": peers.each_file(pair, "openssl", "dgst", "-sha256"),
            "requant check": lambda: check(1),
        },
    )
    print(f"\npeak memory of this process: {peers.peak_mib()} MiB")
    whole = [sys.executable, "-m", "requant", "check", str(pair[1]), "--base", str(pair[0]), "--fresh"]
    started = time.perf_counter()
    peers.run(whole)()
    print(f"the whole command, start to end: {time.perf_counter() - started:.2f} s")
    counts = [each for each in (1, 2, 4) if (peers.folder() / f"tuned-{each}").exists()]
    for count in counts:
        started = time.perf_counter()
        check(count)
        seconds = time.perf_counter() - started
        nbytes = peers.size(*layers.write_pair(peers.folder(), count))
        print(f"{count} blocks, {nbytes / 1e9:.2f} GB: {seconds:.2f} s, {nbytes / seconds / 1e9:.2f} GB/s")
    by_threads = {f"{threads} threads": partial(check, 1, threads) for threads in range(1, peers.THREADS + 1)}
    peers.compare("check by threads", peers.size(*pair), by_threads)
    print(f"peak memory of this process: {peers.peak_mib()} MiB")
    peers.told({"check/openssl": medians["requant check"] / medians["openssl dgst -sha256"]})


WARM = """
import numpy as np
from requant.rounding.kernels import distances, extremes, halves
w, q, steps = np.zeros((8, 128), np.uint16), np.zeros((8, 128), np.uint8), np.ones((1, 8), np.float32)
a, b, zeros = (np.zeros((1, 8), np.int32) for _ in range(3))
extremes(w, 128, a, b), distances(w, q, zeros, 15, steps, 128, a, b), halves(np.ones(8, np.float32))
"""

if __name__ == "__main__":
    main()
