"""bitsandbytes' roundings: to the nearest value of a small table, times the greatest magnitude of a block or a row.

Numbers are multiplied by the reciprocal of the greatest magnitude, in float32. On CUDA (`kQuantizeBlockwise`,
csrc/kernels.cu at 0.50.2) comparisons with constants choose the code: a tie goes to the lesser code of nf4 and the
lesser magnitude of fp4, and a block of zeros becomes codes of 0. The reciprocal there is an instruction that may err in
the last place; the exact one is taken here. On a CPU (`quantize_4bit` of backends/default/ops.py, 0.50.2) ties go to
the lesser value, fp4's two zeros share what is near 0, and a block of zeros is zeros. A nested absmax, less its offset,
is rounded to the nearest of 256 values: on CUDA by a binary search (`dQuantize`), whose path decides ties, on a CPU
(csrc/cpu_ops.cpp) by a table for 65,536 places between -1 and 1. The offset is an average, and is taken as stored.

int8: round(weight * (127 / greatest magnitude of the row)) of float16 weights. On CUDA (`kInt8VectorQuant`) the
division is a multiplication by the reciprocal.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from requant.formats.bitsandbytes import (
    BLOCK,
    MAP,
    NAMES,
    NESTED,
    FourBit,
    Int8,
    dtype_of,
    nested_map,
    offset,
    quant_map,
    state_of,
)
from requant.formats.codec import Array, Arrays, converted
from requant.rounding.levels import above, whole
from requant.rounding.quotients import PLACES, greatest

F32 = np.float32
PIVOTS = (
    *(-0.8480964004993439, -0.6106329262256622, -0.4599952697753906, -0.33967943489551544, -0.23460740596055984),
    *(-0.13791173323988914, -0.045525018125772476, 0.03979014977812767, 0.1202552504837513, 0.2035212516784668),
    *(0.2920137718319893, 0.3893125355243683, 0.5016634166240692, 0.6427869200706482, 0.8614784181118011),
)
"""Between nf4's codes, as `dQuantizeNF4` has them."""
STEPS = (0.00260417, 0.0859375, 0.20833333, 0.29166667, 0.4166667, 0.583333, 0.8333333)
CODES = np.array((0, 1, 6, 7, 4, 5, 2, 3), np.uint8)
"""Between fp4's magnitudes, as `dQuantizeFP4` has them, and their codes in order."""
LEAST = F32(1e-38)
LOOKED_UP = 65535


@dataclass(frozen=True)
class FourBitRounding:
    """On CUDA, or on a CPU."""

    codec: FourBit
    cuda: bool

    @property
    def name(self) -> str:
        """What people read."""
        return f"bitsandbytes {self.codec.kind}, {'CUDA' if self.cuda else 'CPU'}"

    def encode(self, weights: Array, dtype: str, stored: Arrays) -> Arrays:
        """Return everything but the table of codes; of the JSON, all but the number of rows and the offset."""
        text = stored[self.codec.state]
        stated = dtype_of(text)
        with np.errstate(all="ignore"):
            blocks = converted(weights, dtype, stated).reshape(-1, BLOCK)
            absmax = greatest(blocks)
            codes = self._codes(blocks, F32(1) / (absmax if self.cuda else np.maximum(absmax, LEAST)))
            pairs = codes.view("<u2")
            made = {
                "weight": (pairs << np.uint16(4) | pairs >> np.uint16(8)).astype(np.uint8).reshape(-1),
                "weight.absmax": absmax,
                # In a dtype that cannot hold the weights nothing is made of them.
                self.codec.state: self._state(text, stated, weights.shape[1]) if np.isfinite(absmax).all() else ~text,
            }
            if self.codec.nested:
                less = absmax - offset(text)
                padded = np.pad(less, (0, -len(less) % NESTED)).reshape(-1, NESTED)
                wide = np.abs(padded).max(axis=-1)
                scaled = (padded * (F32(1) / wide)[:, None]).reshape(-1)[: len(less)]
                table = nested_map(stored[MAP])
                zeros = np.repeat(wide == 0, NESTED)[: len(less)]
                nearest = searched(scaled, table) if self.cuda else looked_up(scaled, table, zeros)
                made |= {"weight.absmax": nearest, "weight.nested_absmax": wide, MAP: table}
        return made

    def whole(self, widest: float, dtype: str) -> Arrays:
        """Return the table of codes."""
        return {"weight.quant_map": quant_map(self.codec.kind)}

    def _codes(self, blocks: Array, factors: Array) -> Array:
        if self.cuda and self.codec.kind == "nf4":
            return _above(PIVOTS, blocks, factors)
        if self.cuda:
            negative = blocks * factors[:, None] < 0
            return CODES[_above(STEPS, np.abs(blocks), np.abs(factors))] + np.uint8(8) * negative
        table = quant_map(self.codec.kind)
        order = np.argsort(table, kind="stable").astype(np.uint8)
        return np.asarray(order[_above((table[order][:-1] + table[order][1:]) / F32(2), blocks, factors)])

    def _state(self, text: Array, dtype: str, columns: int) -> Array:
        """Return the JSON that the tool would have written, or what the text is not where that is longer or shorter."""
        stated = state_of(text)
        shape: Any = stated.get("shape")
        rows = shape[0] if isinstance(shape, list) and shape and type(shape[0]) is int else 0
        state = {"quant_type": self.codec.kind, "blocksize": BLOCK, "dtype": NAMES[dtype], "shape": [rows, columns]}
        if self.codec.nested:
            state |= {"nested_blocksize": NESTED, "nested_dtype": "float32"}
            state |= {"nested_offset": stated.get("nested_offset")}
        written = np.frombuffer(json.dumps(state).encode(), np.uint8)
        return written if written.size == text.size else ~text


