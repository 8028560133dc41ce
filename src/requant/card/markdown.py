"""What a card says in structured places: its metadata block, its tables, labelled lines, commands and code.

A card is Markdown by strangers, or what a web page left of it: rules, pipes and fences may be lost. It is read line by
line, each line once, by patterns in linear time; prose is carried along and never interpreted.
"""

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from requant.digest import read_whole
from requant.errors import CheckpointError

MAX_CARD, MAX_LINES, LONGEST = 1 << 20, 10_000, 2_000
"""Bytes and lines of a card, and characters of a line that is looked into."""
MAX_JOINED = 40
"""Lines of one command, or of one list in code."""

Carrier = Literal["metadata", "table", "label", "command", "keyword", "text"]


@dataclass(frozen=True)
class Said:
    """One thing that a card says, and where.

    Of a `table` row `label` is the first cell, `values` are the others, and `header` are the columns' names; of a
    `command` `values` are its words; of a `keyword` of code `about` is the repository that the code names last.
    """

    line: int
    carrier: Carrier
    text: str
    label: str = ""
    values: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    about: str = ""
    section: str = ""


def read_card(path: Path) -> str:
    """Return a card's text; raise CheckpointError where it cannot be read, is no text, or is longer than any card."""
    advice = "A card is Markdown in UTF-8, such as a repository's README.md."
    try:
        text = read_whole(path, MAX_CARD).decode()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}", advice) from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not a card: {error}", advice) from None
    if (lines := text.count("\n")) > MAX_LINES:
        raise CheckpointError(f"{path}: not a card: {lines:,} lines, at most {MAX_LINES:,} are read", advice)
    if "\0" in text:
        raise CheckpointError(f"{path}: not a card: it has bytes of 0", advice)
    return text


def parse(text: str) -> Iterator[Said]:
    """Yield everything that a card says, in order; every line that is not blank is in one of them at least."""
    lines = text.replace("\r\n", "\n").split("\n")
    number = 0
    if lines[0].strip() == "---" and (end := _end(lines)):
        yield from _metadata(lines, end)
        number = end + 1
    headings: dict[int, str] = {}
    fence, about, inside = "", "", False
    header: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    while number < len(lines):
        at, bare = number + 1, lines[number][:LONGEST].strip()
        long = len(lines[number]) > LONGEST
        number += 1
        section = " / ".join(headings.values())
        if not bare:
            header = before = ()
        elif long:
            yield Said(at, "text", bare, section=section)
        elif bare.startswith(("```", "~~~")):
            fence = "" if fence == bare[:3] else fence or bare[:3]
            about, inside = "", False
        elif not fence and (heading := _HEADING.match(bare)):
            level = len(heading[1])
            headings = {each: title for each, title in headings.items() if each < level} | {level: heading[2]}
            yield Said(at, "text", bare, section=section)
        elif _COMMAND.match(bare) and (fence or not bare.endswith(".")):
            command, number = _joined(lines, at - 1, lambda part: part.endswith("\\"))
            words = _words(command.removeprefix("$ "))
            yield Said(at, "command" if words else "text", command, words[0] if words else "", words, section=section)
        elif fence or _is_code(bare) or (inside and _KEYWORD.fullmatch(bare)):
            about = next(reversed(_NAMED.findall(bare)), about) if not _KEYWORD.fullmatch(bare) else about
            inside = inside or "AutoRound(" in bare
            if inside and "=[" in bare.replace(" ", "") and "]" not in bare:
                bare, number = _joined(lines, at - 1, lambda part: "]" not in part)
            found = [*_KEYWORDS.finditer(bare)] if inside else []
            for each in found:
                yield Said(at, "keyword", each[0].strip(" (,"), each[1], (each[2],), about=about, section=section)
            if not found:
                yield Said(at, "text", bare, section=section)
            inside = inside and not bare.endswith(")")
        elif cells := _cells(bare):
            if all(_RULE.fullmatch(each) for each in cells):
                header = tuple(each for each in before if each)
            else:
                yield Said(at, "table", bare, cells[0], cells[1:], header, section=section)
                before = cells
        else:
            header = before = ()
            yield from (_labelled(at, part, section) for part in _ITEMS.split(bare))


