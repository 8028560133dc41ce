"""Many builds at once: what is known of each, who reproduced it, and what has changed since the board was made last.

A build that cannot be read is listed as such. History is a chain: each event names the SHA-256 of the one before it, as
lines of a journal do, so a board can be extended by whoever has its `index.json`, and not rewritten unseen. No clock is
asked: an event has the time of the latest evidence that it rests on.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from requant.audit.audits import same_party
from requant.audit.builders import Builder, builders_of
from requant.build import RECORDED, beside, stem
from requant.digest import canonical_json, read_whole, sha256, strict_json
from requant.errors import CheckpointError, RequantError, UsageError
from requant.model.rules import SIZES
from requant.recipe import FILE, read_recipe
from requant.records import record
from requant.report.evidence import Evidence, Problem, of_build
from requant.report.findings import State
from requant.report.judgement import Judgement, judge

SCHEMA = "requant.board/1"
INDEX = "index.json"
MOST = 1 << 28
"""Bytes of the largest index that is read: of some hundred thousand events."""
FULL = "full"
"""What the build of the base itself is called where a tiny model has its size."""

Status = Literal["reproduced", "bad", "failed", "unknown"]
Became = Literal["reproduced", "bad", "failed", "unknown", "withdrawn"]
_PAGE = re.compile(r"builds/[a-z0-9._-]+/[a-z0-9._-]+\.(html|svg)|builders/[a-z0-9-]+\.html")


@dataclass(frozen=True)
class Entry:
    """A build: `reproduced` counts the builders who made all of it again, `verified` is whether a list has their keys.

    `classes` has who found anything identical by class of hardware, `evidence` the SHA-256 of what that rests on, by
    file, and `finished` the latest time in it. `page` and `badge` are where they stand in the site.
    """

    id: str
    build: str
    tiny: str | None
    status: Status
    reproduced: int
    verified: bool
    sentence: str
    rung: str
    classes: Mapping[str, tuple[str, ...]]
    weights: str
    evidence: Mapping[str, str]
    finished: str
    page: str
    badge: str


@dataclass(frozen=True)
class Share:
    """What a builder found of a build in a class of hardware: how many blocks, of how many, came out how."""

    id: str
    hardware: str
    identical: int
    different: int
    open: int
    blocks: int


@dataclass(frozen=True)
class Known:
    """A builder: the id of a listed key, or nothing for a name that anybody can give; and what they found."""

    name: str
    key: str
    page: str
    found: tuple[Share, ...]


@dataclass(frozen=True)
class Event:
    """A build that is not what it was: `previous` is the SHA-256 of the event before, in canonical JSON."""

    id: str
    status: Became
    was: str
    reproduced: int
    verified: bool
    evidence: str
    finished: str
    previous: str


@dataclass(frozen=True)
class Board:
    """All builds, all builders, and every event since the first board, oldest first.

    `head` is the SHA-256 of the last event: whoever has kept it can tell whether history was rewritten.
    """

    builds: tuple[Entry, ...]
    builders: tuple[Known, ...]
    history: tuple[Event, ...]
    head: str

    def as_json(self) -> dict[str, Any]:
        """Return the board as `index.json` has it, but for its schema."""
        return asdict(self)


@dataclass(frozen=True)
class Place:
    """A folder of builds under the name that the board gives it."""

    label: str
    folder: Path


@dataclass(frozen=True)
class Read:
    """A build as it was read, for its page."""

    entry: Entry
    evidence: Evidence
    judgement: Judgement = field(repr=False)


def places(words: Sequence[str]) -> tuple[Place, ...]:
    """Return the folders that are named, each as `FOLDER` or `NAME=FOLDER`; raise UsageError for one that is none.

    And for two of one name, which nobody could tell apart.
    """
    found: list[Place] = []
    for word in words:
        label, _, path = word.rpartition("=") if "=" in word and not Path(word).is_dir() else ("", "", word)
        folder = Path(path)
        if not folder.is_dir():
            raise UsageError(f"{path}: no folder of builds", f"In each of its folders stands a {FILE}.")
        found.append(Place(os.fsencode(label or folder.resolve().name).decode("utf-8", "backslashreplace"), folder))
    for place in found:
        if [each.label for each in found].count(place.label) > 1:
            raise UsageError(
                f"{place.folder}: two folders would be called {place.label}", f"Name one: ours={place.folder}"
            )
    return tuple(found)


def read_builds(places: Iterable[Place], listed: Path | None = None) -> Iterator[Read]:
    """Yield every build of some folders: of the base, and of each size of tiny model that is recorded.

    `listed` names the builders whose word decides, for all folders; without it each folder's own list does.
    """
    for place in places:
        for path in sorted(place.folder.glob(f"*/{FILE}")):
            for tiny, evidence in _of_folder(path.parent, listed):
                yield _entry(place.label, path.parent.name, tiny, _at_home(evidence, place.folder))


def _of_folder(folder: Path, listed: Path | None) -> Iterator[tuple[str | None, Evidence]]:
    try:
        recipe = read_recipe(folder)
        known: Mapping[str, Builder] = builders_of(recipe, listed)
    except RequantError as error:
        for tiny in _sizes(folder):
            yield tiny, Evidence(folder.name, tiny=tiny, problems=(Problem(FILE, str(error)),))
        return
    for tiny in _sizes(folder):
        try:
            yield tiny, of_build(recipe, tiny, known)
        except (RequantError, OSError) as error:
            yield tiny, Evidence(folder.name, tiny=tiny, problems=(Problem(folder.name, str(error)),))


def _sizes(folder: Path) -> Iterator[str | None]:
    """Yield None for the base, and each size of tiny model of which anything is recorded."""
    for tiny in (None, *SIZES):
        if tiny is None or any(beside(folder / stem(tiny), name).exists() for name in RECORDED):
            yield tiny


def _at_home(evidence: Evidence, folder: Path) -> Evidence:
    """Return evidence whose problems say where files stand in a folder of builds, and not where that stands."""
    inside = f"{folder}/"
    own = f"{inside}{evidence.name}/"
    told = (replace(each, said=each.said.replace(own, "").replace(inside, "")) for each in evidence.problems)
    return replace(evidence, problems=tuple(told))


def _entry(label: str, folder: str, tiny: str | None, evidence: Evidence) -> Read:
    name = os.fsencode(folder).decode("utf-8", "backslashreplace")  # of bytes that are no text a name has surrogates
    judgement, covered = judge(evidence), evidence.covered
    classes: dict[str, set[str]] = {}
    for row in covered.rows if covered else ():
        for by in (row.identical, row.claimed):
            for hardware, names in by.items():
                classes.setdefault(hardware, set()).update(names)
    counted, digests = (covered.counted, covered.digests) if covered else ({}, {})
    kept = evidence.kept
    if covered and covered.statement:
        digests[f"{stem(tiny)}.intoto.jsonl"] = covered.statement
    times = [each.finished for each in counted.values() if each.finished]
    if "statement.finished" in evidence.facts:
        times.append(str(evidence.facts["statement.finished"].value))
    stated = f"{slug(label)}/{slug(name)}-{tiny or FULL}"
    found = Entry(
        id=f"{label}/{name}/{tiny or FULL}",
        build=name,
        tiny=tiny,
        status=_status(judgement),
        reproduced=judgement.reproduced,
        verified=judgement.verified,
        sentence=judgement.sentence,
        rung=judgement.reached.name if judgement.reached else "",
        classes={hardware: tuple(sorted(names)) for hardware, names in sorted(classes.items())},
        weights=kept.manifest.identity if kept and kept.manifest else "",
        evidence=dict(sorted(digests.items())),
        finished=max(times, default=""),
        page=f"builds/{stated}.html",
        badge=f"builds/{stated}.svg",
    )
    return Read(found, evidence, judgement)


def _status(judgement: Judgement) -> Status:
    if judgement.state is State.BAD:
        return "bad"
    if judgement.state is State.FAILED:
        return "failed"
    return "reproduced" if judgement.reproduced and judgement.state is State.GOOD else "unknown"


def slug(name: str) -> str:
    """Return a name that is safe in a path and an address, and another for every other name.

    A plain name is its own; one that ends as those do which were made safe is made safe too.
    """
    plain = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.")[:60].rstrip("-.")
    if plain == name and not _MADE_SAFE.search(name):
        return plain
    return f"{plain or 'x'}-{sha256(name.encode())[:16]}"


_MADE_SAFE = re.compile(r"-[0-9a-f]{16}$")


def builders(found: Iterable[Read]) -> tuple[Known, ...]:
    """Return everybody who found anything of any build, those with a key first, each with what they found."""
    names: dict[tuple[str, str], str] = {}
    by: dict[tuple[str, str], list[Share]] = {}
    for each in found:
        for who, (name, findings) in _findings(each).items():
            names[who] = min(name, names.get(who, name))
            by.setdefault(who, []).extend(findings)
    everybody = sorted(by, key=lambda who: (not who[0], names[who], who))
    return tuple(Known(names[who], who[0], f"builders/{_address(who)}.html", tuple(by[who])) for who in everybody)


def _address(who: tuple[str, str]) -> str:
    key, same = who
    return key[:16] if key else f"name-{sha256(same.encode())[:16]}"


def _findings(found: Read) -> dict[tuple[str, str], tuple[str, list[Share]]]:
    """Return what each party found of a build, by key, or by name where there is none."""
    covered = found.evidence.covered
    if covered is None:
        return {}
    keys = {each.party.name: each.party.key for each in covered.counted.values() if each.party.key}
    counts: dict[tuple[str, str], dict[str, list[int]]] = {}
    names: dict[tuple[str, str], str] = {}

    def add(key: str, name: str, hardware: str, column: int) -> None:
        who = (key, "") if key else ("", same_party(name))
        names.setdefault(who, name)
        counts.setdefault(who, {}).setdefault(hardware, [0, 0, 0])[column] += 1

    for row in covered.blocks:
        for hardware, some in row.identical.items():
            for name in some:
                add(keys[name], name, hardware, 0)
        for hardware, some in row.claimed.items():
            for name in some:
                add("", name, hardware, 0)
        for column, results in ((1, (*row.different, *row.disputed)), (2, row.open)):
            for each in results:
                add(each.party.key, each.party.name, each.hardware, column)
    total = len(covered.blocks)
    return {
        who: (
            names[who],
            [
                Share(found.entry.id, hardware, some[0], some[1], some[2], total)
                for hardware, some in sorted(inside.items())
            ],
        )
        for who, inside in counts.items()
    }


def read_board(site: Path) -> Board:
    """Return the board that stands in a folder, its history confirmed as a chain; an empty one for a new folder.

    Raises UsageError for a folder of something else, CheckpointError for an index that is none, or was rewritten.
    """
    path = site / INDEX
    try:
        if not path.exists():
            if site.exists() and any(site.iterdir()):
                advice = "Name a new folder, or one that `requant board` has written."
                raise UsageError(f"{site}: is not empty, and has no {INDEX} of a board", advice)
            return Board((), (), (), "")
        value = strict_json(read_whole(path, MOST))
        if not isinstance(value, dict) or value.pop("schema", None) != SCHEMA:
            raise ValueError(f"not of schema {SCHEMA}")
        board = record(Board, value)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not the index of a board: {error}") from None
    for number, each in enumerate(board.history):
        if each.previous != _digest(board.history[number - 1] if number else None):
            raise CheckpointError(f"{path}: event {number} does not follow from the one before it", _RESTORE)
    if board.head != _head(board.history):
        raise CheckpointError(f"{path}: its last event is not the one that its head names", _RESTORE)
    return board


_RESTORE = "Restore it from a copy, or begin a new board in another folder."


def pages(board: Board) -> tuple[str, ...]:
    """Return the files of a board that are of one build or builder; a name that was put there by hand is none."""
    named = [name for each in board.builds for name in (each.page, each.badge)] + [each.page for each in board.builders]
    return tuple(name for name in named if _PAGE.fullmatch(name) and ".." not in name)


def make_board(found: Sequence[Read], before: Board) -> Board:
    """Return the board of what was read; the history of the one `before` goes on."""
    entries = tuple(each.entry for each in found)
    history = extended(before.history, entries)
    return Board(entries, builders(found), history, _head(history))


def extended(history: Sequence[Event], builds: Iterable[Entry]) -> tuple[Event, ...]:
    """Return a history with an event more for every build that is not as its last event has it, or is gone."""
    last = {each.id: each for each in history}
    made = [*history]
    there = {each.id: each for each in builds}

    def add(id_: str, status: Became, entry: Entry | None, was: str) -> None:
        made.append(
            Event(
                id=id_,
                status=status,
                was=was,
                reproduced=entry.reproduced if entry else 0,
                verified=bool(entry and entry.verified),
                evidence=_rests_on(entry),
                finished=entry.finished if entry else "",
                previous=_digest(made[-1] if made else None),
            )
        )

    for id_, entry in there.items():
        before = last.get(id_)
        if before is None and not entry.evidence and entry.status == "unknown":
            continue  # nothing was ever known of it
        now = (entry.status, entry.reproduced, entry.verified, _rests_on(entry))
        if before is None or (before.status, before.reproduced, before.verified, before.evidence) != now:
            add(id_, entry.status, entry, before.status if before else "")
    for id_, before in last.items():
        if id_ not in there and before.status != "withdrawn":
            add(id_, "withdrawn", None, before.status)
    return tuple(made)


def _rests_on(entry: Entry | None) -> str:
    return sha256(canonical_json(entry.evidence)) if entry and entry.evidence else ""


def _head(history: Sequence[Event]) -> str:
    return _digest(history[-1]) if history else ""


def _digest(event: Event | None) -> str:
    return sha256(canonical_json(asdict(event))) if event else ""
