"""`requant lock`: resolve the lockfiles."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from requant.cli.options import MAINTAIN, EnvironmentNames, Lockfiles, app
from requant.cli.terminal import out, progress, say
from requant.environment.install import record_files
from requant.environment.lock import read_lock
from requant.environment.resolve import check_locks, write_locks


@app.command(rich_help_panel=MAINTAIN, epilog="Example: requant lock cpu --check")
def lock(
    names: EnvironmentNames = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; only say whether the locks are up to date.")
    ] = False,
    files: Annotated[
        bool,
        typer.Option(
            "--files", help="Download the wheels of the named locks, and record the digest of the files in them."
        ),
    ] = False,
    folder: Lockfiles = Path("lockfiles"),
) -> None:
    """Resolve lockfiles/<name>.in to lockfiles/<name>.txt: one wheel per package, pinned by its hash."""
    if files:
        if check or not names:
            raise typer.BadParameter("--files needs the names of environments, and cannot be used with --check")
        locks = [read_lock(folder, name) for name in names]  # all, before any is fetched
        with progress() as tell:
            for each in locks:
                say(f"wrote {escape(str(record_files(each, tell)))}")
        return
    chosen = names or sorted(path.stem for path in folder.glob("*.in"))
    if not check:
        write_locks(folder, chosen)
        say(f"wrote {', '.join(f'{folder / name}.txt' for name in chosen)}")
        return
    differences = check_locks(folder, chosen)
    for line in differences:
        out.print(escape(line))
    say(f"{', '.join(chosen)}: {'out of date' if differences else 'up to date'}")
    raise typer.Exit(1 if differences else 0)
