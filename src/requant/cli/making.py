"""The verbs that make: build, twin, lock, dockerfiles, image."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from requant import build as building
from requant import image as imaging
from requant import lock as locking
from requant.cli.options import AsJson, NewCheckpoint, RecipePath, Runner, Size, app
from requant.cli.terminal import SHOWN, out, print_json, progress, say, show
from requant.environment import read_lock
from requant.images.dockerfile import write_dockerfiles
from requant.images.engine import find
from requant.images.evidence import record as record_image
from requant.installation import record_files
from requant.progress import Progress
from requant.recipe import Recipe, read_recipe
from requant.twin import CALIBRATION, SIZES, calibration_text, write_twin
from requant.verdict import EXIT_STATUS

Lockfiles = Annotated[Path, typer.Option(help="Where the locks are.")]


@app.command()
def build(
    recipe: RecipePath,
    twin: Annotated[bool, typer.Option("--twin", help="Build the small stand-in: no GPU, minutes.")] = False,
    size: Size = "demo",
    out_folder: NewCheckpoint = None,
    runner: Runner = "auto",
    keep_raw: Annotated[
        bool, typer.Option("--keep-raw", help="Keep AutoRound's own output beside the result.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do not go on where an earlier build was stopped.")] = False,
    record: Annotated[bool, typer.Option("--record", help="Record this build as the one to compare with.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make the checkpoint, hash it, and compare it with what is recorded for the recipe."""
    read = read_recipe(recipe)
    stand_in = size if twin else None
    kind = {None: "full", "demo": "twin"}.get(stand_in, size)
    folder = out_folder or Path("out", f"{read.name}-{kind}")
    with progress() as tell:
        built = building.build(
            read,
            twin=stand_in,
            out=folder,
            replace_existing=out_folder is None,
            keep_raw=keep_raw,
            fresh=fresh,
            runner=runner,
            tell=tell,
        )
    say(f"{escape(str(built.folder))}: {len(built.manifest.files)} files, {len(built.manifest.tensors):,} tensors")
    for taint in built.taints:
        say(f"[yellow]taint[/] {escape(taint)}")
    say("seconds: " + ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in built.seconds.items()))
    reference = building.recorded(read, stand_in, "manifest.json")
    if record:
        _record(read, stand_in, built)
        raise typer.Exit(0)
    if as_json:
        print_json({"folder": str(built.folder), "taints": built.taints, **built.verdict.as_json()})
    else:
        show(built.verdict, f"compared with {reference}")
    raise typer.Exit(EXIT_STATUS[built.verdict.outcome])


def _record(recipe: Recipe, twin: str | None, built: building.Built) -> None:
    show(built.verdict, "against what was recorded until now")
    for path in building.record(recipe, twin, built.folder):
        say(f"recorded {escape(str(path))}")


@app.command()
def twin(
    out_folder: Annotated[Path, typer.Option("--out", help="A new folder.")],
    size: Size = "demo",
) -> None:
    """Write the twin: a small model of the base's architecture, the same bytes everywhere."""
    if out_folder.exists():
        raise typer.BadParameter(f"{out_folder}: exists already")
    if size not in SIZES:
        raise typer.BadParameter(f"{size}: there are {', '.join(SIZES)}")
    with progress() as tell:
        write_twin(size, out_folder, lambda file: tell(Progress(f"twin {size}", note=file)))
    say(f"{escape(str(out_folder))}, to be tuned on {CALIBRATION} of requant: {len(calibration_text()):,} bytes")


@app.command()
def lock(
    names: Annotated[list[str] | None, typer.Argument(help="Environments; all of them without a name.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether the locks are what would be written.")
    ] = False,
    files: Annotated[
        bool, typer.Option("--files", help="Fetch the wheels of locks, and record the digest of the files in them.")
    ] = False,
    folder: Lockfiles = Path("lockfiles"),
) -> None:
    """Resolve lockfiles/<name>.in into <name>.txt: one wheel per package, by its hash."""
    if files:
        if check or not names:
            raise typer.BadParameter("--files goes with names of environments, and not with --check")
        with progress() as tell:
            for name in names:
                say(f"wrote {escape(str(record_files(folder / f'{name}.txt', read_lock(folder, name), tell)))}")
        return
    chosen = names or sorted(path.stem for path in folder.glob("*.in"))
    if not check:
        locking.write_locks(folder, chosen)
        say(f"wrote {', '.join(f'{folder / name}.txt' for name in chosen)}")
        return
    differences = locking.check_locks(folder, chosen)
    for line in differences:
        out.print(escape(line))
    say(f"{', '.join(chosen)}: {'not what would be resolved' if differences else 'as they would be resolved'}")
    raise typer.Exit(1 if differences else 0)


@app.command()
def dockerfiles(
    names: Annotated[list[str] | None, typer.Argument(help="Environments; all of them without a name.")] = None,
    folder: Lockfiles = Path("lockfiles"),
) -> None:
    """Write Dockerfile.<name> from lockfiles/images.toml and the locks; reads no network."""
    say(f"wrote {', '.join(file.name for file in write_dockerfiles(folder, names or ()))}")


@app.command()
def image(
    name: Annotated[str, typer.Argument(help="An environment, such as cpu.")],
    twice: Annotated[bool, typer.Option("--twice", help="Build two times without a cache, and compare.")] = False,
    base: Annotated[
        str | None, typer.Option(help="Another base image than the pinned one: a reference, or debian to make one.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option(help="The tree of the package that is built from a commit, instead of fetching it.")
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Write what names the image, and its materials, beside its lock.")
    ] = False,
    folder: Lockfiles = Path("lockfiles"),
    as_json: AsJson = False,
) -> None:
    """Build an environment's image from confirmed wheels, no step with a network, and say what names it."""
    engine = find()
    with progress() as tell:
        if twice:
            repeated = imaging.repeat_image(folder, name, engine, base=base, source=source, tell=tell)
            made, differences = repeated.image, repeated.differences
        else:
            made, differences = imaging.build_image(folder, name, engine, base=base, source=source, tell=tell), ()
    for taint in made.taints:
        say(f"[yellow]taint[/] {escape(taint)}")
    if as_json:
        print_json({"reference": made.reference, **asdict(made.evidence), "differences": list(differences)})
    else:
        for line in differences[:SHOWN]:
            out.print(escape(line))
        if len(differences) > SHOWN:
            out.print(f"and {len(differences) - SHOWN:,} more: --json names them all")
        for key, value in asdict(made.evidence).items():
            out.print(escape(f"{key:11} {value}"))
        if twice:
            out.print("[bold red]different[/], built twice" if differences else "[bold green]identical[/], built twice")
    if record and not differences:
        say(escape(f"recorded {', '.join(map(str, record_image(folder, made, engine)))}"))
    raise typer.Exit(1 if differences else 0)
