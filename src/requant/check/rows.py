"""Where a weight lies in the base: rows of a tensor, of fused or transposed experts, whatever files call them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from requant.checkpoint.safetensors import Spec
from requant.protocol import Source

_EXPERT = re.compile(r"(.+\.experts)\.(0|[1-9]\d*)\.(gate|up|down)_proj")
_MIXTRAL = {"gate": "w1", "down": "w2", "up": "w3"}
"""Mixtral's names for what others call gate, down and up (transformers, modeling_mixtral.py)."""
RENAMED = (".mlp.", ".block_sparse_moe.")
"""What transformers 5 calls Mixtral's block of experts, and what its files do."""


@dataclass(frozen=True)
class Rows:
    """Where a weight [last - first, columns] lies in a base tensor seen as [rows, columns].

    A `transposed` tensor [experts, columns, outputs] is seen as [experts * outputs, columns].
    """

    tensor: str
    first: int
    last: int
    columns: int
    transposed: bool = False


def as_planned(source: Source | None, base: Mapping[str, Spec]) -> Rows | None:
    """Return the rows that a source is, where it is rows of a tensor of the base or of its transposed matrices."""
    if source is None or source.interleaved or source.tensor not in base:
        return None
    shape = base[source.tensor].shape
    shape = (*shape, 1) if len(shape) == len(source.index) + 1 else shape  # a bias is a column
    rows, columns = shape[:-3:-1] if source.transposed else shape[-2:]
    place = 0
    for number, size in zip(source.index, shape, strict=False):
        place = place * size + number
    first, out = place * rows + source.part * (rows // source.parts), rows // source.parts
    return Rows(source.tensor, first, first + out, columns, source.transposed)


def source_rows(layer: str, base: Mapping[str, Spec], *, transposed: bool = False) -> Rows | None:
    """Return the base tensor that a linear layer's weight lies in, and its rows there.

    `transposed` says that halves of transposed experts have the names that others have, as AutoRound 0.12 means them.
    """
    fused = base.get(layer)
    if fused is not None and len(fused.shape) == 3:  # all experts of gpt-oss, whose weights lie [in, out]
        return Rows(layer, 0, fused.shape[0] * fused.shape[2], fused.shape[1], transposed=True)
    whole = base.get(f"{layer}.weight")
    if whole is not None:
        return Rows(f"{layer}.weight", 0, *whole.shape) if len(whole.shape) == 2 else None
    if not (match := _EXPERT.fullmatch(layer)):
        return None
    prefix, expert, projection = match[1], int(match[2]), match[3]
    named = base.get(other := f"{prefix.replace(*RENAMED)}.{expert}.{_MIXTRAL[projection]}.weight")
    if named is not None and len(named.shape) == 2:
        return Rows(other, 0, *named.shape)
    tensor = f"{prefix}.{'down' if projection == 'down' else 'gate_up'}_proj"
    fused = base.get(tensor)
    if fused is None or len(fused.shape) != 3 or expert >= fused.shape[0]:
        return None
    lies = not halves(prefix, base)
    if lies and not (transposed and halves(prefix, base, 2, 1)):
        return None
    rows, columns = fused.shape[:0:-1] if lies else fused.shape[1:]
    first, rows = _part(projection, expert, rows)
    return Rows(tensor, first, first + rows, columns, lies)


def _part(projection: str, expert: int, rows: int) -> tuple[int, int]:
    """Return the first row of an expert's projection in a fused tensor of `rows` per expert, and how many it has."""
    if projection == "down":
        return expert * rows, rows
    return expert * rows + (rows // 2 if projection == "up" else 0), rows // 2


def source_bias(name: str, base: Mapping[str, Spec], *, transposed: bool) -> Rows | None:
    """Return where the bias of an expert's layer lies in fused ones, [experts, outputs], seen as a column."""
    match = _EXPERT.fullmatch(name.removesuffix(".bias"))
    if not (transposed and match and name.endswith(".bias")):
        return None
    tensor = f"{match[1]}.{'down' if match[3] == 'down' else 'gate_up'}_proj_bias"
    fused = base.get(tensor)
    if fused is None or len(fused.shape) != 2 or int(match[2]) >= fused.shape[0]:
        return None
    first, rows = _part(match[3], int(match[2]), fused.shape[1])
    return Rows(tensor, first, first + rows, 1)


def halves(experts: str, base: Mapping[str, Spec], rows: int = 1, columns: int = 2) -> bool:
    """Say whether fused experts are gate above up, [experts, 2 * inner, hidden], and down [experts, hidden, inner].

    `rows` and `columns` are the axes that these are in.
    """
    both, down = (base.get(f"{experts}.{name}_proj") for name in ("gate_up", "down"))
    if both is None or down is None:
        return rows < columns
    if not len(both.shape) == len(down.shape) == 3:
        return False
    return (both.shape[rows], both.shape[columns]) == (2 * down.shape[columns], down.shape[rows])
