"""The formulas by which ggml makes blocks of weights, without an importance matrix: bit for bit.

Source: `ggml_quantize_chunk` of ggml 0.15.3, which `llama-quantize` calls: `quantize_row_*_ref` of ggml-quants.c, and
of IQ4_NL and IQ4_XS `quantize_row_iq4_nl_impl` without weights. `convert_hf_to_gguf.py` computes F16, BF16 and Q8_0
alike in numpy (package gguf, quants.py). Weights are float32; most files were quantized from another GGUF file in F16
or BF16, to which a base of another dtype was rounded first. C lets a compiler contract a multiplication and an
addition to one operation that rounds once, where the machine has one: gcc does across statements, clang within an
expression. ggml-quants.c is compiled without such operations on x86-64 since November 2024 and with them on ARM.
What an importance matrix weighed cannot be recomputed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from requant.checkpoint.gguf import BLOCKS
from requant.formats.codec import Array, Arrays
from requant.formats.ggml import E2M1, FLOATS, NONLINEAR, Fields, Ggml, pack
from requant.rounding import blocks, curves
from requant.rounding.blocks import ACROSS, STRICT, WITHIN
from requant.rounding.ways import bfloat16

FUSED = {
    STRICT: "",
    ACROSS: ", multiply-add fused across statements (gcc)",
    WITHIN: ", multiply-add fused within expressions (clang)",
}
LINES = {"Q2_K": (16, 3, -0.5, 15), "Q4_K": (32, 15, -1.0, 20), "Q5_K": (32, 31, -0.5, 15)}
"""Groups, greatest code, and start and steps of the search, of what is stored above a least weight."""
_EITHER, _ANY = (STRICT, ACROSS), (STRICT, ACROSS, WITHIN)
FORMS: dict[str, tuple[int, ...]] = dict.fromkeys((*FLOATS, "Q8_0", "MXFP4"), (STRICT,))
FORMS |= dict.fromkeys(("Q4_0", "Q4_1", "Q5_0", "Q5_1"), _EITHER)
FORMS |= dict.fromkeys((*LINES, "Q3_K", "Q6_K", "IQ4_NL", "IQ4_XS"), _ANY)
"""Which contractions change anything: where products are not added to, none does."""


@dataclass(frozen=True)
class Reference:
    """ggml's reference function of a type; `by` is the dtype of the file that it was given, or "" for the base's."""

    type: str
    fused: int = STRICT
    by: str = ""

    @property
    def name(self) -> str:
        """What people read."""
        return f"ggml, reference{FUSED[self.fused]}{f', by way of {self.by}' if self.by else ''}"

    def encode(self, weights: Array, dtype: str, stored: Arrays) -> Arrays:
        """Return the blocks uint8 [rows, bytes of a row], or the floats, that are made of float32 [rows, columns]."""
        # numba compiles anew for an array that is not to be written.
        x = np.require(weights, np.float32, ["C", "A", "W"])
        if self.by:
            x = _floats(x, self.by, wide=True)
        if self.type in FLOATS:
            return {"weight": _floats(x, self.type, wide=False)}
        block = BLOCKS[self.type]
        made = pack(self.type, _fields(self.type, self.fused, x.reshape(-1, block.elements)))
        return {"weight": made.reshape(len(x), -1)}

    def whole(self, widest: float, dtype: str) -> Arrays:
        """Return nothing: every block stands for itself."""
        return {}


def formulas(codec: Ggml) -> Sequence[Reference]:
    """Return what can have made blocks of a type, the likeliest first; none where the type is not modelled."""
    forms = FORMS.get(codec.type, ())
    return tuple(Reference(codec.type, fused, by) for fused in forms for by in ("", "F16", "BF16"))


def _floats(x: npt.NDArray[np.float32], dtype: str, *, wide: bool) -> Array:
    """Return float32 rounded to a dtype, ties to even: as float32 again if it is `wide`, else as it is stored."""
    with np.errstate(all="ignore"):
        if dtype == "F16":
            narrow = x.astype(np.float16)
            return narrow.astype(np.float32) if wide else narrow
        if dtype == "BF16":
            near = np.where(np.isnan(x), (x.view(np.uint32) & 0xFFFF0000 | 0x400000).view(np.float32), bfloat16(x))
            return near if wide else (near.view(np.uint32) >> 16).astype(np.uint16)
    return x


def _fields(kind: str, fused: int, x: npt.NDArray[np.float32]) -> Fields:
    """Quantize blocks float32 [n, elements]."""
    count = len(x)
    codes, d, m = np.empty(x.shape, np.uint8), np.empty(count, np.uint16), np.empty(count, np.uint16)
    if kind in ("Q4_0", "Q5_0"):
        blocks.around(x, 8 if kind == "Q4_0" else 16, fused, codes, d)
    elif kind in ("Q4_1", "Q5_1"):
        blocks.above(x, 15 if kind == "Q4_1" else 31, fused, codes, d, m)
        return Fields(codes, d, m)
    elif kind == "Q8_0":
        blocks.whole(x, codes, d)
    elif kind == "MXFP4":
        exponents = np.empty(count, np.uint8)
        blocks.powers(x, E2M1, codes, exponents)
        return Fields(codes, exponents)
    elif kind == "IQ4_NL":
        curves.curves(x, NONLINEAR, fused, codes, d)
    elif kind == "IQ4_XS":
        scales = np.empty((count, 8), np.uint8)
        curves.super_curves(x, NONLINEAR, fused, codes, scales, d)
        return Fields(codes, d, scales=scales)
    elif kind in LINES:
        size, top, start, steps = LINES[kind]
        scales, mins = np.empty((2, count, 256 // size), np.uint8)
        blocks.lines(x, size, top, np.float32(start), steps, fused, codes, scales, mins, d, m)
        return Fields(codes, d, m, scales, mins)
    else:
        scales = np.empty((count, 16), np.uint8)
        (blocks.threes if kind == "Q3_K" else blocks.sixes)(x, fused, codes, scales, d)
        return Fields(codes, d, scales=scales)
    return Fields(codes, d)
