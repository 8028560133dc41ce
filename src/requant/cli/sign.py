"""`requant sign`: sign a statement."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from requant.cli.options import PUBLISH, app
from requant.cli.terminal import out


@app.command(rich_help_panel=PUBLISH, epilog="Example: requant sign out/ec-tiny.intoto.jsonl --key ada.key")
def sign(
    statement: Annotated[Path, typer.Argument(help="A statement of a build or an audit: a file *.intoto.jsonl.")],
    key: Annotated[Path, typer.Option(metavar="KEY", help="The key to sign with, as `requant keys new` writes it.")],
) -> None:
    """Sign a statement: write a Sigstore bundle with its bytes and your signature beside it, *.sigstore.json."""
    from requant.evidence.keys import read_private
    from requant.evidence.signatures import sign_file

    signer = read_private(key)
    path = sign_file(statement, signer)
    out.print(escape(f"{path}: signed with {signer.public.id}"))
