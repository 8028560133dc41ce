"""What a check measured of codes and scales, laid out to be seen: by block and projection, and expert by expert.

Changed codes are those that are not the nearest to weight/scale. Shrink is how much narrower than the widest possible
scale the chosen one is, on average, from the `BINS` bins that a check counts groups in: exact to half a bin.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from operator import mul

from requant.check.checked import UNKNOWN, Checked, position
from requant.check.findings import BINS, Counts

CHANGED, SHRUNK = "Changed codes", "Shrink of scales"
MIDDLES = (*((each + 0.5) / BINS for each in range(BINS)), 1.0)
"""What a scale in each bin counts as, in shares of the widest it could be."""


@dataclass(frozen=True)
class Grid:
    """One measure as a picture has it: rows, columns, and a share for each pair, None where nothing was measured.

    `marked` are the places, row and column, of layers that do not follow from the base.
    """

    measure: str
    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    across: str
    """What a column is: a block, or an expert."""
    values: tuple[tuple[float | None, ...], ...]
    marked: tuple[tuple[int, int], ...] = ()

    @property
    def most(self) -> float:
        """The largest share."""
        return max((each for row in self.values for each in row if each is not None), default=0.0)

    @property
    def least(self) -> float:
        """The smallest share."""
        return min((each for row in self.values for each in row if each is not None), default=0.0)

    @property
    def gaps(self) -> bool:
        """Whether something was not measured, for it is not there."""
        return any(each is None for row in self.values for each in row)


def grids(checked: Checked) -> tuple[Grid, ...]:
    """Return the pictures of a check: of all projections block by block, and of each projection of experts."""
    places = {layer: position(layer) for layer in checked.counts}
    blocks = tuple(dict.fromkeys(block for block, _, _ in sorted(places.values(), key=lambda each: _order(each[0]))))
    projections = tuple(dict.fromkeys(projection for _, projection, _ in places.values()))
    parts: dict[tuple[str, str], list[Counts]] = {}
    experts: dict[str, dict[tuple[str, str], Counts]] = {}
    bad: set[tuple[str, str, str]] = set()
    for layer, (block, projection, expert) in places.items():
        counts = checked.counts[layer]
        parts.setdefault((projection, block), []).append(counts)
        if expert is not None:
            experts.setdefault(projection, {})[block, str(expert)] = counts
        if checked.layers.get(layer) == UNKNOWN:
            bad |= {("", projection, block)} | ({(projection, block, str(expert))} if expert is not None else set())
    whole = {place: Counts.total(some) for place, some in parts.items()}
    found = [_grid(measure, "", projections, blocks, whole, bad) for measure in (CHANGED, SHRUNK)]
    for projection, inside in experts.items():
        rows = tuple(each for each in blocks if any(block == each for block, _ in inside))
        columns = tuple(sorted({expert for _, expert in inside}, key=int))
        found += [_grid(measure, projection, rows, columns, inside, bad) for measure in (CHANGED, SHRUNK)]
    return tuple(each for each in found if each.most > 0 or each.marked)


def _grid(
    measure: str,
    title: str,
    rows: tuple[str, ...],
    columns: tuple[str, ...],
    inside: Mapping[tuple[str, str], Counts],
    bad: set[tuple[str, str, str]],
) -> Grid:
    share = {CHANGED: changed, SHRUNK: shrink}[measure]
    values = tuple(
        tuple(share(inside[row, column]) if (row, column) in inside else None for column in columns) for row in rows
    )
    marked = tuple(
        (y, x) for y, row in enumerate(rows) for x, column in enumerate(columns) if (title, row, column) in bad
    )
    return Grid(measure, title, rows, columns, "expert" if title else "block", values, marked)


def changed(counts: Counts) -> float | None:
    """Return the share of codes that are not the nearest; None where none were counted."""
    return counts.moved / counts.codes if counts.codes else None


def shrink(counts: Counts) -> float | None:
    """Return how much narrower scales are than the widest possible ones, on average; None where none were counted."""
    groups = sum(counts.shrunk)
    return max(0.0, 1 - sum(map(mul, counts.shrunk, MIDDLES)) / groups) if groups else None


def _order(block: str) -> tuple[str, int]:
    name, _, number = block.rpartition(".")
    return (name, int(number)) if number.isdecimal() else (block, -1)
