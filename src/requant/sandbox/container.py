"""The worker as a container: an image's quantizer without network, rights or a writable root.

The folder and what it reads are mounted where they are on the host, so that no path in a request changes its
meaning. What the engine was asked for is confirmed by what it says of the container that it started.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from requant.environment.image.engine import Engine, Limits, Stored, unique
from requant.environment.image.refusals import explained, refusal
from requant.errors import BuildError, LockError, NotAvailableError, RequantError
from requant.protocol import LEASH
from requant.sandbox.running import Running, started, variables

NOT_STARTED = (125, 126, 127)
"""Exit status of an engine's client that could not start the container: Podman has the second for a missing GPU."""

KILLED = 137
"""Exit status of a container that was ended by SIGKILL."""


@dataclass(frozen=True)
class Container:
    """A worker in a container of `image`, whose entry point is the quantizer.

    `image` is a reference in the engine's store, `digests` are those that it may have there, as `Stored.id`.
    """

    engine: Engine
    image: str
    digests: tuple[str, ...]
    limits: Limits
    accelerator: str = ""
    taints: tuple[str, ...] = ()

    def start(self, folder: Path, readable: Sequence[Path]) -> Running:
        """Start the worker and return when the engine has confirmed how it runs.

        It runs by digest. Raises NotAvailableError where there is no such image or the engine refuses, LockError
        where the image is another one, BuildError where the container is not as asked for.
        """
        stored = self.engine.image(self.image)
        if stored is None:
            raise explained(self.engine.kind, f"No such image: {self.image}")
        if stored.id not in self.digests:
            raise LockError(
                f"{self.engine}: {self.image} is {stored.id}, expected {' or '.join(self.digests)}",
                "Another image took its name: `requant image NAME` builds it again.",
            )
        name = unique()
        words = self.engine.run_words(
            stored.id,
            name,
            writable=(folder,),
            readable=readable,
            variables={**variables(folder, self.accelerator), LEASH: "1"},
            limits=self.limits,
            accelerator=self.accelerator,
        )
        process = started((*words, str(folder)), folder, os.environ)
        running = Running(folder, process, lambda: self.engine.remove(name), self._explain)
        try:
            self._confirm(running, name, stored)
        except BaseException:
            running.end()
            raise
        return running

    def _confirm(self, running: Running, name: str, stored: Stored) -> None:
        found = None
        while running.wait(0.05):
            found = self.engine.container(name) or found
            if found and found["State"]["Running"]:
                break  # until then the engine may still fail to start it
        else:
            running.confirm()
        if found is None:
            raise BuildError(f"{self.engine}: the worker ended before the engine could say how it ran")
        if wrong := deviations(found, stored.id):
            raise BuildError(
                f"{self.engine}: container {name} is not as it was asked for: {'; '.join(wrong)}",
                "Something between requant and the engine changes what is asked: a wrapper, or the engine's settings.",
            )

    def _explain(self, status: int, words: str) -> RequantError | None:
        if status in NOT_STARTED and refusal(words):
            return explained(self.engine.kind, words)
        if status == KILLED:
            return NotAvailableError(
                f"the worker was killed, most likely because it used more than its {self.limits.memory} GiB of memory",
                "The recipe's hardware.host_memory_gib is the limit; something else may use this machine's memory too.",
            )
        return None


def deviations(found: dict[str, Any], image: str) -> tuple[str, ...]:
    """Return what an engine says of a container (`inspect`) that is not as a worker's must be."""
    host = found["HostConfig"]
    seen = {
        "root file system": ("read-only" if host["ReadonlyRootfs"] else "writable", "read-only"),
        "network": (host["NetworkMode"], "none"),
        "privileges": ("all" if host["Privileged"] else "none", "none"),
        "image": (found["Image"].removeprefix("sha256:"), image.removeprefix("sha256:")),
    }
    return tuple(f"{what} {is_}, expected {expected}" for what, (is_, expected) in seen.items() if is_ != expected)
