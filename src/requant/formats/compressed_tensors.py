"""compressed-tensors: how layers are stored, by `config_groups`. Read in 0.9.4 to 0.20.1, and vLLM at 008014e.

A code q of a weight [out, in] means (q - zero point) * scale, where what shares a scale is said by the strategy: the
tensor, a channel (an output), a group of inputs, or a block of both. `pack-quantized` has q of b bits, plus 2^(b-1),
along `in` in words `weight_packed` int32, the lowest bits first (compressors/pack_quantized/helpers.py): from 0.18.0 on
as one stream of bits, before that as whole codes in each word, which is the same but for 3, 5, 6 and 7 bits;
`int-quantized`, `float-quantized` and `naive-quantized` have `weight`, int8 or F8_E4M3, as it is. Of floats of 4 bits
(E2M1), two in a byte of `weight_packed`, `nvfp4-pack-quantized` has a scale F8_E4M3 per 16 inputs, which is divided by
`weight_global_scale`, and `mxfp4-pack-quantized` has the exponent of one per 32, plus 127, as `mxfp8-quantized` has
beside a `weight` F8_E4M3, and `mxfp6-pack-quantized` beside floats of 6 bits (E2M3), four of them in three bytes.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from requant.checkpoint.safetensors import Spec
from requant.formats import streams
from requant.formats.codec import Array, Arrays, Codec, Integers, Part, confirm_keys
from requant.formats.floats import E2M1, E2M3, E4M3, dtype_of, e8m0, looked_up, rounded, widened
from requant.formats.grid import Grid, grid_of
from requant.formats.observers import USUAL, Search, search_of
from requant.formats.targets import Targets, targets

PACKED, SCALE, SHAPE, ZERO, ORDER = "weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx"
GLOBAL = "weight_global_scale"
KEYS = "quant_method config_groups format ignore kv_cache_scheme quantization_status version sparsity_config "
KEYS += "transform_config global_compression_ratio"
"""Of a configuration: those that are read, or change nothing of weights."""
MX_FORMS = {4: "mxfp4-pack-quantized", 6: "mxfp6-pack-quantized", 8: "mxfp8-quantized"}
"""By bits."""
FLOATS = ("BF16", "F16", "F32")
"""What bases are in; scales are alike."""


@dataclass(frozen=True)
class Packed:
    """`pack-quantized`: codes of 2 to 8 bits in words; `ordered` where `weight_g_idx` says each input's group.

    Words have whole codes where they are `padded`, which makes a difference with 3, 5, 6 and 7 bits alone.
    """

    bits: int
    grid: Grid
    symmetric: bool = True
    ordered: bool = False
    inputs: tuple[str, ...] = ()
    search: Search = USUAL
    padded: bool = False

    @property
    def name(self) -> str:
        """What people read."""
        kind = f"{self.bits} bits{', whole codes in words' if self.padded else ''}"
        return _name("pack-quantized", kind, self.grid, self.symmetric)

    @property
    def align(self) -> int:
        """As many outputs as share a word of zero points."""
        return self.grid.align if self.symmetric else self.several

    @property
    def several(self) -> int:
        """How many codes fill whole words."""
        return 32 // self.bits if self.padded else math.lcm(self.bits, 32) // self.bits

    def pack(self, codes: Array) -> npt.NDArray[np.int32]:
        """Pack codes uint8 [rows, n] into words int32 [rows, m]; what they leave of the last is 0."""
        return (streams.pack_whole if self.padded else streams.pack)(codes, self.bits).view(np.int32)

    def unpack(self, words: Array, count: int) -> npt.NDArray[np.uint8]:
        """Unpack words int32 [rows, m] into codes uint8 [rows, count]."""
        return (streams.unpack_whole if self.padded else streams.unpack)(words, self.bits, count)

    def _words(self, count: int) -> int:
        """Return how many words so many codes are."""
        return -(-count // self.several) if self.padded else -(-count * self.bits // 32)

    def parts(self, rows: int, columns: int, dtype: str) -> Mapping[str, Part]:
        """Return the tensors of a weight. Raises ValueError for an impossible one."""
        _checked(dtype)
        found = {
            PACKED: Part(Spec("I32", (rows, self._words(columns)))),
            SCALE: self.grid.part(dtype, rows, columns),
            SHAPE: Part(Spec("I64", (2,)), 0, np.array([rows, columns], np.int64)),
        }
        if not self.symmetric and self.grid.height is None:
            found[ZERO] = Part(Spec("I8", (1,)), 0)
        elif not self.symmetric:
            groups = self.grid.shape(rows, columns)[1]
            found[ZERO] = Part(Spec("I32", (self._words(rows), groups)), self.several, lines=self._words(self.several))
        if self.ordered:
            found[ORDER] = Part(Spec("I32", (columns,)), 0)
        return found | _inputs(self.inputs, dtype)

    def zeros(self, stored: Arrays, rows: int) -> npt.NDArray[np.float32]:
        """Return the zero points of some rows, -2^(bits-1) to 2^(bits-1) - 1, float32, in the shape of scales."""
        scales = stored[SCALE]
        if self.symmetric:
            return np.zeros(np.atleast_2d(scales).shape, np.float32)
        if self.grid.height is None:
            return stored[ZERO].reshape(1, 1).astype(np.float32)
        codes = self.unpack(np.ascontiguousarray(stored[ZERO].T), rows).T
        return np.asarray(codes, np.float32) - np.float32(1 << self.bits - 1)

    def decode(self, stored: Arrays, columns: int) -> Array:
        """Return weights as compressed-tensors decompresses them: in the dtype of scales."""
        rows = stored[PACKED].shape[0]
        codes = self.unpack(stored[PACKED], columns).astype(np.float32) - np.float32(1 << self.bits - 1)
        zeros, scales = self.zeros(stored, rows), widened(stored[SCALE])
        if self.ordered:
            order = np.clip(stored[ORDER], 0, scales.shape[-1] - 1)
            return _product(codes, zeros[:, order], scales[:, order], stored)
        return _product(codes, self.grid.spread(zeros, rows, columns), self.grid.spread(scales, rows, columns), stored)

    def integers(self, stored: Arrays, columns: int) -> Integers | None:
        """Return some rows as whole numbers from 0; None where inputs are in an order of their own."""
        if self.ordered:
            return None
        codes, middle = self.unpack(stored[PACKED], columns), np.float32(1 << self.bits - 1)
        zeros = self.zeros(stored, len(codes)) + middle
        return _integers(codes, zeros, stored[SCALE], self.grid, self.bits)


@dataclass(frozen=True)
class Plain:
    """A byte per weight: `int-quantized`, `float-quantized` (F8_E4M3) or, of either kind, `naive-quantized`."""

    format: str
    bits: int
    float: bool
    grid: Grid
    symmetric: bool = True
    inputs: tuple[str, ...] = ()
    search: Search = USUAL

    @property
    def name(self) -> str:
        """What people read."""
        return _name(self.format, "FP8" if self.float else f"{self.bits} bits", self.grid, self.symmetric)

    @property
    def align(self) -> int:
        """As many outputs as share a scale."""
        return self.grid.align

    def parts(self, rows: int, columns: int, dtype: str) -> Mapping[str, Part]:
        """Return the tensors of a weight. Raises ValueError for an impossible one."""
        _checked(dtype)
        found = {
            "weight": Part(Spec("F8_E4M3" if self.float else "I8", (rows, columns))),
            SCALE: self.grid.part(dtype, rows, columns),
        }
        if not self.symmetric:
            found[ZERO] = self.grid.part("I8", rows, columns)
        return found | _inputs(self.inputs, dtype)

    def zeros(self, stored: Arrays, rows: int) -> npt.NDArray[np.float32]:
        """Return the zero points of some rows as float32, in the shape of scales."""
        del rows
        shape = np.atleast_2d(stored[SCALE]).shape
        if self.symmetric:
            return np.zeros(shape, np.float32)
        return stored[ZERO].reshape(shape).astype(np.float32)

    def decode(self, stored: Arrays, columns: int) -> Array:
        """Return weights as compressed-tensors decompresses them: in the dtype of scales."""
        rows = stored["weight"].shape[0]
        codes = E4M3[stored["weight"].view(np.uint8)] if self.float else stored["weight"].astype(np.float32)
        zeros, scales = self.zeros(stored, rows), widened(stored[SCALE])
        return _product(codes, self.grid.spread(zeros, rows, columns), self.grid.spread(scales, rows, columns), stored)

    def integers(self, stored: Arrays, columns: int) -> Integers | None:
        """Return some rows as whole numbers from 0; None for floats, and where several outputs share a scale."""
        del columns
        if self.float or self.grid.height not in (None, 1):
            return None
        middle = 1 << self.bits - 1
        codes = (stored["weight"].astype(np.int16) + np.int16(middle)).astype(np.uint8)
        return _integers(
            codes, self.zeros(stored, len(codes)) + np.float32(middle), stored[SCALE], self.grid, self.bits
        )


@dataclass(frozen=True)
class NVFP4:
    """`nvfp4-pack-quantized`."""

    inputs: tuple[str, ...] = ()
    search: Search = USUAL
    name = "nvfp4-pack-quantized, groups of 16"
    align = 1
    grid = Grid(1, 16)

    def parts(self, rows: int, columns: int, dtype: str) -> Mapping[str, Part]:
        """Return the tensors of a weight. Raises ValueError for an impossible one."""
        _checked(dtype)
        return {
            SCALE: self.grid.part("F8_E4M3", rows, columns),
            PACKED: Part(Spec("U8", (rows, columns // 2))),
            GLOBAL: Part(Spec("F32", (1,)), 0),
        } | _inputs(self.inputs, dtype)

    def decode(self, stored: Arrays, columns: int) -> Array:
        """Return weights as compressed-tensors decompresses them: in float32, rounded to BF16."""
        codes = looked_up(E2M1, stored[PACKED])
        with np.errstate(all="ignore"):
            scales = E4M3[stored[SCALE].view(np.uint8)] / stored[GLOBAL]
            return rounded(codes * self.grid.spread(scales, len(codes), columns), "BF16")


@dataclass(frozen=True)
class MX:
    """`mxfp4-pack-quantized`, `mxfp6-pack-quantized` and `mxfp8-quantized`."""

    bits: int
    inputs: tuple[str, ...] = ()
    search: Search = USUAL
    align = 1
    grid = Grid(1, 32)

    @property
    def name(self) -> str:
        """What people read."""
        return f"{MX_FORMS[self.bits]}, {self.grid}"

    @property
    def codes(self) -> str:
        """The tensor that has the codes."""
        return "weight" if self.bits == 8 else PACKED

    def parts(self, rows: int, columns: int, dtype: str) -> Mapping[str, Part]:
        """Return the tensors of a weight. Raises ValueError for an impossible one."""
        _checked(dtype)
        codes = Spec("F8_E4M3" if self.bits == 8 else "U8", (rows, columns * self.bits // 8))
        return {self.codes: Part(codes), SCALE: self.grid.part("U8", rows, columns)} | _inputs(self.inputs, dtype)

    def decode(self, stored: Arrays, columns: int) -> Array:
        """Return weights as compressed-tensors decompresses them: in BF16."""
        raw = stored[self.codes].view(np.uint8)
        if self.bits == 6:
            codes = E2M3[streams.unpack(raw.view("<u4"), 6, columns)]
        else:
            codes = E4M3[raw] if self.bits == 8 else looked_up(E2M1, raw)
        with np.errstate(all="ignore"):
            return rounded(codes * self.grid.spread(e8m0(stored[SCALE]), len(codes), columns), "BF16")


Observed = Packed | Plain | NVFP4 | MX
"""Whose scales an observer may have searched for."""


def _integers(codes: Array, zeros: Array, scales: Array, grid: Grid, bits: int) -> Integers:
    wide = np.atleast_2d(widened(scales))
    return Integers(codes, zeros, wide, grid.width or codes.shape[1], (1 << bits) - 1)


def _product(codes: Array, zeros: Array, scales: Array, stored: Arrays) -> Array:
    with np.errstate(all="ignore"):
        return rounded((codes - zeros) * scales, dtype_of(stored[SCALE]))


def _name(form: str, kind: str, grid: Grid, symmetric: bool) -> str:
    return f"{form}, {kind}, {grid}" + ("" if symmetric else ", asymmetric")


def _checked(dtype: str) -> None:
    if dtype not in FLOATS:
        raise ValueError(f"a base in {dtype}")


def _inputs(names: tuple[str, ...], dtype: str) -> dict[str, Part]:
    dtypes = {"input_scale": dtype, "input_zero_point": "I8", "input_global_scale": "F32"}
    return {name: Part(Spec(dtypes[name], (1,)), 0) for name in names}


@dataclass(frozen=True)
class CompressedTensors:
    """A configuration: schemes by target, and what is ignored."""

    schemes: Mapping[str, Mapping[str, Any]]
    order: Targets
    ignore: Targets

    def codec(self, layer: str) -> Codec | None:
        """Return how a linear layer is stored; ValueError for what is not modelled.

        As vLLM finds it (`find_matched_target`): by name or expression, else by class, in the order of targets over all
        groups; a class is meant by any part of its name.
        """
        if self.ignore.first(layer):
            return None
        target = self.order.first(layer) or self._by_class()
        return None if target is None else _codec(self.schemes[target])

    def _by_class(self) -> str | None:
        for target in self.schemes:
            if target in self.order.names and target.lower() in "linear":
                return target
        return self.order.first("Linear")


def read(config: Mapping[str, Any]) -> CompressedTensors:
    """Read a `quantization_config`. Raises ValueError for what is not modelled."""
    confirm_keys(config, KEYS)
    groups = config.get("config_groups")
    if not isinstance(groups, dict):
        raise ValueError("`config_groups` is no object")
    if config.get("transform_config"):
        raise ValueError("weights were transformed (`transform_config`)")
    sparsity = config.get("sparsity_config")
    if sparsity and not (isinstance(sparsity, dict) and sparsity.get("format", "dense") == "dense"):
        raise ValueError("weights are sparse (`sparsity_config`)")
    if (status := config.get("quantization_status", "compressed")) != "compressed":
        raise ValueError(f"`quantization_status` is {status!r:.40}, not compressed")
    schemes: dict[str, Mapping[str, Any]] = {}
    for group in groups.values():
        if not isinstance(group, dict) or not _strings(group.get("targets")):
            raise ValueError("a group of `config_groups` that names no scheme and targets")
        scheme = {**group, "format": group.get("format") or config.get("format")}
        schemes |= dict.fromkeys(group["targets"], scheme)
    ignore = config.get("ignore") or []
    if not _strings(ignore):
        raise ValueError("`ignore` is no list of names")
    return CompressedTensors(schemes, targets(schemes), targets(ignore))


def _strings(found: Any) -> bool:
    return isinstance(found, list) and all(isinstance(each, str) for each in found)


def _codec(scheme: Mapping[str, Any]) -> Codec | None:
    weights, form = scheme.get("weights"), scheme["format"]
    if weights is None:
        return None
    if not isinstance(weights, dict):
        raise ValueError("`weights` of a scheme is no object")
    if scheme.get("output_activations"):
        raise ValueError("outputs are quantized")
    bits, kind, symmetric = weights.get("num_bits", 8), weights.get("type", "int"), weights.get("symmetric", True)
    if type(bits) is not int or type(symmetric) is not bool or kind not in ("int", "float"):
        raise ValueError(f"weights of {bits!r:.20} bits, {kind!r:.20}, symmetric {symmetric!r:.20}")
    if weights.get("dynamic"):
        raise ValueError("weights are quantized while the model runs")
    grid, inputs = _grid(weights), _activations(scheme.get("input_activations"))
    if form == "pack-quantized" and kind == "int" and 2 <= bits <= 8 and grid.height in (None, 1):
        _plain_scales(weights)
        ordered = weights.get("actorder") in ("group", "dynamic", True)
        return Packed(bits, grid, symmetric, ordered, inputs, search_of(weights))
    if (
        (form in ("int-quantized", "naive-quantized") and kind == "int" and 2 <= bits <= 8)
        or (form in ("float-quantized", "naive-quantized") and kind == "float" and bits == 8 and symmetric)
    ):  # fmt: skip
        _plain_scales(weights)
        if weights.get("actorder") in ("group", "dynamic", True):
            raise ValueError(f"{form} with inputs in another order")
        return Plain(form, bits, kind == "float", grid, symmetric, inputs, search_of(weights))
    if kind == "float" and symmetric:
        said = str(weights.get("scale_dtype") or "").removeprefix("torch.")
        if form == "nvfp4-pack-quantized" and bits == 4 and grid == NVFP4.grid and said in ("", "float8_e4m3fn"):
            return NVFP4(inputs, search_of(weights))
        if bits in MX_FORMS and form == MX_FORMS[bits] and grid == MX.grid and said in ("", "uint8"):
            return MX(bits, inputs, search_of(weights))
    raise ValueError(
        f"the format {form!r:.40} with {'' if symmetric else 'a'}symmetric weights of type {kind}, {bits} bits, {grid}"
    )


def _grid(weights: Mapping[str, Any]) -> Grid:
    group, block, strategy = weights.get("group_size"), weights.get("block_structure"), weights.get("strategy")
    if isinstance(block, str) and re.fullmatch(r"\d{1,6}x\d{1,6}", block, re.ASCII):
        block = [int(each) for each in block.split("x")]
    if block is not None and not (
        isinstance(block, list) and len(block) == 2 and all(type(each) is int for each in block)
    ):
        raise ValueError(f"`block_structure` {block!r:.40}")
    if group is not None and type(group) is not int:
        raise ValueError(f"`group_size` {group!r:.40}")
    if strategy is None:
        strategy = "tensor" if group is None else "channel" if group == -1 else "group"
    return grid_of(str(strategy), group, (block[0], block[1]) if block else None)


def _activations(inputs: Any) -> tuple[str, ...]:
    """Return the tensors of a layer that say how its inputs are quantized: those that a calibration found."""
    if inputs is None:
        return ()
    if not isinstance(inputs, dict):
        raise ValueError("`input_activations` of a scheme is no object")
    dynamic, strategy = inputs.get("dynamic", False), inputs.get("strategy")
    if strategy == "tensor_group":
        return ("input_global_scale",) if dynamic in ("local", False) else ()
    if dynamic is True:
        return ()
    if dynamic is not False or strategy not in ("tensor", None):
        raise ValueError(f"inputs are quantized by {strategy!r:.40}, dynamic {dynamic!r:.20}")
    return ("input_scale",) if inputs.get("symmetric", True) is True else ("input_scale", "input_zero_point")


def _plain_scales(weights: Mapping[str, Any]) -> None:
    for key, usual in (("scale_dtype", ()), ("zp_dtype", ("torch.int8", "int8"))):
        if weights.get(key) is not None and weights[key] not in usual:
            raise ValueError(f"`{key}` {weights[key]!r:.40}")
