"""`requant verify`: compare a checkpoint with a manifest."""

from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

import requant.verify
from requant.checkpoint.manifest import read_manifest
from requant.cli.folding import several
from requant.cli.options import VERIFY, AsJson, BundleFile, CheckpointFolder, SignKey, app
from requant.cli.sign import outcome_signer
from requant.cli.terminal import print_json, progress, show
from requant.progress import counted
from requant.verdict import EXIT_STATUS, Outcome


@app.command(rich_help_panel=VERIFY, epilog="Example: requant verify out/ec-tiny builds/ec/demo.manifest.json")
def verify(
    checkpoint: CheckpointFolder,
    manifest: Annotated[Path, typer.Argument(help="A manifest, as `requant build` or `requant manifest` writes it.")],
    tensors: Annotated[
        bool,
        typer.Option("--tensors", help="Accept equal tensors, even if they are distributed differently over files."),
    ] = False,
    sign: SignKey = None,
    bundle: BundleFile = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a checkpoint has the recorded bytes, and name every file and tensor that differs."""
    signed = outcome_signer(sign, bundle, checkpoint, "verify")
    recorded = read_manifest(manifest)
    with progress() as tell:
        total = sum(record.bytes for record in recorded.files.values())
        verdict = requant.verify.verify(checkpoint, recorded, counted(tell, "verify", total))
    if as_json:
        print_json("requant.verify/1", verdict.as_json())
    else:
        counted_files = (
            f"{several(len(recorded.files), 'file')}, {several(len(recorded.tensors), 'tensor')}, {decimal(total)}"
        )
        show(verdict, f"compared with {manifest}: {counted_files}")
    if signed:
        from requant.evidence.outcomes import verified

        signed(verified(checkpoint, recorded, verdict))
    equal = (Outcome.IDENTICAL, Outcome.EQUIVALENT) if tensors else (Outcome.IDENTICAL,)
    raise typer.Exit(0 if verdict.outcome in equal else EXIT_STATUS[verdict.outcome])
