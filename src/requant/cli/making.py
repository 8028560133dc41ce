"""The verbs that make: build, tiny model, lock, dockerfiles, image."""

import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

import requant.build.trial as trying
import requant.environment.image as imaging
import requant.environment.resolve as locking
from requant import build as building
from requant.checkpoint.checkpoint import write_checkpoint
from requant.cli.options import (
    MAINTAIN,
    MAKE,
    AsJson,
    NewCheckpoint,
    RecipePath,
    SandboxOption,
    Size,
    SizeName,
    app,
    environments,
    tiny_size,
)
from requant.cli.tables import several, trial_lines
from requant.cli.terminal import SHOWN, out, print_json, progress, say, show
from requant.environment.image.dockerfile import write_dockerfiles
from requant.environment.image.engine import find
from requant.environment.image.evidence import record as record_image
from requant.environment.install import record_files
from requant.environment.lock import read_lock
from requant.errors import UsageError
from requant.model.target import tiny_model
from requant.model.tiny import CALIBRATION, calibration_text
from requant.model.tiny import tiny as qwen
from requant.progress import Progress
from requant.recipe import read_recipe
from requant.verdict import EXIT_STATUS

Lockfiles = Annotated[Path, typer.Option(help="The folder with the locks and images.toml.")]


@app.command(rich_help_panel=MAKE, epilog="Example: requant build builds/ec --tiny")
def build(
    recipe: RecipePath,
    tiny: Annotated[
        bool,
        typer.Option(
            "--tiny", help="Build the tiny model, a small stand-in for the base model: it needs minutes, and no GPU."
        ),
    ] = False,
    size: Size = None,
    out_folder: NewCheckpoint = None,
    sandbox: SandboxOption = "auto",
    keep_raw: Annotated[
        bool, typer.Option("--keep-raw", help="Also keep AutoRound's own output, as <out>.raw.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over, even if an interrupted build could be resumed.")
    ] = False,
    record: Annotated[
        bool,
        typer.Option("--record", help="Record this build beside the recipe, as the one to compare later builds with."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Build a recipe's checkpoint, hash it, and compare it with the build that is recorded for the recipe."""
    read = read_recipe(recipe)
    stand_in = tiny_size(tiny, size)
    kind = {None: "full", "demo": "tiny"}.get(stand_in, stand_in)
    folder = out_folder or Path("out", f"{read.name}-{kind}")
    with progress() as tell:
        built = building.build(
            read,
            tiny=stand_in,
            out=folder,
            replace_existing=out_folder is None,
            keep_raw=keep_raw,
            fresh=fresh,
            sandbox=sandbox,
            tell=tell,
        )
    tensors = several(len(built.manifest.tensors), "tensor")
    say(f"{escape(str(built.folder))}: {several(len(built.manifest.files), 'file')}, {tensors}")
    for taint in built.taints:
        say(f"[yellow]taint[/] {escape(taint)}")
    say("seconds: " + ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in built.seconds.items()))
    reference = building.recorded(read, stand_in, "manifest.json")
    if as_json:
        document = {"folder": str(built.folder), "taints": built.taints, **built.verdict.as_json()}
        print_json("requant.build/1", document)
    else:
        show(built.verdict, "compared with what was recorded before" if record else f"compared with {reference}")
    if record:
        for path in building.record(read, stand_in, built.folder):
            say(f"recorded {escape(str(path))}")
        raise typer.Exit(0)
    raise typer.Exit(EXIT_STATUS[built.verdict.outcome])


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
            "--rehearsal", help="Tune on the CPU, as little as for the recipe's tiny model, to see what a trial does."
        ),
    ] = False,
    size: Annotated[
        SizeName,
        typer.Option(help="The size of the tiny model, the small model that is tuned; wide is as wide as the base."),
    ] = "wide",
    iterations: Annotated[int, typer.Option(min=2, help="Tuning iterations per block.")] = trying.ITERATIONS,
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
        tried = trying.trial(
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


@app.command(rich_help_panel=MAKE, epilog="Example: requant tiny --size mini --out out/base")
def tiny(
    out_folder: Annotated[Path, typer.Option("--out", help="The folder to write; it must not exist.")],
    recipe: Annotated[
        Path | None, typer.Argument(help="The recipe whose base it stands in for.", show_default="Qwen3.5-MoE's")
    ] = None,
    size: Annotated[SizeName, typer.Option(help="The size of the tiny model.")] = "demo",
) -> None:
    """Write the tiny model: a small stand-in for the base, of the same architecture, with the same bytes everywhere."""
    made = tiny_model(read_recipe(recipe), size) if recipe else qwen(size)
    if out_folder.exists() or out_folder.is_symlink():
        raise UsageError(f"{out_folder}: already exists", "Name another folder with --out, or remove this one.")
    out_folder.parent.mkdir(parents=True, exist_ok=True)
    place = tempfile.TemporaryDirectory(prefix=f".{out_folder.name}.", dir=out_folder.resolve().parent)
    with progress() as tell, place as name:
        write_checkpoint(made, Path(name, "tiny"), lambda file: tell(Progress(f"tiny model {size}", note=file)))
        Path(name, "tiny").rename(out_folder)
    text = f"{CALIBRATION}, {len(calibration_text()):,} bytes"
    say(f"{escape(str(out_folder))}: the {size} tiny model; builds of it are calibrated on requant's own {text}")


@app.command(rich_help_panel=MAINTAIN, epilog="Example: requant lock cpu --check")
def lock(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names of environments, such as cpu. Without one, all of them.", autocompletion=environments
        ),
    ] = None,
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
        locks = {folder / f"{name}.txt": read_lock(folder, name) for name in names}  # all, before any is fetched
        with progress() as tell:
            for file, read in locks.items():
                say(f"wrote {escape(str(record_files(file, read, tell)))}")
        return
    chosen = names or sorted(path.stem for path in folder.glob("*.in"))
    if not check:
        locking.write_locks(folder, chosen)
        say(f"wrote {', '.join(f'{folder / name}.txt' for name in chosen)}")
        return
    differences = locking.check_locks(folder, chosen)
    for line in differences:
        out.print(escape(line))
    say(f"{', '.join(chosen)}: {'out of date' if differences else 'up to date'}")
    raise typer.Exit(1 if differences else 0)


@app.command(rich_help_panel=MAINTAIN)
def dockerfiles(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names of environments, such as cpu. Without one, all of them.", autocompletion=environments
        ),
    ] = None,
    folder: Lockfiles = Path("lockfiles"),
) -> None:
    """Write Dockerfile.<name> from lockfiles/images.toml and the locks; needs no network."""
    say(f"wrote {', '.join(file.name for file in write_dockerfiles(folder, names or ()))}")


@app.command(rich_help_panel=MAKE, epilog="Example: requant image cpu --twice")
def image(
    name: Annotated[str, typer.Argument(help="The name of an environment, such as cpu.", autocompletion=environments)],
    twice: Annotated[
        bool, typer.Option("--twice", help="Build it twice without a cache, and compare the two.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(
            help="Replace the pinned base image: the name of another, or debian to make one of Debian packages."
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(help="The source tree of the package that is built from a commit, where it cannot be fetched."),
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Record the image's digests and the list of what is in it beside its lock.")
    ] = False,
    folder: Lockfiles = Path("lockfiles"),
    as_json: AsJson = False,
) -> None:
    """Build an environment's container image from verified wheels, without network, and print its digests."""
    imaging.require(folder, name, base=base, source=source, recorded=record)
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
        document = {"reference": made.reference, **asdict(made.evidence), "differences": differences}
        print_json("requant.image/1", document)
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
