"""What the container costs: `python benchmarks/sandboxes.py [SIZE] [ENGINE]`, where an engine answers.

The peer is the virtual environment from the same lock, on the same tiny model. The two take turns, so that whatever
else the machine does falls on both; the ratio is that of the medians, over the whole build once image and environment
are there.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from requant.build import build
from requant.recipe import read_recipe

RUNS = 3
ROOT = Path(__file__).parent.parent


def main(size: str, engine: str) -> None:
    """Build the tiny model of `ec` in each a few times, after one that is not counted, and print median seconds."""
    seconds: dict[str, list[float]] = {"venv": [], engine: []}
    for number in range(RUNS + 1):
        for sandbox, measured in seconds.items():
            with tempfile.TemporaryDirectory() as folder:
                started = time.monotonic()
                build(read_recipe(ROOT / "builds" / "ec"), tiny=size, out=Path(folder, "ec"), sandbox=sandbox)
                if number:
                    measured.append(time.monotonic() - started)
    medians = {sandbox: statistics.median(measured) for sandbox, measured in seconds.items()}
    print(f"tiny model {size}, medians of {RUNS} runs\n\n| sandbox | seconds | of the other |\n|---|---|---|")
    for sandbox, median in medians.items():
        print(f"| {sandbox} | {median:.1f} | {median / medians['venv']:.2f} |")


if __name__ == "__main__":
    main(*(sys.argv[1:] + ["demo", "docker"][len(sys.argv) - 1 :]))
