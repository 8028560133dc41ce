"""What the container costs: `python benchmarks/runners.py [SIZE] [ENGINE]`, where an engine answers.

The peer is the virtual environment from the same lock, on the same twin. The two take turns, so that whatever else the
machine does falls on both; the ratio is that of the medians, over the whole build once image and environment are there.
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
    """Build the twin of `ec` a few times in each, after one that is not counted, and print the medians in seconds."""
    seconds: dict[str, list[float]] = {"venv": [], engine: []}
    for number in range(RUNS + 1):
        for runner, measured in seconds.items():
            with tempfile.TemporaryDirectory() as folder:
                started = time.monotonic()
                build(read_recipe(ROOT / "builds" / "ec"), twin=size, out=Path(folder, "ec"), runner=runner)
                if number:
                    measured.append(time.monotonic() - started)
    medians = {runner: statistics.median(measured) for runner, measured in seconds.items()}
    print(f"twin {size}, medians of {RUNS} runs\n\n| runner | seconds | of the other |\n|---|---|---|")
    for runner, median in medians.items():
        print(f"| {runner} | {median:.1f} | {median / medians['venv']:.2f} |")


if __name__ == "__main__":
    main(*(sys.argv[1:] + ["demo", "docker"][len(sys.argv) - 1 :]))
