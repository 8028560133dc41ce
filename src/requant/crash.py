"""How a program of requant ends where nobody foresaw it: never with a status that would be a verdict.

Python ends with status 1 then, which here says "different". What stands here needs the standard library alone.
"""

import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from requant.errors import NotAvailableError
from requant.verdict import visible

INTERNAL = 70
"""A mistake in requant: EX_SOFTWARE of sysexits.h."""
INTERRUPTED = 130
CLOSED = 141
"""Nobody reads standard output any more: what a shell makes of SIGPIPE."""

_SECRET = re.compile(r"(?<=://)[^/@\s]+(?=@)|\bhf_\w+|(?<=Bearer )[^\s'\"]+")
_SECRET_NAME = re.compile("TOKEN|SECRET|PASSW|KEY|CREDENTIAL", re.I)


def run(program: Callable[[], int]) -> NoReturn:
    """Run a program and end with its status, with 70 where it raises, and with 130 where it is interrupted."""
    try:
        status = program()
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where it can still be told; at the end Python would make it status 120
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BrokenPipeError:
        status = CLOSED
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else INTERNAL
    except OSError as error:  # a disk that is full, a file that went away: no mistake, and no verdict either
        status = NotAvailableError.exit_status
        _say(f"requant: {error}.")
    except BaseException as error:
        status = INTERNAL
        _say(_told(error))
    _flush()
    raise SystemExit(status)


def scrubbed(text: str) -> str:
    """Return a text without what may be a secret: tokens, passwords in addresses, secrets of the environment."""
    for name, value in os.environ.items():
        if len(value) >= 8 and _SECRET_NAME.search(name):
            text = text.replace(value, "***")
    return _SECRET.sub("***", text)


def _told(error: BaseException) -> str:
    kind = type(error).__name__
    try:
        traceback.clear_frames(error.__traceback__)  # what they hold may be all the memory that there is
        said = visible(scrubbed(str(error))[:200])
        where = _written(error)
    except Exception:
        said, where = "", "no more can be said of it"
    advice = "This says nothing about the checkpoint; please report it with that file."
    return f"requant: internal error: {kind}: {said}\n  {where}\n  {advice}"


def _written(error: BaseException) -> str:
    """Write the traceback where there is room for it; return where that is, or the traceback itself."""
    command = " ".join(sys.argv)
    text = scrubbed(
        f"{command}\nPython {sys.version} on {sys.platform}\n\n{''.join(traceback.format_exception(error))}"
    )
    try:
        handle, path = tempfile.mkstemp(prefix="requant-crash-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        return "no folder for temporary files can be written, so here it is:\n" + visible(text, keep="\n")
    return f"what happened is written in {path}"


def _say(text: str) -> None:
    with suppress(AttributeError, OSError, ValueError):  # closed, full, or None
        sys.stderr.write(scrubbed(text) + "\n")


def _flush() -> None:
    """Leave nothing to be written when Python ends: it would make another status of what cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            with suppress(AttributeError, OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
