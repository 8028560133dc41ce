"""The command line's program, and the arguments that several verbs have."""

from pathlib import Path
from typing import Annotated

import typer

from requant.rooms.choice import RUNNERS

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
NewCheckpoint = Annotated[
    Path | None,
    typer.Option(
        "--out", help="The checkpoint's folder; must not exist. Without it, one under out/, which is replaced."
    ),
]
RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A folder under builds/, or its recipe.toml.")]
Runner = Annotated[str, typer.Option(help=f"Where the room runs: {', '.join(RUNNERS)}. docs/runners.md")]
Size = Annotated[str, typer.Option(help="The twin's size: mini, demo or wide.")]


@app.callback()
def _requant() -> None:
    """Build quantized checkpoints that anyone can build again, and verify published ones."""
