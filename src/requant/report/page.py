"""A page of one build: evidence and what it amounts to, laid out for `report.html`.

One file without a script, which loads nothing: its policy forbids both, and allows this style alone, by its digest.
What strangers wrote passes through `shown`, once and for all of it, and is then escaped by Jinja.
"""

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.metadata import version
from typing import Any

import jinja2
from markupsafe import Markup

from requant.audit.coverage import Coverage, Covered
from requant.build import words
from requant.card.facts import Facts, packages
from requant.card.facts import text as fact_text
from requant.counts import several
from requant.report import pictures
from requant.report.evidence import Evidence
from requant.report.findings import State, differences
from requant.report.judgement import Judgement, as_recorded
from requant.report.measures import Grid, grids
from requant.verdict import visible

FIRST = 12
"""Findings that are shown at once; the others unfold."""
MOST = 1_000
"""Characters of one text, and rows of differences, that a page has."""
STEPS: Mapping[State | None, str] = {
    State.GOOD: "Yes.",
    State.BAD: "No.",
    State.OPEN: "Not decided.",
    State.FAILED: "Cannot be judged.",
    None: "Nobody has looked.",
}
TAGS = {State.BAD: "bad", State.OPEN: "open", State.FAILED: "unreadable"}
SAID = {"identical": "the same bits", "different": "different", "open": "decides nothing", "": "not done"}
WIDTH = 760
"""Of every picture, in its own units."""


