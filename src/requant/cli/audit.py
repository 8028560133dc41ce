"""`requant audit`: tune blocks of a checkpoint again, and compare."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer
from rich.markup import escape

import requant.audit
from requant.audit import cluster
from requant.audit.audits import party, write_audit
from requant.audit.challenge import Challenge, draw
from requant.audit.pool import prepare
from requant.audit.portable import confirm
from requant.audit.references import known
from requant.audit.retuned import Audit
from requant.build import beside
from requant.build.inputs import inputs_for
from requant.build.workplace import scratch
from requant.cli.options import (
    HERE,
    VERIFY,
    AsJson,
    BaseOption,
    BundleFile,
    IsTiny,
    JournalOption,
    RecipeOption,
    SandboxOption,
    SignKey,
    Size,
    app,
    tiny_size,
)
from requant.cli.sign import outcome_signer, signing
from requant.cli.terminal import out, print_json, progress, say
from requant.environment.install import cache
from requant.evidence.outcomes import Judged
from requant.hub.snapshots import folder_of
from requant.protocol import HINTS
from requant.recipe import Recipe, read_recipe

INSTEAD = (
    "Audit it on a machine that has them. `requant check CHECKPOINT --base BASE` needs no GPU, and finds what tuning "
    "cannot have made."
)
"""Advice for an audit of the full checkpoint on a machine that cannot tune it; the tiny model is no substitute."""

Auditor = Annotated[str, typer.Option(help="Your name, as it is to appear in the audit.")]
Record = Annotated[bool, typer.Option("--record", help="Write the audit to the folder audits/ of the recipe.")]
MOST = 9999
"""The greatest number of a block that is read; a model has fewer."""


@app.command(rich_help_panel=VERIFY, epilog="Example: requant audit out/ec-tiny --recipe builds/ec --blocks 3 --tiny")
def audit(
    named: Annotated[str, typer.Argument(metavar="CHECKPOINT", help=f"The checkpoint: {HERE}.")],
    recipe: RecipeOption,
    base: BaseOption = None,
    journal: JournalOption = None,
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
            help="Blocks to tune at the same time, each on a CPU thread or a GPU. Without it, 1; on Ray, all that fit.",
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
    tiny: IsTiny = False,
    size: Size = None,
    portable: Annotated[
        bool,
        typer.Option("--portable", help="Tune on this hardware, whatever it is, by the hints that the build wrote."),
    ] = False,
    hints: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="With --portable, the build's hints. Without it, CHECKPOINT.hints beside it."
        ),
    ] = None,
    sandbox: SandboxOption = "auto",
    auditor: Auditor = "",
    record: Record = False,
    sign: SignKey = None,
    bundle: BundleFile = None,
    as_json: AsJson = False,
) -> None:
    """Tune chosen blocks of a checkpoint again, and compare them bit by bit; and compare all that is not tuned.

    The input of a block is what the published blocks before it produce: docs/audit.md.
    """
    if address and engine != "ray":
        raise typer.BadParameter("--address needs --engine ray")
    make_pool = (
        cluster.make_pool(address or None, workers, base) if engine == "ray" else requant.audit.local(workers or 1)
    )
    read, checkpoint = read_recipe(recipe), folder_of(named)
    stand_in = tiny_size(tiny, size)
    name = named_party(auditor, record=record)
    if (bool(sample), bool(blocks), everything).count(True) != 1 or bool(seed) != bool(sample):
        raise typer.BadParameter(
            "choose the blocks in exactly one way: --blocks 3,17, --sample 4 --seed TEXT, or --all"
        )
    asked = numbers(blocks) if blocks else ()
    if journal and no_journal:
        raise typer.BadParameter("--journal and --no-journal cannot be used together")
    reference = known(read, stand_in, checkpoint.absolute(), journal, compared=not no_journal)
    names = requant.audit.names(read, stand_in)
    if hints and not portable:
        raise typer.BadParameter("--hints needs --portable")
    followed = (hints or beside(checkpoint.absolute(), HINTS)) if portable else None
    if followed:
        confirm(followed, reference.lines)
    signed = outcome_signer(sign, bundle, checkpoint, "audit")
    challenge = Challenge(seed, sample) if sample else None
    if challenge:
        chosen = tuple(names.index(each) for each in draw(names, challenge))
    else:
        chosen = tuple(range(len(names))) if everything else asked
    requant.audit.confirm(read, stand_in, checkpoint, reference, chosen)
    with scratch(cache() / "audits") as work, progress() as tell:
        inputs = inputs_for(read, stand_in, base, work, tell, INSTEAD)
        setting = prepare(read, stand_in, inputs, tell, sandbox, portable=portable)
        done = requant.audit.audit(
            checkpoint,
            setting,
            reference,
            chosen=chosen,
            challenge=challenge,
            auditor=name,
            make_pool=make_pool,
            work=work,
            hints=followed,
            tell=tell,
        )
    answer(read, done, record=record, as_json=as_json, sign=sign, signed=signed)


def named_party(auditor: str, *, record: bool) -> str:
    """Return the name that an audit is to have."""
    if record and not auditor:
        raise typer.BadParameter("--record needs --auditor NAME: it stands in the audit, signed or not")
    return party(auditor or "nobody")


def answer(
    recipe: Recipe,
    done: Audit,
    *,
    record: bool,
    as_json: bool,
    sign: str | None,
    signed: Callable[[Judged], Path] | None,
) -> NoReturn:
    """Print what came of an audit, write it down and sign it where it is to be, and end."""
    if as_json and done.steps:
        print_json("requant.judge/1", done.as_json())
    elif as_json:
        print_json("requant.audit/2", done.as_json())
    else:
        for line in done.text():
            out.print(escape(line))
        out.print(f"[bold]{done.outcome}[/]")
    if record:
        path = write_audit(recipe, done)
        say(f"recorded {escape(str(path))}: docs/audit.md says how to submit it")
        if sign:
            say(f"signed as well: {escape(str(sign_audit(path, sign)))}")
    if signed:
        signed(done.judged())
    raise typer.Exit(done.exit_status)


def sign_audit(path: Path, key: str) -> Path:
    """Sign a recorded audit, and return the bundle: coverage counts by it."""
    from requant.evidence.signatures import sign_file

    return sign_file(path, signing(key)())


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
