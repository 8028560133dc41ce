"""Who can audit whom, and what hints cost: `python benchmarks/portable.py [mini|demo|wide] [MODEL ...]`.

Each tiny model is built twice on one thread under the cap of AVX2, with hints and without, which must give the same
bytes, and audited by hints in each class of `CLASSES` that this CPU has. The peer of the time that a build takes with
hints is the one without, in the same run.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from requant.build import beside, build
from requant.checkpoint.manifest import read_manifest
from requant.model.rules import SIZES
from requant.protocol import HINTS
from requant.recipe import Recipe, read_recipe
from requant.verify import verify

ROOT = Path(__file__).parent.parent
ONE = {"OMP_NUM_THREADS": "1"}
CLASSES = {
    "AVX2, any sums": ONE | {"ATEN_CPU_CAPABILITY": "avx2"},
    "AVX2, two threads": {"OMP_NUM_THREADS": "2", "ATEN_CPU_CAPABILITY": "avx2"},
    "SSE": ONE | {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "SSE4_2"},
    "AVX-512": ONE | {"ATEN_CPU_CAPABILITY": "avx512"},
}
MODELS = ("ec", "gb10", "intel", "qwen3-0.6b", "llama-current", "qwen3.6-35b-a3b-cu130")


def main(*words: str) -> None:
    """Print a row for each model and class."""
    size, names = (words[0], words[1:]) if words[:1] and words[0] in SIZES else ("mini", words)
    flags = Path("/proc/cpuinfo").read_text()
    print("| built | audited | identical | signs per million | routes | furthest, of its bound | free per million |")
    print("|---|---|---|---|---|---|---|")
    costs = []
    for name in names or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            recipe = hinted(Path(folder), name)
            plain, seconds = built(read_recipe(ROOT / "builds" / name), size, Path(folder) / "plain")
            out, longer = built(recipe, size, Path(folder) / "out")
            assert verify(out, read_manifest(beside(plain, "manifest.json"))).outcome == "identical"
            written = sum(path.stat().st_size for path in beside(out, HINTS).iterdir())
            decided = 0
            for title, env in CLASSES.items():
                if title == "AVX-512" and "avx512f" not in flags:
                    continue
                found = audited(recipe, size, out, env)
                told = [each["hinted"] for each in found["blocks"] if each["hinted"]]
                decided = sum(each["decided"] for each in told)
                identical = sum(each["judgement"] == "identical" for each in found["blocks"])
                print(
                    f"| {name} | {title} | {identical} of {found['count']} "
                    f"| {sum(each['signs'] for each in told) / decided * 1e6:.2f} "
                    f"| {sum(each['routes'] for each in told)} | {max(each['furthest_percent'] for each in told)}% "
                    f"| {max(each['free_per_million'] for each in told)} |",
                    flush=True,
                )
            costs.append((name, longer / seconds, written / decided * 1e6))
    print("\n| built | time with hints, of that without | bytes of hints per million decisions |\n|---|---|---|")
    for name, ratio, cost in costs:
        print(f"| {name} | {ratio:.2f} | {cost:,.0f} |")


def hinted(folder: Path, name: str) -> Recipe:
    """Return a recipe with hints, in a project of its own."""
    for each in ("lockfiles", *(path.name for path in ROOT.glob("Dockerfile.*"))):
        (folder / each).symlink_to(ROOT / each)
    own = folder / "builds" / name
    own.mkdir(parents=True)
    for each in ("bases", "datasets"):
        (own.parent / each).symlink_to(ROOT / "builds" / each)
    (own / "plan.json").symlink_to(ROOT / "builds" / name / "plan.json")
    text = (ROOT / "builds" / name / "recipe.toml").read_text()
    (own / "recipe.toml").write_text(re.sub(r"(?m)^patience = .*$", r"\g<0>\nhints = true", text))
    return read_recipe(own / "recipe.toml")


def built(recipe: Recipe, size: str, out: Path) -> tuple[Path, float]:
    """Return the checkpoint of a tiny model, and the seconds that its blocks took, the median."""
    return out, statistics.median(build(recipe, tiny=size, out=out).worker.seconds.tuning)


def audited(recipe: Recipe, size: str, out: Path, env: dict[str, str]) -> dict[str, object]:
    """Audit all blocks by hints on a CPU that may use this much of itself; return what `--json` says."""
    words = [sys.executable, "-m", "requant", "audit", str(out), "--recipe", str(recipe.path.parent)]
    words += ["--tiny", "--size", size, "--all", "--portable", "--sandbox", "venv", "--json"]
    done = subprocess.run(words, env={**os.environ, **env}, stdout=subprocess.PIPE, text=True, check=False)
    return dict(json.loads(done.stdout))


if __name__ == "__main__":
    main(*sys.argv[1:])
