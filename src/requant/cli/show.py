"""`requant show`: print a file that requant wrote, in readable form."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from requant.checkpoint.manifest import read_manifest
from requant.cli.options import VERIFY, AsJson, Group, app
from requant.cli.terminal import SHOWN, out, print_json
from requant.errors import CheckpointError, UsageError
from requant.evidence.journal import read_journal
from requant.evidence.show import journal_json, journal_lines

MANIFEST = b'{"files":'
"""How every manifest begins."""

show = typer.Typer(cls=Group, no_args_is_help=True, help="Print a file that requant wrote, in readable form.")
app.add_typer(show, name="show", rich_help_panel=VERIFY)


@show.command(epilog="Example: requant show journal builds/ec/demo.journal.jsonl")
def journal(
    path: Annotated[Path, typer.Argument(help="A journal, as `requant build` writes it.")], as_json: AsJson = False
) -> None:
    """Print what the tuning was given, and the loss of each block before and after."""
    if not path.exists():
        raise CheckpointError(
            f"{path}: no such file", "Name a journal, as `requant build` writes it beside the checkpoint's folder."
        )
    if path.is_dir():
        beside = Path(f"{path}.journal.jsonl")
        advice = f"Its journal is beside it: requant show journal {beside}" if beside.exists() else ""
        raise UsageError(f"{path}: a folder, not a journal", advice or "Name a file that ends in journal.jsonl.")
    with path.open("rb") as file:
        begins = file.read(len(MANIFEST))
    if begins == MANIFEST:
        raise UsageError(f"{path}: a manifest, not a journal", "The journal beside it ends in journal.jsonl.")
    read = read_journal(path)
    if as_json:
        print_json("requant.journal/2", journal_json(read))
        return
    out.lines(map(escape, journal_lines(read)))


@show.command(epilog="Example: requant show bundle builds/ec/mini.sigstore.json --key ada.pub")
def bundle(
    path: Annotated[Path, typer.Argument(help="A bundle, as `requant sign` writes it.")],
    key: Annotated[
        list[Path] | None, typer.Option(metavar="KEY", help="A public key that you trust; can be repeated.")
    ] = None,
    identity: Annotated[
        str, typer.Option(metavar="SUBJECT", help="Whom you trust, as their certificate names them; needs --issuer.")
    ] = "",
    issuer: Annotated[str, typer.Option(metavar="URL", help="Who vouches for the identity.")] = "",
    builders: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A builders.toml, whose keys and identities you trust.")
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="Refuse a statement about other files than those of this manifest.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify a signed statement, and print who signed it and what it says of which files."""
    from requant.audit.builders import read_builders
    from requant.evidence.keyless import Identity
    from requant.evidence.keys import read_public
    from requant.evidence.outcomes import told
    from requant.evidence.signatures import confirm_subjects, verify_file
    from requant.evidence.summaries import SUMMARY

    if bool(identity) != bool(issuer):
        raise typer.BadParameter("--identity and --issuer belong together")
    known = [each.key for each in read_builders(builders).values()] if builders else []
    known += [*map(read_public, key or ()), *([Identity(issuer, identity)] if identity else ())]
    if not known:
        raise typer.BadParameter("whom do you trust: --key KEY, --identity SUBJECT --issuer URL, or --builders FILE")
    signed = verify_file(path, known)
    try:
        outcome = told(signed)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if manifest:
        files = read_manifest(manifest).files
        confirm_subjects(signed, {name: each.sha256 for name, each in files.items()}, str(path))
    if as_json:
        print_json("requant.bundle/1", signed.as_json())
        return
    out.lines(map(escape, [*signed.text(), *(outcome.text() if outcome else ())]))
    if signed.predicate_type == SUMMARY:
        out.print(escape(f"{signed.predicate.get('verificationResult')}: {signed.predicate.get('verifiedLevels')}"))
    for kind, colour in (("failedTests", "red"), ("warnedTests", "yellow")) if outcome else ():
        named = signed.predicate[kind]
        out.lines(f"[{colour}]{kind.removesuffix('Tests')}[/] {escape(str(each))}" for each in named[:SHOWN])
        if len(named) > SHOWN:
            out.print(f"and {len(named) - SHOWN} more; --json lists them")
