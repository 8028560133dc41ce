"""`requant card`: the model card of a build, also as a bill of materials, and a published card beside the truth."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from requant.card.compare import Comparison, compare
from requant.card.cyclonedx import cyclonedx
from requant.card.facts import as_json as facts_json
from requant.card.facts import facts_of
from requant.card.markdown import read_card
from requant.card.records import read_records
from requant.card.render import render
from requant.card.spdx import spdx
from requant.cli.options import PUBLISH, AsJson, RecipePath, Size, app, tiny_size
from requant.cli.terminal import confirm_new, out, print_document, print_json, say, write_new
from requant.counts import several
from requant.errors import UsageError
from requant.recipe import read_recipe

Form = Literal["markdown", "cyclonedx", "spdx"]
BILLS = {"cyclonedx": cyclonedx, "spdx": spdx}
COLOURS = {"true": "green", "wrong": "red", "not backed": "yellow"}


@app.command(rich_help_panel=PUBLISH, epilog="Example: requant card builds/ec --compare README.md")
def card(
    recipe: RecipePath,
    build: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="A finished checkpoint with its records beside it, or a folder of records. Without it, the recorded "
            "build.",
        ),
    ] = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="The card of the tiny model, the small stand-in for the base.")
    ] = False,
    size: Size = None,
    repository: Annotated[
        str, typer.Option(metavar="OWNER/NAME", help="Where the checkpoint is published, for the card's commands.")
    ] = "",
    form: Annotated[
        Form,
        typer.Option(
            metavar="FORM",
            help="markdown, or the same facts with the digest of every file as a bill of materials: cyclonedx, spdx.",
        ),
    ] = "markdown",
    compare_with: Annotated[
        Path | None,
        typer.Option("--compare", metavar="CARD", help="Hold this card against the build, line by line, instead."),
    ] = None,
    out_file: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where to write the card; it must not exist.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the model card of a build from its records, or say how much of a published card is true."""
    if compare_with and (out_file or repository or form != "markdown"):
        raise UsageError("--compare writes no card", "Leave --out, --repository and --form out.")
    if as_json and form != "markdown":
        raise UsageError(f"--form {form} is JSON by itself", "Leave --json out.")
    if out_file:
        confirm_new(out_file)
    published = read_card(compare_with) if compare_with else ""
    records = read_records(read_recipe(recipe), tiny_size(tiny, size), build)
    facts = facts_of(records)
    if compare_with:
        compared = compare(published, records, facts)
        if as_json:
            print_json("requant.card-comparison/1", compared.as_json())
        else:
            out.lines(comparison_text(compared))
        raise typer.Exit(compared.exit_status)
    text = BILLS[form](records, facts, repository) if form in BILLS else render(records, facts, repository)
    if out_file:
        write_new(out_file, text)
    if as_json:
        print_json("requant.card/1", {"build": records.recipe.name, "facts": facts_json(facts), "card": text})
    elif out_file:
        say(f"{escape(str(out_file))}: {several(len(facts), 'fact')}")
    elif form in BILLS:
        print_document(text)
    else:
        out.lines(escape(line) for line in text.splitlines())


def comparison_text(compared: Comparison) -> Iterator[str]:
    """Yield each statement with its verdict, then the lines that were not compared, then the sum."""
    for each in compared.statements:
        recorded = f"; recorded: {each.recorded} ({each.source})" if each.recorded else ""
        verdict = f"[{COLOURS[each.verdict]}]{each.verdict:<10}[/]"
        yield f"{each.line:>5}  {verdict}  {escape(f'{each.key}: {each.stated}{recorded}')}"
    if compared.uncompared:
        yield "not compared:"
    for other in compared.uncompared:
        yield escape(f"{other.line:>5}  {other.text}")
    counts = (f"[{colour}]{compared.count(verdict)} {verdict}[/]" for verdict, colour in COLOURS.items())  # type: ignore[arg-type]
    yield f"{escape(compared.build)}: {', '.join(counts)}, {len(compared.uncompared)} not compared"
