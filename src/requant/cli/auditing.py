"""The verbs that reproduce a build, and show how far it was reproduced: audit, rebuild, coverage, show."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

import requant.audit.coverage as covering
import requant.build.rebuild as rebuilding
from requant import audit as auditing
from requant.audit import cluster
from requant.audit.audits import party, write_audit
from requant.audit.challenge import Challenge, draw
from requant.audit.pool import prepare
from requant.build import stem
from requant.build.inputs import inputs_for
from requant.build.workplace import scratch
from requant.cli.options import (
    TELL,
    VERIFY,
    AsJson,
    Group,
    NewCheckpoint,
    RecipePath,
    SandboxOption,
    Size,
    app,
    recipes,
    tiny_size,
)
from requant.cli.tables import coverage_table
from requant.cli.terminal import out, print_json, progress, say, show
from requant.environment.install import cache
from requant.errors import CheckpointError, UsageError
from requant.evidence.journal import read_journal
from requant.evidence.show import journal_json, journal_lines
from requant.recipe import read_recipe
from requant.verdict import EXIT_STATUS

shown = typer.Typer(cls=Group, no_args_is_help=True, help="Print a file that requant wrote, in readable form.")
app.add_typer(shown, name="show", rich_help_panel=TELL)


@app.command(rich_help_panel=VERIFY, epilog="Example: requant audit out/ec-tiny --recipe builds/ec --blocks 3 --tiny")
def audit(
    checkpoint: Annotated[
        Path, typer.Argument(help="The checkpoint's folder: .safetensors files, and the files beside them.")
    ],
    recipe: Annotated[
        Path,
        typer.Option(
            metavar="RECIPE", help="The recipe that it is a build of: a folder under builds/.", autocompletion=recipes
        ),
    ],
    base: Annotated[
        Path | None,
        typer.Option(
            help="The folder of the base, the unquantized model. Without it, it is downloaded (a tiny model: made)."
        ),
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option(
            help="The journal of its build. Without it, the recorded one, or else the one beside the checkpoint."
        ),
    ] = None,
    no_journal: Annotated[bool, typer.Option("--no-journal", help="Compare only tensors, without a journal.")] = False,
    blocks: Annotated[
        str, typer.Option(help="The blocks (decoder layers) to tune again, counted from 0, such as 3,17 or 0-5.")
    ] = "",
    sample: Annotated[int, typer.Option(min=0, help="Draw this many blocks at random; needs --seed.")] = 0,
    seed: Annotated[
        str, typer.Option(help="The text that --sample draws from: one that became public after the checkpoint did.")
    ] = "",
    everything: Annotated[bool, typer.Option("--all", help="Tune all blocks again.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Blocks to tune at a time, each on a CPU thread or a GPU. Without it, 1; on Ray, all that fit.",
        ),
    ] = None,
    engine: Annotated[
        Literal["here", "ray"],
        typer.Option(help="Where blocks are tuned: on this machine (here) or on a Ray cluster (ray)."),
    ] = "here",
    address: Annotated[
        str,
        typer.Option(
            help="The address of the Ray cluster, as HOST:PORT. Without it, the cluster that this machine is part of."
        ),
    ] = "",
    tiny: Annotated[
        bool,
        typer.Option("--tiny", help="The checkpoint is a build of the tiny model, the small stand-in for the base."),
    ] = False,
    size: Size = None,
    sandbox: SandboxOption = "auto",
    auditor: Annotated[str, typer.Option(help="Your name, as it is to appear in the audit.")] = "",
    record: Annotated[
        bool, typer.Option("--record", help="Write the audit to the folder audits/ of the recipe.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Tune chosen blocks of a checkpoint again, and compare them bit by bit; and compare all that is not tuned.

    The input of a block is what the published blocks before it produce: docs/audit.md.
    """
    if address and engine != "ray":
        raise typer.BadParameter("--address needs --engine ray")
    make_pool = cluster.make_pool(address or None, workers, base) if engine == "ray" else auditing.local(workers or 1)
    read = read_recipe(recipe)
    stand_in = tiny_size(tiny, size)
    if record and not auditor:
        raise typer.BadParameter("--record needs --auditor NAME: coverage counts parties by name")
    name = party(auditor or "nobody")
    if (bool(sample), bool(blocks), everything).count(True) != 1 or bool(seed) != bool(sample):
        raise typer.BadParameter(
            "choose the blocks in exactly one way: --blocks 3,17, --sample 4 --seed TEXT, or --all"
        )
    named = numbers(blocks) if blocks else ()
    if journal and no_journal:
        raise typer.BadParameter("--journal and --no-journal cannot be used together")
    reference = auditing.known(read, stand_in, checkpoint.absolute(), journal, compared=not no_journal)
    names = auditing.names(read, stand_in)
    challenge = Challenge(seed, sample) if sample else None
    if challenge:
        chosen = tuple(names.index(each) for each in draw(names, challenge))
    else:
        chosen = tuple(range(len(names))) if everything else named
    auditing.confirm(read, stand_in, checkpoint, reference, chosen)
    with scratch(cache() / "audits") as work, progress() as tell:
        setting = prepare(read, stand_in, inputs_for(read, stand_in, base, work, tell, INSTEAD), tell, sandbox)
        done = auditing.audit(
            checkpoint,
            setting,
            reference,
            chosen=chosen,
            challenge=challenge,
            auditor=name,
            make_pool=make_pool,
            work=work,
            tell=tell,
        )
    if as_json:
        print_json("requant.audit/1", done.as_json())
    else:
        for line in done.text():
            out.print(escape(line))
        out.print(f"[bold]{done.outcome}[/]")
    if record:
        say(f"recorded {escape(str(write_audit(read, done)))}: docs/audit.md says how to submit it")
    raise typer.Exit(done.exit_status)


