"""`requant respond`: reveal the steps of a build that a challenge asks for."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

import requant.audit
from requant.audit import steps
from requant.audit.pool import prepare
from requant.audit.references import known
from requant.build.inputs import inputs_for
from requant.build.workplace import scratch
from requant.cli.options import (
    VERIFY,
    AsJson,
    BaseOption,
    ChallengeFile,
    CheckpointFolder,
    IsTiny,
    JournalOption,
    RecipeOption,
    SandboxOption,
    Size,
    Workers,
    app,
    tiny_size,
)
from requant.cli.terminal import out, print_json, progress
from requant.environment.install import cache
from requant.recipe import read_recipe

INSTEAD = "Only the build's own hardware class repeats its bits."
"""Advice for who would respond on a machine that cannot tune the full checkpoint."""


@app.command(
    rich_help_panel=VERIFY,
    epilog="Example: requant respond CHECKPOINT --recipe builds/mine --challenge challenge.json --out response",
)
def respond(
    checkpoint: CheckpointFolder,
    recipe: RecipeOption,
    challenge: ChallengeFile,
    out_folder: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="The folder to write, or one that was begun for it.")
    ],
    base: BaseOption = None,
    journal: JournalOption = None,
    workers: Workers = 1,
    tiny: IsTiny = False,
    size: Size = None,
    sandbox: SandboxOption = "auto",
    as_json: AsJson = False,
) -> None:
    """Tune the drawn blocks of your own build again, as far as need be, and reveal the steps that are asked for.

    Run it on the hardware class of the build. Interrupted, it resumes after the last completed block.
    """
    stand_in, read = tiny_size(tiny, size), read_recipe(recipe)
    reference = known(read, stand_in, checkpoint.absolute(), journal)
    asked = steps.read_challenge(challenge, read, stand_in, reference)
    requant.audit.confirm(read, stand_in, checkpoint, reference, tuple(asked.by_block))
    with scratch(cache() / "audits") as work, progress() as tell:
        inputs = inputs_for(read, stand_in, base, work, tell, INSTEAD)
        revealed = steps.respond(
            checkpoint,
            prepare(read, stand_in, inputs, tell, sandbox),
            reference,
            asked,
            out=out_folder,
            make_pool=requant.audit.local(workers),
            work=work,
            tell=tell,
        )
    if as_json:
        print_json("requant.response/1", {"folder": str(out_folder), "blocks": revealed})
    else:
        out.print(escape(f"{out_folder}: what was asked of {', '.join(revealed)}"))
