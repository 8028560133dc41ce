"""`requant repair`: write a repaired copy of a checkpoint."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import RenderableType
from rich.markup import escape

import requant.repair
from requant.cli.folding import Sheet, name
from requant.cli.options import PUBLISH, AsJson, app
from requant.cli.terminal import out, print_json, progress
from requant.inspect.findings import fold
from requant.progress import Progress
from requant.repair import Repair


@app.command(rich_help_panel=PUBLISH, epilog="Example: requant repair CHECKPOINT --base BASE --out DIR")
def repair(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint's folder; it is only read.")],
    base: Annotated[Path, typer.Option(help="The base, the unquantized model that it was made from.")],
    out_folder: Annotated[
        Path | None,
        typer.Option("--out", help="The folder to write; it must not exist. Without it, nothing is written."),
    ] = None,
    mtp: Annotated[
        Literal["bf16", "rtn"] | None,
        typer.Option(
            help="How to store MTP, the block that predicts further tokens. Without it, as it is stored: as floats, "
            "or as codes."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a repaired copy of a checkpoint, in which no tuned byte is changed. MTP's codes alone are rounded anew."""
    with progress() as tell:
        done = requant.repair.repair(
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


def repair_table(done: Repair, out: Path | None) -> Iterator[RenderableType]:
    """Yield what a repair does, folded, the digest that proves the tuned bytes, and the folder `out` it wrote."""
    sheet = Sheet("", "what", "how many")
    for label in ("added", "replaced", "dropped", "moved", "files"):
        for each, count in fold(getattr(done, label)):
            sheet.add(label, escape(name(each)), f"{count:,}")
    if done.needed:
        yield sheet
    yield f"{done.kept:,} tuned tensors keep their bytes: sha256 {done.before}"
    if done.after is not None:
        yield f"read back from what was written: sha256 {done.after}"
    if not done.needed:
        yield (
            f"nothing need{'ed' if out else 's'} repair: configuration, side files, index, layout, zero points, "
            "and what is the base's"
        )
        yield "whether tuned weights are right is for `requant check` to say"
    if out:
        yield escape(f"{'the repaired checkpoint' if done.needed else 'a copy with the same tensors and files'}: {out}")
    elif done.needed:
        yield "nothing was written: --out DIR writes it"
