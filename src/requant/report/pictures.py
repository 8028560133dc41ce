"""Pictures as numbers: where lines, circles and cells are, and heat maps as PNG of one hue in many opacities.

A heat map is one byte per cell, an index into a palette of opacities of one colour. So one picture serves light pages,
dark ones and paper, and forty blocks of 256 experts take a few kilobytes. What is written around it, and into SVG, is
the templates': only they make markup.

PNG: W3C recommendation, third edition, 11.2 (IHDR, PLTE, tRNS, IDAT, IEND) and 5.3 (chunks).
"""

import base64
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from requant.report.measures import Grid

LEVELS = 64
"""Opacities of a heat map, from none: more than an eye tells apart."""
HUE = (43, 108, 240)
"""The one colour of all heat maps, which stands out on white and on black."""
ABSENT, ABSENT_HUE, ABSENT_OPACITY = LEVELS, (128, 128, 128), 36
"""The index of cells of which nothing was measured, and their grey."""


def png(rows: Sequence[Sequence[int]]) -> bytes:
    """Return a PNG of indices, [rows][columns], into `LEVELS` opacities of `HUE`, and `ABSENT`."""
    width, height = len(rows[0]), len(rows)
    opacity = bytes([*(round(255 * level / (LEVELS - 1)) for level in range(LEVELS)), ABSENT_OPACITY])
    lines = b"".join(b"\0" + bytes(row) for row in rows)  # each with filter 0
    chunks = (
        (b"IHDR", width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 3, 0, 0, 0])),
        (b"PLTE", bytes(HUE) * LEVELS + bytes(ABSENT_HUE)),
        (b"tRNS", opacity),
        (b"IDAT", zlib.compress(lines, 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")


def heat(grid: Grid) -> str:
    """Return a grid as the `data:` address of a PNG, a pixel for each cell; the largest share is opaque."""
    most = grid.most or 1.0
    rows = [[ABSENT if each is None else round(each / most * (LEVELS - 1)) for each in row] for row in grid.values]
    return f"data:image/png;base64,{base64.b64encode(png(rows)).decode()}"


@dataclass(frozen=True)
class Point:
    """Losses of a block: where they are drawn, x from the left and y from the top."""

    x: float
    before: float
    after: float


@dataclass(frozen=True)
class Losses:
    """A drawing of losses, of `width` by `height`: a place for each block, lines of the scale, names below."""

    width: int
    height: int
    points: tuple[Point, ...]
    lines: tuple[tuple[float, str], ...]
    names: tuple[tuple[float, str], ...]


LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 34


def losses(values: Sequence[tuple[str, float, float]], width: int = 760, height: int = 260) -> Losses:
    """Lay out losses before and after, block by block, on a scale of powers of ten."""
    every = [each for _, before, after in values for each in (before, after) if each > 0]
    bottom, top = (
        math.log10(each) + side for each, side in ((min(every, default=0.1), -0.1), (max(every, default=1.0), 0.1))
    )
    span = top - bottom

    def y(value: float) -> float:
        if value <= 0:
            return float(height - BOTTOM)
        return round(TOP + (top - math.log10(value)) / span * (height - TOP - BOTTOM), 1)

    step = (width - LEFT - RIGHT) / max(1, len(values))
    places = [round(LEFT + (number + 0.5) * step, 1) for number in range(len(values))]
    every_nth = next((each for each in (1, 2, 5, 10, 20) if each * step >= 26), 50)
    return Losses(
        width=width,
        height=height,
        points=tuple(Point(x, y(before), y(after)) for x, (_, before, after) in zip(places, values, strict=True)),
        lines=tuple((y(tick), f"{tick:.6f}".rstrip("0").rstrip(".")) for tick in _ticks(bottom, top)),
        names=tuple((x, str(number)) for number, x in enumerate(places) if number % every_nth == 0),
    )


def _ticks(bottom: float, top: float) -> Iterable[float]:
    """Yield round numbers between two powers of ten: powers of ten, and 2 and 5 times them where these are few."""
    fine = (1, 2, 5) if top - bottom <= 2 else (1,)
    every = (each * 10.0**power for power in range(math.floor(bottom), math.ceil(top) + 1) for each in fine)
    return (each for each in every if bottom <= math.log10(each) <= top)
