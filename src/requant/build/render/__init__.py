"""`render`: how a full build runs on other people's machines, as a Kubernetes Job and as a Slurm script.

Both are written out in the templates beside this module. Every value in them comes from the recipe, from its lock, and
from what `preflight` says that a build takes. Nothing else does: what differs from cluster to cluster (partition,
storage class, registry) is left to whoever submits it. A value that could break out of its place is refused or quoted.
"""

import json
import math
import re
from importlib import resources
from pathlib import Path
from string import Template

from requant.environment import Environment
from requant.environment.image.dockerfile import pinned_base
from requant.environment.image.evidence import image_name, read_evidence
from requant.errors import RecipeError
from requant.hub.pinned import read_pins
from requant.recipe import NAME, NAMES, Recipe
from requant.sandbox.preflight import GIB, resume_bytes, stored

KUBERNETES, SLURM = "job.yaml", "job.slurm"
"""The files, beside the recipe; their templates have the same names."""

MACHINES = {"aarch64": "arm64", "x86_64": "amd64"}
"""A lock's machines, in the words of Kubernetes (`kubernetes.io/arch`)."""
HEADROOM = 1.25
"""What a volume is larger than what it holds: a file system keeps some of it for itself."""
CPUS = 4
"""Of which one launches kernels, 80 forward and 159 backward per expert and iteration; the GPU waits for it."""
PATIENCE = 2
"""How often the recipe's hours a job may take: they are an estimate."""
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


class _Template(Template):
    """A file with `@name` where a value belongs, because `$` is the shell's."""

    delimiter = "@"


def render(recipe: Recipe) -> dict[Path, str]:
    """Return the text of each file that is rendered from a recipe, by its path.

    Raises RecipeError where a value cannot stand in a Job, LockError where the lock is absent or stale, or where the
    base of its image is not pinned.
    """
    return {recipe.beside(KUBERNETES): kubernetes(recipe), recipe.beside(SLURM): slurm(recipe)}


def kubernetes(recipe: Recipe) -> str:
    """Return the Job and the two volumes that it needs, as documents of YAML. Raises as `render` does."""
    name, product = _name(recipe), _product(recipe) if recipe.hardware.device == "cuda" else ""
    environment = Environment.load(recipe.lockfiles, recipe.environment)
    image = json.dumps(_image(environment))  # a recorded digest is whatever its file says
    arch = MACHINES[environment.lock.platform.partition("-")[0]]
    size = stored(read_pins(recipe.beside(file)) for file in (recipe.base.files, recipe.calibration.files))
    cache, build = (math.ceil(each * HEADROOM / GIB) for each in (size, size + resume_bytes(recipe)))
    return _filled(KUBERNETES, recipe, name=name, product=product, image=image, arch=arch, cache=cache, build=build)


def slurm(recipe: Recipe) -> str:
    """Return the script for `sbatch`. Raises RecipeError where the build's name could not stand in it as it is."""
    accelerator = json.dumps(recipe.hardware.accelerator)  # so that it ends no line of the comment that it stands in
    return _filled(SLURM, recipe, name=_name(recipe), accelerator=accelerator)


def _filled(file: str, recipe: Recipe, **values: str | int) -> str:
    """Return a template with its values; a line with `@{if_gpu}` is left out where the recipe needs no GPU."""
    text = resources.files(__name__).joinpath(file).read_text(encoding="utf-8")
    if recipe.hardware.device != "cuda":
        text = "".join(line for line in text.splitlines(keepends=True) if "@{if_gpu}" not in line)
    hours = max(1, math.ceil(recipe.hardware.hours * PATIENCE))
    taken = {"cpus": CPUS, "memory": recipe.hardware.host_memory_gib, "hours": hours, "seconds": hours * 3600}
    return _Template(text).substitute(taken, if_gpu="", **values)


def _image(environment: Environment) -> str:
    """Return the environment's image: by its recorded digest, or where none is recorded by the environment's."""
    name, folder = environment.name, environment.lock.file.parent
    pinned_base(folder, name)  # an image on a base that nobody has pinned cannot be built, so it is not named
    recorded = read_evidence(folder / f"{name}.image.json")
    if recorded and recorded.manifest and recorded.environment == environment.digest:
        return f"requant/{name}@{recorded.manifest}"
    return image_name(environment)


def _name(recipe: Recipe) -> str:
    """Return the build's name, which stands in paths, in names in a cluster and in a script."""
    if not NAME.fullmatch(recipe.name):
        raise RecipeError(f"{recipe.path}: the build's name: found {recipe.name!r}, allowed here: {NAMES}")
    return recipe.name


def _product(recipe: Recipe) -> str:
    """Return the accelerator as NVIDIA's feature discovery labels a node with it: hyphens for spaces."""
    label = recipe.hardware.accelerator.replace(" ", "-")
    if not _LABEL.fullmatch(label):
        allowed = "what a node's label can hold, at most 63 letters, digits, spaces, '-', '_' and '.'"
        found = f"found {recipe.hardware.accelerator!r}, allowed here: {allowed}"
        raise RecipeError(f"{recipe.path}: hardware.accelerator: {found}")
    return label
