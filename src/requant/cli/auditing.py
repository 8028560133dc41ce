"""The verbs that reproduce a build, and show how far it was reproduced: audit, rebuild, coverage, show."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from requant import audit as auditing
from requant import coverage as covering
from requant import rebuild as rebuilding
from requant.build import stem
from requant.building.inputs import inputs_for
from requant.building.workplace import scratch
from requant.cli.options import AsJson, NewCheckpoint, RecipePath, Runner, Size, app
from requant.cli.tables import coverage_table
from requant.cli.terminal import out, print_json, progress, say, show
from requant.errors import CheckpointError
from requant.installation import cache
from requant.journal import read_journal
from requant.recipe import read_recipe
from requant.retuning import cluster
from requant.retuning.audits import party, write_audit
from requant.retuning.challenge import Challenge, draw
from requant.retuning.crew import prepare
from requant.show import journal_json, journal_lines
from requant.verdict import EXIT_STATUS

shown = typer.Typer(no_args_is_help=True, help="Print a file that requant wrote, as a person reads it.")
app.add_typer(shown, name="show")


@app.command()
def audit(
    checkpoint: Annotated[Path, typer.Argument(help="A folder of safetensors and side files.")],
    recipe: Annotated[Path, typer.Option(metavar="RECIPE", help="How it was made.")],
    base: Annotated[Path | None, typer.Option(help="Its base, in a folder; fetched or generated without.")] = None,
    journal: Annotated[Path | None, typer.Option(help="Its journal; the recorded one, or the one beside it.")] = None,
    no_journal: Annotated[bool, typer.Option("--no-journal", help="Compare tensors alone.")] = False,
    blocks: Annotated[str, typer.Option(help="Which: 3,17 or 0-5, counted from 0.")] = "",
    sample: Annotated[int, typer.Option(min=0, help="Draw so many from --seed.")] = 0,
    seed: Annotated[str, typer.Option(help="A text that was public only after the checkpoint was.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="All blocks.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Blocks tuned at a time, one thread each on a CPU; 1, or what Ray has.")
    ] = None,
    engine: Annotated[str, typer.Option(help="Where blocks are tuned: here, or on a ray cluster.")] = "here",
    address: Annotated[str, typer.Option(help="The Ray cluster, as HOST:PORT; this machine's without.")] = "",
    twin: Annotated[bool, typer.Option("--twin", help="It is a build of the small stand-in.")] = False,
    size: Size = "demo",
    runner: Runner = "auto",
    auditor: Annotated[str, typer.Option(help="What you call yourself in the audit.")] = "",
    record: Annotated[bool, typer.Option("--record", help="Write the audit to the recipe's audits/.")] = False,
    as_json: AsJson = False,
) -> None:
    """Tune chosen blocks again, given what the published ones before them give; compare them, and all the rest."""
    if engine not in ("here", "ray") or (address and engine != "ray"):
        raise typer.BadParameter(f"--engine {engine}: there are here and ray, and only ray has an --address")
    hire = cluster.hire(address or None, workers, base) if engine == "ray" else auditing.local(workers or 1)
    read = read_recipe(recipe)
    stand_in = size if twin else None
    if record and not auditor:
        raise typer.BadParameter("--record needs --auditor: coverage counts parties by what they call themselves")
    name = party(auditor or "nobody")
    if (bool(sample), bool(blocks), everything).count(True) != 1 or bool(seed) != bool(sample):
        raise typer.BadParameter("say which blocks in one way: --blocks 3,17, --sample 4 --seed TEXT, or --all")
    named = numbers(blocks) if blocks else ()
    if journal and no_journal:
        raise typer.BadParameter("--journal and --no-journal exclude each other")
    reference = auditing.known(read, stand_in, checkpoint.absolute(), journal, compared=not no_journal)
    reference.confirm()
    with scratch(cache() / "audits") as work, progress() as tell:
        setting = prepare(read, stand_in, inputs_for(read, stand_in, base, work, tell), tell, runner)
        names = setting.names
        challenge = Challenge(seed, sample) if sample else None
        if challenge:
            chosen = tuple(names.index(each) for each in draw(names, challenge))
        else:
            chosen = tuple(range(len(names))) if everything else named
        done = auditing.audit(
            checkpoint,
            setting,
            reference,
            chosen=chosen,
            challenge=challenge,
            auditor=name,
            hire=hire,
            work=work,
            tell=tell,
        )
    if as_json:
        print_json(done.as_json())
    else:
        for line in done.text():
            out.print(escape(line))
        out.print(f"[bold]{done.outcome}[/]")
    if record:
        say(f"recorded {escape(str(write_audit(read, done)))}: docs/audit.md says how to submit it")
    raise typer.Exit(done.exit_status)


MOST = 9999
"""The greatest number of a block that is read; a model has fewer."""


def numbers(text: str) -> tuple[int, ...]:
    """Return the numbers that `3,17` or `0-5` means, sorted, each once."""
    found: set[int] = set()
    for part in filter(None, map(str.strip, text.split(","))):
        first, dash, last = part.partition("-")
        ends = (first, last if dash else first)
        if not all(each.isdecimal() and len(each) <= len(str(MOST)) for each in ends) or int(first) > int(ends[1]):
            raise typer.BadParameter(f"--blocks {text}: expected numbers as in 3,17 or 0-5")
        found |= {*range(int(first), int(ends[1]) + 1)}
    if not found:
        raise typer.BadParameter("say which blocks: --blocks 3,17, --sample 4 --seed TEXT, or --all")
    return tuple(sorted(found))


@app.command()
def rebuild(
    recipe: RecipePath,
    against: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Whose build to compare with; the recorded one without.")
    ] = None,
    twin: Annotated[bool, typer.Option("--twin", help="Rebuild the small stand-in: no GPU, minutes.")] = False,
    size: Size = "demo",
    runner: Runner = "auto",
    out_folder: NewCheckpoint = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do not go on where an earlier one was stopped.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a build again, and say whether its bytes and its journal are those of another one, or where they part."""
    read = read_recipe(recipe)
    stand_in = size if twin else None
    with progress() as tell:
        rebuilt = rebuilding.rebuild(
            read,
            against or read.path.parent,
            twin=stand_in,
            out=out_folder or Path("out", f"{read.name}-{stem(stand_in)}-rebuilt"),
            replace_existing=out_folder is None,
            fresh=fresh,
            runner=runner,
            tell=tell,
        )
    for taint in rebuilt.built.taints:
        say(f"[yellow]taint[/] {escape(taint)}")
    if as_json:
        print_json(rebuilt.as_json())
    else:
        show(rebuilt.verdict, f"compared with {rebuilt.against}.manifest.json and journal.jsonl")
    raise typer.Exit(EXIT_STATUS[rebuilt.verdict.outcome])


@app.command()
def coverage(
    recipe: RecipePath,
    twin: Annotated[bool, typer.Option("--twin", help="Of the small stand-in.")] = False,
    size: Size = "demo",
    as_json: AsJson = False,
) -> None:
    """Say which blocks were reproduced bit for bit, by how many parties, in which hardware classes."""
    covered = covering.coverage(read_recipe(recipe), size if twin else None)
    if as_json:
        print_json(covered.as_json())
    else:
        for part in coverage_table(covered):
            out.print(part)
    raise typer.Exit(covered.exit_status)


@shown.command()
def journal(
    path: Annotated[Path, typer.Argument(help="A journal, as `build` writes it.")], as_json: AsJson = False
) -> None:
    """Print what a tuning was given, and each block's loss before and after."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such file", "Name a journal, as `build` writes it beside its folder.")
    read = read_journal(path)
    if as_json:
        print_json(journal_json(read))
        return
    for line in journal_lines(read):
        out.print(escape(line))
