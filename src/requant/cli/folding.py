"""Text and tables that stay readable on a narrow terminal: broken between words, and names behind their dots.

What a broken line goes on with is indented, so that it is not taken for another name. Nothing is ever cut: cut, two
names or numbers that differ look equal.
"""

import re
from collections.abc import Iterable, Iterator

from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table

NARROW = 80
"""Columns of a terminal below which prose is not put side by side, and lines are folded here, not by the terminal."""
INDENT = 2

_SPACES = re.compile(r"^ | $|(?<= ) ")
"""Spaces that nobody sees: with them, a name looks like another one."""
_WORD = re.compile(r"\s*\S+\s*")
_SEGMENT = re.compile(r"(?:[^./:]|(?<=[0-9])\.(?=[0-9]))*[./:]|(?:[^./:]|(?<=[0-9])\.(?=[0-9]))+")
_PIECE = re.compile(r"[^_=,-]*[_=,-]|[^_=,-]+")


class Folded:
    """One line of markup, which takes several on a narrow terminal."""

    def __init__(self, markup: str) -> None:
        self.markup = markup

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines of it that fit."""
        text = console.render_str(self.markup)
        lines = list(_lines(text.plain, options.max_width))
        ends = [sum(map(len, lines[:number])) for number in range(1, len(lines))]
        for number, line in enumerate(text.divide(ends)):
            line.no_wrap, line.overflow = True, "ignore"
            if number:
                line.pad_left(_indent(options.max_width))
            yield line

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Say how wide it is on one line; it can be folded to any width."""
        return Measurement(1, max(1, cell_len(console.render_str(self.markup).plain)))


def name(text: str) -> str:
    """Return a name as a person can tell it from every other: spaces that would not be seen are spelled out."""
    return _SPACES.sub(r"\\x20", text)


def _indent(width: int) -> int:
    return INDENT if width > 4 * INDENT else 0


def _lines(plain: str, width: int) -> Iterator[str]:
    """Yield parts of a text, in order and without loss, each of which fits its line: the first, or an indented one."""
    line, room = "", width
    for piece in _pieces(plain, width - _indent(width)):
        if line and cell_len((line + piece).rstrip()) > room:
            yield line
            line, room = "", width - _indent(width)
        line += piece
    if line:
        yield line


def _pieces(plain: str, width: int) -> Iterator[str]:
    """Yield a text in pieces of at most a width: words, what ends in a dot of longer ones, and still less."""
    for word in _WORD.findall(plain) or [plain]:
        for segment in [word] if _fits(word, width) else _SEGMENT.findall(word):
            for piece in [segment] if _fits(segment, width) else _PIECE.findall(segment):
                yield from [piece] if _fits(piece, width) else chop_cells(piece, max(width, 2))


def _fits(piece: str, width: int) -> bool:
    return cell_len(piece.rstrip()) <= width


class Sheet:
    """A table; where it does not fit, its rows one below the other: each first cell, and below it what belongs to it.

    One of `numbers` is taken apart as soon as it does not fit, any other one only on a narrow terminal: prose folds.
    """

    def __init__(self, *columns: str, title: str = "", numbers: bool = False) -> None:
        self.columns, self.title, self.numbers = columns, title, numbers
        self.rows: list[tuple[tuple[str, ...], ...]] = []

    def add(self, *cells: str | Iterable[str]) -> None:
        """Add a row; a cell is a line of markup, or several."""
        self.rows.append(tuple((cell,) if isinstance(cell, str) else tuple(cell) for cell in cells))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the title, and the table or its rows."""
        if self.title:
            yield Folded(f"[italic]{self.title}[/]")
        table = self._table()
        fits = Measurement.get(console, options.update(max_width=10**6), table).maximum <= options.max_width
        if fits or (options.max_width >= NARROW and not self.numbers):
            yield table
        else:
            yield from self._stacked(options.max_width)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for number, column in enumerate(self.columns):
            table.add_column(column, overflow="fold", justify="right" if self.numbers and number else "left")
        for row in self.rows:
            table.add_row(*(self._cell(cell, number) for number, cell in enumerate(row)))
        return table

    def _cell(self, cell: tuple[str, ...], number: int) -> RenderableType:
        # A number stands to the right, and is never folded: such a table is only printed where it fits.
        return cell[0] if self.numbers and number else Group(*map(Folded, cell))

    def _stacked(self, width: int) -> Iterator[RenderableType]:
        for head, *cells in self.rows:
            yield from map(Folded, head)
            named, indent = len(self.columns) > 2, _indent(width) + len(head[0]) - len(head[0].lstrip())
            for column, cell in zip(self.columns[1:], cells, strict=True):
                for number, line in enumerate(filter(None, cell)):
                    label = f"[bold]{column}:[/] " if named and not number else ""
                    yield Padding(Folded(f"{label}{line}"), (0, 0, 0, indent + INDENT * bool(named and number)))
