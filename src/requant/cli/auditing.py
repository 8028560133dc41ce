"""The verbs that show how far a build was reproduced, and reproduce it: rebuild, coverage, show."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from requant import coverage as covering
from requant import rebuild as rebuilding
from requant.build import stem
from requant.cli.options import AsJson, RecipePath, Size, app
from requant.journal import read_journal
from requant.recipe import read_recipe
from requant.show import journal_json, journal_lines
from requant.tables import coverage_table
from requant.terminal import out, print_json, progress, say, show
from requant.verdict import EXIT_STATUS

shown = typer.Typer(no_args_is_help=True, help="Print a file that requant wrote, as a person reads it.")
app.add_typer(shown, name="show")


@app.command()
def rebuild(
    recipe: RecipePath,
    against: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Whose build to compare with; the recorded one without.")
    ] = None,
    twin: Annotated[bool, typer.Option("--twin", help="Rebuild the small stand-in: no GPU, minutes.")] = False,
    size: Size = "demo",
    out_folder: Annotated[Path | None, typer.Option("--out", help="The checkpoint's folder; must not exist.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a build again, and say whether its bytes and its journal are those of another one, or where they part."""
    read = read_recipe(recipe)
    stand_in = size if twin else None
    with progress() as tell:
        rebuilt = rebuilding.rebuild(
            read,
            against or read.path.parent,
            twin=stand_in,
            out=out_folder or Path("out", f"{read.name}-{stem(stand_in)}-rebuilt"),
            replace_existing=out_folder is None,
            tell=tell,
        )
    for taint in rebuilt.built.taints:
        say(f"[yellow]taint[/] {escape(taint)}")
    if as_json:
        print_json(rebuilt.as_json())
    else:
        show(rebuilt.verdict, f"compared with {rebuilt.against}.manifest.json and journal.jsonl")
    raise typer.Exit(EXIT_STATUS[rebuilt.verdict.outcome])


@app.command()
def coverage(
    recipe: RecipePath,
    twin: Annotated[bool, typer.Option("--twin", help="Of the small stand-in.")] = False,
    size: Size = "demo",
    as_json: AsJson = False,
) -> None:
    """Say which blocks were reproduced bit for bit, by how many parties, in which hardware classes."""
    covered = covering.coverage(read_recipe(recipe), size if twin else None)
    if as_json:
        print_json(covered.as_json())
    else:
        for part in coverage_table(covered):
            out.print(part)
    raise typer.Exit(covered.exit_status)


@shown.command()
def journal(
    path: Annotated[Path, typer.Argument(help="A journal, as `build` writes it.")], as_json: AsJson = False
) -> None:
    """Print what a tuning was given, and each block's loss before and after."""
    read = read_journal(path)
    if as_json:
        print_json(journal_json(read))
        return
    for line in journal_lines(read):
        out.print(escape(line))
