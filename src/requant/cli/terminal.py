"""How results, progress and errors reach a person: the half of `cli` that writes. Nothing else prints.

Results go to standard output, everything else to standard error.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from rich import progress as rich_progress
from rich.console import Console
from rich.markup import escape

from requant.progress import Progress, Tell
from requant.verdict import Outcome, Verdict

SHOWN = 12
"""Differences that a person is shown; `--json` has all of them."""

out = Console(soft_wrap=True, emoji=False)
err = Console(stderr=True, soft_wrap=True, emoji=False)


def show(verdict: Verdict, compared: str) -> None:
    """Print a verdict and the first of its differences."""
    colour = {Outcome.IDENTICAL: "green", Outcome.DIFFERENT: "red"}.get(verdict.outcome, "yellow")
    for each in verdict.differences[:SHOWN]:
        out.print(escape(f"{each.kind}: {each.name} ({each.file})"))
    if len(verdict.differences) > SHOWN:
        out.print(f"and {len(verdict.differences) - SHOWN} more: --json names them all")
    for reason in verdict.reasons:
        out.print(escape(reason))
    out.print(f"[bold {colour}]{verdict.outcome}[/], {escape(compared)}")


def print_json(value: Any) -> None:
    """Print one JSON document."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def say(text: str) -> None:
    """Print what is not the result, to standard error."""
    err.print(text)


def fail(message: str, advice: str, status: int) -> NoReturn:
    """Print an error and its advice, and end with `status`."""
    err.print(f"[bold red]error[/] {escape(message)}")
    if advice:
        err.print(f"      {escape(advice)}")
    raise SystemExit(status)


@contextmanager
def progress(*more: rich_progress.ProgressColumn) -> Iterator[Tell]:
    """Draw the running stage as a bar, and leave a line for each stage and each tuned block."""
    columns = (
        rich_progress.SpinnerColumn(),
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        *more,
        rich_progress.TimeElapsedColumn(),
        rich_progress.TimeRemainingColumn(),
    )
    tasks: dict[str, rich_progress.TaskID] = {}
    lines: dict[str, int] = {}
    with rich_progress.Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:

        def tell(now: Progress) -> None:
            if now.stage not in tasks:
                for task in tasks.values():
                    bars.update(task, total=1, completed=1, visible=False)
                tasks[now.stage] = bars.add_task("", total=None)
                bars.console.print(escape(now.stage))
            part = now.part or ("" if now.done else now.note)
            bars.update(
                tasks[now.stage],
                completed=now.done,
                total=now.total or None,
                description=escape(f"{now.stage} {part}"),
            )
            if now.note and now.done > lines.get(now.stage, 0):
                lines[now.stage] = now.done
                bars.console.print(f"  {escape(now.note)}")

        yield tell
