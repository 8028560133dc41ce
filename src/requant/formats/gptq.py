"""The layout `auto_round:auto_gptq`, and rounding to nearest, in numpy.

Layout (auto_round/export/export_to_autoround, GPTQ version 1): the codes of b bits of a weight [out, in] are one
stream of bits along `in`, the lowest bits of each int32 word first: `qweight` int32 [in*b/32, out], where with 4 bits
code k of eight takes the bits 4k to 4k+3, and with 3 bits 32 codes share three words. `scales` is float16
[groups, out], and `qzeros` int32 [groups, out*b/32] packs zero points along `out` alike, each stored less one. The
value is scale * (code - zero point); of symmetric codes the zero point is 2^(b-1).
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from requant.checkpoint.safetensors import Spec

BITS = 4

Array = npt.NDArray[Any]


def specs(shape: tuple[int, int], group_size: int, bits: int = BITS) -> dict[str, Spec]:
    """Return the three tensors of a packed weight [out, in], by suffix; a group size of -1 is one group."""
    out_features, in_features = shape
    groups = 1 if group_size == -1 else -(-in_features // group_size)
    return {
        "qweight": Spec("I32", (in_features * bits // 32, out_features)),
        "qzeros": Spec("I32", (groups, out_features * bits // 32)),
        "scales": Spec("F16", (groups, out_features)),
    }


def bfloat16_to_float32(data: bytes) -> npt.NDArray[np.float32]:
    """Return little-endian bfloat16 numbers as float32, exactly: bfloat16 is the upper half of float32."""
    return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)


def several(bits: int) -> int:
    """Return how many codes fill whole words: 8 of 4 bits fill one, 32 of 3 bits three."""
    return math.lcm(bits, 32) // bits


def pack(codes: Array, bits: int = BITS) -> npt.NDArray[np.int32]:
    """Pack codes uint8 [out, in], 0 to 2^bits - 1, into words int32 [in * bits / 32, out]."""
    out_features, in_features = codes.shape
    count = several(bits)
    if in_features % count:
        raise ValueError(f"{in_features} columns are no multiple of {count}")
    grouped = codes.T.reshape(-1, count, out_features).astype(np.uint32)
    words = np.zeros((len(grouped), count * bits // 32, out_features), np.uint32)
    for k in range(count):
        word, shift = divmod(k * bits, 32)
        words[:, word] |= grouped[:, k] << np.uint32(shift)
        if shift + bits > 32:
            words[:, word + 1] |= grouped[:, k] >> np.uint32(32 - shift)
    return words.reshape(-1, out_features).view(np.int32)


def constant(code: int, bits: int = BITS) -> npt.NDArray[np.int32]:
    """Return the fewest whole words int32 [n] that hold nothing but one code: 1, and of 3 bits 3."""
    return pack(np.full((1, several(bits)), code, np.uint8), bits).reshape(-1)


def unpack(words: Array, bits: int = BITS) -> npt.NDArray[np.uint8]:
    """Unpack words int32 [in * bits / 32, out] into codes uint8 [out, in]."""
    count = several(bits)
    grouped = words.view(np.uint32).reshape(-1, count * bits // 32, words.shape[1])
    codes = np.empty((len(grouped), count, words.shape[1]), np.uint8)
    for k in range(count):
        word, shift = divmod(k * bits, 32)
        found = grouped[:, word] >> np.uint32(shift)
        if shift + bits > 32:
            found |= grouped[:, word + 1] << np.uint32(32 - shift)
        codes[:, k] = found & np.uint32((1 << bits) - 1)
    return codes.reshape(-1, words.shape[1]).T


def round_to_nearest(
    weight: Array, group_size: int, bits: int = BITS
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16]]:
    """Quantize float32 [out, in] to symmetric codes [out, in] and scales float16 [groups, out], without calibration.

    The scale is max|w|/(2^(b-1) - 1) per group of `group_size` inputs, all of them where it is -1; codes are divided by
    it in float32, before it is rounded to float16. Source: `quantize_weight_rtn`, auto_round/utils/missing_tensors.py
    at 2dda035 and 0.12.2.
    """
    out_features, in_features = weight.shape
    group = in_features if group_size == -1 else group_size
    if in_features % group:
        raise ValueError(f"{in_features} columns are no multiple of the group size {group_size}")
    middle = 1 << bits - 1
    grouped = weight.reshape(out_features, -1, group)
    scales = np.maximum(np.abs(grouped).max(axis=-1), np.float32(1e-10)) / np.float32(middle - 1)
    codes = np.clip(np.rint(grouped / scales[..., None]), -middle, middle - 1) + middle
    return codes.astype(np.uint8).reshape(out_features, in_features), scales.T.astype(np.float16)
