"""bitsandbytes' layouts: blocks of a weight's numbers in 4 bits, nf4 or fp4, and rows of it in 8.

4 bits: `weight` uint8 [out * in / 2, 1] has the numbers of all outputs one after another, the first of each two in the
upper half; `weight.absmax` float32 is the greatest magnitude of each block of 64, by which the value that a code stands
for in `weight.quant_map` is multiplied. Nested, `weight.absmax` uint8 holds codes itself, of `weight.nested_quant_map`:
their value times `weight.nested_absmax` of each 256 of them, plus an offset. `weight.quant_state.bitsandbytes__nf4` is
JSON that says this, the offset, and the dtype to which the weight was converted first.

8 bits: `weight` int8 [out, in], `SCB` float32 [out], the greatest magnitude of each row, and `weight_format`, 0. The
weight was converted to float16 first. Up to 0.44 a layer that had run was saved in tiles, by `weight_format` 1 to 3;
later versions refuse these.

Sources: `QuantState` and `get_4bit_type` of bitsandbytes 0.50.2 (functional.py), `Linear8bitLt` (nn/modules.py) of it
and of 0.44.1;
`BitsAndBytesConfig` of transformers 5.24.0.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from requant.checkpoint.safetensors import Spec
from requant.formats.codec import Array, Arrays, Codec, Part, converted
from requant.formats.floats import looked_up

F32 = np.float32
BLOCK, NESTED = 64, 256
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
FP4 = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
"""Without their sign, and 12 times as large as they are."""
NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
"""What torch calls the dtypes of weights."""
STATE = "weight.quant_state.bitsandbytes__"
MAP = "weight.nested_quant_map"
TILES = "weight_format"
TILED = {1: "col32", 2: "col_turing", 3: "col_ampere"}
"""What 0.44.1 calls the orders of numbers that are not by rows (`LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING`)."""
LARGEST = 3.5e38
"""More than any magnitude."""
LONGEST = 4096
"""Bytes of JSON that are read."""
APART = 2
"""By how many last places the map of a nested absmax may differ: where torch does not fuse, 42 of 256 do by one."""
INVERSE = F32(7.874015718698502e-3)
"""1/127, as `int8_vectorwise_dequant` has it."""


def quant_map(kind: str) -> npt.NDArray[np.float32]:
    """Return what the 16 codes of nf4 or fp4 stand for."""
    if kind == "nf4":
        return np.array(NF4, F32)
    halves = np.array(FP4, F32) / F32(12)
    return np.concatenate([halves, [F32(0)], -halves[1:]])


@cache
def dynamic_map() -> npt.NDArray[np.float32]:
    """Return what the 256 codes of a nested absmax stand for: `create_dynamic_map`, where torch fuses multiply-add."""
    values = [F32(0), F32(1)]
    for power in range(7):
        count = 2**power + 1
        step, places = np.float64(F32(F32(0.9) / F32(count - 1))), np.arange(count)
        # torch.linspace counts from the nearer end.
        ends = np.where(places < count // 2, F32(0.1) + step * places, 1 - step * places[::-1]).astype(F32)
        means = (ends[:-1] + ends[1:]) / F32(2) * F32(10.0 ** (power - 6))
        values += [*means, *-means]
    return np.sort(np.array(values, F32))


def nested_map(stored: Array) -> npt.NDArray[np.float32]:
    """Return the map that a file has, where it differs from ours by no more than machines do; or else ours."""
    ours = dynamic_map()
    theirs = np.ascontiguousarray(stored, F32).reshape(-1)
    apart = theirs.view(np.int32).astype(np.int64) - ours.view(np.int32)
    return theirs if (np.abs(apart) <= APART).all() else ours


@dataclass(frozen=True)
class FourBit:
    """Layers of nf4 or fp4; `nested`: what transformers calls double quantization."""

    kind: str
    nested: bool

    @property
    def name(self) -> str:
        """What people read."""
        return f"bitsandbytes {self.kind}, blocks of {BLOCK}" + (", double quantization" if self.nested else "")

    @property
    def align(self) -> int:
        """A window starts where a nested block does, whatever the number of inputs is."""
        return NESTED if self.nested else 1

    @property
    def state(self) -> str:
        """The suffix of the JSON."""
        return STATE + self.kind

    def parts(self, rows: int, columns: int, dtype: str) -> Mapping[str, Part]:
        """Return a layer's tensors; how long the JSON is nobody can say beforehand."""
        if dtype not in NAMES:
            raise ValueError(f"a base in {dtype}")
        if columns % BLOCK:
            raise ValueError(f"blocks of {BLOCK} that cross rows of {columns}")
        blocks, share = rows * columns // BLOCK, BLOCK * NESTED // np.gcd(columns, BLOCK * NESTED)
        parts = {
            "weight": Part(Spec("U8", (rows * columns // 2, 1))),
            "weight.absmax": Part(Spec("U8" if self.nested else "F32", (blocks,))),
            "weight.quant_map": Part(Spec("F32", (16,)), 0),
            self.state: Part(
                Spec("U8", (0,)),
                0,
                sized=False,
                decides=self.nested,
                accepts=partial(_belongs, self, [rows, columns]),
            ),
        }
        if self.nested:
            if rows > share and rows % share:
                raise ValueError(f"{rows} rows, where {share} share nested blocks")
            parts["weight.nested_absmax"] = Part(Spec("F32", (-(-blocks // NESTED),)), int(share))
            parts[MAP] = Part(Spec("F32", (len(dynamic_map()),)), 0)
        return parts

    def decode(self, stored: Arrays, columns: int) -> Array:
        """Return what `dequantize_4bit` makes of some rows, in the dtype that the JSON names."""
        with np.errstate(all="ignore"):
            absmax = stored["weight.absmax"].reshape(-1)
            if self.nested:
                wide = np.repeat(stored["weight.nested_absmax"].reshape(-1), NESTED)[: len(absmax)]
                absmax = nested_map(stored[MAP])[absmax] * wide + offset(stored[self.state])
            values = looked_up(quant_map(self.kind), stored["weight"].reshape(-1), upper_first=True).reshape(-1, BLOCK)
            values *= absmax[:, None]
            return converted(values, "", dtype_of(stored[self.state])).reshape(-1, columns)


@dataclass(frozen=True)
class Int8:
    """Layers of LLM.int8()."""

    name: str = "bitsandbytes int8"
    align: int = 1

    def parts(self, rows: int, columns: int, dtype: str) -> Mapping[str, Part]:
        """Return a layer's tensors."""
        if dtype not in NAMES:
            raise ValueError(f"a base in {dtype}")
        return {
            "weight": Part(Spec("I8", (rows, columns))),
            "SCB": Part(Spec("F32", (rows,))),
            TILES: Part(Spec("U8", ()), 0, np.zeros((), np.uint8)),
        }

    def decode(self, stored: Arrays, columns: int) -> Array:
        """Return what `int8_vectorwise_dequant` makes of some rows."""
        with np.errstate(all="ignore"):
            codes = stored["weight"].reshape(-1, columns).astype(F32)
            return np.asarray(codes * stored["SCB"].reshape(-1, 1) * INVERSE)


def _belongs(codec: FourBit, shape: list[int], text: Array) -> bool:
    """Say whether the JSON can be that of a weight: its shape and blocks, and an offset that is a mean of magnitudes.

    bitsandbytes reads codes and blocks as the JSON says, whatever the tensor is called (`QuantState.from_dict`).
    """
    stated = state_of(text)
    wanted = {"shape": shape, "quant_type": codec.kind, "blocksize": BLOCK}
    wanted |= {"nested_blocksize": NESTED} if codec.nested else {}
    offset_ = stated.get("nested_offset", 0.0 if not codec.nested else None)
    said = {name: stated.get(name) for name in wanted}
    return said == wanted and isinstance(offset_, float) and 0 <= offset_ < LARGEST


def state_of(text: Array) -> dict[str, Any]:
    """Return what the JSON says; nothing where it is none."""
    try:
        value = json.loads(text.tobytes()) if text.size <= LONGEST else None
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def offset(text: Array) -> np.float32:
    """Return what the JSON says is added to a nested absmax; NaN where it says nothing."""
    stated = state_of(text).get("nested_offset")
    return F32(stated if isinstance(stated, float) else np.nan)


def dtype_of(text: Array) -> str:
    """Return the dtype to which the JSON says the weight was converted; float32 where it names none."""
    stated = state_of(text).get("dtype")
    return next((dtype for dtype, name in NAMES.items() if name == stated), "F32")


@dataclass(frozen=True)
class Declared:
    """What a configuration says: one way for all layers, but those that were skipped."""

    every: Codec
    skipped: tuple[str, ...] = field(default=())

    def codec(self, layer: str) -> Codec | None:
        """Return how a layer is stored, None where its name is, begins or ends with that of a skipped module."""
        named = f".{layer}."
        return None if any(f".{each}." in named for each in self.skipped) else self.every


ANY = {"bnb_4bit_compute_dtype", "llm_int8_enable_fp32_cpu_offload", "llm_int8_threshold", "quant_method"}
"""Keys that change nothing of what is stored."""
READ = {"bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "llm_int8_skip_modules"}
READ |= {f"{under}load_in_{bits}bit" for under in ("", "_") for bits in (4, 8)}


def read(value: Mapping[str, Any]) -> Declared:
    """Read a `quantization_config`; what it does not state is transformers' default."""
    for key, said in value.items():
        if key not in ANY | READ and said and (key, said) != ("bnb_4bit_quant_storage", "uint8"):
            raise ValueError(f"{key!r:.80} {said!r:.80}")
    four, eight = (value.get(f"load_in_{bits}bit", value.get(f"_load_in_{bits}bit", False)) for bits in (4, 8))
    skipped = value.get("llm_int8_skip_modules") or []
    if not (isinstance(skipped, list) and all(isinstance(each, str) for each in skipped)):
        raise ValueError(f"llm_int8_skip_modules {skipped!r:.80}")
    if (four, eight) == (False, True):
        return Declared(Int8(), tuple(skipped))
    kind, nested = value.get("bnb_4bit_quant_type", "fp4"), value.get("bnb_4bit_use_double_quant", False)
    if (four, eight) != (True, False) or kind not in ("nf4", "fp4") or not isinstance(nested, bool):
        said = (
            f"load_in_4bit {four!r:.20}, load_in_8bit {eight!r:.20}, {kind!r:.20}, double quantization {nested!r:.20}"
        )
        raise ValueError(said)
    return Declared(FourBit(kind, nested), tuple(skipped))
