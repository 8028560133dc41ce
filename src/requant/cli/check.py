"""`requant check`: hold a checkpoint's weights against the base."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import progress as rich_progress
from rich.markup import escape

from requant.cli.options import CPUS, VERIFY, AsJson, BundleFile, SignKey, Threads, app, recipes
from requant.cli.sign import outcome_signer
from requant.cli.terminal import SHOWN, out, print_json, progress, say
from requant.environment.install import cache
from requant.errors import UsageError
from requant.progress import Progress, Tell
from requant.recipe import Recipe, read_recipe

if TYPE_CHECKING:
    from requant.check.reader import Reader


@app.command(rich_help_panel=VERIFY, epilog="Example: requant check out/ec-tiny --base out/base")
def check(
    checkpoint: Annotated[str, typer.Argument(help="A folder, a GGUF file, or owner/name@revision on the Hub.")],
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
        typer.Option(
            "--tiny",
            help="With --recipe: the checkpoint is a build of the tiny model, the small stand-in for the base.",
        ),
    ] = False,
    sample: Annotated[
        float,
        typer.Option(help="Share of the weights to read, more than 0 and at most 1; the rest is reported as unread."),
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="The seed with which --sample draws.")] = 0,
    threads: Threads = CPUS,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over, even if an interrupted check could be resumed.")
    ] = False,
    sign: SignKey = None,
    bundle: BundleFile = None,
    as_json: AsJson = False,
) -> None:
    """Say whether every weight follows from the base: copied, rounded, or within what tuning can reach."""
    import requant.check  # numba takes half a second to import
    from requant.check.reader import Folder, open_reader
    from requant.evidence.outcomes import identity
    from requant.hub.repository import named

    read = read_recipe(recipe) if recipe else None
    requant.check.confirm_share(sample)
    for each in (checkpoint, base):
        if not Path(each).exists():
            named(each)  # both, before the first one's headers are fetched
    for each in (checkpoint, base) if sign else ():
        if not Path(each).exists():
            advice = f"Download it and name the folder: {each} is not read whole over the network."
            raise UsageError("--sign names every file by its SHA-256, so checkpoint and base must be here", advice)
    signed = outcome_signer(sign, bundle, Path(checkpoint), "check")
    resume = None if fresh else cache() / "check"
    with (
        open_reader(checkpoint) as theirs,
        open_reader(base) as ours,
        progress(rich_progress.DownloadColumn()) as tell,
    ):
        held = _held(checkpoint, ours, read, tiny, tell) if signed else {}
        options: dict[str, Any] = {"sample": sample, "seed": seed, "threads": threads, "resume": resume}
        checked = requant.check.check(theirs, ours, recipe=read, tiny=tiny, tell=tell, **options)
        if signed and isinstance(theirs.files, Folder):
            tell(Progress("hash the checkpoint, to sign"))
            against = {"base": identity(held), **({"recipe": read.digest} if read else {})}
            asked = {"tiny": tiny, "sample": sample, "seed": seed}
            signed(checked.judged(theirs.files.digests(), against, asked))
    if as_json:
        print_json("requant.check/1", checked.as_json())
    else:
        out.lines(map(escape, checked.text(SHOWN)))
        colour = {0: "green", 1: "red"}.get(checked.exit_status, "yellow")
        out.print(f"[bold {colour}]{checked.outcome}[/]")
    raise typer.Exit(checked.exit_status)


def _held(checkpoint: str, base: "Reader", recipe: Recipe | None, tiny: bool, tell: Tell) -> dict[str, str]:
    """Return the files that an outcome is to be signed against; say first, where that is known, that it will not count.

    First, because a check takes long, and whoever signs learns from nobody later that it was the wrong folder.
    """
    from requant.check.reader import Folder
    from requant.published.counted import doubts
    from requant.published.found import registry_for

    tell(Progress("hash the base, to sign"))
    held = base.files.digests() if isinstance(base.files, Folder) else {}
    if found := doubts(Path(checkpoint), held, recipe, tiny, registry_for(None)):
        say("[bold yellow]whoever verifies by these records will pass over what you sign[/]:")
        for line in found:
            say(escape(f"  {line}"))
    return held
