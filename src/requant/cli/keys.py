"""`requant keys`: make a key to sign with, and say what a key is named by."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from requant.cli.options import PUBLISH, Group, app
from requant.cli.terminal import out

KindName = Annotated[
    str, typer.Option("--kind", metavar="KIND", help="ed25519, or ecdsa-p256 for verifiers that know nothing else.")
]

keys = typer.Typer(cls=Group, no_args_is_help=True, help="Make a key to sign with, and say what a key is named by.")
app.add_typer(keys, name="keys", rich_help_panel=PUBLISH)


@keys.command(epilog="Example: requant keys new ada")
def new(
    name: Annotated[Path, typer.Argument(help="What the two files are called, without their endings.")],
    kind: KindName = "ed25519",
) -> None:
    """Write a key: NAME.key, which signs and is for nobody else, and NAME.pub, which verifies and is for everybody."""
    from requant.evidence.keys import KINDS, PRIVATE, PUBLIC, write_key

    chosen = next((each for each in KINDS if each == kind), None)
    if chosen is None:
        raise typer.BadParameter(f"{kind!r} is not one of {', '.join(KINDS)}", param_hint="--kind")
    made = write_key(name, chosen)
    out.print(escape(f"{made.kind} {made.id}"))
    out.print(escape(f"{name}{PRIVATE}: signs; keep it to yourself"))
    out.print(escape(f"{name}{PUBLIC}: verifies; publish it"))


@keys.command(epilog="Example: requant keys show ada.pub")
def show(
    key: Annotated[Path, typer.Argument(metavar="KEY", help="A key, public or private, in PEM.")],
) -> None:
    """Print a key's kind and id, and its public half."""
    from requant.evidence.keys import read_public

    read = read_public(key)
    out.print(escape(f"{read.kind} {read.id}"))
    out.lines(map(escape, read.pem.splitlines()))
