"""`requant update`: show or write what newer locks or base images would change."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from requant.cli.options import MAINTAIN, AsJson, EnvironmentNames, Group, Lockfiles, app
from requant.cli.terminal import out, print_json, say
from requant.counts import several
from requant.environment.update import Update, update_images, update_locks

Write = Annotated[bool, typer.Option("--write", help="Write the changes. Without it, they are only shown.")]

update = typer.Typer(
    cls=Group, no_args_is_help=True, help="Show what newer locks or base images would change; --write writes it."
)
app.add_typer(update, name="update", rich_help_panel=MAINTAIN)


@update.command("locks")
def _locks(
    cutoff: Annotated[
        str,
        typer.Option(
            metavar="TIME", help="Use only packages published before this time, such as 2026-06-01T00:00:00Z."
        ),
    ],
    names: EnvironmentNames = None,
    folder: Lockfiles = Path("lockfiles"),
    write: Write = False,
    as_json: AsJson = False,
) -> None:
    """Resolve the locks as of a later time, and show the old and the new version of each package that changes."""
    chosen = names or sorted(path.stem for path in folder.glob("*.in"))
    _tell(update_locks(folder, chosen, cutoff), write, as_json)


@update.command("images")
def _images(
    names: EnvironmentNames = None,
    folder: Lockfiles = Path("lockfiles"),
    write: Write = False,
    as_json: AsJson = False,
) -> None:
    """Ask a registry, through docker, which digests the tags of base images have now."""
    _tell(update_images(folder, names or ()), write, as_json)


def _tell(found: Update, write: bool, as_json: bool) -> None:
    if as_json:
        print_json(
            "requant.update/1",
            {"changes": [asdict(change) for change in found.changes], "files": sorted(map(str, found.texts))},
        )
    else:
        for each in found.changes:
            out.print(escape(f"{each.file}: {each.name}: {each.before or 'absent'} -> {each.after or 'removed'}"))
        out.print(several(len(found.changes), "change"))
    if write:
        for path, text in found.texts.items():
            path.write_bytes(text.encode())
        say(f"wrote {escape(', '.join(sorted(map(str, found.texts)))) or 'nothing'}")
        if found.texts:
            say(
                "Everything recorded in these environments is now out of date: "
                "CONTRIBUTING.md says what to record and render again."
            )
    raise typer.Exit(1 if found.changes and not write else 0)
