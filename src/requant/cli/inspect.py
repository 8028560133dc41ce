"""`requant inspect`: say how loaders would read a checkpoint."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.markup import escape

import requant.inspect
from requant.cli.folding import Sheet, name
from requant.cli.options import VERIFY, AsJson, CheckpointSource, app, recipes
from requant.cli.terminal import out, print_json
from requant.counts import several
from requant.errors import UsageError
from requant.inspect import EXIT_STATUS, Inspection
from requant.inspect.baseline import expected, read_baseline
from requant.inspect.defects import DEFECTS
from requant.inspect.findings import Finding, Severity, alike, fold
from requant.inspect.loaders import DEFAULT, LOADERS, TENSOR_PARALLEL, named
from requant.inspect.remote import open_headers
from requant.recipe import read_recipe

SUBJECTS = 4
"""Kinds of names that a finding shows; `--json` has every name."""

COLOURS = {Severity.ERROR: "red", Severity.UNMODELLED: "magenta", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


@app.command(rich_help_panel=VERIFY, epilog="Example: requant inspect out/ec-tiny --all --recipe builds/ec")
def inspect(
    checkpoint: CheckpointSource = "",
    loader: Annotated[
        list[str] | None,
        typer.Option(
            help="A loader and its version, such as vllm==0.33.0; may be repeated.", show_default=DEFAULT.name
        ),
    ] = None,
    tp: Annotated[
        list[int] | None, typer.Option(min=1, help="Degree of tensor parallelism; may be repeated.", show_default="1")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Ask every modelled loader, at tensor parallelism 1, 2, 4 and 8.")
    ] = False,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="RECIPE",
            help="Mark the findings that healthy builds of this recipe have too.",
            autocompletion=recipes,
        ),
    ] = None,
    headers_only: Annotated[
        bool, typer.Option("--headers-only", help="Read only headers: no zero points, no scales.")
    ] = False,
    explain: Annotated[str, typer.Option(help="Describe a defect, such as D10, and exit.")] = "",
    as_json: AsJson = False,
) -> None:
    """Say whether each loader would read every tensor of a checkpoint exactly once, and as what it is."""
    if explain:
        text = list(defect_text(explain))
        if as_json:
            print_json("requant.defect/1", asdict(DEFECTS[explain]))
        else:
            out.lines(text)
        raise typer.Exit(0)
    if not checkpoint:
        raise typer.BadParameter("name a checkpoint, or a defect with --explain D10")
    loaders = LOADERS if everything else tuple(map(named, loader or [DEFAULT.name]))
    known = expected(read_baseline(read_recipe(recipe))) if recipe else {}
    headers = open_headers(checkpoint)
    inspected = requant.inspect.inspect(
        headers,
        loaders,
        TENSOR_PARALLEL if everything else tuple(tp or [1]),
        look_at_values=headers.folder is not None and not headers_only,
        known=known,
    )
    if as_json:
        print_json("requant.inspect/1", inspected.as_json())
    else:
        out.lines(findings_table(inspected))
    raise typer.Exit(EXIT_STATUS[inspected.outcome])


def findings_table(inspected: Inspection) -> Iterator[RenderableType]:
    """Yield an inspection for a person: equal experts, layers and sentences folded, then a summary."""
    sheet = Sheet("", "rule", "what", "hits")
    for finding, count in alike(inspected.findings):
        colour = "dim" if finding.known else COLOURS[finding.severity]
        label = "known" if finding.known else str(finding.severity)
        more = [f"and {count - 1:,} more like this, with other values: --json has each"] if count > 1 else []
        advice = [] if finding.known else [f"advice: {finding.repair}"]
        lines = [finding.consequence, *more, *_subjects(finding.subjects), *advice]
        sheet.add(f"[{colour}]{label}[/]", finding.rule, map(escape, lines), map(escape, _hits(finding, inspected)))
    if inspected.findings:
        yield sheet
    looked = (
        ""
        if inspected.values_read
        else "; zero points, scales and tokenizer were not read (D10, D11, D35, part of D12 and D34)"
    )
    network = f", {inspected.fetched:,} bytes fetched" if inspected.fetched else ""
    against = f"{', '.join(inspected.loaders)} at TP {', '.join(map(str, inspected.degrees))}"
    tensors = several(inspected.tensors, "tensor")
    yield escape(f"{inspected.checkpoint}: {tensors} in {several(inspected.files, 'file')}{network}")
    verdict = f"[bold red]{several(len(inspected.errors), 'error')}[/]"
    if not inspected.errors:
        verdict = "[bold yellow]not modelled[/]" if inspected.unmodelled else "[bold green]no errors[/]"
    yield f"{verdict}{escape(f' for {against}{looked}')}"


def _subjects(names: Iterable[str]) -> list[str]:
    folded = fold(names)
    shown = [f"{name(each)} ({count:,})" if count > 1 else name(each) for each, count in folded[:SUBJECTS]]
    left = sum(count for _, count in folded[SUBJECTS:])
    return [*shown, f"and {left:,} more"] if left else shown


def _hits(finding: Finding, inspected: Inspection) -> list[str]:
    if len(finding.targets) == len(inspected.loaders) * len(inspected.degrees):
        return ["all"] if len(finding.targets) > 1 else []
    hit: dict[str, list[str]] = {}
    for target in finding.targets:
        hit.setdefault(target.loader, []).append(str(target.tensor_parallel))
    return [f"{loader} TP {','.join(degrees)}" for loader, degrees in hit.items()]


def defect_text(name: str) -> Iterator[str]:
    """Yield a defect's entry, line by line; raises UsageError where there is none of that name."""
    if name not in DEFECTS:
        raise UsageError(f"--explain {name}: no such defect; they are D01 to D35 and N01 to N03")
    entry = DEFECTS[name]
    yield f"[bold]{entry.id}[/] {escape(entry.title)}"
    yield escape(entry.cause)
    if not entry.in_files:
        yield "[yellow]It does not show in the files, so inspect has no rule for it.[/]"
    yield f"Advice: {escape(entry.repair)}"
