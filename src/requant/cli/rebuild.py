"""`requant rebuild`: build a recipe again, and compare with another build."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

import requant.build.rebuild
from requant.audit.parties import write_rebuild
from requant.build import stem
from requant.cli.options import (
    VERIFY,
    AsJson,
    BundleFile,
    Fresh,
    NewCheckpoint,
    RecipePath,
    SandboxOption,
    SignKey,
    Size,
    app,
    tiny_size,
)
from requant.cli.sign import outcome_signer
from requant.cli.terminal import print_json, progress, say, show
from requant.recipe import read_recipe
from requant.verdict import EXIT_STATUS


@app.command(rich_help_panel=VERIFY, epilog="Example: requant rebuild builds/ec --tiny --against DIR")
def rebuild(
    recipe: RecipePath,
    against: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The folder of the build to compare with. Without it, the recorded build."),
    ] = None,
    tiny: Annotated[
        bool,
        typer.Option(
            "--tiny",
            help="Rebuild the tiny model, a small stand-in for the base model: it takes minutes, and needs no GPU.",
        ),
    ] = False,
    size: Size = None,
    sandbox: SandboxOption = "auto",
    out_folder: NewCheckpoint = None,
    fresh: Fresh = False,
    sign: SignKey = None,
    bundle: BundleFile = None,
    record: Annotated[
        bool,
        typer.Option("--record", help="With --sign, write the outcome to the recipe's folder rebuilds/, too."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Build a recipe again, and say whether its bytes and journal are those of another build, or where they diverge."""
    read = read_recipe(recipe)
    stand_in = tiny_size(tiny, size)
    out = out_folder or Path("out", f"{read.name}-{stem(stand_in)}-rebuilt")
    signed = outcome_signer(sign, bundle, out, "rebuild")
    if record and not sign:
        raise typer.BadParameter("--record needs --sign KEY: a rebuild counts by its key")
    with progress() as tell:
        rebuilt = requant.build.rebuild.rebuild(
            read,
            against or read.path.parent,
            tiny=stand_in,
            out=out,
            replace_existing=out_folder is None,
            fresh=fresh,
            sandbox=sandbox,
            tell=tell,
        )
    for taint in rebuilt.built.taints:
        say(f"[yellow]taint[/] {escape(taint)}")
    if as_json:
        print_json("requant.rebuild/1", rebuilt.as_json())
    else:
        show(rebuilt.verdict, f"compared with {rebuilt.against}.manifest.json and journal.jsonl")
    if signed:
        bundle = signed(rebuilt.judged(read, stand_in))
        if record:
            path = write_rebuild(read, bundle.read_bytes())
            say(f"recorded {escape(str(path))}: docs/audit.md says how to submit it")
    raise typer.Exit(EXIT_STATUS[rebuilt.verdict.outcome])
