"""`requant tiny`: write the tiny model."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from requant.checkpoint.checkpoint import write_checkpoint
from requant.cli.options import MAKE, RecipePath, SizeName, app
from requant.cli.terminal import progress, say
from requant.errors import UsageError
from requant.model.target import tiny_model
from requant.model.tiny import CALIBRATION, calibration_text
from requant.progress import Progress
from requant.recipe import read_recipe


@app.command(rich_help_panel=MAKE, epilog="Example: requant tiny builds/ec --size mini --out out/base")
def tiny(
    recipe: RecipePath,
    out_folder: Annotated[Path, typer.Option("--out", help="The folder to write; it must not exist.")],
    size: Annotated[SizeName, typer.Option(help="The size of the tiny model.")] = "demo",
) -> None:
    """Write the tiny model: a small stand-in for the base, of the same architecture, with the same bytes everywhere."""
    made = tiny_model(read_recipe(recipe), size)
    if out_folder.exists() or out_folder.is_symlink():
        raise UsageError(f"{out_folder}: already exists", "Name another folder with --out, or remove this one.")
    out_folder.parent.mkdir(parents=True, exist_ok=True)
    place = tempfile.TemporaryDirectory(prefix=f".{out_folder.name}.", dir=out_folder.resolve().parent)
    with progress() as tell, place as name:
        write_checkpoint(made, Path(name, "tiny"), lambda file: tell(Progress(f"tiny model {size}", note=file)))
        Path(name, "tiny").rename(out_folder)
    text = f"{CALIBRATION}, {len(calibration_text()):,} bytes"
    say(f"{escape(str(out_folder))}: the {size} tiny model; builds of it are calibrated on requant's own {text}")
