"""The worker's log as it is published beside a checkpoint: without what tells of the machine and of who used it.

Host paths, the user's name and the host's stand in what AutoRound and its libraries say; a statement names the log by
digest, so it must be one that its builder can give away.
"""

import os
import platform
import pwd
import re
from collections.abc import Mapping
from pathlib import Path

_BEGINS = r"(?:(?<![\w-])|(?<=\dm))"
"""Where a word may begin: also behind a terminal's colour, which ends in a digit and an m."""


def scrubbed(text: str, folders: Mapping[str, Path], names: Mapping[str, str]) -> str:
    """Return `text` with each of `folders` and `names` replaced by its key in angle brackets: `<home>/model`.

    The longest path is replaced first, whether it is written with or without its links resolved. A path or a name that
    is a part of another one stays: /home/an in /home/anna, an in plan.
    """
    paths = {str(path): key for key, each in folders.items() for path in (each.absolute(), each.resolve())}
    for path, key in sorted(paths.items(), key=lambda item: -len(item[0])):
        if path != os.sep:
            text = re.sub(rf"{re.escape(path)}(?![\w-]|\.\w)", f"<{key}>", text)
    for key, name in names.items():
        if name:
            text = re.sub(rf"{_BEGINS}{re.escape(name)}(?![\w-])", f"<{key}>", text)
    return text


def publish(log: Path, target: Path, folders: Mapping[str, Path]) -> None:
    """Write a worker's log to `target`, without `folders`, this user's home and name, and this host's name."""
    text = log.read_bytes().decode(errors="surrogateescape")
    text = scrubbed(text, {**folders, "home": Path.home()}, {"user": _user(), "host": platform.node()})
    target.write_bytes(text.encode(errors="surrogateescape"))


def _user() -> str:
    """Return the user's name, or nothing for root, who is everywhere, and for a number that has no name."""
    try:
        entry = pwd.getpwuid(os.geteuid())
    except KeyError:
        return ""
    return entry.pw_name if entry.pw_uid else ""
