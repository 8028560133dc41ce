"""`requant build`: build a recipe's checkpoint."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

import requant.build
from requant.cli.options import MAKE, AsJson, Fresh, NewCheckpoint, RecipePath, SandboxOption, Size, app, tiny_size
from requant.cli.terminal import print_json, progress, say, show
from requant.counts import several
from requant.recipe import read_recipe
from requant.verdict import EXIT_STATUS


@app.command(rich_help_panel=MAKE, epilog="Example: requant build builds/ec --tiny")
def build(
    recipe: RecipePath,
    tiny: Annotated[
        bool,
        typer.Option(
            "--tiny",
            help="Build the tiny model, a small stand-in for the base model: it takes minutes, and needs no GPU.",
        ),
    ] = False,
    size: Size = None,
    out_folder: NewCheckpoint = None,
    base: Annotated[
        Path | None,
        typer.Option(
            help="The folder of the base. Without it, it is downloaded (a tiny model: made).", show_default=False
        ),
    ] = None,
    sandbox: SandboxOption = "auto",
    keep_raw: Annotated[
        bool, typer.Option("--keep-raw", help="Also keep AutoRound's own output, as <out>.raw.")
    ] = False,
    fresh: Fresh = False,
    record: Annotated[
        bool,
        typer.Option("--record", help="Record this build beside the recipe, as the one to compare later builds with."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Build a recipe's checkpoint, hash it, and compare it with the build that is recorded for the recipe."""
    read = read_recipe(recipe)
    stand_in = tiny_size(tiny, size)
    kind = {None: "full", "demo": "tiny"}.get(stand_in, stand_in)
    folder = out_folder or Path("out", f"{read.name}-{kind}")
    with progress() as tell:
        built = requant.build.build(
            read,
            tiny=stand_in,
            out=folder,
            base=base,
            replace_existing=out_folder is None,
            keep_raw=keep_raw,
            fresh=fresh,
            sandbox=sandbox,
            tell=tell,
        )
    tensors = several(len(built.manifest.tensors), "tensor")
    say(f"{escape(str(built.folder))}: {several(len(built.manifest.files), 'file')}, {tensors}")
    for taint in built.taints:
        say(f"[yellow]taint[/] {escape(taint)}")
    say("seconds: " + ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in built.seconds.items()))
    reference = requant.build.recorded(read, stand_in, "manifest.json")
    if as_json:
        document = {"folder": str(built.folder), "taints": built.taints, **built.verdict.as_json()}
        print_json("requant.build/1", document)
    else:
        show(built.verdict, "compared with what was recorded before" if record else f"compared with {reference}")
    if record:
        for path in requant.build.record(read, stand_in, built.folder):
            say(f"recorded {escape(str(path))}")
        raise typer.Exit(0)
    raise typer.Exit(EXIT_STATUS[built.verdict.outcome])
