"""Where the time of a tiny model's build goes: `python benchmarks/build.py [SIZE]`.

The peer is AutoRound's own tuning, in the same run: what requant adds (hashing streams and tensors, journal,
passes, manifest) is given as a share of it.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

from requant.build import beside, build
from requant.recipe import read_recipe

RUNS = 3
ROOT = Path(__file__).parent.parent


def main(size: str) -> None:
    """Build the tiny model of `ec` a few times and print the medians in seconds."""
    rows: dict[str, list[float]] = {}
    for _ in range(RUNS):
        with tempfile.TemporaryDirectory() as folder:
            built = build(read_recipe(ROOT / "builds" / "ec"), tiny=size, out=Path(folder, "ec"))
            statement = json.loads(beside(built.folder, "intoto.jsonl").read_text())
        worker = statement["predicate"]["runDetails"]["byproducts"][-1]["annotations"]["seconds"]
        tuning = sum(float(seconds) for seconds in worker["tuning"])
        measured = {"tuning": tuning, "listening": float(worker["listening"]), **built.seconds}
        for name, seconds in measured.items():
            rows.setdefault(name, []).append(seconds)
    tuning = statistics.median(rows["tuning"])
    print(f"tiny model {size}, medians of {RUNS} runs\n\n| part | seconds | share of tuning |\n|---|---|---|")
    for name, seconds in rows.items():
        print(f"| {name} | {statistics.median(seconds):.2f} | {statistics.median(seconds) / tuning:.1%} |")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "mini")
