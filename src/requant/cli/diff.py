"""`requant diff`: compare two checkpoints with each other."""

from typing import Annotated

import typer
from rich import progress as rich_progress
from rich.markup import escape

from requant.cli.options import CPUS, HERE, VERIFY, AsJson, Threads, app
from requant.cli.terminal import SHOWN, out, print_json, progress
from requant.hub.snapshots import folder_of
from requant.verdict import EXIT_STATUS


@app.command(rich_help_panel=VERIFY, epilog="Example: requant diff out/ec-tiny out/gb10-tiny")
def diff(
    first: Annotated[str, typer.Argument(metavar="A", help=f"One checkpoint: {HERE}.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The other one.")],
    threads: Threads = CPUS,
    as_json: AsJson = False,
) -> None:
    """Say which tensors differ and by how much (codes and steps, or values), and how the other files differ."""
    import requant.diff  # numba, as in check

    with progress(rich_progress.DownloadColumn()) as tell:
        compared = requant.diff.diff(folder_of(first), folder_of(second), threads=threads, tell=tell)
    if as_json:
        print_json("requant.diff/1", compared.as_json())
    else:
        out.lines(map(escape, compared.text(SHOWN)))
        out.print(f"[bold]{compared.outcome}[/]")
    raise typer.Exit(EXIT_STATUS[compared.outcome])
