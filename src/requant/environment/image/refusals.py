"""What container engines say when they refuse, and what a person can do about it.

Engines have no exit status per reason (125 is everything), so that their words are all there is. Each pattern
names where its words are from: an engine that was run (by us, or in the measurements that this project began with),
or memory, where nobody has seen them yet.
"""

import re
from dataclasses import dataclass

from requant.errors import BuildError, LockError, NotAvailableError, RequantError


@dataclass(frozen=True)
class Refusal:
    """One reason: `pattern` is searched in what the engine said, without regard to case.

    Where `error` is LockError something is wrong, and no other worker takes the container's place.
    """

    name: str
    pattern: str
    message: str
    advice: str
    error: type[RequantError] = NotAvailableError


REFUSALS = (
    Refusal(
        "other bytes",
        # pip 26 and sha256sum in a step of a build, run
        r"do not match the hashes|/wheelhouse/\S+: FAILED",
        "a wheel is not what the lock states",
        "Something changed it between the cache and the builder: remove the cache's `wheels`, and build again.",
        LockError,
    ),
    Refusal(
        "no permission",
        # docker 26 and 28, run; podman 4.3 on a socket, run
        r"permission denied while trying to connect|dial unix \S+: connect: permission denied",
        "this user may not speak to the engine",
        "Add the user to the socket's group (usermod --append --groups docker NAME, then log in again), use Podman, "
        "which needs no such right (--sandbox podman), or none at all (--sandbox venv).",
    ),
    Refusal(
        "not running",
        # docker 26 and 28, run; docker 29's words: memory; podman --remote 4.3, run
        r"cannot connect to the docker daemon|failed to connect to the docker api|unable to connect to podman",
        "the engine does not answer",
        "Start it (systemctl start docker), or point DOCKER_HOST to where it listens.",
    ),
    Refusal(
        "driver too old",
        # libnvidia-container, which judges the image's NVIDIA_REQUIRE_CUDA: memory
        r"unsatisfied condition|please update your driver",
        "the NVIDIA driver is older than what the image's CUDA needs",
        "Update the driver; `nvidia-smi` says which CUDA it serves, the image's NVIDIA_REQUIRE_CUDA what is asked.",
    ),
    Refusal(
        "no NVIDIA runtime",
        # docker 26, run; podman 4.3, run; the rest, libnvidia-container where no driver is loaded: memory
        r"could not select device driver|unresolvable cdi devices|cdi device injection failed"
        r"|nvidia-container-cli: (initialization|detection) error|libnvidia-ml\.so\S*: cannot open",
        "the engine cannot give a container the GPU",
        "Install the NVIDIA Container Toolkit and tell the engine: nvidia-ctk runtime configure --runtime=docker; "
        "for Podman: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml. Without a GPU: --tiny.",
    ),
    Refusal(
        "disk full",
        r"no space left on device|disk quota exceeded",  # errno's own words
        "no space is left on the engine's disk",
        "See what it holds (docker system df) and remove what nobody needs, or move its data-root.",
    ),
    Refusal(
        "no buildx",
        # docker 28 without the plugin, run
        r"buildx component is missing|is not a docker command|unknown command: docker buildx",
        "the Docker client lacks buildx, which drives BuildKit",
        "Install it (apt-get install docker-buildx, or docker-buildx-plugin from Docker's own packages).",
    ),
    Refusal(
        "no export",
        # docker 26 with its older image store, run
        r"exporter is not supported for the docker driver|exporter .*not currently supported for the docker driver",
        "Docker's older image store cannot write an image whose times are fixed",
        'Put {"features": {"containerd-snapshotter": true}} into /etc/docker/daemon.json and restart the daemon.',
    ),
    Refusal(
        "not this host's folder",
        # docker 26, run; podman 4.3, run
        r"bind source path does not exist|error mounting|statfs \S+: no such file or directory",
        "the engine does not see a folder that the worker needs",
        "The engine must run on this host: see DOCKER_HOST, and that the folder is shared with the engine's machine.",
    ),
    Refusal(
        "no registry",
        # docker 26, run; podman 4.3, run
        r"failed to resolve (reference|source metadata)|did not resolve to an alias|initializing source docker:",
        "the base image is not here, and no registry gives it",
        "Load it (docker load), or name another one (--base IMAGE).",
    ),
    Refusal(
        "image missing",
        # docker 26, run; podman 4.3, run
        r"no such image|image not known|unable to find image|pull access denied|no such object",
        "the image is not in the engine's store",
        "`requant image NAME` builds it, `docker load` takes one that was built elsewhere.",
    ),
)


def refusal(said: str) -> Refusal | None:
    """Return what an engine means by what it said, or None where its words are not known."""
    return next((each for each in REFUSALS if re.search(each.pattern, said, re.IGNORECASE)), None)


def explained(engine: str, said: str) -> RequantError:
    """Return the error that tells what an engine refused: its own, with advice, where the words are known."""
    known = refusal(said)
    if known is None:
        return BuildError(f"{engine}: {said}")
    line = next(line for line in said.splitlines() if re.search(known.pattern, line, re.IGNORECASE))
    # Which wheel it is, pip says in the lines behind.
    words = said if known.error is LockError else line.strip()
    return known.error(f"{engine}: {known.message}\n{words}", known.advice)
