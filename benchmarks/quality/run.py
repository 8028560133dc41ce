"""The experiment: does tuning the MTP block, and does more calibration, make a model better? `nox -s quality`.

A model that was trained (train.py) is quantized by recipes that differ in one thing each, and held against itself, on
text that neither training nor calibration has seen. What comes of it is written into results.json, and from there into
docs/quality.md. Builds and evaluations of the same inputs that are there already, in `out/quality`, are taken as they
stand.

One tuning serves three recipes: what `mtp.policy` copies or rounds is done by the passes, behind the tuning, and an
MTP block that is tuned is tuned last. So the checkpoints of `rtn` and `bf16` are made by the passes from what was tuned
for `calibrated`; that they are what a build of their own gives is held by building `rtn` once.
"""

import json
import re
import resource
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requant.evaluate
from requant import passes
from requant.build import beside, build
from requant.check.reader import open_reader
from requant.checkpoint.checkpoint import open_checkpoint, write_checkpoint
from requant.checkpoint.files import list_files
from requant.checkpoint.manifest import make_manifest, read_manifest
from requant.digest import canonical_json, sha256, sha256_file
from requant.environment import Environment
from requant.environment.install import virtual_environment
from requant.evaluate.evaluation import Evaluation, read_evaluation
from requant.evaluate.measures import Interval
from requant.evidence.journal import read_journal
from requant.evidence.statements import hardware_of
from requant.model.target import target_of
from requant.new import new
from requant.programs import run
from requant.progress import Progress
from requant.recipe import Recipe, read_recipe

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BASE = HERE / "base"
RESULTS = HERE / "results.json"
TEXTS = HERE / "texts.json"
STEPS = 400
SEEDS = (42, 43)
SAMPLES, LENGTH = 256, 256
"""Held-out sequences, and tokens of each."""
EFFORTS = {
    "none": {"iterations": 0, "samples": 128, "sequence_length": 64},
    "default": {"iterations": 200, "samples": 128, "sequence_length": 64},
    "extended": {"iterations": 400, "samples": 256, "sequence_length": 128},
}
"""AutoRound's default preset, and what EC's card calls extended; tokens of a sample are a 32nd of theirs."""
RECIPES = {
    "rounded": ("none", "rtn"),
    "rtn": ("default", "rtn"),
    "calibrated": ("default", "calibrated"),
    "bf16": ("default", "bf16"),
    "extended": ("extended", "calibrated"),
}
"""Each recipe's effort and its `mtp.policy`; `rounded` is rounded to nearest throughout, whatever the seed."""
PAIRS = (("calibrated", "rtn"), ("bf16", "calibrated"), ("extended", "calibrated"), ("calibrated", "rounded"))
"""What is held against what."""


def _work() -> Path:
    inputs = [sha256_file(path) for path in (*sorted(BASE.glob("*.safetensors")), TEXTS) if path.exists()]
    asked = [EFFORTS, RECIPES, SAMPLES, LENGTH, Environment.load(ROOT / "lockfiles", "cpu").digest]
    return ROOT / "out" / "quality" / sha256(canonical_json([inputs, asked]))[:12]


WORK = _work()
"""Where all is made: another folder for other inputs."""


def tell(now: Progress) -> None:
    """Say where a build is, where that is new."""
    if not now.done:
        print(time.strftime("%H:%M:%S"), now.stage, now.note, flush=True)


def python(program: str, *words: object) -> str:
    """Run a program of this folder in the locked environment `cpu`."""
    lock = Environment.load(ROOT / "lockfiles", "cpu").lock
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "LC_ALL": "C.UTF-8"}
    command = [str(virtual_environment(lock, tell)), "-s", "-B", str(HERE / program), *map(str, words)]
    return run(command, env=env)


def texts(folder: Path) -> dict[str, Path]:
    """Write the parts of the text, and hold them against their digests."""
    folder.mkdir(parents=True, exist_ok=True)
    python("texts.py", folder)
    found = {path.stem: path for path in folder.glob("*.jsonl")}
    recorded = json.loads(TEXTS.read_text())
    for name, path in sorted(found.items()):
        if sha256_file(path) != recorded[name]:
            raise ValueError(f"{path}: its SHA-256 is {sha256_file(path)}, and {TEXTS} states {recorded[name]}")
    return found


def train() -> None:
    """Train the model anew, and put it in the place of the one that is committed."""
    folder = WORK / "trained"
    shutil.rmtree(folder, ignore_errors=True)
    print(python("train.py", texts(WORK / "texts")["train"], folder, STEPS))
    shutil.rmtree(BASE, ignore_errors=True)
    shutil.copytree(folder / "base", BASE)


def recipe_for(name: str, seed: int, project: Path) -> Recipe:
    """Return a recipe of the experiment, made of the one that `requant new` wrote."""
    effort, policy = RECIPES[name]
    folder = project / "builds" / f"{name}-{seed}"
    shutil.copytree(project / "builds" / "quality", folder, dirs_exist_ok=True)
    text, tiny = (folder / "recipe.toml").read_text().split("\n[tiny]\n")
    for key, value in {**EFFORTS[effort], "seed": seed, "batch_size": 8, "policy": f'"{policy}"'}.items():
        text, count = re.subn(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.MULTILINE)
        if count != 1:
            raise ValueError(f"{folder / 'recipe.toml'}: {count} lines for {key}")
    for key in ("learning_rate", "minmax_learning_rate"):
        text = re.sub(rf"^{key} = .*$", f'{key} = "1/iterations"', text, flags=re.MULTILINE)
    if EFFORTS[effort]["iterations"] == 0:
        text = text.replace("low_gpu_memory = false", "low_gpu_memory = false\nsearch_scales = false")
        tiny = re.sub(r"^iterations = .*$", "iterations = 0", tiny, flags=re.MULTILINE)
    (folder / "recipe.toml").write_text(f"{text}\n[tiny]\n{tiny}")
    return read_recipe(folder)


