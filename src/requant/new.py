"""`new SOURCE --name NAME`: a recipe for a base, with everything that a build of it needs.

What is written stands in a project: a folder with `builds/` and `lockfiles/`, such as a clone of requant or one's own.
The base is read by its headers, config.json and digests; AutoRound is asked what it would pack (`build.survey`).
"""

import json
import math
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from requant.build.inputs import LOCAL
from requant.build.survey import ask
from requant.checkpoint.checkpoint import open_checkpoint
from requant.checkpoint.files import list_files
from requant.checkpoint.manifest import read_file
from requant.digest import canonical_json, sha256, strict_json
from requant.errors import CheckpointError, NotAvailableError, UsageError
from requant.model.plan import BASE, FILE, write_plans
from requant.model.rules import SIZES
from requant.model.shrink import shrink
from requant.model.summary import Summary, summarize
from requant.model.tables import table_of
from requant.model.target import question
from requant.progress import Progress, Tell, silent
from requant.recipe import FILE as RECIPE
from requant.recipe import Recipe, read_recipe

Preset = Literal["default", "best", "light"]
Environment = Literal["cpu", "cu124", "gb10"]

PRESETS: Mapping[Preset, tuple[int, int, str]] = {
    "default": (200, 128, '"1/iterations"'),
    "best": (1000, 512, '"1/iterations"'),
    "light": (50, 128, "0.005"),
}
"""Iterations, samples and learning rate of AutoRound's own recipes (`RECIPES`, auto_round/__main__.py of 0.12.2)."""

ACCELERATORS: Mapping[Environment, str] = {"cpu": "", "cu124": "NVIDIA H200", "gb10": "NVIDIA GB10"}
TEXT = "pile-10k.json"
GIB = 1 << 30
SHARD = 5 << 30
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
_PACKED_SHARE = 0.3
"""Of a base's bytes in BF16, what a checkpoint of 4 bits has, roughly: it decides about the number of files only."""


@dataclass(frozen=True)
class New:
    """What was written for a base, and what a build of it makes and takes."""

    recipe: Recipe
    files: tuple[Path, ...]
    summary: Summary
    hours: float


def new(
    source: Path,
    name: str,
    project: Path,
    *,
    preset: Preset = "default",
    environment: Environment = "cu124",
    sandbox: str = "venv",
    tell: Tell = silent,
) -> New:
    """Write `builds/NAME/` of a project for the base in the folder `source`.

    Raises UsageError for a name that is taken or cannot be one, CheckpointError for a base that cannot be read,
    RecipeError for a config.json that no rule shrinks, BuildError where AutoRound does not take the model.
    """
    builds = project / "builds"
    if not _NAME.fullmatch(name):
        raise UsageError(f"--name {name}: expected lower-case letters, digits and hyphens, at most 40")
    if (builds / name).exists():
        raise UsageError(f"{builds / name}: already exists", "Choose another --name, or remove it.")
    config = _config(source)
    specs = {key: tensor.spec for key, tensor in open_checkpoint(source).tensors.items()}
    tiny = {size: shrink(config, size) for size in SIZES}
    pins = _pins(source, tell)
    written = [*_brought_along(project, environment)]
    builds.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=builds) as folder:
        place = Path(folder)
        bytes_of_base = sum(spec.nbytes for spec in specs.values())
        hours = _hours(bytes_of_base, preset)
        text = _recipe(name, pins, config, specs, preset, environment, hours, bytes_of_base)
        (place / RECIPE).write_text(text)
        asked = read_recipe(place)
        plans = ask(asked, {BASE: config, **tiny}, specs, sandbox=sandbox, tell=tell)
        write_plans(place / FILE, question(asked), plans)
        bases = builds / "bases"
        bases.mkdir(exist_ok=True)
        for file, value in ((bases / f"{name}.json", pins), (bases / f"{name}.config.json", config)):
            file.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
            written.append(file)
        place.chmod(0o755)
        place.rename(builds / name)
        place.mkdir()  # for the context manager to remove
    recipe = read_recipe(builds / name)
    written += [recipe.path, recipe.beside(FILE)]
    return New(recipe, tuple(written), summarize(recipe), hours)


