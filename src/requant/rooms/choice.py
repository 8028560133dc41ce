"""Which room a recipe is built in: the one that is asked for, or the best that there is here.

`auto` is a container, where an engine answers and has the environment's image or can build it, or else a virtual
environment from the same lock. The environment is the same in all of them, and so are the bytes.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from requant.building import preflight
from requant.environment import read_files_digest, read_lock
from requant.errors import BuildError, NotAvailableError, UsageError
from requant.image import ensure_image
from requant.images.engine import DIALECTS, Engine, Limits, find
from requant.installation import bytecode, require_machine, virtual_environment
from requant.progress import Progress, Tell
from requant.recipe import Recipe
from requant.rooms.container import Container
from requant.rooms.here import here
from requant.rooms.runner import Room, VirtualEnvironment, isolation

RUNNERS = ("auto", *DIALECTS, "venv", "here")

TWIN = Limits(memory=16, temporary=2, shared=1)
"""What a twin's container may use; those that are recorded took less than 1 GiB."""


@dataclass(frozen=True)
class Chosen:
    """A room, and what of it stands in the attestation: evidence, not identity."""

    room: Room
    evidence: Mapping[str, Any]


def choose(recipe: Recipe, twin: str | None, runner: str, tell: Tell) -> Chosen:
    """Return the room of a recipe, or of its twin, by one of `RUNNERS`; its image or environment is made if need be.

    `tell` hears which it is, and for `auto` why. Raises UsageError for another word, LockError where something is not
    what the lock says, NotAvailableError or BuildError where what is asked for cannot be had, or the GPU is not there.
    """
    if runner not in RUNNERS:
        raise UsageError(f"--runner {runner}: there are {', '.join(RUNNERS)}")
    lock = read_lock(recipe.lockfiles, recipe.effort(twin is not None).environment)
    lock_file = recipe.lockfiles / f"{lock.name}.txt"
    require_machine(lock_file, lock)
    why = ""
    on_gpu = recipe.effort(twin is not None).device == "cuda"
    accelerator = preflight.accelerator(recipe.hardware).uuid if on_gpu else ""
    if runner in DIALECTS:
        return _container(recipe, twin, find(runner), accelerator, tell)
    if runner == "here":
        tell(Progress("room: in place"))
        return Chosen(here(lock, accelerator=accelerator), {"kind": "here"})
    if runner == "auto":
        try:
            return _container(recipe, twin, find(), accelerator, tell)
        except (BuildError, NotAvailableError) as error:
            why = f", because no container is available: {str(error).splitlines()[0]}"
    tell(Progress(f"room: a virtual environment{why}"))
    python = virtual_environment(lock_file, lock, tell)
    unconfirmed = () if read_files_digest(lock_file) else (f"packages: no {lock.name}.files says what their files are",)
    return Chosen(VirtualEnvironment(python, isolation(), accelerator, bytecode(python), unconfirmed), {"kind": "venv"})


def _container(recipe: Recipe, twin: str | None, engine: Engine, accelerator: str, tell: Tell) -> Chosen:
    effort = recipe.effort(twin is not None)
    limits = (
        TWIN
        if twin and effort.device == "cpu"
        else Limits(memory=recipe.hardware.host_memory_gib, temporary=8, shared=8)
    )
    image = ensure_image(recipe.lockfiles, effort.environment, engine, tell=tell)
    tell(Progress(f"room: a container of {image.reference}, {engine}"))
    digests = (image.evidence.config, *filter(None, (image.evidence.manifest,)))
    room = Container(engine, image.reference, digests, limits, accelerator, image.taints)
    evidence = {"kind": engine.kind, "version": engine.version, "limits": asdict(limits)}
    return Chosen(room, {**evidence, "image": asdict(image.evidence)})
