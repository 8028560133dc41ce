"""`requant plan`: say what a recipe quantizes."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape

import requant.build.survey
from requant.build.survey import Asked
from requant.cli.folding import Sheet
from requant.cli.options import MAKE, AsJson, RecipePath, SandboxOption, Size, app, tiny_size
from requant.cli.terminal import out, print_json, progress
from requant.model.summary import Summary, summarize
from requant.recipe import read_recipe


@app.command(rich_help_panel=MAKE, epilog="Example: requant plan builds/ec")
def plan(
    recipe: RecipePath,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Plan the build of the tiny model, the small stand-in for the base.")
    ] = False,
    size: Size = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="With --json: list each tensor, instead of templates for many.")
    ] = False,
    ask: Annotated[
        bool, typer.Option("--ask", help="Also ask AutoRound itself, and compare; installs it first.")
    ] = False,
    record: Annotated[
        bool, typer.Option("--record", help="Ask AutoRound, and write its answer beside the recipe, as plan.json.")
    ] = False,
    sandbox: SandboxOption = "auto",
    as_json: AsJson = False,
) -> None:
    """Say what a recipe quantizes, and into how many tensors and bytes; reads no weights."""
    read, stand_in = read_recipe(recipe), tiny_size(tiny, size)
    asked = None
    with progress() as tell:
        if record:
            requant.build.survey.record(read, sandbox=sandbox, tell=tell)
        elif ask:
            asked = requant.build.survey.ask_again(read, stand_in, sandbox=sandbox, tell=tell)
    planned = summarize(read, stand_in)
    if as_json:
        print_json("requant.plan/1", planned.as_json(layers) | ({"asked": asdict(asked)} if asked else {}))
    else:
        out.lines([plan_table(planned), *(asked_text(asked) if asked else ())])
    if asked and asked.differences:
        raise typer.Exit(1)


def plan_table(plan: Summary) -> Sheet:
    """Return what each part of base and checkpoint weighs."""
    title = f"{plan.recipe}: {plan.quantized:,} of {plan.linears:,} linear layers of {plan.base} become "
    title += " or ".join(plan.schemes)
    sheet = Sheet("", "tensors", "parameters", "bytes", title=escape(title), numbers=True)
    for part, size in plan.sizes.items():
        # Packed words are no parameters: counted before, they would only mislead after.
        parameters = f"{size.parameters:,}" if part.startswith("base") else ""
        indented = f"  {part.partition(', ')[2]}" if ", " in part else part
        sheet.add(indented, f"{size.tensors:,}", parameters, f"{size.bytes:,}")
    return sheet


def asked_text(asked: Asked) -> Iterator[str]:
    """Yield whether the quantizer itself means what is planned, and each difference."""
    who = f"AutoRound {escape(asked.versions['auto-round'])}"
    if not asked.differences:
        yield f"[green]{who} itself packs these {asked.layers:,} layers, from these places in the base[/]"
        return
    yield f"[red]{who} itself packs {asked.layers:,} layers of {asked.blocks:,} blocks, and not as planned:[/]"
    yield from map(escape, asked.differences)
