"""A worker pool on a Ray cluster: one worker per GPU, or per core, on whatever nodes there are. Only here: ray.

What a block is given stands in Ray's object store from the moment that a worker has nothing to do until the block is
tuned, so that it can be given to another one; Ray spills it to disk. Workers are placed by this module, not by Ray:
so it knows the node of each, and gives a block that failed to another node. A lost worker changes no verdict.
"""

import logging
import shutil
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from requant.audit.pool import Setting
from requant.audit.ray_worker import GRACE, Worker, order
from requant.errors import BuildError, NotAvailableError, RequantError, UsageError
from requant.protocol import label

ATTEMPTS = 3
"""Workers that are given one block, and lives that each of the worker pool's places has."""

CHUNK = 1 << 27
"""Bytes of block inputs that are one object of Ray's store: 65 of them are one block's at full scale."""


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, by Ray's identifier and by a name for people."""

    identifier: str
    name: str


@dataclass(eq=False)
class _Job:
    number: int
    files: Mapping[str, list[Any]]
    failed: list[tuple[Node, str]] = field(default_factory=list)


@dataclass(eq=False)
class _Member:
    """A worker: `call` is what it does, `job` for which block; without one it prepares itself, or is idle."""

    node: Node
    actor: Any
    call: Any
    job: _Job | None = None
    ready: bool = False


def make_pool(address: str | None, workers: int | None, base: Path | None) -> Callable[[Setting, Path], "Cluster"]:
    """Return what makes workers on the cluster at `address`, `workers` at most; `base` is a folder on every node.

    Raises UsageError for an address that is none, before anything is made ready for the workers.
    """
    if address:
        _split(address)
    return lambda setting, folder: Cluster(setting, folder, address, workers, base)


