"""`requant render`: write the files that run a recipe's full build on a cluster."""

from typing import Annotated

import typer
from rich.markup import escape

import requant.build.render
from requant.build.render import KUBERNETES, SLURM
from requant.cli.options import MAKE, RecipePath, app
from requant.cli.terminal import out
from requant.recipe import read_recipe


@app.command(rich_help_panel=MAKE, epilog="Example: requant render builds/ec --check")
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
    texts = {
        path: text for path, text in requant.build.render.render(read_recipe(recipe)).items() if path.name in chosen
    }
    stale = [path for path, text in texts.items() if not path.exists() or path.read_bytes() != text.encode()]
    for path in stale:
        if not check:
            path.write_bytes(texts[path].encode())
        out.print(escape(f"{path}: {'out of date' if check else 'written'}"))
    raise typer.Exit(1 if check and stale else 0)
