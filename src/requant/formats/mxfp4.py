"""MXFP4 as gpt-oss has it: numbers of 4 bits, E2M1, with one power of two for each 32 inputs of an output.

A weight [experts, out, in] becomes `_blocks` uint8 [experts, out, in / 32, 16], the first of each two numbers in the
lower half, and `_scales` uint8 [experts, out, in / 32], exponents plus 127. Bases store it transposed; gate and up
alternate in both. Source: `_convert_moe_packed_tensors` of transformers 5.24.0 (integrations/mxfp4.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from requant.checkpoint.safetensors import Spec
from requant.formats.codec import Array, Arrays, Codec, Part, confirm_keys, converted
from requant.formats.floats import E2M1

F32 = np.float32
GROUP = 32
BIAS = 127
LAYERS = (".experts.gate_up_proj", ".experts.down_proj")


@dataclass(frozen=True)
class GptOssMXFP4:
    """Fused experts in MXFP4."""

    name: str = "MXFP4, groups of 32"
    align: int = 1

    def parts(self, rows: int, columns: int, dtype: str) -> Mapping[str, Part]:
        """Return both tensors; `rows` are those of all experts."""
        if dtype not in ("BF16", "F16", "F32"):
            raise ValueError(f"a base in {dtype}")
        if columns % GROUP:
            raise ValueError(f"{columns} inputs, no multiple of {GROUP}")
        groups = columns // GROUP
        return {
            "_blocks": Part(Spec("U8", (rows, groups, 16)), several=True),
            "_scales": Part(Spec("U8", (rows, groups)), several=True),
        }

    def decode(self, stored: Arrays, columns: int) -> Array:
        """Return the weights of some rows in BF16, as transformers dequantizes them."""
        octets = stored["_blocks"].reshape(-1, GROUP // 2)
        values = E2M1[np.stack([octets & 15, octets >> 4], axis=-1).reshape(-1, GROUP)]
        with np.errstate(all="ignore"):
            decoded = np.ldexp(values, stored["_scales"].reshape(-1, 1).astype(np.int32) - BIAS)
            return converted(decoded, "", "BF16").reshape(-1, columns)


@dataclass(frozen=True)
class Declared:
    """What a configuration says: fused experts are stored so, but those that patterns name."""

    patterns: tuple[tuple[str, ...], ...]

    def codec(self, layer: str) -> Codec | None:
        """Return how a layer is stored. A pattern names what it begins with, and `*` any one part of a name."""
        parts = layer.split(".")
        named = any(
            len(each) <= len(parts) and all(one in ("*", other) for one, other in zip(each, parts, strict=False))
            for each in self.patterns
        )
        return None if named or not layer.endswith(LAYERS) else GptOssMXFP4()


def read(value: Mapping[str, Any]) -> Declared:
    """Read a `quantization_config` of `quant_method` mxfp4."""
    confirm_keys(value, "modules_to_not_convert quant_method dequantize")
    named = value.get("modules_to_not_convert") or []
    if not (isinstance(named, list) and all(isinstance(each, str) for each in named)):
        raise ValueError(f"modules_to_not_convert {named!r:.80}")
    return Declared(tuple(tuple(each.split(".")) for each in named))
