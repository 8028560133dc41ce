"""Where each tensor of a checkpoint comes from: a copy of base rows, or a linear layer packed from them.

A fused expert tensor of the base, [experts, rows, in], may be split in the checkpoint, one expert and projection at
a time. Every row of the base must be used exactly once, and nothing may be left without an origin.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from requant.inventory import PACKED
from requant.packing import PER_WORD
from requant.safetensors import Spec
from requant.weights.tally import Finding

_EXPERT = re.compile(r"(.+\.mlp\.experts)\.(0|[1-9]\d*)\.(gate|up|down)_proj")
GROUPS = (16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Piece:
    """Rows `first` to `last` of a base tensor seen as [rows, columns], and what the checkpoint has of them.

    `group` inputs share a scale; 0 where the rows are copied. `name` is the layer's, or the copied tensor's.
    """

    name: str
    base: str
    first: int
    last: int
    columns: int
    group: int


def lineage(found: Mapping[str, Spec], base: Mapping[str, Spec]) -> tuple[list[Piece], list[Finding]]:
    """Trace every tensor of a checkpoint to the base; return the pieces in the base's order, and what does not fit."""
    pieces: list[Piece] = []
    faults: list[Finding] = []
    layers = {name.rpartition(".")[0] for name in found if name.rpartition(".")[2] in PACKED}
    for layer in sorted(layers):
        traced = _packed(layer, found, base)
        (pieces if isinstance(traced, Piece) else faults).append(traced)  # type: ignore[arg-type]
    for name, spec in found.items():
        if name.rpartition(".")[2] not in PACKED:
            copied = _copied(name, spec, base)
            (pieces if isinstance(copied, Piece) else faults).append(copied)  # type: ignore[arg-type]
    order = {name: number for number, name in enumerate(base)}
    pieces.sort(key=lambda piece: (order[piece.base], piece.first, piece.name))
    return pieces, faults + list(_coverage(pieces, base, {each.tensor for each in faults}))


def _packed(layer: str, found: Mapping[str, Spec], base: Mapping[str, Spec]) -> Piece | Finding:
    for suffix in PACKED:
        if f"{layer}.{suffix}" not in found:
            return Finding("missing tensor", f"{layer}.{suffix}", detail="the layer's other packed tensors are there")
    where = origin_rows(layer, base)
    if where is None:
        return Finding("no origin", f"{layer}.qweight", detail="the base has no such layer")
    tensor, first, last = where
    rows, columns = last - first, base[tensor].shape[-1]
    groups = found[f"{layer}.scales"].shape[0] if found[f"{layer}.scales"].shape else 0
    group = next((each for each in GROUPS if -(-columns // each) == groups), 0)
    for suffix, spec in {
        "qweight": Spec("I32", (columns // PER_WORD, rows)),
        "qzeros": Spec("I32", (groups, rows // PER_WORD)),
        "scales": Spec("F16", (groups, rows)),
    }.items():
        if found[f"{layer}.{suffix}"] != spec or not (group and rows and columns) or columns % PER_WORD:
            detail = f"found {_text(found[f'{layer}.{suffix}'])}, the base's {rows} x {columns} gives {_text(spec)}"
            return Finding("wrong shape", f"{layer}.{suffix}", detail=detail)
    return Piece(layer, tensor, first, last, columns, group)


def _copied(name: str, spec: Spec, base: Mapping[str, Spec]) -> Piece | Finding:
    if name in base:
        if spec != base[name]:
            return Finding("wrong shape", name, detail=f"found {_text(spec)}, the base has {_text(base[name])}")
        columns = spec.shape[-1] if len(spec.shape) > 1 else spec.size
        return Piece(name, name, 0, _rows(spec), columns, 0)
    where = origin_rows(name.removesuffix(".weight"), base) if name.endswith(".weight") else None
    if where is None:
        return Finding("no origin", name, detail="the base has no tensor of this name")
    tensor, first, last = where
    columns = base[tensor].shape[-1]
    if spec != Spec(base[tensor].dtype, (last - first, columns)):
        return Finding("wrong shape", name, detail=f"found {_text(spec)}, {tensor} gives {last - first} x {columns}")
    return Piece(name, tensor, first, last, columns, 0)


def origin_rows(layer: str, base: Mapping[str, Spec]) -> tuple[str, int, int] | None:
    """Return the base tensor that a linear layer's weight lies in, and its rows there."""
    whole = base.get(f"{layer}.weight")
    if whole is not None:
        return (f"{layer}.weight", 0, whole.shape[0]) if len(whole.shape) == 2 else None
    if not (match := _EXPERT.fullmatch(layer)):
        return None
    prefix, expert, projection = match[1], int(match[2]), match[3]
    tensor = f"{prefix}.{'down' if projection == 'down' else 'gate_up'}_proj"
    fused = base.get(tensor)
    if fused is None or len(fused.shape) != 3 or expert >= fused.shape[0]:
        return None
    rows = fused.shape[1]
    if projection == "down":
        return tensor, expert * rows, (expert + 1) * rows
    first = expert * rows + (rows // 2 if projection == "up" else 0)
    return tensor, first, first + rows // 2


def _coverage(pieces: list[Piece], base: Mapping[str, Spec], known: set[str]) -> Iterator[Finding]:
    used: dict[str, list[Piece]] = {name: [] for name in base}
    for piece in pieces:
        used[piece.base].append(piece)
    for name, spec in base.items():
        rows = _rows(spec)
        ends = [(0, 0, ""), *((piece.first, piece.last, piece.name) for piece in used[name]), (rows, rows, "")]
        for (_, last, before), (first, _, after) in pairwise(ends):
            if first < last:
                yield Finding("used twice", after, detail=f"{name}, rows {first} to {last}, is also in {before}")
            elif first > last and name not in known:
                yield Finding("not in the checkpoint", name, detail=_gap(spec, last, first))


def _gap(spec: Spec, first: int, last: int) -> str:
    if len(spec.shape) != 3 or (first, last) == (0, _rows(spec)):
        return f"rows {first} to {last} of {_rows(spec)}"
    return f"rows {first} to {last}: experts {first // spec.shape[1]} to {(last - 1) // spec.shape[1]}"


def _rows(spec: Spec) -> int:
    return math.prod(spec.shape[:-1]) if len(spec.shape) > 1 else 1


def _text(spec: Spec) -> str:
    return f"{spec.dtype} {list(spec.shape)}"
