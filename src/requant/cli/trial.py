"""`requant trial`: test a machine before paying for a full build."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

import requant.build.trial
from requant.build.trial import ITERATIONS, Trial
from requant.cli.options import MAKE, AsJson, RecipePath, SandboxOption, SizeName, app
from requant.cli.terminal import out, print_json, progress, show
from requant.recipe import read_recipe
from requant.verdict import EXIT_STATUS


@app.command(rich_help_panel=MAKE, epilog="Example: requant trial builds/ec --rehearsal --size mini")
def trial(
    recipe: RecipePath,
    work: Annotated[
        Path | None,
        typer.Option(help="A new folder for both builds. Without it, one under out/, which is removed afterwards."),
    ] = None,
    rehearsal: Annotated[
        bool,
        typer.Option(
            "--rehearsal",
            help="Tune on the CPU, as briefly as a build of the tiny model does, to see what a trial does.",
        ),
    ] = False,
    size: Annotated[
        SizeName,
        typer.Option(help="The size of the tiny model, whose layers are tuned; wide is as wide as the base."),
    ] = "wide",
    iterations: Annotated[int, typer.Option(min=2, help="Tuning iterations per block.")] = ITERATIONS,
    price: Annotated[
        float | None, typer.Option(min=0.0, help="The price of an hour on this machine, in any currency.")
    ] = None,
    sandbox: SandboxOption = "auto",
    as_json: AsJson = False,
) -> None:
    """Test a machine before paying for a full build: tune a few layers twice, compare, and estimate the cost.

    The second time, tuning is stopped and resumed.
    """
    read = read_recipe(recipe)
    folder = work or Path("out", f"{read.name}-trial")
    if not work:
        shutil.rmtree(folder, ignore_errors=True)  # of a trial that was killed
    with progress() as tell:
        tried = requant.build.trial.trial(
            read,
            folder,
            rehearsal=rehearsal,
            size=size,
            iterations=iterations,
            price_per_hour=price,
            sandbox=sandbox,
            tell=tell,
        )
    if not work:
        shutil.rmtree(folder)
    if as_json:
        print_json("requant.trial/1", tried.as_json())
    else:
        for line in trial_lines(tried):
            out.print(line)
        show(tried.verdict, "built twice, the second time stopped and resumed")
    raise typer.Exit(EXIT_STATUS[tried.verdict.outcome])


def trial_lines(tried: Trial) -> Iterator[str]:
    """Yield what a trial took, and what it makes one expect of the full build."""
    effort, gib = tried.effort, 1 << 30
    yield escape(
        f"tiny model {tried.size}, {effort.precision} on {effort.device}: {effort.iterations} iterations, "
        f"{effort.samples} samples of {effort.sequence_length:,} tokens"
    )
    yield f"seconds: {tried.iteration:.2f} an iteration, {tried.block:.1f} a block; peak memory: " + (
        f"{tried.peak_memory_bytes / gib:.1f} GiB"
        + (f", of the GPU {tried.peak_device_memory_bytes / gib:.1f} GiB" if tried.peak_device_memory_bytes else "")
    )
    if tried.projection:
        price = "" if tried.projection.price is None else f", {tried.projection.price:,.2f} at the price given"
        yield f"the full build: at most {tried.projection.hours:.1f} hours of tuning{price}"
    else:
        yield "no projection: this was not the recipe's own width and precision"
