"""Which sandbox a recipe is built in: the one that is asked for, or the best that there is here.

`auto` is a container, where an engine answers and has the environment's image or can build it, or else a virtual
environment from the same lock. The environment is the same in all of them, and so are the bytes.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from requant.environment import Environment
from requant.environment.image import ensure_image
from requant.environment.image.engine import DIALECTS, Engine, Limits, find
from requant.environment.install import bytecode, require_machine, virtual_environment
from requant.errors import BuildError, NotAvailableError, UsageError
from requant.progress import Progress, Tell
from requant.recipe import Hardware, Recipe
from requant.sandbox import preflight
from requant.sandbox.container import Container
from requant.sandbox.in_place import this_image
from requant.sandbox.running import Sandbox, VirtualEnvironment, isolation

SANDBOXES = ("auto", *DIALECTS, "venv", "in-place")

TINY = Limits(memory=16, temporary=2, shared=1)
"""What a tiny model's container may use; those that are recorded took less than 1 GiB."""


@dataclass(frozen=True)
class Chosen:
    """A sandbox, and what of it stands in the attestation: evidence, not identity."""

    sandbox: Sandbox
    evidence: Mapping[str, Any]


def choose(recipe: Recipe, tiny: str | None, environment: Environment, sandbox: str, tell: Tell) -> Chosen:
    """Return the sandbox of a recipe, or of its tiny model, as `choose_for` does."""
    on_gpu = recipe.effort(tiny is not None).device == "cuda"
    if tiny and recipe.tiny.device == "cpu":
        limits = TINY
    else:
        limits = Limits(memory=recipe.hardware.host_memory_gib, temporary=8, shared=8)
    return choose_for(environment, limits, recipe.hardware if on_gpu else None, sandbox, tell)


def choose_for(environment: Environment, limits: Limits, gpu: Hardware | None, sandbox: str, tell: Tell) -> Chosen:
    """Return the sandbox of an environment, one of `SANDBOXES`; what it needs is made.

    `gpu` is what is asked of one, None where the worker is to use none; `limits` are a container's. `tell` hears which
    sandbox it is, and for `auto` why. Raises UsageError for another word, LockError where something is not what the
    lock says, NotAvailableError or BuildError where what is asked for cannot be had, or the GPU is not there.
    """
    if sandbox not in SANDBOXES:
        raise UsageError(f"--sandbox {sandbox}: there are {', '.join(SANDBOXES)}")
    require_machine(environment.lock)
    why = ""
    accelerator = preflight.accelerator(gpu).uuid if gpu else ""
    if sandbox in DIALECTS:
        return _container(environment, limits, find(sandbox), accelerator, tell)
    if sandbox == "in-place":
        tell(Progress("sandbox: in place"))
        return Chosen(this_image(environment.lock, accelerator=accelerator), {"kind": "in-place"})
    if sandbox == "auto":
        try:
            return _container(environment, limits, find(), accelerator, tell)
        except (BuildError, NotAvailableError) as error:
            why = f", because no container is available: {str(error).splitlines()[0]}"
    tell(Progress(f"sandbox: a virtual environment{why}"))
    python = virtual_environment(environment.lock, tell)
    unlisted = f"packages: no {environment.name}.files says what their files are"
    unconfirmed = () if environment.files else (unlisted,)
    return Chosen(VirtualEnvironment(python, isolation(), accelerator, bytecode(python), unconfirmed), {"kind": "venv"})


def _container(environment: Environment, limits: Limits, engine: Engine, accelerator: str, tell: Tell) -> Chosen:
    image = ensure_image(environment, engine, tell=tell)
    tell(Progress(f"sandbox: a container of {image.reference}, {engine}"))
    digests = (image.evidence.config, *filter(None, (image.evidence.manifest,)))
    sandbox = Container(engine, image.reference, digests, limits, accelerator, image.taints)
    evidence = {"kind": engine.kind, "version": engine.version, "limits": asdict(limits)}
    return Chosen(sandbox, {**evidence, "image": asdict(image.evidence)})
