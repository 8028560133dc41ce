"""`requant new SOURCE --name NAME`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

import requant.new
from requant.cli.options import MAKE, AsJson, SandboxOption, app
from requant.cli.plan import plan_table
from requant.cli.terminal import out, print_json, progress, say
from requant.new import EnvironmentName, Preset
from requant.recipe import Format, GroupSize, SchemeName


@app.command(
    rich_help_panel=MAKE,
    epilog="Examples: requant new Qwen/Qwen3-8B --name qwen3, or requant new ~/models/llama --name llama",
)
def new(
    source: Annotated[
        str,
        typer.Argument(
            help="The unquantized model: a folder, or owner/name[@revision] on the Hub; without a revision, main.",
            show_default=False,
        ),
    ],
    name: Annotated[str, typer.Option(help="The name of the build: its folder is builds/NAME.", show_default=False)],
    preset: Annotated[
        Preset, typer.Option(help="How much is tuned: AutoRound's own recipes, and one for a laptop.")
    ] = "default",
    environment: Annotated[EnvironmentName, typer.Option(help="The environment of the full build.")] = "cu124",
    scheme: Annotated[SchemeName, typer.Option(help="The bits of a weight, by AutoRound's name.")] = "W4A16",
    symmetric: Annotated[
        bool, typer.Option("--symmetric/--asymmetric", help="Codes around 0, or a zero point for each group.")
    ] = True,
    group_size: Annotated[GroupSize, typer.Option(help="Inputs that share a scale; -1: all.")] = 128,
    packing_format: Annotated[
        Format | None,
        typer.Option("--format", help="How codes lie in files; AutoRound's choice without it.", show_default=False),
    ] = None,
    iterations: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Of each block; 0: weights are rounded, not tuned. Without it, the preset's.",
            show_default=False,
        ),
    ] = None,
    search_scales: Annotated[
        bool, typer.Option(help="At 0 iterations, whether AutoRound searches the scales of symmetric codes.")
    ] = True,
    ignore: Annotated[
        list[str] | None,
        typer.Option(help="A part of the names of layers that stay float; may be repeated.", show_default=False),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            help="What is calibrated on instead of the pile: JSON lines, or Parquet; it is copied into the project.",
            show_default=False,
        ),
    ] = None,
    project: Annotated[Path, typer.Option(help="The folder that holds builds/ and lockfiles/.")] = Path(),
    sandbox: SandboxOption = "auto",
    as_json: AsJson = False,
) -> None:
    """Write a recipe for a base: pins, plan and every value; AutoRound is asked, no weight is downloaded or tuned."""
    with progress() as tell:
        made = requant.new.new(
            source,
            name,
            project,
            preset=preset,
            environment=environment,
            scheme=scheme,
            symmetric=symmetric,
            group_size=group_size,
            packing_format=packing_format,
            iterations=iterations,
            search_scales=search_scales,
            ignore=ignore or (),
            text=text,
            sandbox=sandbox,
            tell=tell,
        )
    folder, cost, hardware = made.recipe.path.parent, made.cost, made.recipe.hardware
    if as_json:
        document = {"recipe": str(folder), "files": [str(each) for each in made.files], "hours": cost.hours}
        print_json("requant.new/1", document | {"download_bytes": cost.download_bytes, "disk_bytes": cost.disk_bytes})
        return
    out.lines([plan_table(made.summary)])
    for file in made.files:
        say(f"wrote {escape(str(file))}")
    memory = f"{hardware.host_memory_gib} GiB of memory"
    if hardware.memory_gib:
        memory += f" and {hardware.memory_gib} GiB of an {escape(hardware.accelerator)}'s"
    say(f"A full build takes {cost.text()}, in {memory}; hours and memory are estimates.")
    say(f"Next: requant build {escape(str(folder))} --tiny")
