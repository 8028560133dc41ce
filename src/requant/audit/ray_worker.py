"""What works on one node of a cluster: a worker of its own, made there, that tunes one block after the other.

It is handed everything: the recipe with the files that it names, and what each block is given, in chunks. It does
not know the cluster: `get`, which turns a chunk's ticket into its bytes, is all that it sees of it.
"""

import platform
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from requant.audit.pool import Local, Setting, prepare
from requant.build.inputs import LOCAL, inputs_for
from requant.build.workplace import alone, scratch
from requant.environment.install import cache
from requant.errors import BuildError, NotAvailableError, RecipeError
from requant.model.plan import FILE as PLAN
from requant.progress import silent
from requant.protocol import label
from requant.recipe import read_recipe

GLANCE = 0.1
"""Seconds between two looks at the worker."""

GRACE = 5.0
"""Seconds that a worker has to stop what it does when it is told to leave."""

Get = Callable[[Any], NDArray[np.uint8]]
"""Turns a chunk's ticket into its bytes."""


@dataclass(frozen=True)
class Order:
    """What a worker prepares for. `files` are the recipe and what it names, by their paths below one folder.

    `environment` and `base_digest` are what the one who gives the order has: a worker that gets others refuses.
    `base` is where every node finds the base; None where each has its own.
    """

    files: Mapping[str, bytes]
    recipe: str
    tiny: str | None
    base: Path | None
    environment: str
    base_digest: str
    portable: bool


def order(setting: Setting, base: Path | None) -> Order:
    """Return the order for a setting; raise RecipeError where its files are not below one folder."""
    recipe = setting.recipe
    path = recipe.path.resolve()
    root = recipe.lockfiles.parent
    wanted = [path, *setting.environment.paths]
    pins = recipe.beside(recipe.base.files).resolve()
    wanted += [recipe.beside(PLAN).resolve(), pins, pins.with_suffix(".config.json")]
    if setting.tiny is None:
        wanted.append(recipe.beside(recipe.calibration.files).resolve())
        if recipe.calibration.dataset.startswith(LOCAL):
            wanted.append(setting.inputs.text.resolve())  # it is on no hub that a node could ask
    for each in wanted:
        if not each.is_relative_to(root):
            raise RecipeError(f"{recipe.path}: names {each}", f"For a cluster, it must be below {root}.")
    return Order(
        files={str(each.relative_to(root)): each.read_bytes() for each in wanted},
        recipe=str(path.relative_to(root)),
        tiny=setting.tiny,
        base=base and base.resolve(),
        environment=setting.environment.digest,
        base_digest=setting.inputs.base_digest,
        portable=setting.portable,
    )


class Worker:
    """One worker on this node. `leave` may be called from another thread while one of the others runs.

    The worker ends with the thread that called `prepare`, or with this process.
    """

    def __init__(self, order: Order, get: Get) -> None:
        self._order = order
        self._get = get
        self._stack = ExitStack()
        self._working = threading.Lock()
        self._leaving = threading.Event()

    def prepare(self) -> None:
        """Make the environment, find or make the base, and start the worker.

        Raises NotAvailableError where either is not what the order says, and whatever making them raises.
        """
        place = cache() / "workers"
        with self._working:
            self._folder = self._stack.enter_context(scratch(place))
            for name, data in self._order.files.items():
                path = self._folder / "order" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            recipe = read_recipe(self._folder / "order" / self._order.recipe)
            with alone(place):
                inputs = inputs_for(recipe, self._order.tiny, self._order.base, self._folder, silent)
            setting = prepare(recipe, self._order.tiny, inputs, silent, portable=self._order.portable)
            for what, found, expected in (
                ("environment", setting.environment.digest, self._order.environment),
                ("base", setting.inputs.base_digest, self._order.base_digest),
            ):
                if found != expected:
                    raise NotAvailableError(
                        f"{platform.node()}: requant {version('requant')} makes another {what} here: {found}, "
                        f"expected {expected}",
                        "Every node needs the requant of the machine that audits.",
                    )
            self._stay()
            self._pool = self._stack.enter_context(Local(setting, self._folder / "pool", 1))

    def tune(self, number: int, files: Mapping[str, Sequence[Any]]) -> dict[str, NDArray[np.uint8]]:
        """Tune a block, given the files of its block inputs as tickets of chunks; return the files of the answer.

        Raises BuildError with the worker's own words; the worker is of no use after that.
        """
        with self._working:
            block_inputs = self._folder / label(number)
            block_inputs.mkdir()
            for name, tickets in files.items():
                with (block_inputs / name).open("wb") as file:
                    for ticket in tickets:
                        self._stay()
                        self._get(ticket).tofile(file)
            self._pool.give(number, block_inputs)
            while True:
                self._stay()
                for _, answer in self._pool.take():
                    tuned = {path.name: np.fromfile(path, np.uint8) for path in answer.iterdir()}
                    shutil.rmtree(answer)
                    return tuned
                time.sleep(GLANCE)

    def leave(self) -> None:
        """End the worker and remove all that was written, except what the next worker finds in the cache."""
        self._leaving.set()
        self._working.acquire(timeout=GRACE)
        self._stack.close()

    def _stay(self) -> None:
        if self._leaving.is_set():
            raise BuildError("this worker was told to leave")
