"""The verbs about the project itself: what it pins, what newer pins would bring, how its builds run elsewhere."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from requant.build.render import KUBERNETES, SLURM
from requant.build.render import render as rendered
from requant.cli.options import MAINTAIN, AsJson, Group, RecipePath, app, environments
from requant.cli.tables import pins_text, several
from requant.cli.terminal import out, print_json, say
from requant.environment.update import Update, update_images, update_locks
from requant.hub.pins import GAPS, find_pins
from requant.recipe import read_recipe

Write = Annotated[bool, typer.Option("--write", help="Write the changes. Without it, they are only shown.")]
Locks = Annotated[Path, typer.Option("--folder", help="The folder with the locks and images.toml.")]

update = typer.Typer(
    cls=Group, no_args_is_help=True, help="Show what newer locks or base images would change; --write writes it."
)
app.add_typer(update, name="update", rich_help_panel=MAINTAIN)


@app.command(rich_help_panel=MAINTAIN)
def pins(
    project: Annotated[Path, typer.Argument(help="The project's folder.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """List every pin: which digest holds it, where it is, who said so, and whether it is complete."""
    found = find_pins(project)
    incomplete = [pin for pin in found if pin.fault and not pin.known]
    known = sum(bool(pin.known) for pin in found)
    if as_json:
        document = {"pins": [asdict(pin) for pin in found], "incomplete": len(incomplete), "known": known}
        print_json("requant.pins/1", document)
    else:
        for line in pins_text(found):
            out.print(line)
        out.print(f"{len(found)} pins, {len(incomplete)} incomplete, {known} known to be incomplete ({GAPS})")
    raise typer.Exit(1 if incomplete else 0)


@app.command(rich_help_panel=MAINTAIN, epilog="Example: requant render builds/ec --check")
def render(
    recipe: RecipePath,
    kubernetes: Annotated[bool, typer.Option("--kubernetes", help="Write only the Kubernetes Job, job.yaml.")] = False,
    slurm: Annotated[bool, typer.Option("--slurm", help="Write only the Slurm script, job.slurm.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; only say whether the files are up to date.")
    ] = False,
) -> None:
    """Write the files that run a recipe's full build on a cluster, beside the recipe: docs/clusters.md."""
    chosen = [name for name, asked in ((KUBERNETES, kubernetes), (SLURM, slurm)) if asked] or [KUBERNETES, SLURM]
    texts = {path: text for path, text in rendered(read_recipe(recipe)).items() if path.name in chosen}
    stale = [path for path, text in texts.items() if not path.exists() or path.read_bytes() != text.encode()]
    for path in stale:
        if not check:
            path.write_bytes(texts[path].encode())
        out.print(escape(f"{path}: {'out of date' if check else 'written'}"))
    raise typer.Exit(1 if check and stale else 0)


@update.command("locks")
def _locks(
    cutoff: Annotated[
        str,
        typer.Option(
            metavar="TIME", help="Use only packages published before this time, such as 2026-06-01T00:00:00Z."
        ),
    ],
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names of environments, such as cpu. Without one, all of them.", autocompletion=environments
        ),
    ] = None,
    folder: Locks = Path("lockfiles"),
    write: Write = False,
    as_json: AsJson = False,
) -> None:
    """Resolve the locks as of a later time, and show the old and the new version of each package that changes."""
    chosen = names or sorted(path.stem for path in folder.glob("*.in"))
    _tell(update_locks(folder, chosen, cutoff), write, as_json)


@update.command("images")
def _images(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names of environments, such as cpu. Without one, all of them.",
            autocompletion=environments,
        ),
    ] = None,
    folder: Locks = Path("lockfiles"),
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
