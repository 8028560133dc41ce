"""`requant manifest`: print a checkpoint's manifest."""

import sys

from requant.checkpoint.manifest import make_manifest
from requant.cli.options import PUBLISH, CheckpointFolder, app
from requant.cli.terminal import progress
from requant.progress import counted


@app.command(rich_help_panel=PUBLISH, epilog="Example: requant manifest out/ec-tiny > ec-demo.manifest.json")
def manifest(
    checkpoint: CheckpointFolder,
) -> None:
    """Print a checkpoint's manifest: the digest of every file and every tensor."""
    with progress() as tell:
        made = make_manifest(checkpoint, counted(tell, "manifest", 0))
    sys.stdout.write(made.to_json().decode())
