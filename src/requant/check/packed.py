"""A window of a packed layer in memory, and what can be said of the codes, scales and zero points in it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from requant.check.findings import Finding, Kind
from requant.check.spans import Span
from requant.check.weights import as_floats
from requant.formats import Packing
from requant.formats.codec import Integers
from requant.rounding.reach import Array

_TOLD = ("found", "least", "greatest")


@dataclass(frozen=True)
class Packed:
    """Rows from `first` on: weights as bits, codes uint8 [rows, columns], scales float16, zero points int32.

    Scales, zero points and the ends of each group, `low` <= 0 <= `high` in float32, are [groups, rows]. Codes are
    measured from `zeros`; `stored` are those of the file, which differ where a symmetric layer has wrong ones.
    """

    span: Span
    packing: Packing
    first: int
    weights: Array
    codes: Array
    zeros: Array
    stored: Array
    scales: Array
    low: Array
    high: Array

    @property
    def integers(self) -> Integers:
        """The same as whole numbers."""
        zeros, scales = (np.ascontiguousarray(each.T, np.float32) for each in (self.zeros, self.scales))
        return Integers(self.codes, zeros, scales, self.span.group, self.packing.top)

    def values(self, groups: Array, rows: Array) -> tuple[Array, Array, Array]:
        """Return columns [n, group], their weights, and codes less zero points; what a last group lacks repeats."""
        inputs = groups[:, None] * self.span.group + np.arange(self.span.group)
        inputs = np.minimum(inputs, self.span.columns - 1)
        weights = as_floats(self.weights[rows[:, None], inputs])
        codes = self.codes[rows[:, None], inputs].astype(np.float32)
        return inputs, weights, codes - self.zeros[groups, rows][:, None].astype(np.float32)

    def clamped(self, groups: Array, rows: Array) -> tuple[Array, Array]:
        """Return what codes of some groups, less their zero points, are clamped to: arrays [n, 1]."""
        zeros = self.zeros[groups, rows][:, None].astype(np.float32)
        return -zeros, np.float32(self.packing.top) - zeros

    def reported(self, kind: Kind, rows: Array, inputs: Array, bad: Array, detail: Sequence[Array]) -> list[Finding]:
        """Return a finding about the codes that are `bad`, [n, group]: their number, and the first by row."""
        if not bad.any():
            return []
        places = np.where(bad, rows[:, None] * self.span.columns + inputs, np.iinfo(np.int64).max)
        at = np.unravel_index(int(places.argmin()), places.shape)
        output, column = divmod(int(places[at]), self.span.columns)
        told = ", ".join(f"{name} {float(each[at]):g}" for name, each in zip(_TOLD, detail, strict=True))
        count = len(np.unique(places[bad]))
        return [Finding(kind, f"{self.span.name}.qweight", count, (self.first + output, column), told)]

    def scale(self, kind: Kind, bad: Array, detail: str = "") -> list[Finding]:
        """Return a finding about the scales that are `bad`, [groups, rows]; none where none is."""
        if not bad.any():
            return []
        group, row = np.unravel_index(int(bad.argmax()), bad.shape)
        ends = f"for weights from {self.low[group, row]:g} to {self.high[group, row]:g}"
        told = f"{float(self.scales[group, row]):g} {ends}{detail}"
        index = (int(group), self.first + int(row))
        return [Finding(kind, f"{self.span.name}.scales", int(np.count_nonzero(bad)), index, told)]

    def zero(self, expected: Array | int) -> list[Finding]:
        """Return a finding about zero points that are not the `expected` ones, [groups, rows] or one for all."""
        bad = self.stored != expected
        if not bad.any():
            return []
        group, row = np.unravel_index(int(bad.argmax()), bad.shape)
        wanted = int(np.broadcast_to(expected, bad.shape)[group, row])
        told = f"{int(self.stored[group, row])}, expected {wanted}"
        index = (int(group), self.first + int(row))
        return [Finding("wrong zero point", f"{self.span.name}.qzeros", int(np.count_nonzero(bad)), index, told)]
