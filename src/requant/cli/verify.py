"""`requant verify`: compare a checkpoint with a manifest."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

import requant.audit.confirmed
import requant.verify
from requant.audit.confirmed import Confirmed, build_of, confirmed
from requant.audit.coverage import coverage
from requant.checkpoint.manifest import read_manifest
from requant.cli.coverage import show_confirmed
from requant.cli.folding import several
from requant.cli.options import (
    VERIFY,
    AsJson,
    Builders,
    BundleFile,
    CheckpointFolder,
    Require,
    SignKey,
    Trust,
    app,
)
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
    require: Require = None,
    trust: Trust = None,
    builders: Builders = None,
    sign: SignKey = None,
    bundle: BundleFile = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a checkpoint has the recorded bytes, and name every file and tensor that differs.

    With --require or --trust also whether others have confirmed it: docs/audit.md.
    """
    found = _confirmed(manifest, require, trust or [], builders) if require or trust else None
    if builders and not found:
        raise typer.BadParameter("--builders needs --require or --trust")
    signed = outcome_signer(sign, bundle, checkpoint, "summary" if found else "verify")
    recorded = read_manifest(manifest)
    with progress() as tell:
        total = sum(record.bytes for record in recorded.files.values())
        verdict = requant.verify.verify(checkpoint, recorded, counted(tell, "verify", total))
    if found:
        found = replace(found, identical=verdict.outcome is Outcome.IDENTICAL)
    if as_json:
        print_json("requant.verify/1", {**verdict.as_json(), "confirmed": found and found.as_json()})
    else:
        counted_files = (
            f"{several(len(recorded.files), 'file')}, {several(len(recorded.tensors), 'tensor')}, {decimal(total)}"
        )
        show(verdict, f"compared with {manifest}: {counted_files}")
        if found:
            show_confirmed(found)
    if signed:
        from requant.evidence.outcomes import verified

        judged = verified(checkpoint, recorded, verdict)
        signed(found.summary(judged.files) if found else judged)
    equal = (Outcome.IDENTICAL, Outcome.EQUIVALENT) if tensors else (Outcome.IDENTICAL,)
    status = 0 if verdict.outcome in equal else EXIT_STATUS[verdict.outcome]
    raise typer.Exit(status or (found.exit_status if found else 0))


def _confirmed(manifest: Path, required: int | None, trust: list[str], listed: Path | None) -> Confirmed:
    """Return who has confirmed what a manifest records."""
    recipe, tiny = build_of(manifest)
    known, trusted = requant.audit.confirmed.builders(recipe, listed, trust)
    return confirmed(coverage(recipe, tiny, known), known, required, trusted)
