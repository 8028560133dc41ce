"""`requant coverage`: say how far a build was reproduced."""

from collections.abc import Iterator, Sequence
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.markup import escape

import requant.audit.confirmed
import requant.audit.coverage
from requant.audit.confirmed import Confirmed, confirmed
from requant.audit.coverage import Coverage
from requant.cli.folding import Sheet, name
from requant.cli.options import VERIFY, AsJson, Builders, RecipePath, Require, Size, Trust, app, tiny_size
from requant.cli.terminal import out, print_json
from requant.recipe import read_recipe


@app.command(rich_help_panel=VERIFY, epilog="Example: requant coverage builds/ec")
def coverage(
    recipe: RecipePath,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Show the coverage of the tiny model, the small stand-in for the base.")
    ] = False,
    size: Size = None,
    builders: Builders = None,
    require: Require = None,
    trust: Trust = None,
    as_json: AsJson = False,
) -> None:
    """Say which blocks were reproduced bit for bit, by how many parties, and on which classes of hardware."""
    read = read_recipe(recipe)
    known, trusted = requant.audit.confirmed.builders(read, builders, trust or ())
    covered = requant.audit.coverage.coverage(read, tiny_size(tiny, size), known)
    required = confirmed(covered, known, require, trusted) if require or trust else None
    if as_json:
        print_json("requant.coverage/3", {**covered.as_json(), "confirmed": required and required.as_json()})
    else:
        out.lines(coverage_table(covered))
        if required:
            show_confirmed(required)
    raise typer.Exit(required.exit_status if required else covered.exit_status)


def show_confirmed(found: Confirmed) -> None:
    """Print whether enough builders have confirmed a checkpoint, and what was refused."""
    out.lines(map(escape, found.text()))
    colour, word = ("green", "confirmed") if found.holds else ("red" if found.negatives else "yellow", "not confirmed")
    out.print(f"[bold {colour}]{word}[/]")


def coverage_table(covered: Coverage) -> Iterator[RenderableType]:
    """Yield how far a build was reproduced: block by block, what went against it, what was not counted, the sum."""
    unproven = "yellow" if covered.named else "red"
    classes = [f"class {number}" for number, _ in enumerate(covered.hardware, 1)]
    rows = [each for each in covered.rows if each is not covered.rebuilt or covered.rebuilding]
    sheet = Sheet("identical, by parties", "keys", "names", *classes, "different", "open", numbers=True)
    for each in rows:
        by = [each.identical.get(hardware, ()) + each.claimed.get(hardware, ()) for hardware in covered.hardware]
        counts = [each.parties, each.claims, *map(len, by)]
        against = covered.against(each)
        different = f"[red]{len(against)}[/]" if against else ""
        left = len(each.open) + (len(each.disputed) if covered.named else 0)
        sheet.add(escape(name(each.block)), *(str(count or "") for count in counts), different, str(left or ""))
    if covered.counted:
        yield sheet
    for number, hardware in enumerate(covered.hardware, 1):
        verified = {name for each in covered.rows for name in each.identical.get(hardware, ())}
        claimed = {f"{name} (unverified)" for each in covered.rows for name in each.claimed.get(hardware, ())}
        names = sorted(verified) + sorted(claimed)
        own = ", the build's own" if hardware == covered.own else ""
        yield escape(f"class {number}{own}: {hardware}: {', '.join(names) or 'nothing identical'}")
    for file, label in covered.counted.items():
        environment = "the build's environment" if label.own_environment else f"environment {label.environment[:12]}"
        if label.what == "rebuild":
            said = f"{label.party.label}, {label.outcome}, {label.hardware}, {environment}"
            yield escape(f"rebuild {file.partition('/')[2][:12]}: {said}")
            continue
        yield escape(
            f"audit {file[:12]}: {label.party.label}, {label.finished}, {label.hardware}, {environment}, "
            f"journal: {label.journal}{f'; {label.party.why}' if label.party.why else ''}"
        )
    for each in covered.rows:
        for colour, results in (("red", each.different), (unproven, each.disputed), ("yellow", each.open)):
            for result in results:
                said = f"{result.party.label}, {result.hardware}: {result.what} ({result.audit})"
                yield f"[{colour}]{escape(said)}[/]"
    for file, reason in covered.stale.items():
        yield escape(f"not counted: {file}: {reason}")
    if not covered.own:
        yield escape(f"{covered.build}: nothing is recorded{'' if covered.tiny else ' for the full build'}")
        return
    if covered.maker:
        yield escape(f"built by {covered.maker.label}")
    negatives = covered.negatives
    rebuilds = f", rebuilds: {covered.rebuilding}" if covered.rebuilding else ""
    yield escape(
        f"{covered.build}: verified: {_sum([each.parties for each in covered.blocks], covered.untuned.parties)}; "
        f"audits: {len(covered.counted) - covered.rebuilding}{rebuilds}, hardware classes: {len(covered.hardware)}"
    )
    if any(each.claims for each in covered.rows):
        yield escape(
            "unverified, by names that anybody can give: "
            f"{_sum([each.claims for each in covered.blocks], covered.untuned.claims)}"
        )
    if covered.disputes:
        blocks = ",".join(str(number) for number, each in enumerate(covered.blocks) if each.disputed)
        yield (
            f"[yellow]disputes by names that nobody has vouched for: {covered.disputes}[/]; "
            f"to settle it: requant audit CHECKPOINT --recipe RECIPE --blocks {blocks or '0'}"
        )
    if not covered.counted:
        yield "[bold yellow]nothing is covered[/]: CONTRIBUTING.md says how to submit an audit"
    elif not covered.decided:
        yield "[bold yellow]nothing is verified[/]: no audit is signed by a builder of the list"
    elif negatives:
        yield f"[bold red]negative results: {negatives}[/]"
    else:
        yield f"[bold green]no negative result[/]{'' if covered.named else ', and no list of builders to verify names'}"


def _sum(blocks: Sequence[int], untuned: int) -> str:
    """Return how many blocks, and whether all that is not tuned, were found identical by how many."""
    some, more = sum(n > 0 for n in blocks), sum(n > 1 for n in blocks)
    return (
        f"{some} of {len(blocks)} blocks identical, {more} by two parties or more; "
        f"not tuned: {untuned or 'no'} {'party' if untuned == 1 else 'parties'}"
    )
