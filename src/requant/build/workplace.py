"""The folders in which workers work: what they find there, and what is left of them when they were stopped."""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from requant.environment.identity import worker_sources
from requant.errors import BuildError, UsageError
from requant.protocol import RESUME, Task, ask
from requant.recipe import FILE, Recipe


@contextmanager
def workplace(out: Path, *, fresh: bool) -> Iterator[Path]:
    """Give a folder beside `out` that is this process's alone; of a stopped build it holds the resume state.

    It is left behind only where the resume state holds a tuned block. Raises UsageError where another process has it.
    """
    work = out.resolve().with_name(f".{out.name}.unfinished")
    work.mkdir(parents=True, exist_ok=True)
    lock = work / "lock"
    with lock.open("w") as guard:
        if not _taken(guard):
            raise UsageError(f"{out}: another build is making it", "Wait for it, or name another --out.")
        if not lock.exists() or not os.path.samestat(lock.stat(), os.fstat(guard.fileno())):
            raise UsageError(f"{out}: another build has just ended", "Try again.")  # it took the lock with it
        _clear(work, "" if fresh else RESUME)
        try:
            yield work
        finally:
            if any((work / RESUME / "blocks").glob("*.safetensors")):
                _clear(work, RESUME)
            else:
                shutil.rmtree(work)


@contextmanager
def scratch(place: Path) -> Iterator[Path]:
    """Give a folder in `place` that is this process's; what processes that were killed have left there is removed.

    Where nothing can be written there, as in a read-only cache, the folder is a temporary one.
    """
    with ExitStack() as stack:
        if not _writable(place):
            yield Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="requant-")))
            return
        with alone(place):
            for left in place.glob("*/lock"):
                with left.open("w") as guard:
                    if _taken(guard):  # or its process lives
                        shutil.rmtree(left.parent)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=place)))
            fcntl.flock(stack.enter_context((folder / "lock").open("w")), fcntl.LOCK_EX)
        yield folder


def _writable(place: Path) -> bool:
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(place, os.W_OK)


def _taken(guard: IO[str]) -> bool:
    """Take a lock, if nobody has it."""
    try:
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def alone(place: Path) -> Iterator[None]:
    """Wait until no other process makes or fetches in `place` something for all of them."""
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield


def kept(work: Path, taints: tuple[str, ...]) -> tuple[str, ...]:
    """Return these taints and those of the runs that this one goes on from; note them for the next one.

    Raises BuildError where what was noted cannot be read.
    """
    place = work / RESUME / "taints.json"
    place.parent.mkdir(exist_ok=True)
    try:
        before = tuple(json.loads(place.read_bytes())) if place.exists() else ()
    except (OSError, ValueError, TypeError) as error:
        raise BuildError(f"{place}: cannot be read: {error}", "Start anew: --fresh.") from None
    everything = tuple(dict.fromkeys((*before, *taints)))
    if everything != before:
        part = place.with_suffix(".part")
        with part.open("w") as file:
            json.dump(everything, file)
            file.flush()
            os.fsync(file.fileno())
        part.rename(place)
    return everything


def set_up(work: Path, recipe: Recipe | None, task: Task) -> None:
    """Lay out in `work` what the worker finds there: its sources, the recipe where it needs one, and what is asked."""
    for name, data in worker_sources().items():
        path = work / "sources" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    if recipe:
        shutil.copyfile(recipe.path, work / FILE)
    ask(work, task)


def _clear(work: Path, keep: str) -> None:
    for path in work.iterdir():
        if path.name in (keep, "lock"):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
