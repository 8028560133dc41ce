"""Where each tensor of a checkpoint comes from: a copy of base rows, or a linear layer packed from them.

A fused expert tensor of the base, [experts, rows, in], may be split in the checkpoint, one expert and projection at
a time. Every row of the base must be used exactly once, and nothing may be left without an origin.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import MappingProxyType

from requant.check.findings import Finding
from requant.check.rows import RENAMED, Rows, as_planned, halves, source_bias, source_rows
from requant.checkpoint.safetensors import Spec
from requant.formats import AWQ, BITS, GPTQ, ORDER, PACKED, Packing, gptq, packing_of
from requant.formats.codec import FLOATS, Array, Codec, Declaration, Part, layer_of, named
from requant.formats.declarations import forms
from requant.protocol import Source

MOST_COLUMNS = 1 << 22
"""Inputs of a layer that is made again: fifty times the widest known."""
GROUPS = (16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True, eq=False)
class Factors:
    """By what a tool multiplied the weights of a layer: float32 `inputs` [columns] times `outputs` [rows].

    `loose_inputs` and `loose_outputs` are by what share of itself each weight may be off for that, roundings included;
    `unit` is by what share of the next power of two a number is off when it is rounded once.
    """

    inputs: Array
    outputs: Array
    loose_inputs: Array
    loose_outputs: Array
    unit: float

    @property
    def scaled(self) -> bool:
        """Whether any of them is not 1."""
        return bool((self.inputs != 1).any() or (self.outputs != 1).any())


@dataclass(frozen=True)
class Span:
    """Rows `first` to `last` of a base tensor seen as [rows, columns], as `Rows` says, and what the checkpoint has.

    `group` inputs share a scale; 0 where the rows are copied. `name` is the layer's, or the copied tensor's.
    `unmodelled` says why its values cannot be held against the base; "" where they can. `packing` is that of a layer
    with qweight, qzeros and scales, and `codec` that of one in another format. `less` is how much less than they are
    its zero points are stored, and `symmetric` says that all are in the middle. `foreign` says that not every way in
    which its tool rounds is known; `converted`, that the checkpoint has the base's numbers in another dtype. Codes were
    made from the base's numbers rounded to BF16 where it is `narrowed`, and of a `codec` from those in `dtype`. Of
    `heads` the rows are in an order of their own: each pair that is turned together stands together; `shuffled` inputs
    are put together by `g_idx`. Of one that is to have the `nearest` codes, nothing says how its scales are made;
    `factors` are those that its weights were multiplied by. A norm multiplies by its numbers and `added`.
    """

    name: str
    base: str
    first: int
    last: int
    columns: int
    group: int
    packing: Packing | None = None
    codec: Codec | None = None
    unmodelled: str = ""
    less: int = 1
    symmetric: bool = True
    foreign: bool = False
    converted: bool = False
    transposed: bool = False
    narrowed: bool = False
    dtype: str = ""
    heads: int = 0
    shuffled: bool = False
    nearest: bool = False
    added: int = 0
    factors: Factors | None = field(default=None, compare=False)

    @property
    def quantized(self) -> bool:
        """Whether the layer is stored as codes, modelled or not."""
        return bool(self.packing or self.codec or self.unmodelled)

    @property
    def recomputed(self) -> bool:
        """Whether its tensors are made again by formulas."""
        return self.codec is not None and self.factors is None

    @property
    def by_nearest(self) -> bool:
        """Whether its codes are held against those that are the nearest."""
        return self.quantized and self.factors is not None


@dataclass(frozen=True)
class Window:
    """Rows `first` to `last` of a packed piece, or bytes of a copied one; `ways` are those to try."""

    span: Span
    first: int
    last: int
    nbytes: int
    ways: tuple[str, ...] = ()


def trace(
    found: Mapping[str, Spec],
    base: Mapping[str, Spec],
    foreign: str = "",
    *,
    declared: Declaration | None = None,
    heads: Mapping[str, int] = MappingProxyType({}),
    transposed: bool = False,
    planned: Mapping[str, Source] = MappingProxyType({}),
) -> tuple[list[Span], list[Finding]]:
    """Trace every tensor of a checkpoint to the base; return the pieces in the base's order, and what does not fit.

    `foreign` says why the checkpoint's packing is not modelled, where it is not: then a layer of the base may be stored
    under any suffix, and a float tensor in another precision. `declared` says how layers are stored in a format that
    lies row by row; then `foreign` is empty. `heads` are those of layers whose rows are in another order. `transposed`
    is what `source_rows` takes. `planned` says where layers and biases lie, by their names, where that is known of the
    base; of others, names say it.
    """
    traced: list[Span | Finding] = []
    stored, theirs = _stored(found, base, declared, heads, planned) if declared else ([], set[str]())
    traced += stored
    found = {name: spec for name, spec in found.items() if name not in theirs}
    layers = {name.rpartition(".")[0] for name in found if name.rpartition(".")[2] in PACKED}
    strange = _strange(found, base) if foreign else {}
    for layer in sorted(layers | strange.keys()):
        if layer in strange:
            traced.append(Span(layer, *strange[layer], 0, unmodelled=foreign))
        else:
            where = as_planned(planned.get(layer), base) or source_rows(layer, base, transposed=transposed)
            traced.append(_packed(layer, found, base, foreign, where))
    for name, spec in found.items():
        layer, _, suffix = name.rpartition(".")
        if suffix == ORDER and layer in layers:
            continue
        if suffix not in PACKED and not (layer in strange and (suffix == "weight" or name not in base)):
            source = planned.get(name) or planned.get(name.removesuffix(".weight"))
            copied = _copied(name, spec, base, foreign, transposed, source)
            traced.append(replace(copied, heads=heads.get(name, 0)) if isinstance(copied, Span) else copied)
    if any(f"{layer}.{ORDER}" in found for layer in layers):
        alone = sorted(layer for layer in layers if f"{layer}.{ORDER}" not in found)
        traced += [Finding("missing tensor", f"{layer}.{ORDER}", detail="other layers have one") for layer in alone]
    spans = [each for each in traced if isinstance(each, Span)]
    faults = list(dict.fromkeys(each for each in traced if isinstance(each, Finding)))
    order = {name: number for number, name in enumerate(base)}
    spans.sort(key=lambda span: (order[span.base], span.first, span.name))
    beyond = tuple(f"{each.tensor}." for each in faults if each.kind == "not modelled")
    known = {each.tensor for each in faults} | {name for name in base if name.startswith(beyond)}
    return spans, faults + list(_coverage(spans, base, known))


def _stored(
    found: Mapping[str, Spec],
    base: Mapping[str, Spec],
    declared: Declaration,
    heads: Mapping[str, int],
    planned: Mapping[str, Source],
) -> tuple[list[Span | Finding], set[str]]:
    """Trace the layers that are declared to be stored in a format; return the names of their tensors too."""
    traced: list[Span | Finding] = []
    theirs: set[str] = set()
    unlike: list[_Unlike] = []
    asked: Counter[str] = Counter()
    for layer, names in _layers(found, base, heads).items():
        where = as_planned(planned.get(layer), base) or source_rows(layer, base)
        if where is None:
            continue
        span = Span(layer, where.tensor, where.first, where.last, where.columns, 0, transposed=where.transposed)
        try:
            if (said := declared.codec(layer)) is None:
                continue
            codec, dtype, parts = _form(said, span, base, found)
        except ValueError as error:
            traced.append(replace(span, unmodelled=f"{error}"))
            theirs |= names
            continue
        theirs |= names
        asked[said.name] += 1  # a layer that lacks something may not tell its form, as others do
        if faults := _unlike({named(layer, suffix): part for suffix, part in parts.items()}, found, names):
            unlike.append(_Unlike(span, said.name, parts, tuple(faults)))
        else:
            traced.append(replace(span, codec=codec, dtype=dtype, heads=heads.get(layer, 0)))
    return [*traced, *_variants(unlike, asked)], theirs


def _form(
    codec: Codec, span: Span, base: Mapping[str, Spec], found: Mapping[str, Spec]
) -> tuple[Codec, str, Mapping[str, Part]]:
    """Return the form of a codec, and the dtype to which the base was converted, that fit the tensors of a layer.

    Where none does, they are the form that most of them fit, and the base's. Raises ValueError for an impossible one.
    """
    rows, own = span.last - span.first, base[span.base].dtype
    if own not in FLOATS:
        raise ValueError(f"a base in {own}")
    if not (rows and 0 < span.columns <= MOST_COLUMNS):
        raise ValueError(f"{rows:,} rows of {span.columns:,} inputs")
    nearest = -1, codec, codec.parts(rows, span.columns, own)
    for each in forms(codec):
        for dtype in dict.fromkeys((own, *sorted(FLOATS))):
            tried = each.parts(rows, span.columns, dtype)
            seen = {suffix: found.get(named(span.name, suffix)) for suffix in tried}
            fit = sum(bool(spec and tried[suffix].fits(spec)) for suffix, spec in seen.items())
            if fit == len(tried):
                return each, dtype, tried
            if dtype == own and fit > nearest[0]:
                nearest = fit, each, tried
    return nearest[1], "", nearest[2]


@dataclass(frozen=True)
class _Unlike:
    """A layer that is not as its format has it: the format's name, the tensors by suffix, and what is wrong."""

    span: Span
    format: str
    parts: Mapping[str, Part]
    faults: tuple[Finding, ...]

    @property
    def codes(self) -> str:
        """The name of the largest tensor."""
        return named(self.span.name, max(self.parts, key=lambda suffix: self.parts[suffix].spec.nbytes))

    def kinds(self) -> list[tuple[str, str, str]]:
        """Return of each fault the format, the suffix and what kind it is."""
        return [(self.format, each.tensor.removeprefix(self.span.name), each.kind) for each in self.faults]


