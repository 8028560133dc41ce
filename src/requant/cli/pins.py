"""`requant pins`: list every pin of the project."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from requant.cli.options import MAINTAIN, AsJson, app
from requant.cli.terminal import out, print_json
from requant.hub.pins import GAPS, Pinned, find_pins

WIDTH = 80
"""Characters of a pin's source that a person is shown; `--json` has all of them."""


@app.command(rich_help_panel=MAINTAIN)
def pins(
    project: Annotated[Path, typer.Argument(help="The project's folder.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """List every pin: which digest holds it, where it is, who said so, and whether it is complete."""
    found = find_pins(project)
    incomplete = [pin for pin in found if pin.fault and not pin.known]
    known = sum(bool(pin.known) for pin in found)
    if as_json:
        document = {"pins": [asdict(pin) for pin in found], "incomplete": len(incomplete), "known": known}
        print_json("requant.pins/1", document)
    else:
        for line in pins_text(found):
            out.print(line)
        out.print(f"{len(found)} pins, {len(incomplete)} incomplete, {known} known to be incomplete ({GAPS})")
    raise typer.Exit(1 if incomplete else 0)


def pins_text(pins: Iterable[Pinned]) -> Iterator[str]:
    """Yield a line for each pin, and one for all complete ones of one kind in one file."""
    for (kind, file, _, fault, known), group in groupby(pins, _together):
        several = list(group)
        first, last = several[0], several[-1]
        where = (f"{file}:{first.line}" if first.line else file) + (f"-{last.line}" if first.line < last.line else "")
        names = first.name if len(several) == 1 else f"{len(several)}"
        sources = {pin.source for pin in several}
        said = f"; {_short(sources.pop())}" if len(sources) == 1 and first.source else ""
        held = f", {_short(first.by)}" if len(several) == 1 else ""
        missing = f" [red]incomplete: {escape(fault)}[/]" if fault else ""
        if known:
            missing = f" [yellow]known to be incomplete: {escape(f'{fault}; {known}')}[/]"
        yield f"[bold]{escape(where)}[/] {escape(f'{kind}: {names}{held}')}[dim]{escape(said)}[/]{missing}"


def _together(pin: Pinned) -> tuple[str, str, str, str, str]:
    """Return what pins of one line share; each that stands in no file has its own."""
    return pin.kind, pin.file, "" if pin.line else pin.name, pin.fault, pin.known


def _short(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[:WIDTH]}…"
