"""The tables of docs/quality.md and its picture, from what benchmarks/quality/run.py has measured.

`nox -s quality` measures and writes them; `python -m tests.quality` only writes them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from tests.conftest import ROOT

from requant.counts import several
from requant.evaluate.measures import MEASURES, UNTOLD, Interval, word

RESULTS = ROOT / "benchmarks" / "quality" / "results.json"
DOCS = ROOT / "docs" / "quality.md"
PICTURE = ROOT / "docs" / "pictures" / "quality.svg"
START, END = "<!-- `nox -s quality` writes what follows -->\n", "<!-- until here -->\n"
SHOWN = ("divergence", "agreement", "perplexity", "drafted", "overlap")
"""Measures that have a column; all others stand in results.json."""
DRAWN = ("divergence", "drafted", "overlap")
WIDTH, LEFT, ROW, HEAD, GAP = 760, 270, 22, 40, 16


def cell(name: str, value: float, sign: str = "") -> str:
    """Return a measure as it is told, a difference with its sign; shares in percent."""
    if MEASURES[name].unit == "percent":
        return f"{100 * value:{sign}.{3 if sign else 2}f}"
    return f"{value:{sign}.{5 if MEASURES[name].unit else 4}f}"


def heading(name: str) -> str:
    unit = MEASURES[name].unit
    return MEASURES[name].label + {"percent": ", %", "nats": ", nats", "": ""}[unit]


def tables(found: Mapping[str, Any]) -> str:
    """Return what stands between the marks: what was measured, of each checkpoint and of each pair."""
    return "".join(f"{line}\n" for line in _lines(found))


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    hardware, asked, rows = found["hardware"], found["evaluated"], found["rows"]
    base = rows[0]["measures"]
    yield (
        f"On {hardware['model']}, one thread, {hardware['precision']}; {asked['samples']} sequences of "
        f"{asked['length']} tokens; {several(len({row['seed'] for row in rows}), 'seed')}. Of the base: perplexity "
        f"{base['base_perplexity'][0]:.3f}, a draft accepted {cell('base_drafted', base['base_drafted'][0])}% greedy "
        f"and {cell('base_overlap', base['base_overlap'][0])}% sampled."
    )
    yield ""
    yield from _table(
        ("recipe", "seed", *map(heading, SHOWN), "bytes", "tuning, processor seconds"),
        [
            (
                row["recipe"],
                str(row["seed"]),
                *(cell(name, row["measures"][name][0]) for name in SHOWN),
                f"{row['bytes']:,}",
                f"{row['processor seconds']:,.0f}" if "processor seconds" in row else "as calibrated's",
            )
            for row in rows
        ],
    )
    yield ""
    yield "Differences with their 95% intervals, of the same sequences; where 0 is not between, it says what that is:"
    yield ""
    yield from _table(
        ("", "seed", *map(heading, SHOWN)),
        [
            (
                f"{row['recipe']} less {row['less']}",
                str(row["seed"]),
                *(_difference(name, Interval(*row["differences"][name])) for name in SHOWN),
            )
            for row in found["differences"]
        ],
    )


def _difference(name: str, found: Interval) -> str:
    if found == Interval(0, 0, 0):
        return "equal"
    told = f"{cell(name, found.value, '+')} ({cell(name, found.low, '+')} to {cell(name, found.high, '+')})"
    return f"{told} {word(name, found).removeprefix(UNTOLD)}".rstrip()


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def picture(found: Mapping[str, Any]) -> str:
    """Return the differences drawn: a panel for each measure, a line for each pair and seed, a bar for its interval."""
    rows = found["differences"]
    height = len(DRAWN) * (HEAD + ROW * len(rows) + GAP)
    marks = [each for number, name in enumerate(DRAWN) for each in _panel(rows, name, number)]
    style = (
        "text{font:13px sans-serif;fill:#222}.axis{stroke:#888}.better{stroke:#2b6cf0;fill:#2b6cf0}"
        ".worse{stroke:#c2410c;fill:#c2410c}.even{stroke:#777;fill:#777}"
        "@media(prefers-color-scheme:dark){text{fill:#ddd}}"
    )
    title = "Differences between checkpoints, with 95% intervals"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">\n'
        f"<title>{title}</title>\n<style>{style}</style>\n" + "\n".join(marks) + "\n</svg>\n"
    )


def _panel(rows: Sequence[Mapping[str, Any]], name: str, number: int) -> Iterator[str]:
    top = number * (HEAD + ROW * len(rows) + GAP)
    widest = max((abs(end) for row in rows for end in row["differences"][name]), default=0.0) or 1.0

    def x(value: float) -> float:
        return round((LEFT + WIDTH - 50) / 2 + value / widest * (WIDTH - 50 - LEFT) / 2, 1)

    yield f'<text x="10" y="{top + 18}" font-weight="bold">{escape(heading(name))}</text>'
    for end in (-widest, 0, widest):
        yield f'<text x="{x(end)}" y="{top + 34}" text-anchor="middle">{cell(name, end, "+") if end else 0}</text>'
    yield f'<line class="axis" x1="{x(0)}" x2="{x(0)}" y1="{top + HEAD}" y2="{top + HEAD + ROW * len(rows)}"/>'
    for line, row in enumerate(rows):
        value, low, high = row["differences"][name]
        y = top + HEAD + ROW * line + ROW // 2
        kind = word(name, Interval(value, low, high)).replace(UNTOLD, "even")
        told = f"{row['recipe']} less {row['less']}, seed {row['seed']}"
        yield f'<text x="10" y="{y + 4}">{escape(told)}</text>'
        yield f'<line class="{kind}" x1="{x(low)}" x2="{x(high)}" y1="{y}" y2="{y}" stroke-width="3"/>'
        yield f'<circle class="{kind}" cx="{x(value)}" cy="{y}" r="4"/>'


def main() -> None:
    """Write them."""
    found = json.loads(RESULTS.read_text())
    before, _, rest = DOCS.read_text().partition(START)
    DOCS.write_text(before + START + tables(found) + END + rest.partition(END)[2])
    PICTURE.write_text(picture(found))


if __name__ == "__main__":
    main()
