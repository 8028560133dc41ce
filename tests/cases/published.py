"""A project of one recipe, and a tiny build of it with records: everything that is published, without the worker.

Its weights are rounded and not tuned; its journal is the recorded one, and its statement says of these files what the
recorded one says of its own.
"""

import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.cases.tiny_models import full_range, healthy
from tests.conftest import ROOT

from requant.build import RECORDED, beside
from requant.checkpoint.checkpoint import write_checkpoint
from requant.checkpoint.manifest import make_manifest
from requant.digest import strict_json
from requant.evidence.statements import in_toto
from requant.recipe import Recipe, read_recipe

COPIED = ("recipe.toml", "plan.json", "baseline.toml")


@dataclass(frozen=True)
class Project:
    """A project, and a checkpoint in it that is a build of its recipe; `files` are that one's, path to SHA-256."""

    place: Path
    recipe: Recipe
    checkpoint: Path
    files: dict[str, str]

    @property
    def registry(self) -> Path:
        return self.recipe.path.parent.parent

    def record(self) -> None:
        """Record the build in the project, as `build --record` does."""
        for each in RECORDED:
            shutil.copyfile(beside(self.checkpoint, each), self.recipe.beside(f"mini.{each}"))


@cache
def _built(place: Path) -> Path:
    """Write the checkpoint once in a session."""
    write_checkpoint(healthy("ec", "mini", full_range), place / "ec")
    return place / "ec"


def project(place: Path, shared: Path) -> Project:
    """Make a project in a new folder; the checkpoint's bytes are made once, in `shared`."""
    builds = place / "builds"
    (builds / "ec").mkdir(parents=True)
    for name in COPIED:
        shutil.copyfile(ROOT / "builds" / "ec" / name, builds / "ec" / name)
    for name in ("bases", "datasets"):
        shutil.copytree(ROOT / "builds" / name, builds / name)
    shutil.copytree(ROOT / "lockfiles", place / "lockfiles")
    for path in ROOT.glob("Dockerfile.*"):
        shutil.copyfile(path, place / path.name)
    checkpoint = place / "out" / "ec"
    shutil.copytree(_built(shared), checkpoint)
    manifest = make_manifest(checkpoint)
    files = {path: each.sha256 for path, each in manifest.files.items()}
    beside(checkpoint, RECORDED[0]).write_bytes(manifest.to_json())
    shutil.copyfile(ROOT / "builds" / "ec" / "mini.journal.jsonl", beside(checkpoint, RECORDED[1]))
    value = strict_json((ROOT / "builds" / "ec" / "mini.intoto.jsonl").read_bytes())
    statement = in_toto(files, value["predicateType"], value["predicate"])
    beside(checkpoint, RECORDED[2]).write_bytes(statement)
    return Project(place, read_recipe(builds / "ec"), checkpoint, files)
