"""`quant_method: fp8`: weights F8_E4M3 as DeepSeek, Qwen and transformers ship them, and with one scale per tensor.

With `weight_block_size`, `weight_scale_inv` float32 [ceil(out / height), ceil(in / width)] is what the codes of a block
are multiplied by (transformers 5.24.0, integrations/finegrained_fp8.py). Without,
`weight_scale` float32 is, and `input_scale` is there where `activation_scheme` is static, as AutoFP8 writes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from requant.checkpoint.safetensors import Spec
from requant.formats.codec import Array, Arrays, Codec, Part, confirm_keys
from requant.formats.floats import E4M3, widened
from requant.formats.grid import Grid

KEYS = "quant_method activation_scheme weight_block_size modules_to_not_convert ignored_layers fmt scale_fmt "
KEYS += "expert_dtype dequantize kv_cache_scheme weight_per_tensor act_per_tensor"
"""Of a configuration: those that are read, or change nothing of weights."""
INVERSE, SCALE, INPUT = "weight_scale_inv", "weight_scale", "input_scale"


@dataclass(frozen=True)
class Blocks:
    """A scale per block of outputs and inputs, of the dtype `scale`: F32, or BF16, which nothing declares."""

    grid: Grid
    scale: str = "F32"

    @property
    def name(self) -> str:
        """What people read."""
        return f"FP8, {self.grid}"

    @property
    def align(self) -> int:
        """As many outputs as share a scale."""
        return self.grid.align

    def parts(self, rows: int, columns: int, dtype: str) -> Mapping[str, Part]:
        """Return the tensors of a weight of any dtype."""
        del dtype
        return {"weight": Part(Spec("F8_E4M3", (rows, columns))), INVERSE: self.grid.part(self.scale, rows, columns)}

    def decode(self, stored: Arrays, columns: int) -> Array:
        """Return weights in float32."""
        codes = E4M3[stored["weight"].view(np.uint8)]
        with np.errstate(all="ignore"):
            return np.asarray(codes * self.grid.spread(widened(stored[INVERSE]), len(codes), columns), np.float32)


@dataclass(frozen=True)
class PerTensor:
    """A scale per layer, and one of its inputs where they are `static`."""

    static: bool
    name = "FP8, one scale"
    align = 1

    def parts(self, rows: int, columns: int, dtype: str) -> Mapping[str, Part]:
        """Return the tensors of a weight of any dtype."""
        del dtype
        found = {"weight": Part(Spec("F8_E4M3", (rows, columns))), SCALE: Part(Spec("F32", ()), 0)}
        return found | ({INPUT: Part(Spec("F32", ()), 0)} if self.static else {})

    def decode(self, stored: Arrays, columns: int) -> Array:
        """Return weights in float32."""
        del columns
        with np.errstate(all="ignore"):
            return np.asarray(E4M3[stored["weight"].view(np.uint8)] * stored[SCALE].reshape(1, 1), np.float32)


@dataclass(frozen=True)
class FP8:
    """A configuration: one codec, and what is left as it was."""

    form: Codec
    ignored: tuple[str, ...]

    def codec(self, layer: str) -> Codec | None:
        """Return how a linear layer is stored: names mean themselves, what lies below them, and ends of names."""
        parents = layer.split(".")
        if any(layer.endswith(each) for each in self.ignored) or any(
            ".".join(parents[:count]) in self.ignored for count in range(1, len(parents))
        ):
            return None
        return self.form


def read(config: Mapping[str, Any]) -> FP8:
    """Read a `quantization_config`. Raises ValueError for what is not modelled."""
    confirm_keys(config, KEYS)
    lists = [config.get(key) or [] for key in ("modules_to_not_convert", "ignored_layers")]
    ignored = [each for some in lists if isinstance(some, list) for each in some]
    if not (all(isinstance(some, list) for some in lists) and all(isinstance(each, str) and each for each in ignored)):
        raise ValueError("`modules_to_not_convert` is no list of names")
    for key, usual in (("fmt", ("e4m3",)), ("scale_fmt", ("float",)), ("expert_dtype", ("fp8",))):
        if config.get(key) is not None and config[key] not in usual:
            raise ValueError(f"`{key}` {config[key]!r:.40}")
    block, scheme = config.get("weight_block_size"), config.get("activation_scheme", "dynamic")
    if scheme not in ("dynamic", "static"):
        raise ValueError(f"`activation_scheme` {scheme!r:.40}")
    names = ("lm_head", *ignored)  # transformers and vLLM leave it alone, listed or not
    if block is None:
        return FP8(PerTensor(scheme == "static"), names)
    if not (
        isinstance(block, list) and len(block) == 2 and all(type(each) is int and 0 < each < 1 << 20 for each in block)
    ):
        raise ValueError(f"`weight_block_size` {block!r:.40}")
    if scheme == "static":
        raise ValueError("blocks with static scales of inputs")
    return FP8(Blocks(Grid(block[0], block[1], exact=False)), names)
