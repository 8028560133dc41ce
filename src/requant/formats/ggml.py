"""The blocks in which ggml stores rows: their bytes, and what they mean.

A row is cut into blocks of 32 weights, or super-blocks of 256, and the bytes of each hold its codes and scales.
Source: ggml-common.h (`block_*`) and `dequantize_row_*` of ggml-quants.c, ggml 0.15.3. Little-endian; `d` and `m` are
float16. `Fields` are what the bytes hold, taken apart; `pack` and `unpack` are inverse of one another for every block.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from requant.checkpoint.gguf import BLOCKS
from requant.checkpoint.safetensors import Spec
from requant.formats.codec import Array, Arrays, Part, widen

FLOATS = ("F32", "F16", "BF16")
E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
"""Twice the numbers of MXFP4's codes, `kvalues_mxfp4`."""
NONLINEAR = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
"""What the codes of IQ4_NL and IQ4_XS mean, `kvalues_iq4nl`."""

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def _none() -> Bytes:
    return np.empty((0, 0), np.uint8)


@dataclass(frozen=True)
class Fields:
    """What blocks hold: `codes` uint8 [n, elements] and, by its name in ggml, whatever they are multiplied by.

    `d` and `m` are bits of float16, uint16 [n], or of MXFP4 an exponent, uint8 [n]; `scales` and `mins` are uint8
    [n, groups], as they stand in the bytes: Q6_K's are int8's bits, Q3_K's and IQ4_XS's are 32 more than they mean.
    """

    codes: Bytes
    d: Array
    m: Array = field(default_factory=_none)
    scales: Bytes = field(default_factory=_none)
    mins: Bytes = field(default_factory=_none)


