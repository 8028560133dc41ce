"""The INT4 layout `auto_round:auto_gptq`, and rounding to nearest, in numpy.

Layout (auto_round/export/export_to_autoround, GPTQ version 1): a weight [out, in] becomes `qweight` int32
[in/8, out], where code k of eight along `in` takes the bits 4k to 4k+3; `scales` float16 [groups, out]; and
`qzeros` int32 [groups, out/8], eight zero points of 8, each stored less one. The value is scale * (code - 8).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from requant.checkpoint.safetensors import Spec

BITS = 4
PER_WORD = 8
ZERO_POINT = 8
ZERO_WORD = 0x77777777
"""Eight stored zero points of symmetric INT4. AutoRound's own RTN path writes 0x88888888 (defect D10)."""

PACKED = ("qweight", "qzeros", "scales")
"""What a packed layer is in files, by suffix."""

Array = npt.NDArray[Any]


def specs(shape: tuple[int, int], group_size: int) -> dict[str, Spec]:
    """Return the three tensors of a packed weight [out, in], by suffix; eight codes share a 32-bit word."""
    out_features, in_features = shape
    groups = -(-in_features // group_size)
    return {
        "qweight": Spec("I32", (in_features // PER_WORD, out_features)),
        "qzeros": Spec("I32", (groups, out_features // PER_WORD)),
        "scales": Spec("F16", (groups, out_features)),
    }


def bfloat16_to_float32(data: bytes) -> npt.NDArray[np.float32]:
    """Return little-endian bfloat16 numbers as float32, exactly: bfloat16 is the upper half of float32."""
    return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)


def pack(codes: Array) -> npt.NDArray[np.int32]:
    """Pack codes uint8 [out, in], 0 to 15, into words int32 [in/8, out]."""
    out_features, in_features = codes.shape
    if in_features % PER_WORD:
        raise ValueError(f"{in_features} columns are no multiple of {PER_WORD}")
    grouped = codes.T.reshape(in_features // PER_WORD, PER_WORD, out_features)
    words = np.zeros((in_features // PER_WORD, out_features), np.uint32)
    for k in range(PER_WORD):
        words |= grouped[:, k].astype(np.uint32) << np.uint32(BITS * k)
    return words.view(np.int32)


def unpack(words: Array) -> npt.NDArray[np.uint8]:
    """Unpack words int32 [in/8, out] into codes uint8 [out, in]."""
    rows, out_features = words.shape
    codes = np.empty((rows, PER_WORD, out_features), np.uint8)
    for k in range(PER_WORD):
        codes[:, k] = (words.view(np.uint32) >> np.uint32(BITS * k)) & 15
    return codes.reshape(rows * PER_WORD, out_features).T


def zeros(groups: int, out_features: int) -> npt.NDArray[np.int32]:
    """Return the constant `qzeros` int32 [groups, out/8] of symmetric quantization."""
    return np.full((groups, out_features // PER_WORD), ZERO_WORD, np.int32)


def round_to_nearest(weight: Array, group_size: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16]]:
    """Quantize float32 [out, in] to codes [out, in] and scales float16 [groups, out], without calibration.

    The scale is max|w|/7 per group of `group_size` inputs; codes are divided by it in float32, before it is
    rounded to float16. Source: `quantize_weight_rtn`, auto_round/utils/missing_tensors.py at 2dda035 and 0.12.2.
    """
    out_features, in_features = weight.shape
    if in_features % group_size:
        raise ValueError(f"{in_features} columns are no multiple of the group size {group_size}")
    grouped = weight.reshape(out_features, -1, group_size)
    scales = np.maximum(np.abs(grouped).max(axis=-1), np.float32(1e-10)) / np.float32(7)
    codes = np.clip(np.rint(grouped / scales[..., None]), -8, 7) + ZERO_POINT
    return codes.astype(np.uint8).reshape(out_features, in_features), scales.T.astype(np.float16)
