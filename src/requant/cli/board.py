"""`requant board`: a site of many builds, and who made them again."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from requant.cli.options import PUBLISH, AsJson, Builders, app
from requant.cli.terminal import out, print_json, say
from requant.counts import several
from requant.errors import NotAvailableError


@app.command(rich_help_panel=PUBLISH, epilog="Example: requant board builds theirs=../other/builds --out site")
def board(
    builds: Annotated[
        list[str], typer.Argument(metavar="BUILDS", help="Folders of builds, each as FOLDER or NAME=FOLDER.")
    ],
    out_folder: Annotated[
        Path,
        typer.Option("--out", metavar="FOLDER", help="The site: a new folder, or a board, whose history goes on."),
    ],
    builders: Builders = None,
    as_json: AsJson = False,
) -> None:
    """Write a static site: each build with its status, by whom and on what it was reproduced, and all that changed."""
    from requant.report.board import make_board, places, read_board, read_builds
    from requant.report.site import write_site

    named = places(builds)
    before = read_board(out_folder)
    found = tuple(read_builds(named, builders))
    made = make_board(found, before)
    try:
        count = write_site(out_folder, made, found, before)
    except OSError as error:
        raise NotAvailableError(f"{out_folder}: {error.strerror}", "Name a folder of yours.") from None
    if as_json:
        print_json("requant.board/1", made.as_json())
        return
    say(escape(f"{out_folder}: {several(count, 'file')}"))
    counts = Counter(each.status for each in made.builds)
    new = len(made.history) - len(before.history)
    told = ", ".join(f"{counts[status]} {status}" for status in ("reproduced", "bad", "failed", "unknown"))
    out.print(escape(f"{several(len(made.builds), 'build')}: {told}; {several(new, 'change')} since the last board"))
