"""`requant image`: build an environment's container image."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

import requant.environment.image
from requant.cli.options import MAINTAIN, AsJson, Lockfiles, app, environments
from requant.cli.terminal import SHOWN, out, print_json, progress, say
from requant.environment.image.engine import find
from requant.environment.image.evidence import record as record_image


@app.command(rich_help_panel=MAINTAIN, epilog="Example: requant image cpu --twice")
def image(
    name: Annotated[str, typer.Argument(help="The name of an environment, such as cpu.", autocompletion=environments)],
    twice: Annotated[
        bool, typer.Option("--twice", help="Build it twice without a cache, and compare the two images.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(
            help="Replace the pinned base image: the name of another, or debian to make one of Debian packages."
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(help="The source tree of the package that is built from a commit, where it cannot be fetched."),
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Record the image's digests and the list of what is in it beside its lock.")
    ] = False,
    folder: Lockfiles = Path("lockfiles"),
    as_json: AsJson = False,
) -> None:
    """Build an environment's container image from verified wheels, without network, and print its digests."""
    requant.environment.image.require(folder, name, base=base, source=source, recorded=record)
    engine = find()
    with progress() as tell:
        if twice:
            repeated = requant.environment.image.repeat_image(folder, name, engine, base=base, source=source, tell=tell)
            made, differences = repeated.image, repeated.differences
        else:
            made, differences = (
                requant.environment.image.build_image(folder, name, engine, base=base, source=source, tell=tell),
                (),
            )
    for taint in made.taints:
        say(f"[yellow]taint[/] {escape(taint)}")
    if as_json:
        document = {"reference": made.reference, **asdict(made.evidence), "differences": differences}
        print_json("requant.image/1", document)
    else:
        for line in differences[:SHOWN]:
            out.print(escape(line))
        if len(differences) > SHOWN:
            out.print(f"and {len(differences) - SHOWN:,} more: --json names them all")
        for key, value in asdict(made.evidence).items():
            out.print(escape(f"{key:11} {value}"))
        if twice:
            out.print("[bold red]different[/], built twice" if differences else "[bold green]identical[/], built twice")
    if record and not differences:
        say(escape(f"recorded {', '.join(map(str, record_image(folder, made, engine)))}"))
    raise typer.Exit(1 if differences else 0)
