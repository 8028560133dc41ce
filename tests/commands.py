"""Command lines of requant in texts: found, and read by the command line itself, which runs none of them."""

import re
import shlex
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from requant.cli.options import app

COMMAND = re.compile(r"^ *(?:\$ )?(requant (?!\.\.\.|VERB).*)$", re.M)


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each line that begins with requant, as a shell splits them, without its redirections."""
    for line in COMMAND.findall(re.sub(r" *\\\n *", " ", text)):
        words = shlex.split(line, comments=True)
        ends = (number for number, word in enumerate(words) if re.fullmatch(r"\|\|?|&&|;|\d*>.*", word))
        yield words[: next(ends, len(words))]


def parse(words: list[str]) -> None:
    """Read a command line; raise ValueError where a verb, an option or an argument is none of requant's."""
    command: Any = get_command(app)
    rest = words[1:]
    while subcommands := getattr(command, "commands", None):
        if not rest or rest[0] not in subcommands:
            raise ValueError(f"no such command: {shlex.join(words)}")
        command, rest = subcommands[rest[0]], rest[1:]
    try:
        command.make_context(command.name, rest)
    except Exception as error:  # typer's own
        raise ValueError(f"{shlex.join(words)}: {getattr(error, 'message', error)}") from None