def built(recipe: Recipe) -> Path:
    """Build a recipe's checkpoint, where it is not here yet, and keep what AutoRound wrote."""
    out = WORK / recipe.name
    if not out.exists():
        before = processor_seconds()
        build(recipe, tiny=None, out=out, base=BASE, keep_raw=True, tell=tell)
        beside(out, "seconds").write_text(f"{processor_seconds() - before:.1f}\n")
    return out


def processor_seconds() -> float:
    """Return what programs that this one started have taken of processors, which is no matter of what else runs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def passed(recipe: Recipe, tuned: Path) -> Path:
    """Make a recipe's checkpoint by the passes, from what was tuned for another one of the same blocks."""
    out = WORK / recipe.name
    if not out.exists():
        raw = open_checkpoint(beside(tuned, "raw"))
        version = json.loads(raw.file("quantization_config.json"))["autoround_version"]
        effort = recipe.effort(tiny=False)
        context = passes.Context(open_checkpoint(BASE), target_of(recipe, None), recipe, effort, version)
        write_checkpoint(passes.apply(raw, context), out.with_suffix(".part"))
        out.with_suffix(".part").rename(out)
    return out


def evaluated(checkpoint: Path, text: Path) -> Evaluation:
    """Measure a checkpoint, where that is not done yet."""
    out = checkpoint.with_name(f"{checkpoint.name}.evaluation.json")
    if not out.exists():
        environment = Environment.load(ROOT / "lockfiles", "cpu")
        held_out = requant.evaluate.held_out(text)
        with open_reader(str(checkpoint)) as theirs, open_reader(str(BASE)) as ours:
            found = requant.evaluate.evaluate(
                theirs, ours, held_out, environment, samples=SAMPLES, length=LENGTH, sandbox="venv", tell=tell
            )
        out.write_text(found.to_text())
    return read_evaluation(out)


def checkpoints(seed: int, project: Path) -> dict[str, Path]:
    """Make all checkpoints of a seed."""
    recipes = {name: recipe_for(name, SEEDS[0] if name == "rounded" else seed, project) for name in RECIPES}
    rounded = built(recipes["rounded"])
    calibrated = built(recipes["calibrated"])
    made = {name: passed(recipes[name], calibrated) for name in ("rtn", "bf16")}
    return made | {"rounded": rounded, "calibrated": calibrated, "extended": built(recipes["extended"])}


def hold(seed: int, project: Path) -> bool:
    """Build `rtn` by itself, and say whether it is the checkpoint that the passes made."""
    alone = recipe_for("rtn", seed, project)
    out = WORK / f"{alone.name}-built"
    if not out.exists():
        build(alone, tiny=None, out=out, base=BASE, tell=tell)
    return make_manifest(WORK / alone.name).files == read_manifest(beside(out, "manifest.json")).files


def intervals(found: Mapping[str, Interval]) -> dict[str, list[float]]:
    """Return intervals as they are stored: value, low, high."""
    return {name: [each.value, each.low, each.high] for name, each in found.items()}


def tuning(checkpoint: Path) -> dict[str, Any]:
    """Return what the tuning took, and where each block's loss began and was best."""
    losses = [block.loss for block in read_journal(beside(checkpoint, "journal.jsonl")).blocks]
    return {
        "processor seconds": float(beside(checkpoint, "seconds").read_text()),
        "losses": [
            [float.fromhex(each.initial), float.fromhex(each.best), each.best_iteration] for each in losses if each
        ],
    }


def main(words: list[str]) -> None:
    """Do all of it, for the seeds that are named or for `SEEDS`; or with `--train` only train the model anew."""
    if "--train" in words:
        train()
        return
    parts = texts(WORK / "texts")
    seeds = tuple(int(each) for each in words if each.isdigit()) or SEEDS
    project = WORK / "project"
    if not (project / "builds" / "quality").exists():
        new(str(BASE), "quality", project, environment="cpu", text=parts["calibration"], sandbox="venv", tell=tell)
    rows, differing, hardware = [], [], {}
    for seed in seeds:
        made = checkpoints(seed, project)
        found = {name: evaluated(path, parts["held-out"]) for name, path in made.items()}
        for name, each in found.items():
            if name == "rounded" and seed != seeds[0]:
                continue
            size = sum(path.stat().st_size for path in list_files(made[name]).values())
            row = {"recipe": name, "seed": seed, "bytes": size, "weights": each.digests.checkpoint}
            row |= {"measures": intervals(each.measures)}
            rows.append(row | (tuning(made[name]) if beside(made[name], "journal.jsonl").exists() else {}))
        for one, other in PAIRS:
            against = found[one].compared(found[other]).against
            assert against
            differing.append(
                {"recipe": one, "less": other, "seed": seed, "differences": intervals(against.differences)}
            )
        hardware = hardware_of(beside(made["calibrated"], "intoto.jsonl"))
    value = {
        "generator": "nox -s quality",
        "hardware": hardware,
        "base": {path.name: sha256_file(path) for path in sorted(BASE.glob("*.safetensors"))},
        "texts": json.loads(TEXTS.read_text()),
        "evaluated": {"samples": SAMPLES, "length": LENGTH},
        "efforts": EFFORTS,
        "rtn built by itself is the same files": hold(seeds[0], project),
        "rows": rows,
        "differences": differing,
    }
    RESULTS.write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