def _variants(unlike: Sequence[_Unlike], asked: Mapping[str, int]) -> Iterator[Span | Finding]:
    """Yield what layers lack or have otherwise than their format; what all of them have so is a variant of it.

    A variant is not modelled, and accuses nobody, unless it is the codes that are otherwise.
    """
    alike = Counter(kind for each in unlike for kind in each.kinds())
    for each in unlike:
        common = all(alike[kind] == asked[each.format] for kind in each.kinds())
        if common and not any(fault.tensor == each.codes for fault in each.faults):
            suffix, fault = each.kinds()[0][1].lstrip("."), each.faults[0]
            yield replace(each.span, unmodelled=f"{each.format}: {suffix}: {fault.detail}")
        else:
            yield from each.faults


def _layers(found: Mapping[str, Spec], base: Mapping[str, Spec], others: Collection[str]) -> dict[str, set[str]]:
    """Return the tensors that the base does not have like that, or not by that name, by the layers they belong to.

    A tensor belongs to the layer whose name stands before `.weight`, or else before the last dot. Those of `others` are
    returned too, as the base has them or not.
    """
    layers: dict[str, set[str]] = {}
    for name, spec in found.items():
        layer = layer_of(name)
        if (spec != base.get(name) or layer in others) and not name.endswith(".bias"):
            layers.setdefault(layer, set()).add(name)
    coded = {layer for layer, names in layers.items() if any(found[name].dtype not in FLOATS for name in names)}
    return {layer: names for layer, names in layers.items() if layer in coded or layer in others}


