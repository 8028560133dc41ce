"""`requant dockerfiles`: write Dockerfile.<name> of each environment."""

from pathlib import Path

from requant.cli.options import MAINTAIN, EnvironmentNames, Lockfiles, app
from requant.cli.terminal import say
from requant.environment.image.dockerfile import write_dockerfiles


@app.command(rich_help_panel=MAINTAIN)
def dockerfiles(
    names: EnvironmentNames = None,
    folder: Lockfiles = Path("lockfiles"),
) -> None:
    """Write Dockerfile.<name> from lockfiles/images.toml and the locks; needs no network."""
    say(f"wrote {', '.join(file.name for file in write_dockerfiles(folder, names or ()))}")