class Cluster:
    """Workers on a Ray cluster, one block each at a time."""

    def __init__(
        self, setting: Setting, folder: Path, address: str | None, workers: int | None, base: Path | None
    ) -> None:
        """Hire as many as fit; answers are written to `folder`.

        Raises NotAvailableError without Ray, without an answer from `address`, or where no worker fits.
        """
        self._folder = folder
        self._order = order(setting, base)
        self._needs = _needs(setting)
        self._workers: list[_Member] = []
        self._waiting: list[_Job] = []
        with ExitStack() as stack:
            self._ray = stack.enter_context(_connected(address))
            stack.callback(lambda: self._dismiss(self._workers))
            slots = self._slots()
            if not slots:
                raise NotAvailableError(
                    "the Ray cluster has no node for a worker: each takes "
                    + ", ".join(f"{amount:,} of {name}" for name, amount in self._needs.items()),
                    "ray status says what there is.",
                )
            self.size = min(workers or len(slots), len(slots))
            self._lives = self.size * ATTEMPTS
            self._make_pool()
            folder.mkdir(parents=True)
            self._stack = stack.pop_all()

    @property
    def at_work(self) -> dict[int, Node]:
        """The blocks that are being tuned, and where."""
        return {each.job.number: each.node for each in self._workers if each.job}

    def free(self) -> bool:
        """Say whether a worker has nothing to do, and no block that another one lost waits for it."""
        return not self._waiting and any(each.ready and not each.call for each in self._workers)

    def give(self, number: int, block_inputs: Path) -> None:
        """Put what a block is given into Ray's object store, in chunks, and hand out their references."""
        try:
            files = {path.name: list(self._references(path)) for path in sorted(block_inputs.iterdir())}
        except self._ray.exceptions.RayError as error:
            raise NotAvailableError(
                f"block {number}: Ray's object store does not take what it is given: {error}",
                "It spills to disk: make room there, or start Ray with --object-spilling-directory elsewhere.",
            ) from None
        shutil.rmtree(block_inputs)
        self._waiting.append(_Job(number, files))
        self._assign()

    def take(self) -> Iterator[tuple[int, Path]]:
        """Yield what has been tuned by now; whoever was lost meanwhile is replaced, and its block given again."""
        calls = {each.call: each for each in self._workers if each.call}
        done, _ = self._ray.wait(list(calls), num_returns=len(calls), timeout=0) if calls else ([], [])
        for call in done:
            worker = calls[call]
            job, worker.call, worker.job = worker.job, None, None
            try:
                answer = self._ray.get(call)
            except self._ray.exceptions.RayError as error:
                self._lost(worker, job, error)
                continue
            worker.ready = True
            if job:
                yield job.number, self._written(job.number, answer)
        self._make_pool()
        self._assign()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _slots(self) -> list[Node]:
        """Return the nodes that can hold one more worker, each as often as it can."""
        taken = Counter(each.node.identifier for each in self._workers)
        found = []
        for each in self._ray.nodes():
            node = Node(each["NodeID"], f"{each['NodeManagerHostname']} ({each['NodeID'][:8]})")
            fitting = min(int(each["Resources"].get(name, 0) // amount) for name, amount in self._needs.items())
            if each["Alive"]:
                found += [node] * (fitting - taken[node.identifier])
        return found

    def _make_pool(self) -> None:
        missing = min(self.size - len(self._workers), self._lives)
        if not missing:
            return
        on = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        for node in self._slots()[:missing]:
            self._lives -= 1
            kind = self._ray.remote(Worker).options(
                num_cpus=self._needs["CPU"],
                num_gpus=self._needs.get("GPU", 0),
                memory=self._needs.get("memory"),
                max_concurrency=2,  # it can be told to leave while it tunes
                scheduling_strategy=on(node.identifier, soft=False),
            )
            actor = kind.remote(self._order, self._ray.get)
            self._workers.append(_Member(node, actor, actor.prepare.remote()))

    def _assign(self) -> None:
        """Give waiting blocks to idle workers; none to a node where it failed, as long as another one is ready."""
        for job in sorted(self._waiting, key=lambda each: each.number):
            ready = [each for each in self._workers if each.ready]
            avoided = {node for node, _ in job.failed}
            chosen = [each for each in ready if each.node not in avoided] or ready
            if worker := next((each for each in chosen if not each.call), None):
                worker.job, worker.call = job, worker.actor.tune.remote(job.number, job.files)
                self._waiting.remove(job)

    def _lost(self, worker: _Member, job: _Job | None, error: Exception) -> None:
        """Retire a worker whose call ended with an error; raise where nobody else is to try.

        An error of requant's own while a worker prepares itself concerns the cluster: it is raised at once.
        """
        cause = getattr(error, "cause", None)
        self._workers.remove(worker)
        self._dismiss([worker])
        if job is None and isinstance(cause, RequantError):
            raise type(cause)(f"{worker.node.name}: {cause}", cause.advice)
        words = str(cause) if isinstance(cause, RequantError) else " ".join(str(cause or error).split())
        if job:
            job.failed.append((worker.node, words))
            if len(job.failed) == ATTEMPTS:
                raise BuildError(
                    f"block {job.number} was given to {ATTEMPTS} workers, and none tuned it:\n"
                    + "\n".join(f"{node.name}: {reason}" for node, reason in job.failed),
                    getattr(cause, "advice", "") or "Look at these nodes: dmesg, ray logs.",
                )
            self._waiting.append(job)
        self._make_pool()
        if not self._workers:
            raise BuildError(
                f"no worker is left, and no node for another one; {worker.node.name}: {words}", "ray status"
            )

    def _dismiss(self, workers: list[_Member]) -> None:
        leaving = [each.actor.leave.remote() for each in workers]
        with suppress(self._ray.exceptions.RayError):
            self._ray.wait(leaving, num_returns=len(leaving), timeout=2 * GRACE)
        for each in workers:
            self._ray.kill(each.actor)

    def _references(self, path: Path) -> Iterator[Any]:
        with path.open("rb") as file:
            while len(chunk := np.fromfile(file, np.uint8, CHUNK)):
                yield self._ray.put(chunk)

    def _written(self, number: int, answer: Mapping[str, Any]) -> Path:
        folder = self._folder / label(number)
        folder.mkdir()
        for name, data in answer.items():
            data.tofile(folder / name)
        return folder


def _needs(setting: Setting) -> dict[str, int]:
    """Return what one worker takes of a node, by Ray's names: a worker is one thread on a CPU, or has a GPU."""
    if setting.recipe.effort(setting.tiny is not None).device == "cpu":
        return {"CPU": 1}
    return {"CPU": 1, "GPU": 1, "memory": setting.recipe.hardware.host_memory_gib << 30}


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Give ray, connected to the cluster at `address`, to the one of this machine without."""
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError:
        raise NotAvailableError(
            "Ray is not installed here", "pip install 'requant[ray]', here and on all nodes."
        ) from None
    if address:
        _confirm_it_answers(address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address or "auto", log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise NotAvailableError(
            f"no Ray cluster{f' at {address}' if address else ' here'}: {error}",
            "Make this machine one of its nodes, with nothing for workers: ray start --address HOST:PORT --num-cpus 0.",
        ) from None
    with suppress(ValueError):  # not the main thread: then Ray has not taken it either
        signal.signal(signal.SIGTERM, handler)  # Ray's own would end the process as if standard output were closed
    try:
        yield ray
    finally:
        ray.shutdown()


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise UsageError(f"--address {address}: expected HOST:PORT", "As in ray start --address HOST:PORT.")
    return host, int(port)


def _confirm_it_answers(address: str) -> None:
    """Raise NotAvailableError where nothing listens: Ray itself would try for minutes, then end the process."""
    try:
        socket.create_connection(_split(address), timeout=GRACE).close()
    except OSError as error:
        raise NotAvailableError(f"--address {address}: {error}", "ray start --head says the address.") from None
