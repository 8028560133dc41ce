"""Who tunes an audit's blocks: rooms that are given one boundary after the other, here or elsewhere."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from requant.building.inputs import Inputs
from requant.building.workplace import furnish
from requant.environment import environment_digest, read_lock
from requant.errors import BuildError
from requant.inventory import blocks
from requant.progress import Tell
from requant.recipe import Recipe
from requant.rooms.choice import choose
from requant.rooms.runner import Room, Running

REPORT = "room.json"
"""What a room says of itself: its hardware class, among others."""


@dataclass(frozen=True)
class Setting:
    """What every room of an audit is given, whatever its task is."""

    recipe: Recipe
    twin: str | None
    inputs: Inputs
    environment: str
    room: Room

    @property
    def names(self) -> list[str]:
        """All blocks of the model, in the order of tuning."""
        return blocks(json.loads((self.inputs.base / "config.json").read_text()))

    def start(self, folder: Path, task: Mapping[str, Any], *readable: Path) -> Running:
        """Start a room on a new folder; `readable` is what it reads beside base and text."""
        folder.mkdir(parents=True)
        task = {**task, "accelerator": self.room.accelerator}
        furnish(folder, self.recipe, self.twin, self.inputs, self.environment, task)
        return self.room.start(folder, (self.inputs.base, self.inputs.text, *readable))


def prepare(recipe: Recipe, twin: str | None, inputs: Inputs, tell: Tell, runner: str = "venv") -> Setting:
    """Make the environment of a recipe, or of its twin, and say what its rooms are given.

    `runner` is one of `rooms.choice.RUNNERS`.

    Raises LockError for a lock that is stale, NotAvailableError where the environment cannot be made here.
    """
    lock = read_lock(recipe.lockfiles, recipe.effort(twin is not None).environment)
    room = choose(recipe, twin, runner, tell).room
    return Setting(recipe, twin, inputs, environment_digest(recipe.lockfiles, lock), room)


class Crew(Protocol):
    """Tunes blocks, several at a time. As a context manager it leaves no room behind."""

    size: int
    """How many blocks are tuned at a time."""

    def free(self) -> bool:
        """Say whether another block can be given."""

    def give(self, number: int, boundary: Path) -> None:
        """Have a block tuned; the boundary's folder is the crew's from now on."""

    def take(self) -> Iterator[tuple[int, Path]]:
        """Yield what has been tuned by now: a block's number and the folder of its answer, the caller's from now on.

        The answer is a block's record and what it was packed to, and beside them what the room said of itself.

        Raises BuildError where a block cannot be tuned.
        """

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class Local:
    """Rooms on this machine, one block each at a time."""

    def __init__(self, setting: Setting, folder: Path, size: int) -> None:
        """Start `size` rooms in `folder`."""
        self.size = size
        self._rooms: list[Running] = []
        self._jobs: dict[int, int] = {}
        with ExitStack() as stack:
            for number in range(size):
                self._rooms.append(stack.enter_context(setting.start(folder / f"{number}", {"task": "tune"})))
                (self._rooms[-1].folder / "jobs").mkdir(exist_ok=True)
            self._stack = stack.pop_all()

    def free(self) -> bool:
        """Say whether a room has nothing to do."""
        return len(self._jobs) < self.size

    def give(self, number: int, boundary: Path) -> None:
        """Give a block to a room that has nothing to do."""
        room = next(each for each in range(self.size) if each not in self._jobs.values())
        boundary.rename(self._rooms[room].folder / "jobs" / boundary.name)
        self._jobs[number] = room

    def take(self) -> Iterator[tuple[int, Path]]:
        """Yield what has been tuned by now; raise BuildError with a room's own words where it has ended."""
        for number, each in list(self._jobs.items()):
            room = self._rooms[each]
            alive = room.poll()
            answer = room.folder / "answers" / f"{number:05d}"
            if answer.exists():
                del self._jobs[number]
                shutil.rmtree(room.folder / "jobs" / answer.name)
                shutil.copyfile(room.folder / REPORT, answer / REPORT)
                yield number, answer
            elif not alive:
                room.confirm()
                raise BuildError(f"the room that tuned block {number} has ended without an answer", "Report this.")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def passed(folder: Path) -> Sequence[dict[str, Any]]:
    """Return what a replaying room has said by now of the blocks that it came to, in order."""
    path = folder / "passed.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
