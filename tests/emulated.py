"""Tunes a very small tiny model on this CPU and on emulated ones, and compares the journals line by line.

Run by `nox -s cpus`, not by pytest: it needs `qemu-x86_64` (Debian and Ubuntu: apt-get install qemu-user), and an
emulated CPU is some sixty times slower. Words after the program's name are CPU models, as `qemu-x86_64 -cpu help`
lists them; they must have AVX2. Every other measure is the worker's own: only the words that start it are other ones.
"""

import json
import re
import shlex
import sys
import tempfile
import time
from itertools import zip_longest
from pathlib import Path
from typing import Any
from unittest import mock

from requant.build import beside, build
from requant.environment import install as installation
from requant.recipe import read_recipe

ROOT = Path(__file__).parent.parent
MODELS = ("Haswell", "EPYC")
SMALL = {"batch_size": 2, "iterations": 3, "samples": 2, "sequence_length": 16}
"""What is reduced in the recipe `ec`, so far that one emulated CPU takes a few minutes."""


def small_recipe(folder: Path) -> Path:
    """Write the recipe `ec` with a smaller tiny model below `folder`, where it finds the lock; return its folder."""
    text = (ROOT / "builds" / "ec" / "recipe.toml").read_text()
    for key, value in SMALL.items():
        head, found, tail = text.rpartition(f"\n{key} = ")  # the last: a key that stands twice is last the tiny model's
        assert found, key
        text = head + re.sub(r"^[^\n]*", f"\n{key} = {value}", tail, count=1)
    (folder / "lockfiles").symlink_to(ROOT / "lockfiles")
    recipe = folder / "builds" / "small"
    recipe.mkdir(parents=True)
    (recipe / "recipe.toml").write_text(text)
    (recipe / "plan.json").symlink_to(ROOT / "builds" / "ec" / "plan.json")
    (recipe.parent / "bases").symlink_to(ROOT / "builds" / "bases")
    return recipe


def journal(recipe: Path, out: Path, emulator: list[str]) -> list[str]:
    """Build the tiny model with the worker's Python started by `emulator`; return the lines of its journal."""
    original = installation.virtual_environment
    started = out.with_suffix(".started")

    def emulated(*args: Any) -> Path:
        words = [*emulator, str(original(*args))]
        script = out.with_suffix(".worker") / "bin" / "python"
        script.parent.mkdir(parents=True)
        script.write_text(f'#!/bin/sh\n: > {shlex.quote(str(started))}\nexec {shlex.join(words)} "$@"\n')
        script.chmod(0o755)
        return script

    with mock.patch("requant.sandbox.choice.virtual_environment", emulated):
        built = build(read_recipe(recipe), tiny="mini", out=out)
    assert started.exists(), "the worker was started by other words than these, and nothing was emulated"
    return beside(built.folder, "journal.jsonl").read_text().splitlines()


def differing(one: str, other: str) -> list[str]:
    """Return the keys whose values differ between two lines; `previous` alone differs where an earlier line did."""
    first, second = json.loads(one), json.loads(other)
    return [key for key in sorted(first.keys() | second.keys()) if first.get(key) != second.get(key)]


def main(models: tuple[str, ...]) -> int:
    """Compare this CPU with each model; return the number of lines that differ."""
    different = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = small_recipe(folder)
        expected = journal(recipe, folder / "native", [])
        for model in models:
            started = time.monotonic()
            found = journal(recipe, folder / model, ["qemu-x86_64", "-cpu", model])
            lines = [differing(*pair) for pair in zip_longest(expected, found, fillvalue="{}")]
            different += sum(map(bool, lines))
            said = [f"{lines.count([])} of {len(lines)} lines of the journal are equal"]
            said += [f"line {number}: {', '.join(keys)} differ" for number, keys in enumerate(lines, 1) if keys]
            sys.stdout.write(f"{model}: {'; '.join(said)}; {time.monotonic() - started:.0f} s\n")
            sys.stdout.flush()
    return different


if __name__ == "__main__":
    raise SystemExit(min(main(tuple(sys.argv[1:]) or MODELS), 1))
