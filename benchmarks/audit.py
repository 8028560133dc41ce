"""What an audit of all blocks takes, by one worker and by two: `python benchmarks/audit.py [SIZE [ITERATIONS]]`.

The peer is the single-threaded build of the same tiny model, in the same run. Beside each time stands what the
processors did: where other programs run too that is the measure to trust, and half of it is what two idle cores need
at least. Starting (Python, torch, the model) is paid once by a build and once by each worker of an audit, so the ratio
falls as tuning grows; ITERATIONS replaces the tiny model's few. Two workers that only replay give the cost of a
forward pass.
"""

import json
import re
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from requant.audit import audit, local
from requant.audit.pool import Setting, prepare
from requant.audit.references import reference
from requant.build import beside, build
from requant.build.inputs import tiny_inputs
from requant.progress import silent
from requant.recipe import read_recipe

RUNS = 3
WORKERS = (1, 2)
ROOT = Path(__file__).parent.parent


def main(size: str = "demo", iterations: str = "") -> None:
    """Build the tiny model of `ec`, audit it, a few times over, and print medians in seconds."""
    times: dict[str, list[tuple[float, float]]] = {}
    parts: dict[str, list[float]] = {}
    for _ in range(RUNS):
        with tempfile.TemporaryDirectory() as folder:
            run(Path(folder), size, iterations, times, parts)
    print(f"tiny model {size}, {iterations or 'its own'} iterations, medians of {RUNS} runs\n")
    print("| | seconds | of the build | processor seconds | of the build |\n|---|---|---|---|---|")
    peer = [statistics.median(each) for each in zip(*times["build"], strict=True)]
    for name, each in times.items():
        wall, used = map(statistics.median, zip(*each, strict=True))
        print(f"| {name} | {wall:.1f} | {wall / peer[0]:.2f} | {used:.1f} | {used / peer[1]:.2f} |")
    print("\n| part | |\n|---|---|")
    for name, values in parts.items():
        print(f"| {name} | {statistics.median(values):.4f} |")


def run(
    folder: Path, size: str, iterations: str, times: dict[str, list[tuple[float, float]]], parts: dict[str, list[float]]
) -> None:
    """Build and audit once, and add what was measured."""
    recipe = read_recipe(asked_for(folder, iterations))
    out = folder / "out"
    times.setdefault("build", []).append(measured(lambda: build(recipe, tiny=size, out=out)))
    setting = prepare(recipe, size, tiny_inputs(recipe, size, folder / "inputs", silent), silent)
    for workers in WORKERS:
        times.setdefault(f"audit, workers: {workers}", []).append(measured(lambda: audited(out, setting, workers)))  # noqa: B023
    statement = json.loads(beside(out, "intoto.jsonl").read_text())
    built = statement["predicate"]["runDetails"]["byproducts"][-1]["annotations"]["seconds"]
    blocks = len(setting.names)
    _, start = measured(lambda: replay(out, setting, folder / "start", 0))
    _, through = measured(lambda: replay(out, setting, folder / "through", blocks - 1))
    _, whole = times["build"][-1]
    for name, value in (
        ("starting a worker, processor seconds", start),
        ("a forward pass of all samples through a block, processor seconds", (through - start) / (2 * blocks - 2)),
        ("tuning a block, processor seconds", (whole - start) / blocks),
        (
            "listening (hashes, journal, resume state) / tuning",
            float(built["listening"]) / sum(map(float, built["tuning"])),
        ),
    ):
        parts.setdefault(name, []).append(value)


def asked_for(folder: Path, iterations: str) -> Path:
    """Copy what `builds/ec` asks for into `folder`, with another number of iterations for its tiny model."""
    shutil.copytree(ROOT / "lockfiles", folder / "lockfiles")
    shutil.copyfile(ROOT / "Dockerfile.cpu", folder / "Dockerfile.cpu")
    path = folder / "builds" / "ec" / "recipe.toml"
    path.parent.mkdir(parents=True)
    shutil.copyfile(ROOT / "builds" / "ec" / "plan.json", path.with_name("plan.json"))
    shutil.copytree(ROOT / "builds" / "bases", path.parent.parent / "bases")
    head, name, tiny = (ROOT / "builds" / "ec" / "recipe.toml").read_text().partition("[tiny]")
    path.write_text(
        head + name + (re.sub("iterations = .*", f"iterations = {iterations}", tiny) if iterations else tiny)
    )
    return path


def audited(out: Path, setting: Setting, workers: int) -> None:
    """Audit all blocks."""
    done = audit(
        out,
        setting,
        reference(beside(out, "journal.jsonl")),
        chosen=tuple(range(len(setting.names))),
        challenge=None,
        auditor="benchmark",
        make_pool=local(workers),
        work=out.with_name("work"),
    )
    assert done.exit_status == 0, done.text()


def replay(out: Path, setting: Setting, folder: Path, last: int) -> None:
    """Run a worker from the first block to where the block `last` would be tuned: two forward passes for each."""
    files = [str(path) for path in sorted(out.glob("*.safetensors"))]
    with setting.start(folder, {"task": "replay", "checkpoint": files, "blocks": [last], "waiting": 1}, out) as worker:
        while worker.wait(0.2):
            pass
        worker.confirm()


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that `work` took, and the processor seconds of this process and of all it waited for."""
    begun, used = time.monotonic(), processor()
    work()
    return time.monotonic() - begun, processor() - used


def processor() -> float:
    """Return the processor seconds of this process and of its ended children until now."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in both)


if __name__ == "__main__":
    main(*sys.argv[1:3])
