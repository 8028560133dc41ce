"""The layout of AWQ's GEMM kernels: 4-bit codes packed along the outputs, zero points stored as they are.

A weight [out, in] becomes `qweight` int32 [in, out/8]; of eight outputs, the one numbered k takes the four bits from
4 * ORDER[k] on. `qzeros` int32 [groups, out/8] has the same order, `scales` is float16 [groups, out].
Source: `WQLinear_GEMM` of AutoRound 0.12.2, export_to_awq/utils.py.
"""

import numpy as np
import numpy.typing as npt

from requant.checkpoint.safetensors import Spec
from requant.formats import gptq
from requant.formats.gptq import Array

PER_WORD = 8
ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where each of eight outputs lies in a word, in steps of four bits."""


def specs(shape: tuple[int, int], group_size: int) -> dict[str, Spec]:
    """Return the three tensors of a packed weight [out, in], by suffix; a group size of -1 is one group."""
    out_features, in_features = shape
    return {**gptq.specs(shape, group_size), "qweight": Spec("I32", (in_features, out_features // PER_WORD))}


def pack(codes: Array) -> npt.NDArray[np.int32]:
    """Pack codes uint8 [out, in], 0 to 15, into words int32 [in, out/8]."""
    out_features, in_features = codes.shape
    if out_features % PER_WORD:
        raise ValueError(f"{out_features} rows are no multiple of {PER_WORD}")
    grouped = codes.T.reshape(in_features, -1, PER_WORD)
    words = np.zeros(grouped.shape[:2], np.uint32)
    for k, place in enumerate(ORDER):
        words |= grouped[..., k].astype(np.uint32) << np.uint32(4 * place)
    return words.view(np.int32)


def unpack(words: Array) -> npt.NDArray[np.uint8]:
    """Unpack words int32 [in, out/8] into codes uint8 [out, in]."""
    codes = np.empty((*words.shape, PER_WORD), np.uint8)
    for k, place in enumerate(ORDER):
        codes[..., k] = (words.view(np.uint32) >> np.uint32(4 * place)) & 15
    return codes.reshape(len(words), -1).T
