"""The verbs that tell what is in front of them: plan, inspect, identify; and repair, which mends it."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

import requant.build.survey as surveying
from requant.cli.options import MAKE, TELL, AsJson, RecipePath, SandboxOption, Size, app, recipes, tiny_size
from requant.cli.tables import (
    asked_text,
    defect_text,
    findings_table,
    fingerprint_table,
    plan_table,
    repair_table,
)
from requant.cli.terminal import out, print_json, progress
from requant.identify import identify as fingerprint
from requant.inspect import EXIT_STATUS
from requant.inspect import inspect as inspect_headers
from requant.inspect.baseline import expected, read_baseline
from requant.inspect.defects import DEFECTS
from requant.inspect.loaders import DEFAULT, LOADERS, TENSOR_PARALLEL, named
from requant.inspect.remote import open_headers
from requant.model.summary import summarize as make_plan
from requant.progress import Progress
from requant.recipe import read_recipe
from requant.repair import repair as mend


@app.command(rich_help_panel=TELL, epilog="Example: requant plan builds/ec")
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
        bool, typer.Option("--ask", help="Ask AutoRound itself too, and compare; installs it first.")
    ] = False,
    sandbox: SandboxOption = "auto",
    as_json: AsJson = False,
) -> None:
    """Say what a recipe quantizes, and into how many tensors and bytes; reads no weights."""
    read, stand_in = read_recipe(recipe), tiny_size(tiny, size)
    planned, asked = make_plan(read, stand_in), None
    if ask:
        with progress() as tell:
            asked = surveying.ask_again(read, stand_in, sandbox=sandbox, tell=tell)
    if as_json:
        print_json("requant.plan/1", planned.as_json(layers) | ({"asked": asdict(asked)} if asked else {}))
    else:
        out.lines([plan_table(planned), *(asked_text(asked) if asked else ())])
    if asked and asked.differences:
        raise typer.Exit(1)


@app.command(rich_help_panel=TELL, epilog="Example: requant inspect out/ec-tiny --all --recipe builds/ec")
def inspect(
    checkpoint: Annotated[str, typer.Argument(help="A folder, or a repository as owner/name@revision.")] = "",
    loader: Annotated[
        list[str] | None,
        typer.Option(
            help="A loader and its version, such as vllm==0.33.0; may be repeated.", show_default=DEFAULT.name
        ),
    ] = None,
    tp: Annotated[
        list[int] | None, typer.Option(min=1, help="Degree of tensor parallelism; may be repeated.", show_default="1")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Ask every modelled loader, at tensor parallelism 1, 2, 4 and 8.")
    ] = False,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="RECIPE",
            help="Mark the findings that healthy builds of this recipe have too.",
            autocompletion=recipes,
        ),
    ] = None,
    headers_only: Annotated[
        bool, typer.Option("--headers-only", help="Read only headers: no zero points, no scales.")
    ] = False,
    explain: Annotated[str, typer.Option(help="Describe a defect, such as D10, and exit.")] = "",
    as_json: AsJson = False,
) -> None:
    """Say whether each loader would read every tensor of a checkpoint exactly once, and as what it is."""
    if explain:
        text = list(defect_text(explain))
        if as_json:
            print_json("requant.defect/1", asdict(DEFECTS[explain]))
        else:
            out.lines(text)
        raise typer.Exit(0)
    if not checkpoint:
        raise typer.BadParameter("name a checkpoint, or a defect with --explain D10")
    loaders = LOADERS if everything else tuple(map(named, loader or [DEFAULT.name]))
    known = expected(read_baseline(read_recipe(recipe))) if recipe else {}
    headers = open_headers(checkpoint)
    inspected = inspect_headers(
        headers,
        loaders,
        TENSOR_PARALLEL if everything else tuple(tp or [1]),
        look_at_values=headers.folder is not None and not headers_only,
        known=known,
    )
    if as_json:
        print_json("requant.inspect/1", inspected.as_json())
    else:
        out.lines(findings_table(inspected))
    raise typer.Exit(EXIT_STATUS[inspected.outcome])


@app.command(rich_help_panel=TELL, epilog="Example: requant identify out/ec-tiny")
def identify(
    checkpoint: Annotated[str, typer.Argument(help="A folder, or a repository as owner/name@revision.")],
    as_json: AsJson = False,
) -> None:
    """Say which tools and policies could have written a checkpoint."""
    found = fingerprint(open_headers(checkpoint))
    if as_json:
        print_json("requant.identify/2", found.as_json())
    else:
        out.lines(fingerprint_table(found))


@app.command(rich_help_panel=MAKE, epilog="Example: requant repair CHECKPOINT --base BASE --out DIR")
def repair(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint's folder; it is only read.")],
    base: Annotated[Path, typer.Option(help="The base, the unquantized model that it was made from.")],
    out_folder: Annotated[
        Path | None,
        typer.Option("--out", help="The folder to write; it must not exist. Without it, nothing is written."),
    ] = None,
    mtp: Annotated[
        Literal["bf16", "rtn"] | None,
        typer.Option(help="How to store MTP, the block that predicts further tokens. Without it, as it is stored."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a repaired copy of a checkpoint, in which no tuned byte is changed."""
    with progress() as tell:
        done = mend(
            checkpoint,
            base,
            out=out_folder,
            policy=mtp,
            progress=lambda file: tell(Progress("repair", note=file)),
        )
    if as_json:
        print_json("requant.repair/1", done.as_json())
    else:
        out.lines(repair_table(done, out_folder))