def shown(value: object) -> object:
    """Return what a template prints as it can be shown: letters that hide or turn others are spelled out."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    cut = f"{value[:MOST]}… ({len(value):,} characters)" if len(value) > MOST else value
    return visible(cut)


@cache
def templates() -> jinja2.Environment:
    """Return the templates of this package: everything is escaped, and a name that is not there is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=True,
        finalize=shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def style() -> tuple[Markup, str]:
    """Return the style of all pages, and the policy that allows it and nothing else but pictures in the page itself."""
    text = resources.files(__package__).joinpath("templates/style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    return Markup(text), policy  # noqa: S704 (this package's own file)


def render(template: str, /, **values: Any) -> str:
    """Return a template of this package, filled; the style and its policy are given to all."""
    css, policy = style()
    return templates().get_template(template).render(style=css, policy=policy, **values)


@dataclass(frozen=True)
class Cell:
    """A block on a party's strip: where it is drawn, what was found, and a number below it, for some."""

    x: float
    state: str
    name: str


@dataclass(frozen=True)
class Strip:
    """What one party found in one class of hardware, block by block, then of all that is not tuned, then of all."""

    party: str
    hardware: str
    own: bool
    cells: tuple[Cell, ...]
    side: float
    width: int
    said: str


@dataclass(frozen=True)
class Drawn:
    """A heat map: the picture, where it lies, what is written around it, and rings around what is wrong."""

    grid: Grid
    image: Markup
    width: int
    height: int
    left: int
    across: float
    down: float
    rows: tuple[tuple[float, str], ...]
    columns: tuple[tuple[float, str], ...]
    rings: tuple[tuple[float, float], ...]
    said: str


def page(evidence: Evidence, judgement: Judgement, home: str = "") -> str:
    """Return the page of a build, and what it amounts to; `home` is where the board is that it belongs to."""
    strips = tuple(_strips(evidence.covered)) if evidence.covered else ()
    drawn = tuple(map(_drawn, grids(evidence.checked))) if evidence.checked else ()
    kept = evidence.kept
    tuned = [each for each in (kept.journal.blocks if kept and kept.journal else ()) if each.loss]
    values = [
        (each.block, float.fromhex(each.loss.initial), float.fromhex(each.loss.best)) for each in tuned if each.loss
    ]
    outcome, differing = (
        differences(evidence.differing) if evidence.differing is not None else ("could not be compared", [])
    )
    tables = tuple(_tables(evidence))
    manifest = kept.manifest if kept else None
    return render(
        "report.html",
        title=f"{judgement.word}: {evidence.name}",
        evidence=evidence,
        judgement=judgement,
        home=home,
        kind=f"tiny model {evidence.tiny}" if evidence.tiny else "",
        about=_about(evidence),
        steps=STEPS,
        tags=TAGS,
        first=FIRST,
        strips=strips,
        rows=[each.block for each in evidence.covered.rows] if evidence.covered else [],
        said_of=SAID,
        others=not as_recorded(evidence),
        nobody=_nobody(evidence),
        losses=pictures.losses(values) if values else None,
        losses_said=_losses_said(values),
        loss_rows=[
            _loss_row(*each, loss.loss.best_iteration) for each, loss in zip(values, tuned, strict=True) if loss.loss
        ],
        left=pictures.LEFT,
        no_losses=_no_losses(evidence),
        grids=drawn,
        no_grids=_no_grids(evidence),
        numbers=_numbers,
        percent=_percent,
        zip=zip,
        other_outcome=outcome,
        other_rows=differing[:MOST],
        other_count=len(differing),
        fact_tables=tables,
        any_facts=any(rows for _, rows in tables),
        files=[(name, f"{each.bytes:,}", each.sha256) for name, each in manifest.files.items()] if manifest else [],
        files_of=f"{kept.place}.manifest.json" if kept else "",
        version=version("requant"),
        command=_command(evidence),
    )


def _about(evidence: Evidence) -> str:
    parts = []
    if evidence.folder:
        parts.append(f"The checkpoint {evidence.folder}")
    elif evidence.tiny:
        parts.append(f"The recorded build of the tiny model {evidence.tiny}, which stands in for the base")
    else:
        parts.append("The recorded build")
    if "base.repository" in evidence.facts:
        parts.append(f"base {evidence.facts['base.repository'].value}")
    if "scheme.name" in evidence.facts:
        parts.append(f"{evidence.facts['scheme.name'].value}, groups of {evidence.facts['scheme.group_size'].value}")
    return " · ".join(parts)


def _command(evidence: Evidence) -> str:
    if evidence.folder:
        recipe = f" --recipe builds/{evidence.name}" if evidence.recipe else ""
        return f"requant report CHECKPOINT{recipe}{words(evidence.tiny)} --base BASE --out report.html"
    return f"requant report builds/{evidence.name}{words(evidence.tiny)} --out report.html"


# Who made it again


def _strips(covered: Coverage) -> Iterator[Strip]:
    rows = covered.rows
    found: dict[tuple[str, str], list[str]] = {}

    def note(number: int, party: str, hardware: str, state: str) -> None:
        found.setdefault((party, hardware), [""] * len(rows))[number] = state

    labels = {each.party.name: each.party.label for each in covered.counted.values() if each.party.key}
    for number, row in enumerate(rows):
        for party, hardware in _same(row, labels):
            note(number, party, hardware, "identical")
        for state, results in (("open", row.open), ("different", (*row.different, *row.disputed))):
            for each in results:
                note(number, each.party.label, each.hardware, state)
    side = min(18.0, (WIDTH - 110) / len(rows) - 3)
    step = side + 3
    every = _every(24 / step)
    for (party, hardware), states in sorted(found.items()):
        names = [str(at) if at % every == 0 else "" for at in range(len(covered.blocks))]
        x = [round(at * step, 1) for at in range(len(covered.blocks))]
        x += [round((len(covered.blocks) + extra) * step + 26 + 50 * extra, 1) for extra in (0, 1)]
        cells = tuple(Cell(*each) for each in zip(x, states, [*names, "not tuned", "rebuilt"], strict=True))
        same = sum(state == "identical" for state in states[: len(covered.blocks)])
        said = f"{same} of {several(len(covered.blocks), 'block')} came out the same"
        against = sum(state == "different" for state in states)
        own = hardware.removesuffix(", by hints") == covered.own
        said += f", {against} different" if against else ""
        yield Strip(
            party, hardware, own, cells, round(side, 1), max(WIDTH, round(x[-1] + side + 30)), f"{party}: {said}."
        )


def _same(row: Covered, labels: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for hardware, names in row.identical.items():
        yield from ((labels.get(name, name), hardware) for name in names)
    for hardware, names in row.claimed.items():
        yield from ((f"{name} (unverified)", hardware) for name in names)


def _nobody(evidence: Evidence) -> str:
    if evidence.covered is None:
        return "Not known: there is no recipe beside which audits would stand, or its records cannot be read."
    if not evidence.covered.own:
        return "Nothing is recorded that anybody could have made again."
    return "Nobody but its builder, so far. An audit of a few blocks takes minutes: requant audit, docs/audit.md."


# Losses


@dataclass(frozen=True)
class _Row:
    block: str
    cells: tuple[str, ...]


def _loss_row(block: str, before: float, after: float, best: int) -> _Row:
    change = f"{(after - before) / before:+.1%}" if before else "—"
    return _Row(block, (f"{before:.6f}", f"{after:.6f}", change, str(best)))


def _losses_said(values: Sequence[tuple[str, float, float]]) -> str:
    fell = sum(after < before for _, before, after in values)
    return f"Losses of {several(len(values), 'block')}: tuning made {fell} of them smaller. The table has each."


def _no_losses(evidence: Evidence) -> str:
    kept = evidence.kept
    if kept and kept.journal:
        return "the journal says that blocks were rounded, not tuned."
    return "there is no journal to be read."


# Codes and scales


def _no_grids(evidence: Evidence) -> str:
    if evidence.checked:
        return "no layer of this checkpoint has codes whose changes could be counted."
    return "no journal has them. They are measured on a checkpoint and its base: requant report CHECKPOINT --base BASE."


def _drawn(grid: Grid) -> Drawn:
    rows, columns = len(grid.rows), len(grid.columns)
    names = tuple(_numbers(grid.rows)) if grid.title else grid.rows
    left = 40 if grid.title else min(230, 16 + 7 * max(map(len, names)))
    wide = min(30.0, (WIDTH - left - 10) / columns)
    high = 6.0 if grid.title and rows > 12 else 18.0
    across, down = round(wide * columns, 1), round(high * rows, 1)
    skip_x, skip_y = _every(30 / wide), _every(14 / high)
    marked = tuple((round(left + (x + 0.5) * wide, 1), round((y + 0.5) * high, 1)) for y, x in grid.marked)
    what = f"{grid.measure}{f' of {grid.title}' if grid.title else ''}"
    span = f"from {_percent(grid.least)} to {_percent(grid.most)} percent"
    return Drawn(
        grid=grid,
        image=Markup(pictures.heat(grid)),  # noqa: S704 (base64 of our own pixels)
        width=round(left + across + 10),
        height=round(down + 24),
        left=left,
        across=across,
        down=down,
        rows=tuple((round((y + 0.5) * high + 4, 1), _short(names[y])) for y in range(0, rows, skip_y)),
        columns=tuple(
            (round(left + (x + 0.5) * wide, 1), name)
            for x, name in enumerate(_numbers(grid.columns))
            if x % skip_x == 0
        ),
        rings=marked,
        said=f"{what}, {rows} by {columns}, {span}. The table has each.",
    )


def _every(count: float) -> int:
    """Return how many places lie between two that are named, at least so many: a round number."""
    return next((each for each in (1, 2, 5, 10, 20, 50, 100) if each >= count), 200)


def _short(name: str) -> str:
    return name if len(name) <= 30 else f"…{name[-29:]}"


def _numbers(names: Sequence[str]) -> list[str]:
    """Return names by their last number: `3` for `model.layers.3`, and `mtp 0` for a block that lies elsewhere."""
    stems = Counter(each.rpartition(".")[0] for each in names)
    most = max(stems, key=lambda each: stems[each], default="")

    def short(name: str) -> str:
        stem, _, number = name.rpartition(".")
        return number if stem == most else f"{stem.partition('.')[0]} {number}"

    return [short(each) for each in names]


def _percent(share: float | None) -> str:
    return "—" if share is None else f"{100 * share:.2f}"


# How it was made


ASKED = {
    "base.repository": "Base",
    "base.revision": "Revision",
    "scheme.name": "Scheme",
    "scheme.group_size": "Group size",
    "scheme.symmetric": "Symmetric",
    "scheme.format": "Format",
    "tuning.iterations": "Iterations",
    "tuning.precision": "Precision",
    "tuning.seed": "Seed",
    "calibration.dataset": "Calibration",
    "calibration.samples": "Samples",
    "calibration.sequence_length": "Tokens of each",
    "build.recipe": "Recipe, SHA-256 of its values",
}
RAN = {
    "statement.environment": "Environment, SHA-256",
    "statement.lock": "Lock, SHA-256",
    "statement.sandbox": "Sandbox",
    "statement.requant": "requant",
    "statement.started": "Started",
    "statement.finished": "Finished",
    "statement.seconds": "Seconds of the worker",
    "statement.peak_memory": "Peak memory",
    "statement.peak_device_memory": "Peak memory of the device",
    "journal.sha256": "Journal, SHA-256",
    "manifest.identity": "Weights, SHA-256 of the list of their files",
}
"""Facts that a page has, by what they are called there."""


def _tables(evidence: Evidence) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    facts = evidence.facts
    yield "What the recipe asks for", [*_chosen(facts, ASKED)]
    ran = [*_chosen(facts, RAN), *((each, fact_text(facts[f"package.{each}"])) for each in packages(facts))]
    yield "The environment that it ran in, as its builder states it", ran
    yield "The hardware that it ran on, as its builder states it", [*_flat(evidence.hardware or {})]
    if evidence.kept and evidence.kept.taints:
        yield "What keeps it from being evidence about the base", [("Taint", each) for each in evidence.kept.taints]


def _chosen(facts: Facts, names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    return ((name, fact_text(facts[key])) for key, name in names.items() if key in facts)


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, each in sorted(value.items()):
        if isinstance(each, Mapping):
            yield from _flat(each, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(each)