def _config(source: Path) -> dict[str, Any]:
    file = source / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{source}: no folder of a model: it has no config.json")
    try:
        config = strict_json(file.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{file}: not JSON as requant reads it: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: not a JSON object")
    return config


def _pins(source: Path, tell: Tell) -> dict[str, Any]:
    """Return the pins of a folder's files; a folder has no revision, so its files' digests stand for one."""
    files: dict[str, dict[str, Any]] = {}
    for path, file in sorted(list_files(source).items()):
        tell(Progress("hashing", note=path))
        record, _ = read_file(file, path)
        files[path] = {"bytes": record.bytes, "sha256": record.sha256}
    label = re.sub(r"[^A-Za-z0-9]+", "-", source.resolve().name).strip("-") or "base"
    return {
        "schema": 1,
        "kind": "model",
        "repository": f"{LOCAL}{label}",
        "revision": sha256(canonical_json(files))[:40],
        "provenance": "Read by requant new from a folder; the revision is the beginning of the digest of all of these.",
        "files": files,
    }


def _brought_along(project: Path, environment: str) -> list[Path]:
    """Copy what a project of one's own lacks: locks, Dockerfiles and the pins of the calibration text."""
    ours = _shipped()
    wanted = [f"lockfiles/{each}.{end}" for each in {environment, "cpu"} for end in ("in", "txt", "files")]
    wanted += [f"Dockerfile.{each}" for each in {environment, "cpu"}]
    wanted += [f"lockfiles/{each.name}" for each in (ours / "lockfiles").glob("build-*")]
    wanted += ["lockfiles/images.toml", f"builds/datasets/{TEXT}"]
    written = []
    for path in sorted(wanted):
        if not (project / path).exists():
            (project / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ours / path, project / path)
            written.append(project / path)
    return written


def _shipped() -> Path:
    """Return the folder with the locks that this package brings along; of an editable install, the clone."""
    package = Path(str(resources.files("requant")))
    for place in (package / "project", package.parent.parent):
        if (place / "lockfiles" / "cpu.txt").exists():
            return place
    raise NotAvailableError("this installation of requant has no lockfiles", "Install it again: pipx install requant.")


def _hours(size: int, preset: Preset) -> float:
    """Estimate a build on an H200: that of EC, 9 hours for 72 GB, 400 iterations of 8 x 4,096 tokens, scaled."""
    iterations, _, _ = PRESETS[preset]
    return max(0.1, round(9.0 * size / 71.9e9 * iterations / 400 * 2048 / 4096, 1))


def _recipe(
    name: str,
    pins: Mapping[str, Any],
    config: Mapping[str, Any],
    specs: Mapping[str, Any],
    preset: Preset,
    environment: Environment,
    hours: float,
    size: int,
) -> str:
    iterations, samples, rate = PRESETS[preset]
    table = table_of(str(config.get("model_type")))
    mtp = table.extras.get("mtp")
    has_mtp = bool(mtp) and any(each.startswith(str(mtp)) for each in specs)
    gpu = environment != "cpu"
    memory = math.ceil(1.2 * size / GIB)
    text = resources.files("requant").joinpath("recipe.toml.template").read_text()
    values = {
        "environment": environment,
        "repository": pins["repository"],
        "revision": pins["revision"],
        "base": f"../bases/{name}.json",
        "iterations": iterations,
        "samples": samples,
        "rate": rate,
        "precision": "bfloat16" if gpu else "float32",
        "ignore": json.dumps(list(table.mtp_float) if has_mtp else []),
        "mtp": "rtn" if has_mtp else "none",
        "shards": max(1, math.ceil(_PACKED_SHARE * size / SHARD)),
        "device": "cuda" if gpu else "cpu",
        "accelerator": ACCELERATORS[environment],
        "memory": memory if gpu else 0,
        "host_memory": 2 * memory + 4,
        "hours": f"{hours:.1f}",
    }
    for key, value in values.items():
        text = text.replace(f"@{key}@", str(value))
    return text
