"""What a configuration says of layers otherwise than the tensors that are there show."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from requant.check.declared import FLOAT, METHODS, UNSTATED, Scheme, flat, is_number, said_of
from requant.check.findings import Finding
from requant.check.side_files import CONFIG, Side
from requant.check.spans import Span
from requant.checkpoint.loadable import DROPPED
from requant.formats import declarations
from requant.formats.codec import Declaration
from requant.formats.compressed_tensors import Observed

_INDEX = re.compile(r"\.\d+(?=\.)")


def unmodelled(spans: Iterable[Span]) -> list[Finding]:
    """Return a finding for each layer or tensor whose values are not held against the base."""
    return [Finding("not modelled", span.name, detail=span.unmodelled) for span in spans if span.unmodelled]


def observers(spans: Iterable[Span]) -> Iterator[Finding]:
    """Yield what is declared of searches over ranges that no version does, or that is not modelled, and of how many."""
    codecs = (span.codec for span in spans)
    said = Counter(codec.search.strange for codec in codecs if isinstance(codec, Observed))
    for strange, count in said.items():
        if strange:
            yield Finding("not modelled", "quantization_config: observer_kwargs", count, detail=strange)


def presence(scheme: Scheme | None, side: Side, packed: int) -> Iterator[Finding]:
    """Yield a finding where layers are packed and a configuration says nothing of it, or the other way round."""
    where = f"{CONFIG}: quantization_config"
    if packed and scheme is None and CONFIG in side.names:
        yield Finding("declared otherwise", where, detail=f"not there, {packed:,} layers are packed")
    if not packed and scheme is not None and not scheme.foreign:
        yield Finding("declared otherwise", where, detail="no layer is packed")


def contradictions(scheme: Scheme, spans: Sequence[Span], linears: Collection[str] = ()) -> Iterator[Finding]:
    """Yield what the configuration says otherwise than the shapes of packed layers, and than which layers are packed.

    `linears` names layers that are known to be linear, where the architecture is modelled. What a side file says
    wrongly is told where `config.json` does not say the same: a loader may read either.
    """
    packed = {span.name: span for span in spans if span.packing}
    told = dict.fromkeys((*_shapes(scheme, packed), *_floats(scheme, spans, packed, linears)))
    yield from told
    yield from _blocks(scheme, packed)
    sym, zero_point = scheme.value.get("sym"), scheme.value.get("zero_point")
    if packed and isinstance(sym, bool) and zero_point is sym:  # AWQ's loaders go by the latter
        yield Finding("declared otherwise", "quantization_config.zero_point", detail=f"{zero_point}, and sym {sym}")
    for file, aside in scheme.asides.items():
        for each in (*_shapes(aside, packed), *_floats(aside, spans, packed, linears)):
            if each not in told:
                yield replace(each, detail=f"{file}: {each.detail}")
        if (own := Scheme(aside.own, beneath=scheme)).blocks != scheme.blocks:
            # AutoRound 0.12.2 names the MTP block in `config.json` alone (defect D04).
            beside = {layer: span for layer, span in packed.items() if not layer.startswith(DROPPED)}
            yield from (replace(each, detail=f"{file}: {each.detail}") for each in _blocks(own, beside))


def zero_points(scheme: Scheme, layer: str, middle: bool) -> Iterator[Finding]:
    """Yield what is said otherwise of a layer than its zero points show: all in the `middle`, or not.

    Wrong zero points of a layer that `config.json` says to be symmetric are named where codes are examined.
    """
    declared = scheme.symmetric(layer)
    shown = "every zero point is in the middle" if middle else "not every zero point is in the middle"
    if middle and not declared:
        yield Finding("declared otherwise", f"{layer}.qzeros", detail=f"sym False, {shown}")
    for file, aside in scheme.asides.items():
        if (said := aside.symmetric(layer)) not in (declared, middle):
            yield Finding("declared otherwise", f"{layer}.qzeros", detail=f"{file}: sym {said}, {shown}")


def _shapes(scheme: Scheme, packed: Mapping[str, Span]) -> Iterator[Finding]:
    """Yield what is said of packed layers otherwise than the shapes of their tensors show."""
    for layer, span in packed.items():
        for key, said, found in _unlike(scheme, span):
            yield Finding("declared otherwise", f"{layer}.qweight", detail=f"{key} {said}, the tensors have {found}")


def _unlike(scheme: Scheme, span: Span) -> Iterator[tuple[str, str, str]]:
    """Yield a key, what it says of a packed layer, and what its tensors show."""
    packing, layer = span.packing, span.name
    if packing is None:
        return
    said = {key: scheme.of(layer, key, UNSTATED) for key in ("bits", "group_size", "sym", "data_type")}
    if not is_number(said["bits"], packing.bits):
        yield "bits", said_of(said["bits"]), f"{packing.bits}"
    if _groups(said["group_size"], span.columns) != packing.groups:
        yield "group_size", said_of(said["group_size"]), f"{packing.groups} groups for {span.columns} inputs"
    if not isinstance(said["sym"], bool) and said["sym"] is not UNSTATED:
        yield "sym", said_of(said["sym"]), "zero points"
    if said["data_type"] is not UNSTATED and not str(said["data_type"]).startswith("int"):
        yield "data_type", said_of(said["data_type"]), "integer codes"
    if scheme.layout != packing.layout:
        stated = scheme.value.get("packing_format", UNSTATED)
        yield "packing_format", said_of(stated), f"words in the order of {packing.layout}"
    if scheme.value.get("desc_act") is True and scheme.value.get("quant_method") in METHODS:
        yield "desc_act", "true", "inputs in order, without g_idx"
    modules = scheme.value.get("modules_in_block_to_quantize")
    if isinstance(modules, list) and not layer.endswith(tuple(f".{name}" for name in flat(modules))):
        yield "modules_in_block_to_quantize", said_of(modules), "this layer packed"


def _blocks(scheme: Scheme, packed: Mapping[str, Span]) -> Iterator[Finding]:
    """Yield packed blocks that are not declared, and declared ones of which nothing is packed.

    A layer beside the blocks, such as `lm_head`, is none of what the key speaks of.
    """
    if scheme.blocks is None:
        return
    key = "quantization_config.block_name_to_quantize"
    blocks = Counter(
        layer[: found.end()]
        for layer in packed
        if (found := _INDEX.search(layer)) and not layer.startswith(scheme.blocks) and not scheme.override(layer)
    )
    for block, count in blocks.items():
        yield Finding("declared otherwise", key, count, detail=f"does not name {block}, whose layers are packed")
    for prefix in scheme.blocks:
        if not any(layer.startswith(prefix) for layer in packed):
            yield Finding("declared otherwise", key, detail=f"names {prefix[:-1]}, where no layer is packed")


def _floats(
    scheme: Scheme, spans: Sequence[Span], packed: Iterable[str], linears: Collection[str]
) -> Iterator[Finding]:
    """Yield float layers that are declared packed: by an entry of their own, or because their likes are packed.

    An expression also finds norms and embeddings, and packs none of them.
    """
    likes = {_INDEX.sub(".#", layer) for layer in packed}
    for span in spans:
        layer = span.name.removesuffix(".weight")
        if span.packing or span.unmodelled or layer == span.name:
            continue
        own = scheme.override(layer)
        bits = own.get("bits", scheme.value.get("bits"))
        declared = isinstance(bits, int) and bits < FLOAT
        inside = scheme.blocks is None or layer.startswith(scheme.blocks)
        known = layer in linears or _INDEX.sub(".#", layer) in likes
        if declared and ("bits" in scheme.overrides.get(layer, {}) or (known and ("bits" in own or inside))):
            yield Finding("declared otherwise", span.name, detail=f"bits {bits}, the layer is float")


def beside(scheme: Scheme) -> Iterator[Finding]:
    """Yield what side files declare of a format that lies row by row beyond what `config.json` does."""
    for file, aside in scheme.asides.items():
        for key in sorted(aside.own.keys() - scheme.value.keys()):
            if aside.own[key]:
                yield Finding("not modelled", f"{file}: {key}", detail="config.json does not say it")


def floats(declaration: Declaration, spans: Sequence[Span]) -> Iterator[Finding]:
    """Yield float layers that are declared to be stored in a format, as their likes are."""
    stored = [span.name for span in spans if span.codec or span.unmodelled]
    weights = (span.name for span in spans if not span.quantized and span.name.endswith(".weight"))
    layers = (name.removesuffix(".weight") for name in weights)
    for layer, codec in declarations.left_float(declaration, stored, layers):
        yield Finding("declared otherwise", f"{layer}.weight", detail=f"{codec.name}, the layer is float")


def _groups(size: Any, columns: int) -> int | None:
    """Return how many groups `group_size` makes of `columns` inputs; None where it is no size."""
    if type(size) is not int or not (size == -1 or size > 0):
        return None
    return 1 if size == -1 else -(-columns // size)
