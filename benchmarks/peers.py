"""Runs commands and functions in turn, several rounds, and prints medians beside the first one's."""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

THREADS = os.cpu_count() or 1
ROUNDS = 5


def run(command: Sequence[str], status: Sequence[int] = (0,)) -> Callable[[], Any]:
    """Return a function that runs a command to its end."""

    def start() -> None:
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode not in status:
            raise SystemExit(f"{command}: status {done.returncode}: {done.stderr.decode()[-500:]}")

    return start


def each_file(folders: Sequence[Path], *command: str) -> Callable[[], Any]:
    """Return a function that runs a command on every shard, the largest first, `THREADS` at a time."""
    names = "\0".join(str(path) for path in sorted(weights(*folders), key=lambda path: -path.stat().st_size))

    def start() -> None:
        xargs = ["xargs", "-0", "-n1", f"-P{THREADS}", *command]
        subprocess.run(xargs, input=names.encode(), stdout=subprocess.DEVNULL, check=True)

    return start


def compare(title: str, nbytes: int, measured: dict[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, float]:
    """Measure each in turn, `rounds` times after one that warms the cache; print medians and ratios to the first."""
    seconds: dict[str, list[float]] = {name: [] for name in measured}
    for number in range(rounds + 1):
        for name, call in measured.items():
            started = time.perf_counter()
            call()
            if number:
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    first = next(iter(medians.values()))
    print(f"\n{title}: {nbytes / 1e9:.2f} GB, {THREADS} threads, medians of {rounds} rounds\n")
    print("| what | seconds | spread | GB/s | to the first |\n|---|---|---|---|---|")
    for name, median in medians.items():
        spread = f"{min(seconds[name]):.2f} to {max(seconds[name]):.2f}"
        print(f"| {name} | {median:.2f} | {spread} | {nbytes / median / 1e9:.2f} | {median / first:.2f} |")
    return medians


def size(*folders: Path) -> int:
    """Return the bytes of the shards in folders."""
    return sum(path.stat().st_size for path in weights(*folders))


def weights(*folders: Path) -> list[Path]:
    """Return the shards in folders."""
    return [path for each in folders for path in each.iterdir() if path.suffix in (".safetensors", ".gguf")]


def peak_mib() -> int:
    """Return the largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def installed(name: str) -> str | None:
    """Return a peer's path, from PATH or from the folder that PEERS names; say where it is missing."""
    found = shutil.which(name, path=f"{os.environ.get('PEERS', '')}:{os.environ['PATH']}")
    if not found:
        print(f"{name}: not installed here, left out")
    return found


def folder() -> Path:
    """Return where the pairs are: the first argument, else out/benchmarks."""
    return Path(sys.argv[1]) if len(sys.argv) > 1 else Path("out/benchmarks")


def told(value: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(value))
