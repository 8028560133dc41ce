"""The command line: parses, calls one verb, prints its result, returns its status. Results go to standard output.

Everything else, progress and advice, goes to standard error. Exit status: 0 identical, 1 different or
equivalent, 2 usage, 3 inconclusive, 4 and up one per class in `errors`.
"""

import io
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich import progress as rich_progress
from rich.markup import escape

from requant import build as building
from requant import lock as locking
from requant.baseline import expected, read_baseline
from requant.card import judge, read_card
from requant.errors import NotAvailableError, RequantError
from requant.identify import identify as fingerprint
from requant.inspect import inspect as inspect_headers
from requant.loaders import DEFAULT, LOADERS, TENSOR_PARALLEL, named
from requant.manifest import make_manifest, read_manifest
from requant.plan import plan as make_plan
from requant.progress import Progress
from requant.recipe import Recipe, read_recipe
from requant.remote import open_headers
from requant.repair import repair as mend
from requant.runner import cache
from requant.tables import claims_table, defect_text, findings_table, fingerprint_table, plan_table, repair_table
from requant.terminal import SHOWN, counted, fail, out, print_json, progress, say, show
from requant.twin import CALIBRATION, SIZES, calibration_text, write_twin
from requant.verdict import EXIT_STATUS, Outcome
from requant.verify import verify as verify_checkpoint

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A folder under builds/, or its recipe.toml.")]
Size = Annotated[str, typer.Option(help="The twin's size: mini, demo or wide.")]


def main() -> NoReturn:
    """Run the command; every error that requant raises on purpose ends here, as two lines and a status."""
    signal.signal(signal.SIGTERM, _stop)
    if sys.stdout is None:
        fail("standard output is closed", "Results go there.", NotAvailableError.exit_status)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name may have letters that the terminal has not
    try:
        status = app(standalone_mode=False)  # what the verb's typer.Exit carries
    except RequantError as error:
        fail(str(error), error.advice, error.exit_status)
    except (KeyboardInterrupt, typer.Abort):
        fail("interrupted", "Nothing was left under the final name.", 130)
    except (BrokenPipeError, SystemExit):  # the latter is how click and rich answer a closed pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except OSError as error:
        fail(str(error), "The disk, or a file that went away meanwhile.", NotAvailableError.exit_status)
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's own errors of usage
            fail(error.format_message(), "requant --help lists the verbs.", 2)
        raise
    raise SystemExit(status)


def _stop(*_: object) -> NoReturn:
    raise KeyboardInterrupt


@app.callback()
def _requant() -> None:
    """Build quantized checkpoints that anyone can build again, and verify published ones."""


