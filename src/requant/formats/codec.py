"""What `check` asks of a format whose layers lie row by row: which tensors, and what they mean.

A linear layer's weight is [out, in], `rows` x `columns`. Its tensors follow outputs in order, so that some rows of it
are a range of bytes of each, and any number of rows is examined in the memory of a few.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from requant.checkpoint.safetensors import Spec

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
"""Tensors of a layer by suffix, or those of some of its rows.

Numbers that numpy has no dtype for are bits: BF16 is uint16, F8_E4M3 and F8_E8M0 are uint8. A suffix that begins with
`_` follows the name of the layer without a dot.
"""


FLOATS = {"BF16", "F16", "F32"}
"""Dtypes in which a tool may store the base's numbers."""


LONGEST = 1 << 16


@dataclass(frozen=True)
class Part:
    """A tensor of a layer: so many outputs share a row of it; with 0 it belongs to the layer as a whole.

    A tensor may have any shape: a row of it is the share of its elements that ceil(rows / every) leaves to each.
    In the place of its first axis, of outputs, a file may have `several`: experts, and the outputs of each.
    Where it is packed along outputs in more than one word, `every` of them share so many `lines` of it.
    `holds` is all that it has, where that follows from the shape of the weight alone. One that is not `sized` is a list
    of at most `LONGEST` bytes, such as a text; it belongs to the layer as a whole. Where it `decides` what codes mean,
    a formula takes it at its word, so that what fits is measured as well.
    """

    spec: Spec
    every: int = 1
    holds: Array | None = field(default=None, compare=False)
    sized: bool = True
    decides: bool = False
    several: bool = False
    lines: int = 1
    accepts: Callable[[Array], bool] | None = field(default=None, compare=False)
    """Says of what is not sized whether it can belong to the weight."""

    def share(self, rows: int) -> int:
        """Return how many elements belong to `every` outputs of so many `rows`."""
        if self.lines > 1:  # the last of them may have fewer
            return self.lines * math.prod(self.spec.shape[1:])
        return self.spec.size // -(-rows // self.every)

    def cut(self, values: Array, first: int, last: int) -> Array:
        """Return the rows of a tensor that belong to some outputs, of which the first begins a share; or all of it."""
        if not self.every:
            return values
        return values[first // self.every * self.lines : -(-last // self.every) * self.lines]

    def fits(self, found: Spec) -> bool:
        """Say whether a tensor that was found can be this."""
        if self.sized:
            inner = self.spec.shape[1:]
            several = self.several and found.shape[2:] == inner and found.size == self.spec.size
            alike = found.shape == self.spec.shape or several
            return found.dtype == self.spec.dtype and alike
        return found.dtype == self.spec.dtype and len(found.shape) == 1 and found.nbytes <= LONGEST


@dataclass(frozen=True)
class Integers:
    """Some rows of a layer as whole numbers: a weight is (code - zero point) * scale.

    `codes` are uint8 [rows, columns], from 0 to `top`; zero points and scales float32 [rows, groups], or what
    broadcasts against it, where `group` inputs share one.
    """

    codes: Array
    zeros: Array
    scales: Array
    group: int
    top: int

    def decode(self) -> Array:
        """Return the weights float32 [rows, columns], rounded nowhere but in float32."""
        with np.errstate(all="ignore"):
            return np.asarray((self.codes - self.spread(self.zeros)) * self.spread(self.scales), np.float32)

    def nearest(self, weights: Array) -> Array:
        """Return what the codes that are nearest to some weights stand for, with these scales, float32."""
        zeros, scales = self.spread(self.zeros), self.spread(self.scales)
        with np.errstate(all="ignore"):
            codes = np.clip(np.rint(weights / scales + zeros), 0, self.top)
            return np.asarray((codes - zeros) * scales, np.float32)

    def spread(self, values: Array) -> Array:
        """Return what groups have, of each weight: float32 [rows, columns]."""
        rows, columns = self.codes.shape
        return np.broadcast_to(values, (rows, values.shape[1])).repeat(self.group, axis=1)[:, :columns]


class Codec(Protocol):
    """How a layer is stored: layers whose codecs are equal are stored alike."""

    def __hash__(self) -> int:
        """Return one number for all that are equal."""

    @property
    def name(self) -> str:
        """What people read, such as `pack-quantized, 4 bits, groups of 128`."""

    @property
    def align(self) -> int:
        """A window of rows starts at a multiple of so many."""

    def parts(self, rows: int, columns: int, dtype: str) -> Mapping[str, Part]:
        """Return the tensors of a weight of the base's `dtype`, by suffix.

        Raises ValueError, which says why, where no such weight can be stored so.
        """

    def decode(self, stored: Arrays, columns: int) -> Array:
        """Return the weights of some rows as a loader computes them, float32 [rows, columns]."""


def widen(bits: Array, dtype: str) -> npt.NDArray[np.float32]:
    """Return the numbers of a dtype, BF16 as uint16, F16 as uint16 or float16, or F32, as float32: exactly."""
    if dtype == "BF16":
        wide: Array = np.left_shift(bits.view(np.uint16), np.uint32(16), dtype=np.uint32)  # in one pass
        return wide.view(np.float32)
    return np.asarray(bits.view({"F16": np.float16, "F32": np.float32}[dtype]), np.float32)


def narrow(values: Array, dtype: str) -> Array:
    """Return float32 numbers rounded to a dtype, ties to even: BF16 as uint16, F16 as float16, or F32."""
    if dtype == "BF16":
        return (_bfloat16(values) >> np.uint32(16)).astype(np.uint16)
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(values, {"F16": np.float16, "F32": np.float32}[dtype])


def _bfloat16(values: Array) -> npt.NDArray[np.uint32]:
    """Return float32 numbers as bits of which the upper half is BF16, ties to even, in little memory."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    near = bits >> np.uint32(16)
    near &= np.uint32(1)
    near += np.uint32(0x7FFF)
    near += bits
    if (unknown := np.isnan(bits.view(np.float32))).any():
        near[unknown] = 0x7FC00000
    return near


def converted(values: Array, found: str, wanted: str) -> Array:
    """Return float32 numbers that were widened from a dtype, rounded to another, as float32."""
    return values if wanted in (found, "F32") else rounded(values, wanted)


def rounded(values: Array, dtype: str) -> npt.NDArray[np.float32]:
    """Return float32 numbers rounded to what a dtype can hold, ties to even, as float32."""
    if dtype == "BF16":
        near = _bfloat16(values)
        near &= np.uint32(0xFFFF0000)
        return near.view(np.float32)
    return widen(narrow(values, dtype), dtype)


_FUSED = re.compile(r"_(?:blocks|scales)$")
"""What gpt-oss puts behind the names of fused experts."""


def layer_of(tensor: str) -> str:
    """Return the layer of a tensor that is no weight of a base: what stands before `.weight`, or else the last dot."""
    layer, dot, _ = tensor.rpartition(".weight.")
    if dot:
        return layer
    return _FUSED.sub("", tensor) if _FUSED.search(tensor) else tensor.rpartition(".")[0]


def layers_of(tensors: Mapping[str, Spec]) -> dict[str, dict[str, Spec]]:
    """Return tensors by layer and suffix."""
    layers: dict[str, dict[str, Spec]] = {}
    for name, spec in tensors.items():
        layer = layer_of(name)
        layers.setdefault(layer, {})[name.removeprefix(layer).removeprefix(".")] = spec
    return layers


def holds_codes(layer: Mapping[str, Spec]) -> bool:
    """Say whether any tensor of a layer holds other numbers than floats of a model."""
    return any(spec.dtype not in FLOATS for spec in layer.values())


def named(layer: str, suffix: str) -> str:
    """Return the name of a layer's tensor."""
    return f"{layer}{'' if suffix.startswith('_') else '.'}{suffix}"


def confirm_keys(config: Mapping[str, Any], known: str) -> None:
    """Raise ValueError for a key that says something and is none of the `known`, words in a text."""
    for key in sorted(config.keys() - {*known.split()}):
        if config[key]:
            raise ValueError(f"{key!r:.80} {config[key]!r:.80}")


class Declaration(Protocol):
    """What a configuration says of every layer, once it was read and understood."""

    def codec(self, layer: str) -> Codec | None:
        """Return how a layer is declared to be stored, None for a float one.

        Raises ValueError, which says what is not modelled, where that is declared.
        """
