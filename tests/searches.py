"""Weights whose ranges llm-compressor's MSE observer searched, and how: fixtures/compressed_tensors/make_mse.py."""

from typing import Any

import numpy as np

INT, FP8 = {"type": "int", "symmetric": True}, {"type": "float", "symmetric": True, "num_bits": 8}
GROUP = {"strategy": "group", "group_size": 32}
KINDS: dict[str, dict[str, Any]] = {
    "int4": {**INT, **GROUP, "num_bits": 4},
    "int4loose": {**INT, **GROUP, "num_bits": 4, "symmetric": False},
    "int8": {**INT, "num_bits": 8, "strategy": "channel"},
    "fp8": {**FP8, "strategy": "channel"},
    "fp8block": {**FP8, "strategy": "block", "block_structure": [128, 128]},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "usual": {},
    "norm": {"norm": 2.0},
    "near": {"norm": 2.3},
    "cube": {"norm": 3.0},
    "grid": {"grid": 200.0},
    "shrink": {"maxshrink": 0.4},
    "patience": {"patience": 1},
    "expand": {"expand": 1.1},
}
ROWS, COLUMNS = 256, 256


def weights(seed: int = 0) -> Any:
    """Return weights float32 [ROWS, COLUMNS] that BF16 and float16 have too, of many widths, with heavy tails."""
    drawn = np.random.default_rng(seed)
    spread = np.ldexp(1, drawn.integers(-7, -4, (ROWS, 1))) * drawn.standard_t(5, (ROWS, COLUMNS))
    return (spread.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


HIDDEN, INNER = 64, 96
LINEARS = {f"model.layers.0.self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"}
LINEARS |= {f"model.layers.0.mlp.{name}_proj": (INNER, HIDDEN) for name in ("gate", "up")}
LINEARS["model.layers.0.mlp.down_proj"] = HIDDEN, INNER
FILES = ("BF16.nvfp4", "F32.mxfp4", "BF16.fp8", "F32.int8")
"""Checkpoints that the real tool made, those with one scale of attention: compressed_tensors/make_mse_files.py."""


def linears() -> dict[str, Any]:
    """Return the weights of a Qwen3 of one block, float32, that BF16 has too."""
    return {name: weights(seed)[: shape[0], : shape[1]].copy() for seed, (name, shape) in enumerate(LINEARS.items())}