@app.command()
def build(
    recipe: RecipePath,
    twin: Annotated[bool, typer.Option("--twin", help="Build the small stand-in: no GPU, minutes.")] = False,
    size: Size = "demo",
    out_folder: Annotated[Path | None, typer.Option("--out", help="The checkpoint's folder; must not exist.")] = None,
    runner: Annotated[
        str, typer.Option(help="Where the room runs: venv, a virtual environment from the lock.")
    ] = "venv",
    keep_raw: Annotated[
        bool, typer.Option("--keep-raw", help="Keep AutoRound's own output beside the result.")
    ] = False,
    record: Annotated[bool, typer.Option("--record", help="Record this build as the one to compare with.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make the checkpoint, hash it, and compare it with what is recorded for the recipe."""
    if runner != "venv":
        raise typer.BadParameter(f"{runner}: this version has the runner venv only")
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
def verify(
    checkpoint: Annotated[Path, typer.Argument(help="A folder of safetensors and side files.")],
    manifest: Annotated[Path, typer.Argument(help="A manifest, as `build` or `manifest` writes it.")],
    tensors: Annotated[bool, typer.Option("--tensors", help="Be content with equal tensors.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say whether a checkpoint has the recorded bytes, and name every file and tensor that does not."""
    recorded = read_manifest(manifest)
    with progress() as tell:
        total = sum(record.bytes for record in recorded.files.values())
        verdict = verify_checkpoint(checkpoint, recorded, counted(tell, "verify", total))
    if as_json:
        print_json(verdict.as_json())
    else:
        show(verdict, f"compared with {manifest}")
    equal = (Outcome.IDENTICAL, Outcome.EQUIVALENT) if tensors else (Outcome.IDENTICAL,)
    raise typer.Exit(0 if verdict.outcome in equal else EXIT_STATUS[verdict.outcome])


@app.command()
def check(
    checkpoint: Annotated[str, typer.Argument(help="A folder, or owner/name@revision on the Hub.")],
    base: Annotated[str, typer.Option(help="What it was made from: a folder, or owner/name@revision on the Hub.")],
    recipe: Annotated[
        Path | None, typer.Option(metavar="RECIPE", help="How it was made: bounds are this recipe's.")
    ] = None,
    twin: Annotated[bool, typer.Option("--twin", help="With --recipe: the values for its twin.")] = False,
    sample: Annotated[float, typer.Option(help="Share of the weights to read; the rest is reported as unread.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Which sample.")] = 0,
    threads: Annotated[int, typer.Option(min=1)] = os.cpu_count() or 1,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do not go on where an earlier check was stopped.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say whether every weight follows from the base: copied, rounded, or within what tuning can reach."""
    from requant import check as checking  # numba takes half a second to import
    from requant.source import open_source

    read = read_recipe(recipe) if recipe else None
    resume = None if fresh else cache() / "check"
    with (
        open_source(checkpoint) as theirs,
        open_source(base) as ours,
        progress(rich_progress.DownloadColumn()) as tell,
    ):
        options: dict[str, Any] = {"sample": sample, "seed": seed, "threads": threads, "resume": resume}
        checked = checking.check(theirs, ours, recipe=read, twin=twin, tell=tell, **options)
    if as_json:
        print_json(checked.as_json())
    else:
        for line in checked.text(SHOWN):
            out.print(escape(line))
        out.print("[bold green]clean[/]" if checked.clean else "[bold red]violations[/]")
    raise typer.Exit(0 if checked.clean else 1)


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="A folder of safetensors and side files.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    threads: Annotated[int, typer.Option(min=1)] = os.cpu_count() or 1,
    as_json: AsJson = False,
) -> None:
    """Say which tensors differ: by how many codes and steps, or how much; and how the files around them do."""
    from requant import diff as comparing

    with progress(rich_progress.DownloadColumn()) as tell:
        compared = comparing.diff(first, second, threads=threads, tell=tell)
    if as_json:
        print_json(compared.as_json())
    else:
        for line in compared.text(SHOWN):
            out.print(escape(line))
        out.print(f"[bold]{compared.outcome}[/]")
    raise typer.Exit(EXIT_STATUS[compared.outcome])


@app.command()
def manifest(
    checkpoint: Annotated[Path, typer.Argument(help="A folder of safetensors and side files.")],
) -> None:
    """Print a checkpoint's manifest: every file and every tensor by digest."""
    with progress() as tell:
        made = make_manifest(checkpoint, counted(tell, "manifest", 0))
    sys.stdout.write(made.to_json().decode())


@app.command()
def plan(
    recipe: RecipePath,
    twin: Annotated[bool, typer.Option("--twin", help="Plan the small stand-in.")] = False,
    size: Size = "demo",
    as_json: AsJson = False,
) -> None:
    """Say what a recipe quantizes, into how many tensors and bytes; reads no weight."""
    if size not in SIZES:
        raise typer.BadParameter(f"{size}: there are {', '.join(SIZES)}")
    planned = make_plan(read_recipe(recipe), size if twin else None)
    if as_json:
        print_json(planned.as_json())
    else:
        out.print(plan_table(planned))


@app.command()
def inspect(
    checkpoint: Annotated[str, typer.Argument(help="A folder, or a repository as owner/name@revision.")] = "",
    loader: Annotated[list[str] | None, typer.Option(help="vllm==0.33.0 without it; may be repeated.")] = None,
    tp: Annotated[list[int] | None, typer.Option(min=1, help="Tensor parallelism, 1 without it; repeatable.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All modelled loaders, at TP 1, 2, 4 and 8.")] = False,
    recipe: Annotated[Path | None, typer.Option(help="Show what a healthy build of it has as known.")] = None,
    headers_only: Annotated[bool, typer.Option("--headers-only", help="Look at no zero point and no scale.")] = False,
    explain: Annotated[str, typer.Option(help="Print a defect's entry, such as D10.")] = "",
    as_json: AsJson = False,
) -> None:
    """Say what each loader would do with a checkpoint: every tensor, exactly once, as what it is."""
    if explain:
        out.print(defect_text(explain))
        raise typer.Exit(0)
    if not checkpoint:
        raise typer.BadParameter("name a checkpoint, or a defect with --explain")
    headers = open_headers(checkpoint)
    loaders = LOADERS if everything else tuple(map(named, loader or [DEFAULT.name]))
    inspected = inspect_headers(
        headers,
        loaders,
        TENSOR_PARALLEL if everything else tuple(tp or [1]),
        look_at_values=headers.folder is not None and not headers_only,
        known=expected(read_baseline(read_recipe(recipe))) if recipe else {},
    )
    if as_json:
        print_json(inspected.as_json())
    else:
        for line in findings_table(inspected):
            out.print(line)
    raise typer.Exit(1 if inspected.errors else 0)


@app.command()
def identify(
    checkpoint: Annotated[str, typer.Argument(help="A folder, or a repository as owner/name@revision.")],
    card: Annotated[Path | None, typer.Option(help="Hold the claims of this README.md against the files.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say which tools and policies can have written a checkpoint, and which claims of its card hold."""
    headers = open_headers(checkpoint)
    found = fingerprint(headers)
    claims = judge(read_card(card), found, headers) if card else ()
    if as_json:
        print_json({**found.as_json(), "claims": [each.as_json() for each in claims]})
        return
    out.print(fingerprint_table(found))
    if claims:
        out.print(claims_table(claims))


@app.command()
def repair(
    checkpoint: Annotated[Path, typer.Argument(help="A folder; it is only read.")],
    base: Annotated[Path, typer.Option(help="The unquantized model that it was made from.")],
    out_folder: Annotated[Path | None, typer.Option("--out", help="A new folder; nothing is written without.")] = None,
    mtp: Annotated[str, typer.Option(help="bf16 or rtn; as it is without.")] = "",
    as_json: AsJson = False,
) -> None:
    """Write the checkpoint that this one should have been, without touching a tuned byte."""
    if mtp not in ("", "bf16", "rtn"):
        raise typer.BadParameter(f"{mtp}: there are bf16 and rtn")
    with progress() as tell:
        done = mend(
            checkpoint,
            base,
            out=out_folder,
            policy=mtp or None,
            progress=lambda file: tell(Progress("repair", note=file)),
        )
    if as_json:
        print_json(done.as_json())
    else:
        for line in repair_table(done):
            out.print(line)


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
    folder: Annotated[Path, typer.Option(help="Where the .in files are.")] = Path("lockfiles"),
) -> None:
    """Resolve lockfiles/<name>.in into <name>.txt: one wheel per package, by its hash."""
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
