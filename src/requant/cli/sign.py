"""`requant sign`: sign a statement; and how other commands sign their outcome."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from requant.cli.options import PUBLISH, app
from requant.cli.terminal import out, say
from requant.errors import UsageError

if TYPE_CHECKING:  # cryptography is imported where something is signed, and nowhere else
    from requant.evidence.outcomes import Judged
    from requant.evidence.summaries import Summary


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


def outcome_signer(
    key: Path | None, bundle: Path | None, beside: Path, verb: str
) -> "Callable[[Judged | Summary], Path] | None":
    """Return what signs the outcome of a verb; None where no key is given.

    `beside` is what the outcome speaks of: without `bundle`, the outcome is written beside it. Raises UsageError,
    before the verb has done anything, for a key that cannot sign, and where a bundle stands already.
    """
    if key is None:
        if bundle:
            raise typer.BadParameter("--bundle needs --sign KEY")
        return None
    from requant.evidence.keys import read_private
    from requant.evidence.signatures import SUFFIX, confirm_free, write_signed

    signer = read_private(key)
    place = beside.resolve()
    path = bundle or place.with_name(f"{place.name}.{verb}{SUFFIX}")
    confirm_free(path)
    if bundle and not path.parent.is_dir():
        raise UsageError(f"{path}: its folder is not there", "Make it first, or name another.")

    def signed(found: "Judged | Summary") -> Path:
        write_signed(path, found.statement(signer.public.id), signer)
        say(escape(f"{found.result}, signed with {signer.public.id}: {path}"))
        say(escape(f"next: pass it on with your public key; requant show bundle {path} --key PUBLIC verifies it"))
        return path

    return signed
