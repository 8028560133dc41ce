"""`requant new SOURCE --name NAME`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

import requant.new
from requant.cli.options import MAKE, AsJson, SandboxOption, app
from requant.cli.plan import plan_table
from requant.cli.terminal import out, print_json, progress, say
from requant.new import Environment, Preset


@app.command(rich_help_panel=MAKE, epilog="Example: requant new ~/models/llama --name llama --environment cpu")
def new(
    source: Annotated[Path, typer.Argument(help="The folder of the unquantized model.", show_default=False)],
    name: Annotated[str, typer.Option(help="The name of the build: its folder is builds/NAME.", show_default=False)],
    preset: Annotated[Preset, typer.Option(help="How much is tuned, as AutoRound's own recipes say.")] = "default",
    environment: Annotated[Environment, typer.Option(help="The environment of the full build.")] = "cu124",
    project: Annotated[Path, typer.Option(help="The folder that holds builds/ and lockfiles/.")] = Path(),
    sandbox: SandboxOption = "auto",
    as_json: AsJson = False,
) -> None:
    """Write a recipe for a base: pins, plan and every value; AutoRound is asked, no weight is tuned."""
    with progress() as tell:
        made = requant.new.new(
            source, name, project, preset=preset, environment=environment, sandbox=sandbox, tell=tell
        )
    folder = made.recipe.path.parent
    if as_json:
        files = [str(each) for each in made.files]
        print_json("requant.new/1", {"recipe": str(folder), "files": files, "hours": made.hours})
        return
    out.lines([plan_table(made.summary)])
    for file in made.files:
        say(f"wrote {escape(str(file))}")
    say(f"A full build takes about {made.hours:g} hours, an estimate. Next: requant build {escape(str(folder))} --tiny")