_COMMAND = re.compile(r"(?:\$ )?(pip3?|auto-round|vllm)\s+\S")
_NAMED = re.compile(r"""["']([A-Za-z0-9][\w.-]*/[\w.-]+)["']""")
_HEADING = re.compile(r"(#{1,6})\s+(\S.*)")
_CODE_LINE = re.compile(r"""[\w.]+ ?= ?[\w.]+\(|["'][^"']*["'],?$|\)$|[\w.]+\([^)]*\)$""")
"""What a line of code begins or ends with, where a web page has lost the fence."""
_LITERAL = r"""("[^"]*"|'[^']*'|\[[^][]*\]|[\w.+-]+)"""
_KEYWORD = re.compile(rf"\w+\s?=\s?(?:{_LITERAL}|\[),?")
_KEYWORDS = re.compile(rf"(?:^|[(,])\s*(\w+)\s?=\s?{_LITERAL}")
_ITEMS = re.compile(r"(?<=\S) - (?=[A-Z][\w ]{1,30}: )")
"""Between items of a list that a web page has put on one line."""
_RULE = re.compile(r":?-{3,}:?")


def _is_code(line: str) -> bool:
    return bool(_CODE_LINE.match(line))


def _labelled(at: int, text: str, section: str) -> Said:
    label, colon, rest = _bare(text).partition(":")
    if colon and len(label) <= 60 and rest.strip(" *_"):
        return Said(at, "label", text, label.strip(" *_`"), (rest.strip(" *_"),), section=section)
    return Said(at, "text", text, section=section)


def _end(lines: list[str]) -> int:
    return next((number for number, line in enumerate(lines[1:], 1) if line.strip() == "---"), 0)


def _metadata(lines: list[str], end: int) -> Iterator[Said]:
    """Yield the flat keys of a metadata block; lists have one thing for each item. Nothing else of YAML is read."""
    key = ""
    for number in range(1, end):
        line = lines[number][:LONGEST]
        bare = line.strip()
        if not bare or bare.startswith("#"):
            continue
        name, colon, rest = line.partition(":")
        if colon and re.fullmatch(r"[\w-]+", name):
            key = name
            if rest.strip():
                yield Said(number + 1, "metadata", bare, key, (_scalar(rest),))
        elif bare.startswith("- ") and key:
            yield Said(number + 1, "metadata", f"{key}: {bare[2:]}", key, (_scalar(bare[2:]),))
        else:
            key = ""
            yield Said(number + 1, "text", bare)


def _scalar(text: str) -> str:
    return text.strip().strip("\"'")


def _joined(lines: list[str], start: int, goes_on: Callable[[str], bool]) -> tuple[str, int]:
    """Return the text of a line and of those that it goes on with, and the number of the next one."""
    parts: list[str] = []
    length = 0
    for number in range(start, min(len(lines), start + MAX_JOINED)):
        part = lines[number][:LONGEST].strip()
        parts.append(part.removesuffix("\\").strip())
        length += len(part)
        if length > LONGEST or not goes_on(part):
            break
    return " ".join(parts), start + len(parts)


def _words(command: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(command, comments=True))
    except ValueError:
        return ()


def _cells(line: str) -> tuple[str, ...]:
    """Return the cells of a table's row, () where the line is none: it begins with a pipe, or has two."""
    if not (line.startswith("|") or line.count("|") > 1):
        return ()
    cells = [each.replace("\\|", "|").strip() for each in re.split(r"(?<!\\)\|", line)]
    return tuple(cells[line.startswith("|") : len(cells) - line.endswith("|")])


def _bare(line: str) -> str:
    """Return a line without a mark of a list, or of emphasis, before it."""
    return re.sub(r"^(?:[-*+] |\d+\. )?[*_]*", "", line)
