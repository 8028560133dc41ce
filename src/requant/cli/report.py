"""`requant report`: what is known of one build, as a page to look at."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich import progress as rich_progress
from rich.markup import escape

from requant.audit.builders import builders_of
from requant.cli.options import CPUS, PUBLISH, AsJson, Builders, Size, Threads, app, recipes, tiny_size
from requant.cli.terminal import confirm_new, out, print_json, progress, say, write_new
from requant.errors import UsageError
from requant.recipe import FILE, read_recipe

COLOURS = {"good": "green", "bad": "red", "open": "yellow", "failed": "magenta"}


@app.command(rich_help_panel=PUBLISH, epilog="Example: requant report builds/ec --tiny --size mini --out report.html")
def report(
    build: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT|RECIPE",
            help="A checkpoint's folder, or a folder under builds/, whose record is shown.",
            autocompletion=recipes,
        ),
    ],
    out_file: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to write it; it must not exist.")],
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="RECIPE", help="The checkpoint's recipe, with its records.", autocompletion=recipes),
    ] = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="It is a build of the tiny model, the small stand-in for the base.")
    ] = False,
    size: Size = None,
    base: Annotated[
        str, typer.Option(metavar="BASE", help="Check the checkpoint too: a folder, or owner/name@revision.")
    ] = "",
    against: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="A second build to hold beside it: a checkpoint or its records."),
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option(metavar="CARD", help="Its published card. Without it, the checkpoint's README.md, with a recipe."),
    ] = None,
    builders: Builders = None,
    threads: Threads = CPUS,
    as_json: AsJson = False,
) -> None:
    """Write one page on a build: is it good, who says so, what was found where, what nobody has looked at."""
    from requant.report.evidence import beside_another, of_build, of_checkpoint
    from requant.report.judgement import judge
    from requant.report.page import page

    confirm_new(out_file)
    named = build if build.name == FILE else build / FILE
    is_recipe = named.is_file()
    if is_recipe and (base or card or recipe):
        raise UsageError(
            f"{build}: a recipe, whose records have no weights",
            "Name a checkpoint for --base, --card and --recipe.",
        )
    if card and not recipe:
        raise UsageError("--card needs --recipe", "A card is held against the records of a build.")
    read = read_recipe(build if is_recipe else recipe) if is_recipe or recipe else None  # type: ignore[arg-type]
    known = builders_of(read, builders) if read else {}
    chosen = tiny_size(tiny, size)
    options: dict[str, Any] = {"base": base, "card": card, "threads": threads}
    with progress(rich_progress.DownloadColumn()) as tell:
        if is_recipe and read:
            found = of_build(read, chosen, known)
        else:
            found = of_checkpoint(build, read, chosen, known, tell=tell, **options)
        if against:
            found = beside_another(found, None if is_recipe else build, against)
    judgement = judge(found)
    text = page(found, judgement)
    write_new(out_file, text)
    if as_json:
        print_json("requant.report/1", {"build": found.name, "tiny": found.tiny, **judgement.as_json()})
    else:
        say(escape(f"{out_file}: {len(text.encode()):,} bytes"))
        out.print(f"[bold {COLOURS[judgement.state]}]{judgement.word.lower()}[/]: {escape(judgement.sentence)}")