def _unlike(expected: Mapping[str, Part], found: Mapping[str, Spec], names: Iterable[str]) -> list[Finding]:
    """Return what a layer lacks of the tensors that its format has, and what it has otherwise or beside them."""
    faults = []
    for name, part in expected.items():
        if name not in found:
            faults.append(Finding("missing tensor", name, detail="the layer's others are there"))
        elif not part.fits(found[name]):
            detail = f"found {_text(found[name])}, the base's shape gives {_text(part.spec)}"
            faults.append(Finding("wrong shape", name, detail=detail))
    beside = (name for name in names if name not in expected)
    return faults + [Finding("not modelled", name, detail="beside the layer's others") for name in beside]


def _strange(found: Mapping[str, Spec], base: Mapping[str, Spec]) -> dict[str, tuple[str, int, int, int]]:
    """Return the layers of the base that tensors of other names belong to, such as `weight_packed`, and their rows."""
    names = (name.rpartition(".") for name in found if name not in base)
    layers = {layer: source_rows(layer, base) for layer, _, suffix in names if suffix not in ("weight", *PACKED)}
    return {layer: (rows.tensor, rows.first, rows.last, rows.columns) for layer, rows in layers.items() if rows}


def _packed(
    layer: str, found: Mapping[str, Spec], base: Mapping[str, Spec], foreign: str, where: Rows | None
) -> Span | Finding:
    for suffix in PACKED:
        if f"{layer}.{suffix}" not in found:
            return Finding("missing tensor", f"{layer}.{suffix}", detail="the layer's other packed tensors are there")
    if where is None:
        return _nowhere(f"{layer}.qweight", base, "the base has no such layer")
    rows, columns = where.last - where.first, where.columns
    specs = {suffix: found[f"{layer}.{suffix}"] for suffix in PACKED}
    packing = packing_of(specs, rows, columns)
    if packing is None:
        return _misshapen(layer, specs, rows, columns)
    sizes = (*GROUPS, columns)  # one group of all inputs, whatever its size is called
    group = next((each for each in sizes if -(-columns // each) == packing.groups), 0)
    place = (layer, where.tensor, where.first, where.last, columns)
    if foreign:
        return Span(*place, 0, packing, unmodelled=foreign)
    if not group:
        return Span(*place, 0, packing, unmodelled=f"{packing.groups} groups of {columns} inputs")
    if base[where.tensor].dtype not in FLOATS:
        return Span(*place, 0, packing, unmodelled=f"a base in {base[where.tensor].dtype}")
    less = (GPTQ if packing.layout == "gptq" else AWQ).less
    return Span(*place, group, packing, less=less, transposed=where.transposed)


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
    if ".experts." in name and f"{experts}.gate_up_proj" in base and not halves(experts, base):
        return Finding("not modelled", experts, detail="the base's fused experts are transposed or interleaved")
    return Finding("no origin", name, detail=detail)


def _copied(
    name: str, spec: Spec, base: Mapping[str, Spec], foreign: str, transposed: bool, source: Source | None
) -> Span | Finding:
    where, own = as_planned(source, base), name
    if source and source.whole:
        own = source.tensor
    elif name not in base:
        own = name.replace(*RENAMED)
    if own in base:
        where = Rows(own, 0, _rows(spec), _columns(spec))
    elif name.endswith(".weight"):
        where = where or source_rows(name.removesuffix(".weight"), base)
    else:
        where = where or source_bias(name, base, transposed=transposed)
    if where is None:
        return _nowhere(name, base, "the base has no tensor of this name")
    ours, rows = base[where.tensor], where.last - where.first
    shape = ours.shape if own in base else (rows, where.columns) if where.columns > 1 else (rows,)
    place = (name, where.tensor, where.first, where.last, where.columns, 0)
    if spec.shape == shape and spec.dtype == ours.dtype:
        return Span(*place)
    if spec.shape == shape and {spec.dtype, ours.dtype} <= FLOATS:
        return Span(*place, converted=True)
    if spec.shape == shape and foreign:
        return Span(*place, unmodelled=f"{foreign}, in {spec.dtype}")
    gives = f"the base has {_text(ours)}" if own in base else f"{where.tensor} gives {rows} x {where.columns}"
    return Finding("wrong shape", name, detail=f"found {_text(spec)}, {gives}")


def _coverage(spans: list[Span], base: Mapping[str, Spec], known: set[str]) -> Iterator[Finding]:
    used: dict[str, list[Span]] = {name: [] for name in base}
    for span in spans:
        used[span.base].append(span)
    for name, spec in base.items():
        columns = used[name][0].columns if used[name] else _columns(spec)
        rows = spec.size // columns if columns else _rows(spec)
        ends = [(0, 0, ""), *((span.first, span.last, span.name) for span in used[name]), (rows, rows, "")]
        for (_, last, before), (first, _, after) in pairwise(ends):
            if first < last:
                yield Finding("used twice", after, detail=f"{name}, rows {first} to {last}, is also in {before}")
            elif first > last and name not in known:
                yield Finding("not in the checkpoint", name, detail=_gap(spec, rows, last, first))


def _gap(spec: Spec, rows: int, first: int, last: int) -> str:
    if len(spec.shape) != 3 or (first, last) == (0, rows):
        return f"rows {first} to {last} of {rows}"
    each = rows // spec.shape[0]
    return f"rows {first} to {last}: experts {first // each} to {(last - 1) // each}"


def _rows(spec: Spec) -> int:
    return math.prod(spec.shape[:-1]) if len(spec.shape) > 1 else 1


def _columns(spec: Spec) -> int:
    return spec.shape[-1] if len(spec.shape) > 1 else spec.size


def _text(spec: Spec) -> str:
    return f"{spec.dtype} {list(spec.shape)}"
