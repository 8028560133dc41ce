"""`requant fetch`: download a published checkpoint with its proofs, if they say what is asked of them."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from requant.cli.options import PUBLISH, AsJson, Builders, Endpoint, Registry, Require, Trust, app
from requant.cli.terminal import out, print_json, progress, say
from requant.counts import several


@app.command(rich_help_panel=PUBLISH, epilog="Example: requant fetch ada/ec-tiny --require 2 --builders builders.toml")
def fetch(
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME[@REVISION]", help="The repository on the Hub.")],
    out_folder: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Where to. Without it, a folder called NAME.")
    ] = None,
    require: Require = None,
    trust: Trust = None,
    builders: Builders = None,
    registry: Registry = None,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Download a published checkpoint and its proofs, every byte held against the manifest: docs/publish.md.

    The proofs come first: where they, or what the Hub states of the files, say no, no weight is downloaded.
    """
    from requant.build.workplace import scratch
    from requant.cli.verify import standing_table
    from requant.environment.install import cache
    from requant.hub.repository import named
    from requant.published.download import download
    from requant.published.found import builders_for, find, registry_for
    from requant.published.standing import standing

    name, revision = named(repository, "main")
    folder = out_folder or Path(name.partition("/")[2])
    chosen = registry_for(registry)
    known, trusted = builders_for(chosen, builders, trust or [])
    with scratch(cache() / "published") as work, progress() as tell:
        found = find(name, revision, chosen, work, endpoint=endpoint, tell=tell)
        stands = standing(found, known, required=require, trusted=trusted, tell=tell)
        refused = stands.fails or (stands.confirmed and not stands.confirmed.holds) or found.proofs is None
        got = None if refused else download(found, folder, endpoint=endpoint, tell=tell)
    if as_json:
        fetched = got and {"folder": str(folder), "files": len(got.files), "downloaded": list(got.downloaded)}
        print_json("requant.fetch/1", {"standing": stands.as_json(), "fetched": fetched})
    elif got:
        out.print(escape(f"{folder}: {several(len(got.files), 'file')} of {found.name}, each by its SHA-256"))
        out.print(escape(f"next: {stands.next}"))
    else:
        out.lines(standing_table(stands))
        if stands.confirmed and not stands.confirmed.holds:
            out.lines(map(escape, stands.confirmed.text()))
        say("[bold red]nothing was downloaded[/]")
    raise typer.Exit(0 if got else stands.exit_status or 3)
