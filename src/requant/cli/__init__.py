"""The command line: parses, calls one verb, prints its result, returns its status. Results go to standard output.

Everything else, progress and advice, goes to standard error. Exit status: 0 identical, 1 different or
equivalent, 2 usage, 3 inconclusive, 4 and up one per class in `errors`, 70 a mistake in requant (`crash`).
"""

import io
import signal
import sys
from typing import NoReturn

import typer

from requant.cli import auditing, judging, making, projecting, telling  # noqa: F401 (each registers its verbs)
from requant.cli.options import app
from requant.cli.terminal import fail
from requant.crash import CLOSED, INTERRUPTED
from requant.errors import NotAvailableError, RequantError


def main() -> int:
    """Run the command and return its status; every error that requant raises on purpose ends here, as two lines.

    What nobody foresaw is raised further, to `crash.run`.
    """
    signal.signal(signal.SIGTERM, _stop)
    if sys.stdout is None:
        fail("standard output is closed", "Results go there.", NotAvailableError.exit_status)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name may have letters that the terminal has not
    try:
        status = app(standalone_mode=False)  # what the verb's typer.Exit carries
        if status == INTERRUPTED:  # what typer makes of a KeyboardInterrupt
            raise KeyboardInterrupt
    except RequantError as error:
        fail(str(error), error.advice, error.exit_status)
    except (KeyboardInterrupt, typer.Abort):
        fail("interrupted", "A build that is started again goes on behind its last whole block.", INTERRUPTED)
    except (BrokenPipeError, SystemExit):  # the latter is how click answers a closed pipe
        return CLOSED
    except OSError as error:
        fail(str(error), "The disk, or a file that went away meanwhile.", NotAvailableError.exit_status)
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's own errors of usage
            fail(error.format_message(), "requant --help lists the verbs.", 2)
        raise
    return status or 0


def _stop(*_: object) -> NoReturn:
    raise KeyboardInterrupt
