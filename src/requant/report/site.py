"""A board as files: pages of builds and builders, badges, an index for machines, a feed. Equal boards, equal bytes.

Atom: RFC 4287. A site needs no server of its own and no address: all links are relative.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from requant.errors import UsageError
from requant.report.board import INDEX, SCHEMA, Board, Entry, Event, Read, Status, pages
from requant.report.findings import State
from requant.report.page import page, render

STATES: Mapping[str, State | None] = {
    "reproduced": State.GOOD,
    "bad": State.BAD,
    "failed": State.FAILED,
    "unknown": State.OPEN,
    "withdrawn": None,
}
"""What the status of a build looks like."""
ORDER: tuple[Status, ...] = ("bad", "failed", "reproduced", "unknown")
COLOURS: Mapping[str, str] = {"reproduced": "#146c39", "bad": "#ae1f1a", "failed": "#6236a3", "unknown": "#5a6069"}
"""What badges are painted with: white letters on each have a contrast of 5 to 1 at least."""
MEANINGS: Mapping[str, str] = {
    "bad": "Somebody whose word counts got other bits where that accuses, or a record contradicts another.",
    "failed": "A record is missing, cannot be read, or belongs to another build. That says nothing of the bits.",
    "reproduced": "Every tuned block, and all that is not tuned, came out the same for so many besides the maker.",
    "unknown": "Nothing speaks against it, and not enough for it: nothing recorded, nobody looked, or only at parts.",
}
RECENT = 30
NO_TIME = "1970-01-01T00:00:00Z"
"""Atom wants a time of every entry: that of events which rest on no dated evidence."""


@dataclass(frozen=True)
class Changed:
    """An event as it is read: its number in the history, and its words."""

    number: int
    event: Event
    said: str


def write_site(folder: Path, board: Board, found: Sequence[Read], before: Board) -> int:
    """Write a site into a folder, and return how many files it has; pages of the board `before` that are no more go.

    Raises UsageError, and writes nothing, where a link in the folder leads out of it.
    """
    files: dict[str, str] = {INDEX: index(board), "feed.xml": feed(board)}
    names = {each.id: each for each in board.builds}
    for each in found:
        depth = "../" * each.entry.page.count("/")
        files[each.entry.page] = page(each.evidence, each.judgement, home=f"{depth}index.html")
        files[each.entry.badge] = badge(each.entry)
    for builder in board.builders:
        files[builder.page] = render("builder.html", builder=builder, names=names, home="../index.html")
    changes = changed(board)
    groups = [(status, STATES[status], [each for each in board.builds if each.status == status]) for status in ORDER]
    files["index.html"] = render(
        "board.html",
        board=board,
        groups=groups,
        counts=Counter(each.status for each in board.builds),
        changes=changes[:RECENT],
        states=STATES,
        meanings=MEANINGS,
        label=label,
        names=names,
    )
    files["history.html"] = render(
        "history.html", head=board.head or "none yet", changes=changes, states=STATES, names=names, home="index.html"
    )
    gone = [name for name in pages(before) if name not in files]
    for name in (*files, *gone):
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise UsageError(f"{folder / name}: a link that leads out of the site", "Remove it.")
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for name in gone:
        (folder / name).unlink(missing_ok=True)
    return len(files)


def changed(board: Board) -> list[Changed]:
    """Return the history in words, newest first."""
    return [Changed(number, each, said(each)) for number, each in enumerate(board.history)][::-1]


def index(board: Board) -> str:
    """Return the board for machines: docs/schemas/board-1.json."""
    return json.dumps({"schema": SCHEMA, **board.as_json()}, indent=1, ensure_ascii=False) + "\n"


def label(entry: Entry) -> str:
    """Return the status of a build in two or three words, as its badge has it."""
    if entry.status == "reproduced":
        return f"reproduced by {entry.reproduced}"
    return entry.status


def said(event: Event) -> str:
    """Return an event in words."""
    now = f"reproduced by {event.reproduced}" if event.status == "reproduced" else event.status
    if not event.was:
        return f"listed: {now}"
    return f"new evidence: {now}" if event.was == event.status else f"{now}, was {event.was}"


def badge(entry: Entry) -> str:
    """Return a badge as SVG, for cards: its words are text, and its width follows from their letters."""
    left, right = "requant", label(entry)
    widths = [round(sum(4.2 if letter in "fijlrt1 " else 6.8 for letter in each)) + 14 for each in (left, right)]
    return render("badge.svg", left=left, right=right, widths=widths, colour=COLOURS[entry.status], name=entry.build)


def feed(board: Board) -> str:
    """Return the history as an Atom feed, newest first."""
    names = {each.id: each for each in board.builds}
    updated = max((each.finished for each in board.history if each.finished), default=NO_TIME)
    return render("feed.xml", entries=changed(board), updated=updated, names=names, no_time=NO_TIME)
