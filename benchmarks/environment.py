"""What it costs to hold an environment against its wheels before each use: `python benchmarks/environment.py [NAME]`.

The peer is `openssl dgst -sha256` on the same files, in the same run.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from requant.environment.install import cache, virtual_environment
from requant.environment.lock import read_lock
from requant.environment.packages import hold, parse_list

RUNS = 5
LOCKFILES = Path(__file__).parent.parent / "lockfiles"


def seconds(work: Callable[[], object]) -> float:
    """Return the median of a few runs."""
    taken = []
    for _ in range(RUNS):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def main(name: str) -> None:
    """Install the environment if need be, and print the medians in seconds."""
    lock = read_lock(LOCKFILES, name)
    virtual_environment(lock)
    place = cache() / "packages" / lock.digest
    files = parse_list((place / "files").read_text())
    size = sum((place / "tree" / path).stat().st_size for path in files)
    listed = "\0".join(files).encode()

    def openssl() -> None:
        command = ["xargs", "-0", "openssl", "dgst", "-sha256"]
        subprocess.run(command, cwd=place / "tree", input=listed, stdout=subprocess.DEVNULL, check=True)

    ours, theirs = seconds(lambda: hold(place / "tree", files)), seconds(openssl)
    print(f"{name}: {len(files):,} files, {size / 1e9:.2f} GB: held in {ours:.2f} s, openssl {theirs:.2f} s")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cpu")
