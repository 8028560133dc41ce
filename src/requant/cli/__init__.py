"""The command line: parses, calls one verb, prints its result, returns its status.

One module per command, named as the command. Results go to standard output.

Everything else, progress and advice, goes to standard error; with `--json` an error is a document on standard output
as well. Exit statuses: docs/exit-statuses.md.
"""

import io
import signal
import sys
from collections.abc import Iterable
from importlib import import_module
from typing import Any, NoReturn

import typer

from requant.cli.options import Command, app
from requant.cli.terminal import answer_error, fail
from requant.crash import CLOSED, INTERNAL, INTERRUPTED
from requant.errors import NotAvailableError, RequantError, UsageError

RESUMED = ("build", "rebuild", "respond")
"""Commands that, started again, resume an interrupted build after its last completed block."""

VERBS = (
    *("new", "build", "tiny", "plan", "trial", "render"),
    *("verify", "check", "diff", "evaluate", "inspect", "identify", "audit", "rebuild", "coverage", "show"),
    *("challenge", "respond", "judge"),
    *("manifest", "sign", "keys", "repair", "card", "report", "board", "publish", "fetch"),
    *("lock", "dockerfiles", "image", "pins", "update"),
)
"""The commands, each the name of its module here, in the order in which help lists them."""


def load(verbs: Iterable[str] = VERBS) -> None:
    """Import the modules of commands: each registers its own. A command that is run waits for no other's imports."""
    for verb in verbs:
        import_module(f"{__name__}.{verb}")
    for group in (app, *(each.typer_instance for each in app.registered_groups)):
        for each in group.registered_commands if group else ():
            each.cls = Command


def main() -> int:
    """Run the command and return its status; every error that requant raises on purpose ends here, as two lines.

    What nobody foresaw is raised further, to `crash.run`.
    """
    signal.signal(signal.SIGTERM, _stop)
    if sys.stdout is None:
        fail("standard output is closed", "Results are written to it.", NotAvailableError.exit_status)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name may have letters that the terminal has not
    load([word for word in sys.argv[1:2] if word in VERBS] or VERBS)
    try:
        status = app(prog_name="requant", standalone_mode=False)  # what the command's typer.Exit carries
        if status == INTERRUPTED:  # what typer makes of a KeyboardInterrupt
            raise KeyboardInterrupt
    except RequantError as error:
        fail(str(error), error.advice, error.exit_status)
    except (KeyboardInterrupt, typer.Abort):
        advice = "An interrupted build resumes after its last completed block when you start it again."
        fail("interrupted", advice if sys.argv[1:2] and sys.argv[1] in RESUMED else "", INTERRUPTED)
    except (BrokenPipeError, SystemExit) as error:  # the latter is how click and rich answer a closed pipe
        if getattr(error, "code", 1) == 0:  # and how completion ends
            raise
        return CLOSED
    except OSError as error:
        fail(
            str(error),
            "The disk may have failed, or a file was removed in the meantime.",
            NotAvailableError.exit_status,
        )
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's own errors of usage
            _misused(error)
        answer_error(f"internal error: {type(error).__name__}", "This says nothing about the checkpoint.", INTERNAL)
        raise
    return status or 0


def _misused(error: Any) -> NoReturn:
    """End with one of typer's own errors of usage, which leads to the help of the command that was misused."""
    named = (
        not isinstance(error, typer.BadParameter) or error.param
    )  # or else a command says it, without "Invalid value"
    message = (error.format_message() if named else error.message).replace("Value error, ", "")  # typer 0.29's word
    if not message:  # a group without a command: typer has printed its help
        raise SystemExit(2)
    fail(message, f"See {error.ctx.command_path if error.ctx else 'requant'} --help.", UsageError.exit_status)


def _stop(*_: object) -> NoReturn:
    raise KeyboardInterrupt
