"""How results, progress and errors reach a person: the half of `cli` that writes. Nothing else prints.

Results go to standard output, everything else to standard error. What strangers wrote is made harmless here, once,
for all of it: no command need think of escape sequences. Markup is the commands' own; they `escape` what is not theirs.
"""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from rich import progress as rich_progress
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.text import Text

from requant.cli.folding import NARROW, Folded
from requant.crash import INTERNAL, INTERRUPTED
from requant.errors import NotAvailableError, RequantError, UsageError
from requant.progress import Progress, Tell
from requant.verdict import Outcome, Verdict, visible

SHOWN = 12
"""Differences that a person is shown; `--json` has all of them."""

ERRORS = {each.exit_status: each.__name__ for each in RequantError.__subclasses__()}
ERRORS |= {INTERNAL: "InternalError", INTERRUPTED: "Interrupted"}
"""What `--json` calls an error, by exit status."""

_answered = False
"""Whether standard output has the run's document: there is never a second one."""

MOST = 4_000
"""Characters of one text that a person is shown: more would take longer to lay out than to read."""


class Terminal(Console):
    """A console on which text moves no cursor, hides no letter, and forges no line: what cannot be seen is spelled out.

    Before layout, so that columns fit; and after it, for what did not come as a string. Rich's own styles and
    cursor movements are no text. Several lines are several strings: a line end in one is somebody's trick.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """Lay out what a string says: its markup, and everything unseen as its escape."""
        return super().render_str(visible(_cut(text)), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render anything else to what is printed."""
        for each in super().render(renderable, options):
            yield each if each.control else each._replace(text=visible(each.text, keep="\n"))

    def lines(self, parts: Iterable[RenderableType]) -> None:
        """Print tables, and lines: folded here on a narrow terminal, and whole where a program reads them."""
        folded = self.width < NARROW and (self.is_terminal or "COLUMNS" in os.environ)
        for each in parts:
            self.print(Folded(each) if folded and isinstance(each, str) else each)

    def on_broken_pipe(self) -> NoReturn:
        """Nobody reads any more: not rich's status 1, which is a verdict."""
        raise BrokenPipeError


def _cut(text: str) -> str:
    return f"{text[:MOST]}… ({len(text):,} characters)" if len(text) > MOST else text


out = Terminal(soft_wrap=True, emoji=False)
err = Terminal(stderr=True, soft_wrap=True, emoji=False)


def show(verdict: Verdict, compared: str) -> None:
    """Print a verdict and the first of its differences."""
    colour = {Outcome.IDENTICAL: "green", Outcome.DIFFERENT: "red"}.get(verdict.outcome, "yellow")
    for each in verdict.differences[:SHOWN]:
        out.print(escape(str(each)))
    if len(verdict.differences) > SHOWN:
        out.print(f"and {len(verdict.differences) - SHOWN} more; --json lists them all")
    for reason in filter(None, (*verdict.reasons, verdict.aside)):
        out.print(escape(reason))
    out.print(f"[bold {colour}]{verdict.outcome}[/], {escape(compared)}")


def print_json(schema: str, value: Mapping[str, Any]) -> None:
    """Print the one JSON document of a run, under the name and version of its schema: docs/schemas."""
    global _answered
    _answered = True
    sys.stdout.write(json.dumps({"schema": schema, **value}, indent=2) + "\n")


def print_document(text: str) -> None:
    """Print a document of another's format whole; it is printable ASCII."""
    sys.stdout.write(text)


def confirm_new(path: Path) -> None:
    """Raise UsageError where a file stands that a command is to write."""
    if path.exists():
        raise UsageError(f"{path}: already exists", "Name another file with --out, or remove this one.")


def write_new(path: Path, text: str) -> None:
    """Write a file that is not there yet; raise NotAvailableError where it cannot be written."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise NotAvailableError(f"{path}: {error.strerror}", "Name a file in a folder of yours.") from None


def say(text: str) -> None:
    """Print what is not the result, to standard error."""
    err.print(text)


def fail(message: str, advice: str, status: int) -> NoReturn:
    """Print an error and its advice, and end with `status`."""
    with suppress(OSError):  # whether or not anybody reads it, this is the status
        first, *more = _cut(message).split("\n")
        err.print(f"[bold red]error[/] {escape(first)}")
        for line in (*more, *filter(None, _cut(advice).split("\n"))):
            err.print(f"      {escape(line)}")
    answer_error(message, advice, status)
    raise SystemExit(status)


def answer_error(message: str, advice: str, status: int) -> None:
    """Print an error as the run's document, where one is asked for and none is printed yet."""
    if "--json" in sys.argv and not _answered and sys.stdout is not None:
        document = {"error": ERRORS[status], "message": message, "advice": advice, "exit_status": status}
        with suppress(OSError):  # where standard output is what failed
            print_json("requant.error/1", document)


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
                description=escape(visible(f"{now.stage} {part}")),
            )
            if now.note and now.done > lines.get(now.stage, 0):
                lines[now.stage] = now.done
                bars.console.print(f"  {escape(now.note)}")

        yield tell