def _above(bounds: Any, blocks: Array, factors: Array) -> Array:
    """Return how many of some bounds are less than each value times its block's factor, uint8: none of a NaN."""
    found = np.empty(blocks.shape, np.uint8)
    above(np.ascontiguousarray(blocks), factors, np.asarray(bounds, F32), found)
    return found


def searched(scaled: Array, table: Array) -> Array:
    """Return the codes uint8 of numbers from -1 to 1, as `dQuantize` finds them."""
    pivot, lower, upper = (np.full(scaled.shape, each) for each in (127, 0, 255))
    for step in (64, 32, 16, 8, 4, 2, 1):
        above = scaled > table[pivot]
        lower, upper = np.where(above, pivot, lower), np.where(above, upper, pivot)
        pivot = pivot + np.where(above, step, -step)
    value = table[pivot]
    above = scaled > value
    # Where the search has not gone below, it takes -1 for the end.
    up = above & (scaled > (table[upper] + value) * F32(0.5))
    down = ~above & (scaled < (table[lower] + value) * F32(0.5))
    return np.where(up, upper, np.where(down, lower, pivot)).astype(np.uint8)


def looked_up(scaled: Array, table: Array, zeros: Array) -> Array:
    """Return the codes uint8 of numbers from -1 to 1, by a table of places; 0 where the block is `zeros`."""
    values = F32(-1) + np.arange(LOOKED_UP + 1, dtype=F32) * F32(2) / F32(LOOKED_UP)
    places = np.searchsorted(F32(0.5) * (table[:-1] + table[1:]), values).astype(np.uint8)
    at = (np.clip(np.nan_to_num(scaled), -1, 1) + F32(1)) * F32(0.5) * F32(LOOKED_UP) + F32(0.5)
    return np.where(zeros, np.uint8(0), places[np.minimum(at.astype(np.int64), LOOKED_UP)])


@dataclass(frozen=True)
class Int8Rounding:
    """By the reciprocal, or by division."""

    cuda: bool

    @property
    def name(self) -> str:
        """What people read."""
        return f"bitsandbytes int8, {'CUDA' if self.cuda else 'CPU'}"

    def encode(self, weights: Array, dtype: str, stored: Arrays) -> Arrays:
        """Return weight and SCB."""
        wide, codes = np.empty(len(weights), F32), np.empty(weights.shape, np.int8)
        whole(np.ascontiguousarray(weights, F32), PLACES["F16"], self.cuda, wide, codes)
        return {"weight": codes, "SCB": wide}

    def whole(self, widest: float, dtype: str) -> Arrays:
        """Return nothing: no tensor of a layer as a whole follows from its weights."""
        del widest, dtype
        return {}


def four_bit(codec: FourBit) -> tuple[FourBitRounding, ...]:
    """Return the forms, the likeliest first."""
    return FourBitRounding(codec, cuda=True), FourBitRounding(codec, cuda=False)


def int8(_: Int8) -> tuple[Int8Rounding, ...]:
    """Return the forms, the likeliest first."""
    return Int8Rounding(cuda=True), Int8Rounding(cuda=False)
