"""`requant publish`: send a build and its proofs to the Hub, in one commit."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType
from rich.filesize import decimal
from rich.markup import escape

from requant.build import words
from requant.cli.options import PUBLISH, AsJson, CheckpointFolder, Endpoint, SignKey, Size, app, recipes, tiny_size
from requant.cli.sign import signing
from requant.cli.terminal import SHOWN, err, out, print_json, progress, say
from requant.counts import several
from requant.errors import UsageError
from requant.recipe import read_recipe

if TYPE_CHECKING:
    from requant.published.publication import Publication

DIFFERENT = 1


@app.command(rich_help_panel=PUBLISH, epilog="Example: requant publish out/ec-tiny ada/ec --recipe builds/ec --tiny")
def publish(
    checkpoint: CheckpointFolder,
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository; --push makes a new one.")],
    recipe: Annotated[
        Path,
        typer.Option(metavar="RECIPE", help="Its recipe: a folder under builds/.", autocompletion=recipes),
    ],
    tiny: Annotated[
        bool, typer.Option("--tiny", help="It is a build of the tiny model, the small stand-in for the base.")
    ] = False,
    size: Size = None,
    base: Annotated[
        str,
        typer.Option(
            help="The base for check: a folder, or owner/name@revision. Without it, the pinned one over the network "
            "(with --tiny: written)."
        ),
    ] = "",
    sample: Annotated[float, typer.Option(help="Share of the weights that check reads.")] = 1.0,
    sign: SignKey = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Replace the repository's README.md, and remove files of another checkpoint."),
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="Where the repository is new, make it private.")] = False,
    send: Annotated[
        bool, typer.Option("--push", help="Send it. Without it, nothing leaves this machine: a dry run.")
    ] = False,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Verify, inspect and check a build, and send it with its proofs and its card, in one commit: docs/publish.md."""
    from requant.card.facts import facts_of
    from requant.card.records import read_records
    from requant.card.render import render
    from requant.evidence.signatures import by
    from requant.hub.repository import NAME
    from requant.published.examined import examine
    from requant.published.proofs import sign_records
    from requant.published.publication import prepare, push
    from requant.published.sealed import sealed

    if not (match := NAME.fullmatch(repository)) or match[2]:
        raise UsageError(f"{repository}: expected owner/name", "A publication goes to the branch main.")
    read, stand_in = read_recipe(recipe), tiny_size(tiny, size)
    obtain = signing(sign) if sign else None
    with progress() as tell:
        examined = examine(checkpoint, read, stand_in, base, sample=sample, tell=tell)
    if not as_json:
        out.lines(map(escape, examined.text()))
    if examined.refusals:
        if as_json:
            nothing: dict[str, object] = {"parent": None, "files": {}, "removed": [], "commit": None}
            refusals = list(examined.refusals)
            print_json("requant.publish/1", {"repository": repository, "refusals": refusals, **nothing})
        else:
            out.lines(map(escape, examined.refusals[:SHOWN]))
            if len(examined.refusals) > SHOWN:
                out.print(f"and {len(examined.refusals) - SHOWN} more; --json lists them all")
            out.print("[bold red]not published[/]")
        raise typer.Exit(DIFFERENT)
    signer = obtain() if obtain else None
    if signer:
        for path in sign_records(read, stand_in, checkpoint, examined.outcomes, signer):
            say(escape(f"signed {by(signer.public)}: {path}"))
    records = read_records(read, stand_in, checkpoint if Path(f"{checkpoint}.manifest.json").exists() else None)
    card = render(records, facts_of(records), repository)
    prepared = prepare(repository, checkpoint, read, stand_in, card, replace=replace, endpoint=endpoint)
    if not prepared.refusals:
        prepared = sealed(prepared, checkpoint, signer)
    if not as_json:
        out.lines(publication_text(prepared))
    commit = None
    if send and not prepared.refusals:
        if not err.is_terminal:
            from huggingface_hub.utils import disable_progress_bars

            disable_progress_bars()
        message = f"{read.name}{f', tiny model {stand_in}' if stand_in else ''}: checkpoint and proofs, by requant"
        commit = push(prepared, message=message, private_one=private, endpoint=endpoint)
    if as_json:
        print_json("requant.publish/1", {**prepared.as_json(), "commit": commit})
    elif commit:
        out.print(f"[bold green]published[/] {escape(f'{repository}@{commit}')}")
        out.print(escape(f"next: requant verify {repository}@{commit}"))
    elif not prepared.refusals:
        command = ["requant", "publish", str(checkpoint), repository, "--recipe", str(recipe), *words(stand_in).split()]
        command += [*(["--base", base] if base else []), *(["--sign", sign] if sign else [])]
        command += [*(["--replace"] if replace else []), *(["--private"] if private else []), "--push"]
        out.print("[bold]dry run[/]: nothing was sent")
        out.print(escape(f"next: {shlex.join(command)}"))
    raise typer.Exit(DIFFERENT if prepared.refusals else 0)


def publication_text(prepared: "Publication") -> Iterator[RenderableType]:
    """Yield what would go where, file by file, and what keeps it from going."""
    unchanged = {*prepared.unchanged}
    for path, each in prepared.files.items():
        yield escape(f"{'there already' if path in unchanged else 'send':<13} {decimal(each.size):>9}  {path}")
    yield from (escape(f"{'remove':<13} {'':>9}  {path}") for path in prepared.removed)
    yield from map(escape, prepared.card_diff)
    yield from (f"[red]{escape(each)}[/]" for each in prepared.refusals)
    bytes_to_send = sum(each.size for path, each in prepared.files.items() if path not in unchanged)
    new = "" if prepared.there else ", which is new, or not to be seen without a token"
    files = several(len(prepared.files), "file")
    yield escape(f"{prepared.repository}{new}: {files}, {decimal(bytes_to_send)} to send")
