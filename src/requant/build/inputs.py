"""What goes into the worker: the tiny model, or the base and the text that a recipe pins, fetched and confirmed."""

from dataclasses import dataclass, replace
from pathlib import Path

from requant.checkpoint.checkpoint import write_checkpoint
from requant.checkpoint.files import is_companion, list_files, listing
from requant.checkpoint.manifest import make_manifest
from requant.digest import canonical_json, sha256, sha256_file
from requant.environment import Environment
from requant.environment.install import cache
from requant.errors import CheckpointError, UsageError
from requant.hub.fetch import fetch, missing
from requant.hub.pinned import Pins, pins_for
from requant.model.plan import Plan
from requant.model.target import tiny_model
from requant.model.tiny import CALIBRATION, calibration_text
from requant.progress import Progress, Tell, silent
from requant.protocol import Tuning
from requant.recipe import Recipe
from requant.sandbox import preflight

LOCAL = "local/"
"""How the name of a base or a text begins that is on no hub: `requant new` read it from a folder, or from a file."""


@dataclass(frozen=True)
class Inputs:
    """What goes into the worker: a base and a text on disk, what they are by digest, and what is wrong with them."""

    base: Path
    text: Path
    digests: dict[str, str]
    taints: tuple[str, ...]

    def tuning(self, tiny: str | None, environment: Environment, accelerator: str, plan: Plan) -> Tuning:
        """Return what a worker that runs the model is told."""
        return Tuning(
            tiny=tiny,
            base=str(self.base.resolve()),
            text=str(self.text.resolve()),
            environment=environment.digest,
            base_digest=self.base_digest,
            accelerator=accelerator,
            blocks=plan.blocks,
            packed=tuple(plan.packed),
            own={name: layer.own for name, layer in plan.packed.items() if layer.own},
        )

    @property
    def base_digest(self) -> str:
        """The identity of the base: its files by digest, without the calibration text."""
        return sha256(canonical_json({name: self.digests[name] for name in self.digests if name.startswith("base/")}))


def inputs_for(
    recipe: Recipe,
    tiny: str | None,
    base: Path | None,
    work: Path,
    tell: Tell,
    instead: str = "",
    *,
    text: bytes | None = None,
    endpoint: str | None = None,
) -> Inputs:
    """Return what a worker of this recipe, or of its tiny model, is given; `base` is where its base stands already.

    `instead` is advice for a machine that cannot tune the full model; `text` replaces that of a tiny model.
    """
    if tiny:
        return tiny_given(recipe, tiny, base, work) if base else tiny_inputs(recipe, tiny, work, tell, text)
    if base:
        preflight.require_device(recipe, instead or _tiny_instead(recipe))
        return pinned_given(recipe, base, endpoint, tell)
    return pinned_inputs(recipe, work, endpoint, tell, instead)


def tiny_inputs(recipe: Recipe, size: str, folder: Path, tell: Tell, text: bytes | None = None) -> Inputs:
    """Write the tiny model of a size in `SIZES`, and its text or another, into `folder`."""
    write_checkpoint(
        tiny_model(recipe, size), folder / "base", lambda file: tell(Progress(f"tiny model {size}", note=file))
    )
    (folder / CALIBRATION).write_bytes(text or calibration_text())
    there = listing(folder / "base")
    digests = {f"base/{name}": sha256_file(path) for name, path in sorted((there.files | there.companions).items())}
    digests["calibration"] = sha256_file(folder / CALIBRATION)
    return Inputs(folder / "base", folder / CALIBRATION, digests, (f"tiny model: {size}, instead of the base",))


def tiny_given(recipe: Recipe, size: str, base: Path, folder: Path) -> Inputs:
    """Take a tiny model that stands in the folder `base` already; its text is written into `folder`.

    Raises CheckpointError where it is not the tiny model of that size.
    """
    inputs = tiny_inputs(recipe, size, folder, silent)
    found = {f"base/{path}": record.sha256 for path, record in make_manifest(base).files.items()}
    for name in sorted(inputs.digests.keys() | found.keys()):
        path = name.removeprefix("base/")
        if name != "calibration" and not is_companion(path) and found.get(name) != inputs.digests.get(name):
            raise CheckpointError(f"{base}: {path} is not the tiny model {size}'s")
    return replace(inputs, base=base)


