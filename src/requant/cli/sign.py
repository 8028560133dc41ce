"""`requant sign`: sign a statement; and how other commands sign their outcome."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from requant.cli.options import PUBLISH, app
from requant.cli.terminal import out, say
from requant.errors import UsageError

if TYPE_CHECKING:  # cryptography is imported where something is signed, and nowhere else
    from requant.evidence.keyless import LoggedIn
    from requant.evidence.outcomes import Judged
    from requant.evidence.signatures import Signs
    from requant.evidence.summaries import Summary

KEYLESS = "keyless"


@app.command(rich_help_panel=PUBLISH, epilog="Example: requant sign out/ec-tiny.intoto.jsonl --key ada.key")
def sign(
    statement: Annotated[Path, typer.Argument(help="A statement of a build or an audit: a file *.intoto.jsonl.")],
    key: Annotated[
        str,
        typer.Option(metavar="KEY", help="The key to sign with, as `requant keys new` writes it, or the word keyless."),
    ],
) -> None:
    """Sign a statement: write a Sigstore bundle with its bytes and your signature beside it, *.sigstore.json."""
    from requant.evidence.signatures import by, sign_file

    signer = signing(key)()
    path = sign_file(statement, signer)
    out.print(escape(f"{path}: signed {by(signer.public)}"))


def signing(key: str) -> "Callable[[], Signs]":
    """Return what a statement is signed with, once it is to be signed: `keyless` lasts ten minutes after logging in.

    `key` is the file of a key, or `keyless`, or `keyless:FILE` with the trust configuration of another Sigstore than
    the public one. Raises UsageError at once for anything that cannot sign.
    """
    word, _, file = key.partition(":")
    if word == KEYLESS:
        from requant.evidence.keyless import confirm_installed, read_trust

        confirm_installed()
        trust = Path(file) if file else None
        if trust:
            read_trust(trust)
        return partial(_logged_in, trust)
    from requant.evidence.keys import read_private

    private = read_private(Path(key))
    return lambda: private


@cache
def _logged_in(trust: Path | None) -> "LoggedIn":
    """Log in once, for all that a command signs when it ends."""
    from requant.evidence.keyless import log_in

    return log_in(trust)


def outcome_signer(
    key: str | None, bundle: Path | None, beside: Path, verb: str
) -> "Callable[[Judged | Summary], Path] | None":
    """Return what signs the outcome of a verb; None where no key is given.

    `beside` is what the outcome speaks of: without `bundle`, the outcome is written beside it. Raises UsageError,
    before the verb has done anything, for a key that cannot sign, and where a bundle stands already.
    """
    if key is None:
        if bundle:
            raise typer.BadParameter("--bundle needs --sign KEY")
        return None
    from requant.evidence.keyless import Identity
    from requant.evidence.signatures import SUFFIX, by, confirm_free, write_signed

    obtain = signing(key)
    place = beside.resolve()
    path = bundle or place.with_name(f"{place.name}.{verb}{SUFFIX}")
    confirm_free(path)
    if bundle and not path.parent.is_dir():
        raise UsageError(f"{path}: its folder is not there", "Make it first, or name another.")

    def signed(found: "Judged | Summary") -> Path:
        signer = obtain()
        write_signed(path, found.statement(signer.public.id), signer)
        say(escape(f"{found.result}, signed {by(signer.public)}: {path}"))
        told = f"next: pass it on with your public key; requant show bundle {path} --key PUBLIC verifies it"
        if isinstance(signer.public, Identity):
            told = f"next: pass it on; requant show bundle {path} --identity YOU --issuer WHO verifies it"
        say(escape(told))
        return path

    return signed
