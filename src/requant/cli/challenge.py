"""`requant challenge`: draw steps of a build for its builder to reveal."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from requant.audit import steps
from requant.audit.challenge import StepChallenge
from requant.audit.references import known
from requant.cli.options import (
    VERIFY,
    AsJson,
    CheckpointFolder,
    IsTiny,
    JournalOption,
    RecipeOption,
    Size,
    app,
    tiny_size,
)
from requant.cli.terminal import confirm_new, out, print_json, say, write_new
from requant.recipe import read_recipe


@app.command(
    rich_help_panel=VERIFY,
    epilog='Example: requant challenge CHECKPOINT --recipe builds/mine --text "drand 5000000" --out challenge.json',
)
def challenge(
    checkpoint: CheckpointFolder,
    recipe: RecipeOption,
    text: Annotated[str, typer.Option(help="The text to draw from: one that became public after the journal did.")],
    count: Annotated[int, typer.Option("--steps", min=1, help="How many steps to draw: iterations of blocks.")] = 8,
    journal: JournalOption = None,
    out_file: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The file to write. Without it, nothing is written.")
    ] = None,
    tiny: IsTiny = False,
    size: Size = None,
    as_json: AsJson = False,
) -> None:
    """Draw steps of a build in bfloat16 from a public text, for its builder to reveal: docs/portable.md."""
    if out_file:
        confirm_new(out_file)
    stand_in, read = tiny_size(tiny, size), read_recipe(recipe)
    reference = known(read, stand_in, checkpoint.absolute(), journal)
    drawn = steps.challenge(read, stand_in, reference, text, count)
    if out_file:
        write_new(out_file, drawn.to_json().decode())
        say(f"wrote {escape(str(out_file))}")
    if as_json:
        print_json("requant.challenge/1", drawn.as_json())
    else:
        for line in challenge_text(drawn):
            out.print(escape(line))


def challenge_text(drawn: StepChallenge) -> list[str]:
    """Return what a person reads of a challenge."""
    blocks = {each.index: each.block for each in drawn.steps}
    lines = [f"{blocks[index]}: {_iterations(some)}" for index, some in drawn.by_block.items()]
    return [*lines, f"{len(drawn.steps)} steps of {len(lines)} blocks, drawn from {drawn.text!r} and {drawn.journal}"]


def _iterations(some: tuple[int, ...]) -> str:
    return f"iteration{'s' * (len(some) > 1)} {', '.join(map(str, some))}"
