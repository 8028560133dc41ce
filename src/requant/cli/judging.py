"""The verbs that hold a checkpoint against something else: verify, manifest, check, diff."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import progress as rich_progress
from rich.filesize import decimal
from rich.markup import escape

from requant.checkpoint.manifest import make_manifest, read_manifest
from requant.cli.options import VERIFY, AsJson, app, recipes
from requant.cli.tables import several
from requant.cli.terminal import SHOWN, out, print_json, progress, show
from requant.environment.install import cache
from requant.progress import counted
from requant.recipe import read_recipe
from requant.verdict import EXIT_STATUS, Outcome
from requant.verify import verify as verify_checkpoint


@app.command(rich_help_panel=VERIFY, epilog="Example: requant verify out/ec-tiny builds/ec/demo.manifest.json")
def verify(
    checkpoint: Annotated[
        Path, typer.Argument(help="The checkpoint's folder: .safetensors files, and the files beside them.")
    ],
    manifest: Annotated[Path, typer.Argument(help="A manifest, as `requant build` or `requant manifest` writes it.")],
    tensors: Annotated[
        bool,
        typer.Option("--tensors", help="Accept equal tensors, even if they are distributed differently over files."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say whether a checkpoint has the recorded bytes, and name every file and tensor that differs."""
    recorded = read_manifest(manifest)
    with progress() as tell:
        total = sum(record.bytes for record in recorded.files.values())
        verdict = verify_checkpoint(checkpoint, recorded, counted(tell, "verify", total))
    if as_json:
        print_json("requant.verify/1", verdict.as_json())
    else:
        counted_files = (
            f"{several(len(recorded.files), 'file')}, {several(len(recorded.tensors), 'tensor')}, {decimal(total)}"
        )
        show(verdict, f"compared with {manifest}: {counted_files}")
    equal = (Outcome.IDENTICAL, Outcome.EQUIVALENT) if tensors else (Outcome.IDENTICAL,)
    raise typer.Exit(0 if verdict.outcome in equal else EXIT_STATUS[verdict.outcome])


@app.command(rich_help_panel=VERIFY, epilog="Example: requant manifest out/ec-tiny > ec-demo.manifest.json")
def manifest(
    checkpoint: Annotated[
        Path, typer.Argument(help="The checkpoint's folder: .safetensors files, and the files beside them.")
    ],
) -> None:
    """Print a checkpoint's manifest: the digest of every file and every tensor."""
    with progress() as tell:
        made = make_manifest(checkpoint, counted(tell, "manifest", 0))
    sys.stdout.write(made.to_json().decode())


@app.command(rich_help_panel=VERIFY, epilog="Example: requant check out/ec-tiny --base out/base")
def check(
    checkpoint: Annotated[str, typer.Argument(help="A folder, or owner/name@revision on the Hub.")],
    base: Annotated[
        str,
        typer.Option(
            help="The base, the unquantized model that it was made from: a folder, or owner/name@revision on the Hub."
        ),
    ],
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="RECIPE", help="Its recipe, which sets how far tuning can move a weight.", autocompletion=recipes
        ),
    ] = None,
    tiny: Annotated[
        bool,
        typer.Option("--tiny", help="With --recipe: the checkpoint is a build of the tiny model, the small stand-in."),
    ] = False,
    sample: Annotated[
        float,
        typer.Option(help="Share of the weights to read, more than 0 and at most 1; the rest is reported as unread."),
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="The seed with which --sample draws.")] = 0,
    threads: Annotated[
        int, typer.Option(min=1, help="Number of threads that read and compare.", show_default="all CPUs")
    ] = os.cpu_count() or 1,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over, even if an interrupted check could be resumed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say whether every weight follows from the base: copied, rounded, or within what tuning can reach."""
    from requant import check as checking  # numba takes half a second to import
    from requant.check.reader import open_source
    from requant.hub.repository import named

    read = read_recipe(recipe) if recipe else None
    checking.confirm_share(sample)
    for each in (checkpoint, base):
        if not Path(each).exists():
            named(each)  # both, before the first one's headers are fetched
    resume = None if fresh else cache() / "check"
    with (
        open_source(checkpoint) as theirs,
        open_source(base) as ours,
        progress(rich_progress.DownloadColumn()) as tell,
    ):
        options: dict[str, Any] = {"sample": sample, "seed": seed, "threads": threads, "resume": resume}
        checked = checking.check(theirs, ours, recipe=read, tiny=tiny, tell=tell, **options)
    if as_json:
        print_json("requant.check/1", checked.as_json())
    else:
        out.lines(map(escape, checked.text(SHOWN)))
        colour = {0: "green", 1: "red"}.get(checked.exit_status, "yellow")
        out.print(f"[bold {colour}]{checked.outcome}[/]")
    raise typer.Exit(checked.exit_status)


@app.command(rich_help_panel=VERIFY, epilog="Example: requant diff out/ec-tiny out/gb10-tiny")
def diff(
    first: Annotated[
        Path,
        typer.Argument(metavar="A", help="The folder of one checkpoint."),
    ],
    second: Annotated[Path, typer.Argument(metavar="B", help="The folder of the other one.")],
    threads: Annotated[
        int, typer.Option(min=1, help="Number of threads that read and compare.", show_default="all CPUs")
    ] = os.cpu_count() or 1,
    as_json: AsJson = False,
) -> None:
    """Say which tensors differ and by how much (codes and steps, or values), and how the other files differ."""
    from requant import diff as comparing

    with progress(rich_progress.DownloadColumn()) as tell:
        compared = comparing.diff(first, second, threads=threads, tell=tell)
    if as_json:
        print_json("requant.diff/1", compared.as_json())
    else:
        out.lines(map(escape, compared.text(SHOWN)))
        out.print(f"[bold]{compared.outcome}[/]")
    raise typer.Exit(EXIT_STATUS[compared.outcome])
