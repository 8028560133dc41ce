"""MLX's layout: the codes of each output are one stream of bits, with a scale and a bias per group of inputs.

A weight [out, in] becomes `weight` uint32 [out, in * bits / 32], the lowest bits first, `scales` and `biases`
[out, in / group size] in the dtype of the weight; a value is scale * code + bias. Embeddings are stored so too.
Source: `quantize` and `dequantize` of MLX 0.32.4 (mlx/ops.cpp); `load_model` of mlx-lm (mlx_lm/utils.py), for what
`quantization` in `config.json` says: of all layers, or under a layer's own name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from requant.checkpoint.safetensors import Spec
from requant.formats.codec import Array, Arrays, Codec, Part, narrow, widen
from requant.formats.floats import E2M1
from requant.formats.streams import unpack

BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 128)
DTYPES = ("BF16", "F16", "F32")
KEYS = ("bits", "group_size", "mode")
FLOATS = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}
"""Bits of a code and inputs of a group, by mode: no others are allowed."""
MODE = "affine"
"""What a configuration means that states no mode: it is older than the others."""


@dataclass(frozen=True)
class Affine:
    """Layers of MLX's mode `affine`."""

    bits: int
    group: int

    @property
    def name(self) -> str:
        """What people read."""
        return f"MLX affine, {self.bits} bits, groups of {self.group}"

    @property
    def align(self) -> int:
        """A window may start at any row."""
        return 1

    @property
    def top(self) -> int:
        """The greatest code."""
        return (1 << self.bits) - 1

    def parts(self, rows: int, columns: int, dtype: str) -> Mapping[str, Part]:
        """Return the three tensors of a weight of the base's dtype."""
        if dtype not in DTYPES:
            raise ValueError(f"a base in {dtype}")
        if columns % self.group:
            raise ValueError(f"{columns} inputs, no multiple of the group size {self.group}")
        each = Part(Spec(dtype, (rows, columns // self.group)))
        return {"weight": Part(Spec("U32", (rows, columns * self.bits // 32))), "scales": each, "biases": each}

    def decode(self, stored: Arrays, columns: int) -> Array:
        """Return what `dequantize` makes of some rows on a CPU: product and sum are rounded to the dtype of scales."""
        codes = unpack(stored["weight"], self.bits, columns).reshape(-1, columns // self.group, self.group)
        scales, biases = (stored[suffix].reshape(len(codes), -1, 1) for suffix in ("scales", "biases"))
        dtype = {np.dtype(np.float16): "F16", np.dtype(np.float32): "F32"}.get(scales.dtype, "BF16")
        with np.errstate(all="ignore"):
            product = widen(narrow(codes * widen(scales, dtype), dtype), dtype)
            return widen(narrow(product + widen(biases, dtype), dtype), dtype).reshape(-1, columns)


@dataclass(frozen=True)
class Float:
    """Layers of MLX's modes `mxfp4`, `mxfp8` and `nvfp4`: codes are floats, `scales` uint8, and there are no biases."""

    mode: str

    @property
    def name(self) -> str:
        """What people read."""
        return f"MLX {self.mode}, groups of {self.group}"

    @property
    def align(self) -> int:
        """A window may start at any row."""
        return 1

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return FLOATS[self.mode][0]

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return FLOATS[self.mode][1]

    def parts(self, rows: int, columns: int, dtype: str) -> Mapping[str, Part]:
        """Return the two tensors of a weight."""
        if dtype not in DTYPES:
            raise ValueError(f"a base in {dtype}")
        if columns % self.group:
            raise ValueError(f"{columns} inputs, no multiple of the group size {self.group}")
        scales = Part(Spec("U8", (rows, columns // self.group)))
        return {"weight": Part(Spec("U32", (rows, columns * self.bits // 32))), "scales": scales}

    def decode(self, stored: Arrays, columns: int) -> Array:
        """Return a code's value times its scale, which float32 holds exactly."""
        codes = unpack(stored["weight"], self.bits, columns).reshape(-1, self.group)
        values = (E2M1 if self.bits == 4 else e4m3())[codes]
        scales = stored["scales"].reshape(-1, 1)
        with np.errstate(all="ignore"):
            if self.mode == "nvfp4":
                return np.asarray(values * e4m3()[scales]).reshape(-1, columns)
            return np.ldexp(values, scales.astype(np.int32) - 127).reshape(-1, columns)


def e4m3() -> npt.NDArray[np.float32]:
    """Return what bytes stand for: sign, 4 bits of exponent and 3 of fraction. MLX's has no NaN (`FromFP8`)."""
    octets = np.arange(256, dtype=np.uint16)
    magnitudes = ((octets & 127) << 7).view(np.float16).astype(np.float32) * np.float32(256)
    return np.where(octets & 128, -magnitudes, magnitudes)


@dataclass(frozen=True)
class Declared:
    """What `quantization` says: how layers are stored, and which are so in their own way, or float."""

    every: Codec
    own: Mapping[str, Codec | None] = field(default_factory=dict)

    def codec(self, layer: str) -> Codec | None:
        """Return how a layer is stored. One that is not named is float where it has no scales."""
        return self.own.get(layer, self.every)


def states(value: Mapping[str, Any]) -> bool:
    """Say whether a configuration that names no tool has bits and groups where MLX does, and nothing of other tools."""
    return {"bits", "group_size"} <= value.keys() and not {"quant_method", "w_bit", "sym"} & value.keys()


def read(value: Mapping[str, Any]) -> Declared:
    """Read the object `quantization` of `config.json`, which `quantization_config` repeats."""
    every = _codec({key: value[key] for key in KEYS if key in value})
    own: dict[str, Codec | None] = {}
    for layer, said in value.items():
        if layer in KEYS or (layer, said) == ("quant_method", "mlx"):
            continue
        if isinstance(said, bool):
            own[layer] = every if said else None
        elif isinstance(said, Mapping):
            own[layer] = _codec(said)
        else:
            raise ValueError(f"{layer!r:.80} {said!r:.80}")
    return Declared(every, own)


def _codec(said: Mapping[str, Any]) -> Codec:
    if strange := sorted(f"{key!r:.80}" for key in said if key not in KEYS):
        raise ValueError(f"MLX's {strange[0]}")
    mode, bits, group = said.get("mode", MODE), said.get("bits"), said.get("group_size")
    if isinstance(mode, str) and mode in FLOATS:
        if not all(said.get(key) in (None, own) for key, own in zip(KEYS, FLOATS[mode], strict=False)):
            raise ValueError(f"MLX {mode}, {bits!r:.80} bits in groups of {group!r:.80}")
        return Float(mode)
    if mode != MODE:
        raise ValueError(f"MLX's mode {mode!r:.80}")
    bits, group = 4 if bits is None else bits, 64 if group is None else group
    if not (type(bits) is type(group) is int and bits in BITS and group in GROUPS):
        raise ValueError(f"MLX affine, {bits!r:.80} bits in groups of {group!r:.80}")
    return Affine(bits, group)
