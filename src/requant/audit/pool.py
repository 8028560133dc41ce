"""Who tunes an audit's blocks: workers that are given the inputs of one block after the other, here or elsewhere."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, Self

from requant.build.inputs import Inputs
from requant.build.workplace import set_up
from requant.environment import Environment
from requant.errors import BuildError
from requant.model.target import Target, target_of
from requant.progress import Tell
from requant.protocol import ANSWERS, INPUTS, JOBS, REPORT, Connect, Passed, Replay, Task, Tune, Tuning, label, passed
from requant.recipe import Recipe
from requant.sandbox.choice import choose
from requant.sandbox.running import Running, Sandbox

GLANCE = 0.1
"""Seconds between two looks at the workers."""
REPLAY = "replay"


@dataclass(frozen=True)
class Setting:
    """What every worker of an audit is given, whatever its task is."""

    recipe: Recipe
    tiny: str | None
    inputs: Inputs
    environment: Environment
    sandbox: Sandbox
    portable: bool = False
    """Whether blocks are tuned by hints, on whatever hardware this is."""

    @property
    def names(self) -> list[str]:
        """All blocks of the model, in the order of tuning."""
        return list(self.target.plan.blocks)

    @cached_property
    def target(self) -> Target:
        """What the recipe makes of the base."""
        return target_of(self.recipe, self.tiny)

    @property
    def tuning(self) -> Tuning:
        """What every task begins with."""
        return self.inputs.tuning(self.tiny, self.environment, self.sandbox.accelerator, self.target.plan)

    def start(self, folder: Path, task: Task, *readable: Path) -> Running:
        """Start a worker on a new folder; `readable` is what it reads beside base and text."""
        folder.mkdir(parents=True)
        set_up(folder, self.recipe, task)
        return self.sandbox.start(folder, (self.inputs.base, self.inputs.text, *readable))


def prepare(
    recipe: Recipe, tiny: str | None, inputs: Inputs, tell: Tell, sandbox: str = "venv", *, portable: bool = False
) -> Setting:
    """Make the environment of a recipe, or of its tiny model, and say what its workers are given.

    `sandbox` is one of `sandbox.choice.SANDBOXES`.

    Raises LockError for a lock that is stale, NotAvailableError where the environment cannot be made here.
    """
    environment = Environment.load(recipe.lockfiles, recipe.effort(tiny is not None).environment)
    chosen = choose(recipe, tiny, environment, sandbox, tell).sandbox
    return Setting(recipe, tiny, inputs, environment, chosen, portable)


class WorkerPool(Protocol):
    """Tunes blocks, several at a time. As a context manager it leaves no worker behind."""

    size: int
    """How many blocks are tuned at a time."""

    def free(self) -> bool:
        """Say whether another block can be given."""

    def give(self, number: int, block_inputs: Path) -> None:
        """Have a block tuned; the block inputs' folder is the worker pool's from now on."""

    def take(self) -> Iterator[tuple[int, Path]]:
        """Yield what has been tuned by now: a block's number and the folder of its answer, the caller's from now on.

        The answer is a block's record and what it was packed to, and beside them what the worker said of itself.

        Raises BuildError where a block cannot be tuned.
        """

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class Local:
    """Workers on this machine, one block each at a time."""

    def __init__(self, setting: Setting, folder: Path, size: int) -> None:
        """Start `size` workers in `folder`."""
        self.size = size
        self._workers: list[Running] = []
        self._jobs: dict[int, int] = {}
        with ExitStack() as stack:
            for number in range(size):
                task = Tune(setting.tuning, setting.portable)
                self._workers.append(stack.enter_context(setting.start(folder / f"{number}", task)))
                (self._workers[-1].folder / JOBS).mkdir(exist_ok=True)
            self._stack = stack.pop_all()

    def free(self) -> bool:
        """Say whether a worker has nothing to do."""
        return len(self._jobs) < self.size

    def give(self, number: int, block_inputs: Path) -> None:
        """Give a block to a worker that has nothing to do."""
        worker = next(each for each in range(self.size) if each not in self._jobs.values())
        block_inputs.rename(self._workers[worker].folder / JOBS / block_inputs.name)
        self._jobs[number] = worker

    def take(self) -> Iterator[tuple[int, Path]]:
        """Yield what has been tuned by now; raise BuildError with a worker's own words where it has ended."""
        for number, each in list(self._jobs.items()):
            worker = self._workers[each]
            alive = worker.poll()
            answer = worker.folder / ANSWERS / label(number)
            if answer.exists():
                del self._jobs[number]
                shutil.rmtree(worker.folder / JOBS / answer.name)
                shutil.copyfile(worker.folder / REPORT, answer / REPORT)
                yield number, answer
            elif not alive:
                worker.confirm()
                raise BuildError(f"the worker that tuned block {number} has ended without an answer", "Report this.")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


MakePool = Callable[[Setting, Path], WorkerPool]
Dress = Callable[[int, Path], bool]
Watch = Callable[[Path, Sequence[Passed], set[int]], set[int]]


def answers(
    setting: Setting,
    task: Replay | Connect,
    readable: Sequence[Path],
    make_pool: MakePool,
    work: Path,
    dress: Dress,
    watch: Watch,
) -> Iterator[tuple[int, Path]]:
    """Let one worker replay, in `work/replay`, and a pool tune the blocks that it comes to; yield number and answer.

    `dress` adds to the inputs of a block what else its worker is to have, and says whether one is to have them at all.
    `watch` is called several times a second with the replaying worker's folder, the blocks that it has come to, and
    those that are open; it returns those to give up.

    Raises BuildError where a worker fails.
    """
    left, given = {*task.blocks}, set[int]()
    with make_pool(setting, work / "pool") as pool, setting.start(work / REPLAY, task, *readable) as chain:
        while left:
            running = chain.poll()
            lines = passed(chain.folder)
            left -= watch(chain.folder, lines, left)
            for number in sorted(number for number in left - given if number < len(lines)):
                block_inputs = chain.folder / INPUTS / label(number)
                if not pool.free() or not block_inputs.exists():
                    break
                if dress(number, block_inputs):
                    pool.give(number, block_inputs)
                    given.add(number)
                else:
                    shutil.rmtree(block_inputs)
                    left.discard(number)
            for number, answer in pool.take():
                if number not in left:  # given before it was known that its inputs are not the journal's
                    continue
                yield number, answer
                shutil.rmtree(answer)
                left.discard(number)
            if not running:
                chain.confirm()
                if not all((chain.folder / INPUTS / label(number)).exists() for number in left - given):
                    raise BuildError("the replaying worker has ended before all chosen blocks", "Report this.")
            time.sleep(GLANCE)
