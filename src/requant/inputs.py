"""What goes into the room: the twin, or the base and the text that a recipe pins, fetched and confirmed."""

from dataclasses import dataclass
from pathlib import Path

from requant import preflight
from requant.digest import canonical_json, sha256, sha256_file
from requant.errors import CheckpointError, RecipeError
from requant.fetch import fetch
from requant.files import list_files
from requant.installation import cache
from requant.manifest import make_manifest
from requant.pins import Pins, read_pins
from requant.progress import Progress, Tell
from requant.recipe import Recipe
from requant.twin import CALIBRATION, calibration_text, write_twin


@dataclass(frozen=True)
class Inputs:
    """What goes into the room: a base and a text on disk, what they are by digest, and what is wrong with them."""

    base: Path
    text: Path
    digests: dict[str, str]
    taints: tuple[str, ...]

    @property
    def base_digest(self) -> str:
        """The identity of the base: its files by digest, without the calibration text."""
        return sha256(canonical_json({name: self.digests[name] for name in self.digests if name.startswith("base/")}))


def twin_inputs(size: str, folder: Path, tell: Tell) -> Inputs:
    """Write the twin of a size in `SIZES`, and its text, into `folder`."""
    write_twin(size, folder / "base", lambda file: tell(Progress(f"twin {size}", note=file)))
    (folder / CALIBRATION).write_bytes(calibration_text())
    digests = {f"base/{path}": record.sha256 for path, record in make_manifest(folder / "base").files.items()}
    digests["calibration"] = sha256_file(folder / CALIBRATION)
    return Inputs(folder / "base", folder / CALIBRATION, digests, (f"twin: {size}, instead of the base",))


def pinned_inputs(recipe: Recipe, out: Path, endpoint: str | None, tell: Tell) -> Inputs:
    """Fetch the base and the text of a recipe into the cache, after saying what the whole build will cost.

    Raises NotAvailableError where this machine cannot do the build, CheckpointError where bytes are not as pinned.
    """
    base = _pins(recipe, recipe.base.files, recipe.base.repository, recipe.base.revision)
    data = _pins(recipe, recipe.calibration.files, recipe.calibration.dataset, recipe.calibration.revision)
    base_folder = cache() / "bases" / base.repository / base.revision
    data_folder = cache() / "datasets" / data.repository / data.revision
    downloads = (
        (base, base_folder, [path for path, file in base.files.items() if file.sha256]),
        (data, data_folder, [recipe.calibration.file]),
    )
    found = preflight.cost(recipe, downloads, out)
    preflight.require(found)
    tell(Progress("full build", note=found.text()))
    for pins, folder, wanted in downloads:
        fetch(
            pins,
            folder,
            wanted=wanted,
            progress=lambda file, done, total: tell(Progress(f"fetch {file}", done, total)),
            endpoint=endpoint,
        )
    if stray := list_files(base_folder).keys() - base.files.keys():
        raise CheckpointError(
            f"{base_folder}: {min(stray)} is not pinned, and could change what is loaded", "Remove it."
        )
    digests = {f"base/{path}": str(file.sha256) for path, file in base.files.items() if file.sha256}
    digests["calibration"] = str(data.files[recipe.calibration.file].sha256)
    return Inputs(base_folder, data_folder / recipe.calibration.file, digests, ())


def _pins(recipe: Recipe, file: str, repository: str, revision: str) -> Pins:
    pins = read_pins(recipe.beside(file))
    if (pins.repository, pins.revision) != (repository, revision):
        raise RecipeError(
            f"{recipe.path}: asks for {repository} at {revision}, but {file} pins {pins.repository} at {pins.revision}"
        )
    return pins