def pinned_given(recipe: Recipe, base: Path, endpoint: str | None, tell: Tell) -> Inputs:
    """Take a recipe's base that stands in the folder `base` already; its text is fetched into the cache.

    Raises CheckpointError where a file is not as pinned, or there is one more.
    """
    pins, _ = _base(recipe)
    if lacking := missing(pins, base).files:
        raise CheckpointError(f"{base}: lacks {lacking[0]}", "Without --base it is fetched.")
    return _confirmed(recipe, pins, base, endpoint, tell)


def _tiny_instead(recipe: Recipe) -> str:
    build = f"requant build {recipe.path.parent} --tiny"
    return f"Here, build the tiny model instead, a small stand-in for the model that needs no GPU: {build}"


def pinned_inputs(recipe: Recipe, out: Path, endpoint: str | None, tell: Tell, instead: str = "") -> Inputs:
    """Fetch the base and the text of a recipe into the cache, after saying what the whole build will cost.

    A text of one's own is in the project already.

    Raises NotAvailableError where this machine cannot do the build, CheckpointError where bytes are not as pinned.
    """
    if _is_local(recipe.base.repository):
        raise UsageError(f"{recipe.path}: its base is a folder of yours", "Name it: --base FOLDER.")
    found = cost(recipe, out)
    preflight.require(found, instead or _tiny_instead(recipe))
    tell(Progress("full build", note=found.text()))
    return _confirmed(recipe, *_base(recipe), endpoint, tell)


def cost(recipe: Recipe, out: Path) -> preflight.Cost:
    """Return what the full build of a recipe takes here; a base that is a folder is not downloaded."""
    (base, folder), (data, data_folder) = _base(recipe), _data(recipe)
    fetched = [] if _is_local(recipe.base.repository) else _digested(base)
    return preflight.cost(recipe, ((base, folder, fetched), (data, data_folder, [recipe.calibration.file])), out)


def _is_local(repository: str) -> bool:
    return repository.startswith(LOCAL)


def _confirmed(recipe: Recipe, base: Pins, folder: Path, endpoint: str | None, tell: Tell) -> Inputs:
    data, data_folder = _data(recipe)
    text = data_folder / recipe.calibration.file
    if _is_local(data.repository) and not text.exists():
        raise CheckpointError(f"{text}: not here", "The recipe's text is on no hub: put it there.")
    for pins, place, wanted in ((base, folder, _digested(base)), (data, data_folder, [recipe.calibration.file])):
        fetch(
            pins,
            place,
            wanted=wanted,
            progress=lambda file, done, total: tell(Progress(f"fetch {file}", done, total)),
            endpoint=endpoint,
        )
    if stray := list_files(folder).keys() - base.files.keys():
        raise CheckpointError(f"{folder}: {min(stray)} is not pinned, and could change what is loaded", "Remove it.")
    digests = {f"base/{path}": str(file.sha256) for path, file in base.files.items() if file.sha256}
    digests["calibration"] = str(data.files[recipe.calibration.file].sha256)
    return Inputs(folder, text, digests, ())


def _base(recipe: Recipe) -> tuple[Pins, Path]:
    base = _pins(recipe, recipe.base.files, recipe.base.repository, recipe.base.revision)
    return base, cache() / "bases" / base.repository / base.revision


def _data(recipe: Recipe) -> tuple[Pins, Path]:
    data = _pins(recipe, recipe.calibration.files, recipe.calibration.dataset, recipe.calibration.revision)
    if _is_local(data.repository):
        return data, recipe.beside(recipe.calibration.files).with_suffix("")
    return data, cache() / "datasets" / data.repository / data.revision


def _digested(pins: Pins) -> list[str]:
    return [path for path, file in pins.files.items() if file.sha256]


def _pins(recipe: Recipe, file: str, repository: str, revision: str) -> Pins:
    return pins_for(recipe.beside(file), repository, revision, recipe.path)
