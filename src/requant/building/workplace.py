"""The folder in which a room works: what it finds there, and what is left of it when it was stopped."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from requant.building.inputs import Inputs
from requant.environment import room_sources
from requant.errors import UsageError
from requant.recipe import FILE, Recipe

SPOOL = "spool"
JOURNAL = f"{SPOOL}/journal.jsonl"


@contextmanager
def workplace(out: Path, *, fresh: bool) -> Iterator[Path]:
    """Give a folder beside `out` that is this process's alone; a stopped build's spool is in it, and nothing else.

    It is left behind only where the spool holds a tuned block. Raises UsageError where another process has it.
    """
    work = out.resolve().with_name(f".{out.name}.unfinished")
    work.mkdir(parents=True, exist_ok=True)
    lock = work / "lock"
    with lock.open("w") as guard:
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"{out}: another build is making it", "Wait for it, or name another --out.") from None
        if not lock.exists() or not os.path.samestat(lock.stat(), os.fstat(guard.fileno())):
            raise UsageError(f"{out}: another build has just ended", "Try again.")  # it took the lock with it
        _clear(work, "" if fresh else SPOOL)
        try:
            yield work
        finally:
            if any((work / SPOOL / "blocks").glob("*.safetensors")):
                _clear(work, SPOOL)
            else:
                shutil.rmtree(work)


def kept(work: Path, taints: tuple[str, ...]) -> tuple[str, ...]:
    """Return these taints and those of the runs that this one goes on from; note them for the next one."""
    place = work / SPOOL / "taints.json"
    place.parent.mkdir(exist_ok=True)
    before = json.loads(place.read_text()) if place.exists() else []
    everything = tuple(dict.fromkeys((*before, *taints)))
    place.write_text(json.dumps(everything))
    return everything


def furnish(
    work: Path, recipe: Recipe, twin: str | None, inputs: Inputs, environment: str, task: Mapping[str, Any]
) -> None:
    """Lay out in `work` what the room finds there: its sources, the recipe, and what is asked of it."""
    for name, data in room_sources().items():
        path = work / "sources" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    shutil.copyfile(recipe.path, work / FILE)
    request = {
        "twin": twin,
        "base": str(inputs.base.resolve()),
        "text": str(inputs.text.resolve()),
        "environment": environment,
        "base_digest": inputs.base_digest,
        **task,
    }
    (work / "request.json").write_text(json.dumps(request))


def _clear(work: Path, keep: str) -> None:
    for path in work.iterdir():
        if path.name in (keep, "lock"):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