INSTEAD = (
    "Audit it on a machine that has them. `requant check CHECKPOINT --base BASE` needs no GPU, and finds what tuning "
    "cannot have made."
)
"""Advice for an audit of the full checkpoint on a machine that cannot tune it: the tiny model would be another one."""

MOST = 9999
"""The greatest number of a block that is read; a model has fewer."""


def numbers(text: str) -> tuple[int, ...]:
    """Return the numbers that `3,17` or `0-5` means, sorted, each once."""
    found: set[int] = set()
    for part in filter(None, map(str.strip, text.split(","))):
        first, dash, last = part.partition("-")
        ends = (first, last if dash else first)
        if not all(each.isdecimal() and len(each) <= len(str(MOST)) for each in ends) or int(first) > int(ends[1]):
            raise typer.BadParameter(f"--blocks {text}: expected block numbers, such as 3,17 or 0-5")
        found |= {*range(int(first), int(ends[1]) + 1)}
    if not found:
        raise typer.BadParameter("choose the blocks: --blocks 3,17, --sample 4 --seed TEXT, or --all")
    return tuple(sorted(found))


@app.command(rich_help_panel=VERIFY, epilog="Example: requant rebuild builds/ec --tiny --against DIR")
def rebuild(
    recipe: RecipePath,
    against: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The folder of the build to compare with. Without it, the recorded build."),
    ] = None,
    tiny: Annotated[
        bool,
        typer.Option(
            "--tiny", help="Rebuild the tiny model, a small stand-in for the base model: it needs minutes, and no GPU."
        ),
    ] = False,
    size: Size = None,
    sandbox: SandboxOption = "auto",
    out_folder: NewCheckpoint = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over, even if an interrupted build could be resumed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Build a recipe again, and say whether its bytes and journal are those of another build, or where they part."""
    read = read_recipe(recipe)
    stand_in = tiny_size(tiny, size)
    with progress() as tell:
        rebuilt = rebuilding.rebuild(
            read,
            against or read.path.parent,
            tiny=stand_in,
            out=out_folder or Path("out", f"{read.name}-{stem(stand_in)}-rebuilt"),
            replace_existing=out_folder is None,
            fresh=fresh,
            sandbox=sandbox,
            tell=tell,
        )
    for taint in rebuilt.built.taints:
        say(f"[yellow]taint[/] {escape(taint)}")
    if as_json:
        print_json("requant.rebuild/1", rebuilt.as_json())
    else:
        show(rebuilt.verdict, f"compared with {rebuilt.against}.manifest.json and journal.jsonl")
    raise typer.Exit(EXIT_STATUS[rebuilt.verdict.outcome])


@app.command(rich_help_panel=VERIFY, epilog="Example: requant coverage builds/ec")
def coverage(
    recipe: RecipePath,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Show the coverage of the tiny model, the small stand-in for the base.")
    ] = False,
    size: Size = None,
    as_json: AsJson = False,
) -> None:
    """Say which blocks were reproduced bit for bit, by how many parties, and on which classes of hardware."""
    covered = covering.coverage(read_recipe(recipe), tiny_size(tiny, size))
    if as_json:
        print_json("requant.coverage/1", covered.as_json())
    else:
        out.lines(coverage_table(covered))
    raise typer.Exit(covered.exit_status)


MANIFEST = b'{"files":'
"""How every manifest begins."""


@shown.command(epilog="Example: requant show journal builds/ec/demo.journal.jsonl")
def journal(
    path: Annotated[Path, typer.Argument(help="A journal, as `requant build` writes it.")], as_json: AsJson = False
) -> None:
    """Print what the tuning was given, and the loss of each block before and after."""
    if not path.exists():
        raise CheckpointError(
            f"{path}: no such file", "Name a journal, as `requant build` writes it beside the checkpoint's folder."
        )
    if path.is_dir():
        beside = Path(f"{path}.journal.jsonl")
        advice = f"Its journal is beside it: requant show journal {beside}" if beside.exists() else ""
        raise UsageError(f"{path}: a folder, not a journal", advice or "Name a file that ends in journal.jsonl.")
    with path.open("rb") as file:
        begins = file.read(len(MANIFEST))
    if begins == MANIFEST:
        raise UsageError(f"{path}: a manifest, not a journal", "The journal beside it ends in journal.jsonl.")
    read = read_journal(path)
    if as_json:
        print_json("requant.journal/1", journal_json(read))
        return
    out.lines(map(escape, journal_lines(read)))
