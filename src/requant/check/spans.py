"""Where each tensor of a checkpoint comes from: a copy of base rows, or a linear layer packed from them.

A fused expert tensor of the base, [experts, rows, in], may be split in the checkpoint, one expert and projection at
a time. Every row of the base must be used exactly once, and nothing may be left without an origin.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from requant.check.findings import Finding
from requant.checkpoint.safetensors import Spec
from requant.formats import BITS, ORDER, PACKED, Packing, gptq, packing_of

_EXPERT = re.compile(r"(.+\.experts)\.(0|[1-9]\d*)\.(gate|up|down)_proj")
_MIXTRAL = {"gate": "w1", "down": "w2", "up": "w3"}
"""Mixtral's names for what others call gate, down and up (transformers, modeling_mixtral.py)."""
GROUPS = (16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Span:
    """Rows `first` to `last` of a base tensor seen as [rows, columns], and what the checkpoint has of them.

    `group` inputs share a scale; 0 where the rows are copied. `name` is the layer's, or the copied tensor's.
    `unmodelled` says why its values cannot be held against the base; "" where they can. `packing` is that of a layer
    with qweight, qzeros and scales; `less` is how much less than they are its zero points are stored, and `symmetric`
    says that all are in the middle. `foreign` says that not every way in which its tool rounds is known. `half` says
    that the checkpoint has the base's numbers rounded to float16.
    """

    name: str
    base: str
    first: int
    last: int
    columns: int
    group: int
    packing: Packing | None = None
    unmodelled: str = ""
    less: int = 1
    symmetric: bool = True
    foreign: bool = False
    half: bool = False

    @property
    def top(self) -> int:
        """The greatest code of a packed layer."""
        return self.packing.top if self.packing else 0


def trace(found: Mapping[str, Spec], base: Mapping[str, Spec], foreign: str = "") -> tuple[list[Span], list[Finding]]:
    """Trace every tensor of a checkpoint to the base; return the pieces in the base's order, and what does not fit.

    `foreign` says why the checkpoint's packing is not modelled, where it is not: then a layer of the base may be stored
    under any suffix, and a float tensor in another precision.
    """
    traced: list[Span | Finding] = []
    layers = {name.rpartition(".")[0] for name in found if name.rpartition(".")[2] in PACKED}
    strange = _strange(found, base) if foreign else {}
    for layer in sorted(layers | strange.keys()):
        if layer in strange:
            rows = source_rows(layer, base) or ("", 0, 0)
            traced.append(Span(layer, *rows, base[rows[0]].shape[-1], 0, unmodelled=foreign))
        else:
            traced.append(_packed(layer, found, base, foreign))
    for name, spec in found.items():
        layer, _, suffix = name.rpartition(".")
        if suffix == ORDER and layer in layers:
            continue
        if suffix not in PACKED and not (layer in strange and (suffix == "weight" or name not in base)):
            traced.append(_copied(name, spec, base, foreign, _is_bias_of_packed(name, spec, found)))
    spans = [each for each in traced if isinstance(each, Span)]
    faults = list(dict.fromkeys(each for each in traced if isinstance(each, Finding)))
    order = {name: number for number, name in enumerate(base)}
    spans.sort(key=lambda span: (order[span.base], span.first, span.name))
    beyond = tuple(f"{each.tensor}." for each in faults if each.kind == "not modelled")
    known = {each.tensor for each in faults} | {name for name in base if name.startswith(beyond)}
    return spans, faults + list(_coverage(spans, base, known))


def _strange(found: Mapping[str, Spec], base: Mapping[str, Spec]) -> dict[str, None]:
    """Return the layers of the base that tensors of other names belong to: `weight_packed`, `weight_scale`, `g_idx`."""
    names = (name.rpartition(".") for name in found if name not in base)
    return {layer: None for layer, _, suffix in names if suffix not in ("weight", *PACKED) and source_rows(layer, base)}


def _packed(layer: str, found: Mapping[str, Spec], base: Mapping[str, Spec], foreign: str) -> Span | Finding:
    for suffix in PACKED:
        if f"{layer}.{suffix}" not in found:
            return Finding("missing tensor", f"{layer}.{suffix}", detail="the layer's other packed tensors are there")
    where = source_rows(layer, base)
    if where is None:
        return _nowhere(f"{layer}.qweight", base, "the base has no such layer")
    tensor, first, last = where
    rows, columns = last - first, base[tensor].shape[-1]
    specs = {suffix: found[f"{layer}.{suffix}"] for suffix in PACKED}
    packing = packing_of(specs, rows, columns)
    if packing is None:
        return _misshapen(layer, specs, rows, columns)
    sizes = (*GROUPS, columns)  # one group of all inputs, whatever its size is called
    group = next((each for each in sizes if -(-columns // each) == packing.groups), 0)
    if foreign:
        return Span(layer, tensor, first, last, columns, 0, packing, foreign)
    if not group:
        return Span(layer, tensor, first, last, columns, 0, packing, f"{packing.groups} groups of {columns} inputs")
    if base[tensor].dtype != "BF16":
        return Span(layer, tensor, first, last, columns, 0, packing, f"a base in {base[tensor].dtype}")
    return Span(layer, tensor, first, last, columns, group, packing)


def _misshapen(layer: str, found: Mapping[str, Spec], rows: int, columns: int) -> Finding:
    groups = found["scales"].shape[0] if found["scales"].shape else 0
    bits = next((each for each in BITS if found["qweight"].shape == (columns * each // 32, rows)), gptq.BITS)
    expected = {**gptq.specs((rows, columns), columns, bits), "scales": Spec("F16", (groups, rows))}
    expected["qzeros"] = Spec("I32", (groups, expected["qzeros"].shape[1]))
    suffix = next((each for each, spec in expected.items() if found[each] != spec), "scales")
    detail = f"found {_text(found[suffix])}, the base's {rows} x {columns} gives {_text(expected[suffix])}"
    return Finding("wrong shape", f"{layer}.{suffix}", detail=detail)


def _nowhere(name: str, base: Mapping[str, Spec], detail: str) -> Finding:
    """Return a finding about a tensor without origin, or about a way of storing experts that is not modelled."""
    experts = name.partition(".experts.")[0] + ".experts"
    if ".experts." in name and f"{experts}.gate_up_proj" in base and not _halves(experts, base):
        return Finding("not modelled", experts, detail="the base's fused experts are transposed or interleaved")
    return Finding("no origin", name, detail=detail)


def _is_bias_of_packed(name: str, spec: Spec, found: Mapping[str, Spec]) -> bool:
    """Say whether AutoRound has converted a bias: it keeps those of packed layers in float16, as it does scales."""
    layer, _, suffix = name.rpartition(".")
    return suffix == "bias" and spec.dtype == "F16" and f"{layer}.qweight" in found


def _copied(name: str, spec: Spec, base: Mapping[str, Spec], foreign: str, half: bool) -> Span | Finding:
    if name in base:
        columns = spec.shape[-1] if len(spec.shape) > 1 else spec.size
        if (foreign or half) and spec.shape == base[name].shape and spec.dtype != base[name].dtype:
            if half and base[name].dtype == "BF16":
                return Span(name, name, 0, _rows(spec), columns, 0, half=True)
            reason = foreign or "a packed layer's bias"
            return Span(name, name, 0, _rows(spec), columns, 0, unmodelled=f"{reason}, in {spec.dtype}")
        if spec != base[name]:
            return Finding("wrong shape", name, detail=f"found {_text(spec)}, the base has {_text(base[name])}")
        return Span(name, name, 0, _rows(spec), columns, 0)
    where = source_rows(name.removesuffix(".weight"), base) if name.endswith(".weight") else None
    if where is None:
        return _nowhere(name, base, "the base has no tensor of this name")
    tensor, first, last = where
    columns = base[tensor].shape[-1]
    if spec != Spec(base[tensor].dtype, (last - first, columns)):
        return Finding("wrong shape", name, detail=f"found {_text(spec)}, {tensor} gives {last - first} x {columns}")
    return Span(name, tensor, first, last, columns, 0)


def source_rows(layer: str, base: Mapping[str, Spec]) -> tuple[str, int, int] | None:
    """Return the base tensor that a linear layer's weight lies in, and its rows there."""
    whole = base.get(f"{layer}.weight")
    if whole is not None:
        return (f"{layer}.weight", 0, whole.shape[0]) if len(whole.shape) == 2 else None
    if not (match := _EXPERT.fullmatch(layer)):
        return None
    prefix, expert, projection = match[1], int(match[2]), match[3]
    named = base.get(other := f"{prefix}.{expert}.{_MIXTRAL[projection]}.weight")
    if named is not None and len(named.shape) == 2:
        return other, 0, named.shape[0]
    tensor = f"{prefix}.{'down' if projection == 'down' else 'gate_up'}_proj"
    fused = base.get(tensor)
    if fused is None or len(fused.shape) != 3 or expert >= fused.shape[0] or not _halves(prefix, base):
        return None
    rows = fused.shape[1]
    if projection == "down":
        return tensor, expert * rows, (expert + 1) * rows
    first = expert * rows + (rows // 2 if projection == "up" else 0)
    return tensor, first, first + rows // 2


def _halves(experts: str, base: Mapping[str, Spec]) -> bool:
    """Say whether fused experts are gate above up, [experts, 2 * inner, hidden], and down [experts, hidden, inner]."""
    both, down = (base.get(f"{experts}.{name}_proj") for name in ("gate_up", "down"))
    if both is None or down is None:
        return True
    return len(both.shape) == len(down.shape) == 3 and both.shape[1:] == (2 * down.shape[2], down.shape[1])


def _coverage(spans: list[Span], base: Mapping[str, Spec], known: set[str]) -> Iterator[Finding]:
    used: dict[str, list[Span]] = {name: [] for name in base}
    for span in spans:
        used[span.base].append(span)
    for name, spec in base.items():
        rows = _rows(spec)
        ends = [(0, 0, ""), *((span.first, span.last, span.name) for span in used[name]), (rows, rows, "")]
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
