"""The verbs that tell what is in front of them: plan, inspect, identify; and repair, which mends it."""

from pathlib import Path
from typing import Annotated

import typer

from requant.card import judge, read_card
from requant.cli.options import AsJson, RecipePath, Size, app
from requant.cli.tables import claims_table, defect_text, findings_table, fingerprint_table, plan_table, repair_table
from requant.cli.terminal import out, print_json, progress
from requant.identify import identify as fingerprint
from requant.inspect import inspect as inspect_headers
from requant.inspecting.baseline import expected, read_baseline
from requant.inspecting.remote import open_headers
from requant.loaders import DEFAULT, LOADERS, TENSOR_PARALLEL, named
from requant.plan import plan as make_plan
from requant.progress import Progress
from requant.recipe import read_recipe
from requant.repair import repair as mend
from requant.twin import SIZES


@app.command()
def plan(
    recipe: RecipePath,
    twin: Annotated[bool, typer.Option("--twin", help="Plan the small stand-in.")] = False,
    size: Size = "demo",
    layers: Annotated[bool, typer.Option("--layers", help="With --json: each tensor, not templates of them.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what a recipe quantizes, into how many tensors and bytes; reads no weight."""
    if size not in SIZES:
        raise typer.BadParameter(f"{size}: there are {', '.join(SIZES)}")
    planned = make_plan(read_recipe(recipe), size if twin else None)
    if as_json:
        print_json(planned.as_json(layers))
    else:
        out.print(plan_table(planned))


@app.command()
def inspect(
    checkpoint: Annotated[str, typer.Argument(help="A folder, or a repository as owner/name@revision.")] = "",
    loader: Annotated[list[str] | None, typer.Option(help="vllm==0.33.0 without it; may be repeated.")] = None,
    tp: Annotated[list[int] | None, typer.Option(min=1, help="Tensor parallelism, 1 without it; repeatable.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All modelled loaders, at TP 1, 2, 4 and 8.")] = False,
    recipe: Annotated[Path | None, typer.Option(help="Show what a healthy build of it has as known.")] = None,
    headers_only: Annotated[bool, typer.Option("--headers-only", help="Look at no zero point and no scale.")] = False,
    explain: Annotated[str, typer.Option(help="Print a defect's entry, such as D10.")] = "",
    as_json: AsJson = False,
) -> None:
    """Say what each loader would do with a checkpoint: every tensor, exactly once, as what it is."""
    if explain:
        out.print(defect_text(explain))
        raise typer.Exit(0)
    if not checkpoint:
        raise typer.BadParameter("name a checkpoint, or a defect with --explain")
    headers = open_headers(checkpoint)
    loaders = LOADERS if everything else tuple(map(named, loader or [DEFAULT.name]))
    inspected = inspect_headers(
        headers,
        loaders,
        TENSOR_PARALLEL if everything else tuple(tp or [1]),
        look_at_values=headers.folder is not None and not headers_only,
        known=expected(read_baseline(read_recipe(recipe))) if recipe else {},
    )
    if as_json:
        print_json(inspected.as_json())
    else:
        for line in findings_table(inspected):
            out.print(line)
    raise typer.Exit(1 if inspected.errors else 0)


@app.command()
def identify(
    checkpoint: Annotated[str, typer.Argument(help="A folder, or a repository as owner/name@revision.")],
    card: Annotated[Path | None, typer.Option(help="Hold the claims of this README.md against the files.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say which tools and policies can have written a checkpoint, and which claims of its card hold."""
    headers = open_headers(checkpoint)
    found = fingerprint(headers)
    claims = judge(read_card(card), found, headers) if card else ()
    if as_json:
        print_json({**found.as_json(), "claims": [each.as_json() for each in claims]})
        return
    out.print(fingerprint_table(found))
    if claims:
        out.print(claims_table(claims))


@app.command()
def repair(
    checkpoint: Annotated[Path, typer.Argument(help="A folder; it is only read.")],
    base: Annotated[Path, typer.Option(help="The unquantized model that it was made from.")],
    out_folder: Annotated[Path | None, typer.Option("--out", help="A new folder; nothing is written without.")] = None,
    mtp: Annotated[str, typer.Option(help="bf16 or rtn; as it is without.")] = "",
    as_json: AsJson = False,
) -> None:
    """Write the checkpoint that this one should have been, without touching a tuned byte."""
    if mtp not in ("", "bf16", "rtn"):
        raise typer.BadParameter(f"{mtp}: there are bf16 and rtn")
    with progress() as tell:
        done = mend(
            checkpoint,
            base,
            out=out_folder,
            policy=mtp or None,
            progress=lambda file: tell(Progress("repair", note=file)),
        )
    if as_json:
        print_json(done.as_json())
    else:
        for line in repair_table(done):
            out.print(line)