@dataclass(frozen=True)
class Ggml:
    """Rows of blocks of one type, or of floats, by ggml's name for it."""

    type: str

    @property
    def name(self) -> str:
        """What people read."""
        return f"ggml {self.type}"

    @property
    def align(self) -> int:
        """Every row stands for itself."""
        return 1

    def parts(self, rows: int, columns: int, dtype: str) -> Mapping[str, Part]:  # noqa: ARG002 (blocks tell no base from another)
        """Return the one tensor: U8 [rows, bytes of a row], or floats [rows, columns]."""
        if self.type in FLOATS:
            return {"weight": Part(Spec(self.type, (rows, columns)))}
        if self.type not in LAYOUTS:
            raise ValueError(f"blocks of {self.type}")
        block = BLOCKS[self.type]
        if columns % block.elements:
            raise ValueError(f"{columns} columns are no multiple of {block.elements}, a block of {self.type}")
        return {"weight": Part(Spec("U8", (rows, columns // block.elements * block.nbytes)))}

    def decode(self, stored: Arrays, columns: int) -> Array:
        """Return float32 [rows, columns], as `dequantize_row_*` computes it without contraction."""
        data = stored["weight"]
        with np.errstate(all="ignore"):
            if self.type in FLOATS:
                return widen(data, self.type)
            return LAYOUTS[self.type].decode(unpack(self.type, data)).reshape(-1, columns)


def unpack(kind: str, data: Array) -> Fields:
    """Take blocks uint8 [rows, bytes of a row] apart."""
    return LAYOUTS[kind].unpack(np.ascontiguousarray(data, np.uint8).reshape(-1, BLOCKS[kind].nbytes))


def pack(kind: str, fields: Fields) -> Bytes:
    """Return the bytes of blocks, uint8 [n, bytes of a block]."""
    return LAYOUTS[kind].pack(fields)


@dataclass(frozen=True)
class _Layout:
    pack: Callable[[Fields], Bytes]
    unpack: Callable[[Bytes], Fields]
    decode: Callable[[Fields], Floats]


def _numbers(d: Array) -> Floats:
    return d.view(np.float16).astype(np.float32)[:, None]


def _bytes(d: Array) -> Bytes:
    return np.ascontiguousarray(d, np.uint16)[:, None].view(np.uint8)


def _halves(data: Bytes) -> npt.NDArray[np.uint16]:
    return np.ascontiguousarray(data).view(np.uint16)[:, 0]


def _weave(codes: Bytes, bits: int, run: int) -> Bytes:
    """Put codes of 1, 2 or 4 bits into bytes: of `run` bytes, byte i holds the codes i, i + run, ... , lowest first."""
    count = 8 // bits
    grouped = codes.reshape(len(codes), -1, count, run)
    out = np.zeros((len(codes), grouped.shape[1], run), np.uint8)
    for k in range(count):
        out |= grouped[:, :, k] << np.uint8(bits * k)
    return out.reshape(len(codes), -1)


def _unweave(data: Bytes, bits: int, run: int) -> Bytes:
    grouped = data.reshape(len(data), -1, 1, run)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return np.asarray((grouped >> shifts) & np.uint8((1 << bits) - 1)).reshape(len(data), -1)


def _spread(values: Floats, codes: Bytes) -> Floats:
    """Repeat what groups have, [n, groups], for each of their elements."""
    return np.repeat(values, codes.shape[1] // values.shape[1], axis=1)


# Blocks of 32: a scale, of some a least weight, and codes, the fifth bits of which stand apart.


def _small(five: bool, least: bool, zero: int) -> _Layout:
    """Q4_0, Q4_1, Q5_0 and Q5_1: `d`, then `m` if codes are above a least weight, fifth bits, and codes."""
    first = 4 if least else 2

    def packed(fields: Fields) -> Bytes:
        found = [_bytes(fields.d)]
        if least:
            found.append(_bytes(fields.m))
        if five:
            found.append(np.packbits(fields.codes >> np.uint8(4), axis=1, bitorder="little"))
        return np.hstack([*found, _weave(fields.codes & np.uint8(15), 4, 16)])

    def unpacked(data: Bytes) -> Fields:
        codes = _unweave(data[:, first + 4 * five :], 4, 16)
        if five:
            codes |= np.unpackbits(data[:, first : first + 4], axis=1, bitorder="little") << np.uint8(4)
        return Fields(codes, _halves(data[:, :2]), _halves(data[:, 2:4]) if least else _none())

    def decoded(fields: Fields) -> Floats:
        values = (fields.codes.astype(np.float32) - np.float32(zero)) * _numbers(fields.d)
        return values + _numbers(fields.m) if least else values

    return _Layout(packed, unpacked, decoded)


_Q8_0 = _Layout(
    lambda fields: np.hstack([_bytes(fields.d), fields.codes]),
    lambda data: Fields(data[:, 2:], _halves(data[:, :2])),
    lambda fields: fields.codes.view(np.int8).astype(np.float32) * _numbers(fields.d),
)


def e8m0_half(exponents: Array) -> Floats:
    """Return 2^(e - 128) of exponents uint8: half of what they mean, to be multiplied by `E2M1`."""
    wide = exponents.astype(np.uint32)
    bits = np.where(wide < 2, np.uint32(0x200000) << wide, (np.maximum(wide, 1) - 1) << 23)
    return bits.astype(np.uint32).view(np.float32)


_MXFP4 = _Layout(
    lambda fields: np.hstack([fields.d[:, None], _weave(fields.codes, 4, 16)]),
    lambda data: Fields(_unweave(data[:, 1:], 4, 16), data[:, 0].copy()),
    lambda fields: E2M1[fields.codes] * e8m0_half(fields.d)[:, None],
)

_IQ4_NL = _Layout(
    lambda fields: np.hstack([_bytes(fields.d), _weave(fields.codes, 4, 16)]),
    lambda data: Fields(_unweave(data[:, 2:], 4, 16), _halves(data[:, :2])),
    lambda fields: _numbers(fields.d) * NONLINEAR[fields.codes],
)

# Super-blocks of 256: groups of 16 or 32, whose scales are codes too.


def _above(fields: Fields) -> Floats:
    """Q2_K, Q4_K and Q5_K: d * scale * code - m * min."""
    scales = _numbers(fields.d) * fields.scales.astype(np.float32)
    mins = _numbers(fields.m) * fields.mins.astype(np.float32)
    return _spread(scales, fields.codes) * fields.codes.astype(np.float32) - _spread(mins, fields.codes)


def _q2_k_pack(fields: Fields) -> Bytes:
    scales = fields.scales | fields.mins << np.uint8(4)
    return np.hstack([scales, _weave(fields.codes, 2, 32), _bytes(fields.d), _bytes(fields.m)])


def _q2_k_unpack(data: Bytes) -> Fields:
    scales = data[:, :16]
    codes = _unweave(data[:, 16:80], 2, 32)
    return Fields(codes, _halves(data[:, 80:82]), _halves(data[:, 82:]), scales & np.uint8(15), scales >> np.uint8(4))


def _q3_k_pack(fields: Fields) -> Bytes:
    high = _weave(fields.codes >> np.uint8(2), 1, 32)
    scales = [_weave(fields.scales & np.uint8(15), 4, 8), _weave(fields.scales >> np.uint8(4), 2, 4)]
    return np.hstack([high, _weave(fields.codes & np.uint8(3), 2, 32), *scales, _bytes(fields.d)])


def _q3_k_unpack(data: Bytes) -> Fields:
    codes = _unweave(data[:, 32:96], 2, 32) | _unweave(data[:, :32], 1, 32) << np.uint8(2)
    scales = _unweave(data[:, 96:104], 4, 8) | _unweave(data[:, 104:108], 2, 4) << np.uint8(4)
    return Fields(codes, _halves(data[:, 108:]), scales=scales)


def _q3_k_decode(fields: Fields) -> Floats:
    scales = _numbers(fields.d) * (fields.scales.astype(np.float32) - np.float32(32))
    return _spread(scales, fields.codes) * (fields.codes.astype(np.float32) - np.float32(4))


def _six_bits(scales: Bytes, mins: Bytes) -> Bytes:
    """Q4_K and Q5_K: eight scales and eight least weights of six bits, in twelve bytes (`get_scale_min_k4`)."""
    low, high = np.uint8(15), np.uint8(4)
    first = scales[:, :4] | scales[:, 4:] >> high << np.uint8(6)
    second = mins[:, :4] | mins[:, 4:] >> high << np.uint8(6)
    return np.hstack([first, second, scales[:, 4:] & low | (mins[:, 4:] & low) << high])


def _of_six_bits(data: Bytes) -> tuple[Bytes, Bytes]:
    first, second, third = data[:, :4], data[:, 4:8], data[:, 8:]
    low, six, high = np.uint8(15), np.uint8(63), np.uint8(4)
    scales = np.hstack([first & six, third & low | first >> np.uint8(6) << high])
    return scales, np.hstack([second & six, third >> high | second >> np.uint8(6) << high])


def _q4_k_pack(fields: Fields) -> Bytes:
    scales = _six_bits(fields.scales, fields.mins)
    return np.hstack([_bytes(fields.d), _bytes(fields.m), scales, _weave(fields.codes, 4, 32)])


def _q4_k_unpack(data: Bytes) -> Fields:
    codes = _unweave(data[:, 16:], 4, 32)
    return Fields(codes, _halves(data[:, :2]), _halves(data[:, 2:4]), *_of_six_bits(data[:, 4:16]))


def _q5_k_pack(fields: Fields) -> Bytes:
    scales = _six_bits(fields.scales, fields.mins)
    high, low = _weave(fields.codes >> np.uint8(4), 1, 32), _weave(fields.codes & np.uint8(15), 4, 32)
    return np.hstack([_bytes(fields.d), _bytes(fields.m), scales, high, low])


def _q5_k_unpack(data: Bytes) -> Fields:
    codes = _unweave(data[:, 48:], 4, 32) | _unweave(data[:, 16:48], 1, 32) << np.uint8(4)
    return Fields(codes, _halves(data[:, :2]), _halves(data[:, 2:4]), *_of_six_bits(data[:, 4:16]))


def _q6_k_pack(fields: Fields) -> Bytes:
    low, high = _weave(fields.codes & np.uint8(15), 4, 64), _weave(fields.codes >> np.uint8(4), 2, 32)
    return np.hstack([low, high, fields.scales, _bytes(fields.d)])


def _q6_k_unpack(data: Bytes) -> Fields:
    codes = _unweave(data[:, :128], 4, 64) | _unweave(data[:, 128:192], 2, 32) << np.uint8(4)
    return Fields(codes, _halves(data[:, 208:]), scales=data[:, 192:208].copy())


def _q6_k_decode(fields: Fields) -> Floats:
    scales = _numbers(fields.d) * fields.scales.view(np.int8).astype(np.float32)
    return _spread(scales, fields.codes) * (fields.codes.astype(np.float32) - np.float32(32))


def _iq4_xs_pack(fields: Fields) -> Bytes:
    high = _weave(fields.scales >> np.uint8(4), 2, 1)
    low = fields.scales & np.uint8(15)
    return np.hstack([_bytes(fields.d), high, _weave(low, 4, 1), _weave(fields.codes, 4, 16)])


def _iq4_xs_unpack(data: Bytes) -> Fields:
    scales = _unweave(data[:, 4:8], 4, 1) | _unweave(data[:, 2:4], 2, 1) << np.uint8(4)
    return Fields(_unweave(data[:, 8:], 4, 16), _halves(data[:, :2]), scales=scales)


def _iq4_xs_decode(fields: Fields) -> Floats:
    scales = _numbers(fields.d) * (fields.scales.astype(np.float32) - np.float32(32))
    return _spread(scales, fields.codes) * NONLINEAR[fields.codes]


LAYOUTS: Mapping[str, _Layout] = {
    "Q4_0": _small(five=False, least=False, zero=8),
    "Q4_1": _small(five=False, least=True, zero=0),
    "Q5_0": _small(five=True, least=False, zero=16),
    "Q5_1": _small(five=True, least=True, zero=0),
    "Q8_0": _Q8_0,
    "MXFP4": _MXFP4,
    "IQ4_NL": _IQ4_NL,
    "Q2_K": _Layout(_q2_k_pack, _q2_k_unpack, _above),
    "Q3_K": _Layout(_q3_k_pack, _q3_k_unpack, _q3_k_decode),
    "Q4_K": _Layout(_q4_k_pack, _q4_k_unpack, _above),
    "Q5_K": _Layout(_q5_k_pack, _q5_k_unpack, _above),
    "Q6_K": _Layout(_q6_k_pack, _q6_k_unpack, _q6_k_decode),
    "IQ4_XS": _Layout(_iq4_xs_pack, _iq4_xs_unpack, _iq4_xs_decode),
}
"""By ggml's name, the blocks that are modelled."""
