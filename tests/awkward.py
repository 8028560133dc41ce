"""Weights that try a way of rounding: the same on every machine, for tests and for the scripts that made fixtures.

Needs numpy alone, so that those scripts run where the real tools are.
"""

from typing import Any

import numpy as np


def bits(rows: int, columns: int, dtype: str, seed: int = 0) -> Any:
    """Return a weight: BF16 as uint16, F16 as float16, F32 as float32.

    Of every sixteen rows the first are: zeros, a constant, subnormal numbers, an outlier, ties of 4 bits, negative
    numbers only, zeros with and without a sign among others, and numbers that scales of float16 cannot hold.
    """
    rng = np.random.default_rng(seed)
    parts = rng.integers(-(1 << 20), 1 << 20, (6, rows, columns)).sum(0)
    values = (parts * 2.0**-26).astype(np.float32)
    values[0::16] = 0
    values[1::16] = np.float32(0.015625)
    values[2::16] *= np.float32({"BF16": 2e-37, "F16": 1e-4, "F32": 2e-37}[dtype])
    values[3::16, columns // 3] = np.float32(31.7)
    values[4::16] = (rng.integers(-15, 16, values[4::16].shape) * 0.5).astype(np.float32)
    values[5::16] = -np.abs(values[5::16]) - np.float32(0.01)
    values[6::16, ::3] = np.float32(0)
    values[6::16, 1::3] = np.float32(-0.0)
    values[7::16] *= np.float32(2.0**-18)
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype({"F16": np.float16, "F32": np.float32}[dtype])
