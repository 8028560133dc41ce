"""Layers whose inputs a tool scaled, channel by channel, and took back before them: AWQ and SmoothQuant.

A channel that a norm or a linear layer puts out is divided by a factor, and the columns that read it are multiplied by
it: their product is what is kept of the base. The factors follow from a calibration that nobody has, but a file shows
them. Behind a norm, stored as floats, they are the base's norm by the checkpoint's, but for roundings. Between two
linear layers each code of the second one bounds the factor of its column, as far as it is the nearest; some rows leave
a few thousandths of it, and the rows of the first one must fit their reciprocals.

A norm of some architectures multiplies by its numbers and 1; there the sums are what is divided. llm-compressor adds
the 1 to each such norm and takes it off again, whatever it does to the rest, so that these are rounded twice.

Which layers share a factor: `get_layers_for_scaling` of AutoAWQ 0.2.9 and the mappings of llm-compressor 0.14.0.1
(modifiers/transform/awq); where 1 is added: modeling/offset_norm.py there. Fused layers have those of their parts.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from requant.check.findings import NEAR
from requant.check.nearest import whole_numbers
from requant.check.reader import Reader
from requant.check.recomputed import recompute
from requant.check.spans import Factors, Span, Window
from requant.check.weights import as_floats, read_weights, returned
from requant.checkpoint.safetensors import ITEM_BITS
from requant.formats.codec import Array, Integers, converted, widen

ROUNDINGS = 4
"""UNITs by which a weight may be off on its way to a code: it is rounded, and the norm before it was."""
UNIT: Mapping[str, float] = {"BF16": 2.0**-9, "F16": 2.0**-12, "F32": 2.0**-24}
"""By what share of the next power of two a number errs when it is rounded once: of itself, by up to two of these."""
LEAST: Mapping[str, float] = {"BF16": 2.0**-126, "F16": 2.0**-14, "F32": 2.0**-126}
"""The least number of a dtype that has all its places."""
SAMPLE, LAYERS = 256, 4
"""Outputs of a layer from which factors are found, and layers behind a norm."""
CHANGED = 1 / 2
"""Of channels that were scaled, what has a factor that is seen not to be 1, at least."""
MOST = 4
"""Of a norm that adds 1, how many times its sum its number may be, if that is to tell the factor: it was rounded."""
_BLOCK = re.compile(r"(.+\.layers\.\d+)\.(.+)")
_FEED = r"(?:mlp|feed_forward|block_sparse_moe)\.(?:(?:.+\.)?(?:gate|up|gate_up)_proj|experts\.\d+\.w[13]"
_FEED += r"|gate|router|shared_expert_gate)"
_BEFORE_FEED = ("pre_feedforward_layernorm", "pre_mlp_layernorm", "post_attention_layernorm", "input_layernorm")
"""Norms before the second half of a block: the first of these that a block has."""
_BEHIND: Mapping[str, str] = {
    "input_layernorm": r"self_attn\.(?:(?:q|k|v|qkv|q_a|gate)_proj|kv_a_proj_with_mqa)|linear_attn\.in_proj_.+",
    "self_attn.q_a_layernorm": r"self_attn\.q_b_proj",
    "self_attn.kv_a_layernorm": r"self_attn\.kv_b_proj",
}
_ADDING = ("gemma", "gemma2", "gemma3", "qwen3_next", "qwen3_5", "qwen3_5_moe")
"""The `model_type`, less `_text`, of bases whose norms multiply by their numbers and 1, but for `_PLAIN` ones."""
_PLAIN = (".linear_attn.", ".visual.", "vision_tower.")
_PAIRS: Mapping[str, Mapping[str, int]] = {
    "o_proj": {"v_proj": 1, "qkv_proj": 3},
    "down_proj": {"up_proj": 1, "gate_up_proj": 2},
    "w2": {"w3": 1},
}
"""What the second layer of a pair is called, what the first may be, and of how many fused layers it is the last.

Heads of v that several of o share are never scaled.
"""


@dataclass(frozen=True)
class Sample:
    """Some rows of a layer: the base's weights float32 [rows, columns], and what is stored of them."""

    weights: Array
    stored: Integers

    def missed(self, factors: Array) -> float:
        """Return the sum of squares of decoded weights less the base's times factors [columns]."""
        with np.errstate(all="ignore"):
            apart = (self.stored.decode() - self.weights * factors) ** 2
        return float(np.where(np.isfinite(apart), apart, 0).sum(dtype=np.float64))

    def factors(self, unit: float) -> tuple[Array, Array]:
        """Return of each column the factor that most codes allow, and by what share of itself it can err.

        A column of which nothing is known has 1 and infinity. Numbers are rounded to the share `unit`.
        """
        low, high = self._bounds(unit)
        ends = np.concatenate([low, high])
        order = np.argsort(ends, axis=0, kind="stable")
        best = np.cumsum(np.where(order < len(low), 1, -1), axis=0).argmax(axis=0)
        columns = np.arange(ends.shape[1])
        first, last = (ends[order[np.minimum(best + each, len(ends) - 1), columns], columns] for each in (0, 1))
        known = (first > 0) & (last < np.inf)
        with np.errstate(all="ignore"):
            middle = np.where(known, (first + last) / 2, 1).astype(np.float32)
            return middle, np.where(known, (last - first) / 2 / middle, np.inf).astype(np.float32)

    def _bounds(self, unit: float) -> tuple[Array, Array]:
        """Return the least and the greatest factor with which each code is the nearest, float32 [rows, columns]."""
        stored = self.stored
        codes = stored.codes - stored.spread(stored.zeros)
        half = np.float32(0.5) + np.float32(unit) * (stored.top + 1 + ROUNDINGS * np.abs(codes))
        with np.errstate(all="ignore"):
            steps = self.weights / stored.spread(stored.scales)
            low = np.where(stored.codes < 2, -np.inf, codes - half) / steps
            high = np.where(stored.codes > stored.top - 2, np.inf, codes + half) / steps
        down, up = np.minimum(low, high), np.maximum(low, high)
        useless = ~(np.isfinite(steps) & (steps != 0) & (up > 0))
        return np.where(useless, 0, np.maximum(down, 0)), np.where(useless, np.inf, up)


def scale(spans: Sequence[Span], checkpoint: Reader, base: Reader) -> list[Span]:
    """Return spans, those that a tool scaled with its factors, where the files show them.

    Layers that are held against the `nearest` codes alone have factors of 1 where they were not scaled.
    """
    found = {span.name: span for span in spans}
    for norm, behind in _norms(found):
        found |= _behind(norm, behind, found, checkpoint, base)
    for second in spans:
        stem, dot, own = second.name.rpartition(".")
        for first, parts in _PAIRS.get(own, {}).items():
            before = found.get(f"{stem}{dot}{first}")
            if before and before.quantized and before.last - before.first == parts * second.columns:
                found |= _pair(before, found[second.name], found, checkpoint, base)
    plain = {span.name: _with(span, base) for span in found.values() if span.nearest and span.factors is None}
    return [*(found | plain).values()]


def adding(spans: Sequence[Span], config: Mapping[str, Any] | None) -> list[Span]:
    """Return spans, those of norms marked that multiply by their numbers and 1."""
    if str((config or {}).get("model_type")).removesuffix("_text") not in _ADDING:
        return [*spans]
    return [
        replace(span, added=1)
        if span.last - span.first == 1
        and span.name.endswith("norm.weight")
        and not any(each in span.name for each in _PLAIN)
        else span
        for span in spans
    ]


def beside_unknown(spans: Sequence[Span]) -> list[Span]:
    """Return spans, norms and biases in blocks not modelled: they may be scaled with layers that nobody can read."""
    said = "it may be scaled with layers that are not modelled"
    return [
        replace(span, unmodelled=said)
        if not span.quantized and span.last - span.first == 1 and _BLOCK.fullmatch(span.name)
        else span
        for span in spans
    ]


def _norms(found: Mapping[str, Span]) -> Iterator[tuple[Span, list[Span]]]:
    """Yield the norms of blocks, as far as layers read what they put out, with these layers."""
    blocks: dict[str, dict[str, Span]] = {}
    for span in found.values():
        if match := _BLOCK.fullmatch(span.name.removesuffix(".weight")):
            blocks.setdefault(match[1], {})[match[2]] = span
    for inside in blocks.values():
        feeding = next((each for each in _BEFORE_FEED if each in inside), "")
        for name, span in inside.items():
            expressions = [_BEHIND[name]] if name in _BEHIND else []
            expressions += [_FEED] if name == feeding else []
            if not expressions or span.quantized or span.last - span.first != 1:
                continue  # most names are those of experts, and each would be held against all the others
            if behind := [each for one, each in inside.items() if any(re.fullmatch(e, one) for e in expressions)]:
                yield span, behind


def _behind(
    norm: Span, behind: Sequence[Span], found: Mapping[str, Span], checkpoint: Reader, base: Reader
) -> dict[str, Span]:
    """Return a norm and the layers behind it with their factors; nothing where it was not scaled."""
    dtype, own = checkpoint.tensors[norm.name].spec.dtype, base.tensors[norm.base].spec.dtype
    if dtype not in UNIT or own not in UNIT:
        return {}
    theirs, ours = _vector(checkpoint, norm.name), _vector(base, norm.base)
    known = converted(ours, own, dtype)
    for each in (known, returned(known, norm.added, dtype)):
        if np.count_nonzero(theirs != each) < CHANGED * theirs.size:
            return {}
    rest = np.abs(theirs)  # what the last rounding, of the numbers less what was added to them, is a share of
    theirs, ours = theirs + np.float32(norm.added), ours + np.float32(norm.added)
    quantized = [span for span in behind if span.quantized][:LAYERS]  # routers are left as they are
    samples = [each for each in (sample(span, checkpoint, base) for span in quantized) if each]
    with np.errstate(all="ignore"):
        factors = ours / theirs
    told = (np.abs(theirs) >= LEAST[dtype]) & np.isfinite(factors) & (factors > 0)
    loose = np.full(theirs.size, ROUNDINGS * UNIT[dtype], np.float32)
    if norm.added:  # the sum was rounded before it was divided, and the quotient less what was added after it
        told &= rest <= MOST * np.abs(theirs)
        share = np.divide(rest, np.abs(theirs), where=told, out=np.zeros_like(rest))
        loose += np.float32(2 * UNIT[dtype]) * (1 + share)
    if samples and not told.all():
        by_codes, share = samples[0].factors(UNIT[dtype])
        factors, loose = np.where(told, factors, by_codes), np.where(told, loose, loose + share)
    factors = factors.astype(np.float32)
    ones = np.ones_like(factors)
    if not samples or sum(each.missed(factors) for each in samples) >= sum(each.missed(ones) for each in samples):
        return {}
    made = {span.name: _with(span, base, inputs=factors, loose_inputs=loose) for span in behind}
    with np.errstate(all="ignore"):
        back = np.float32(1) / factors
    taken = (norm, found.get(f"{norm.name.removesuffix('.weight')}.bias"))
    return made | {span.name: _with(span, base, inputs=back, loose_inputs=loose) for span in taken if span}


def _pair(first: Span, second: Span, found: Mapping[str, Span], checkpoint: Reader, base: Reader) -> dict[str, Span]:
    """Return two linear layers, one of which reads the other, with the factors between them; nothing without any."""
    if not (second.nearest or (second.codec and not _is_made(second, checkpoint, base))):
        return {}
    if (some := sample(second, checkpoint, base)) is None:
        return {}
    factors, share = some.factors(_unit(second, base))
    seen = np.count_nonzero(np.abs(factors - 1) > share * factors)
    if seen < CHANGED * factors.size or some.missed(factors) >= some.missed(np.ones_like(factors)):
        return {}
    loose = share + np.float32(ROUNDINGS * _unit(second, base))
    rows = first.last - first.first
    outputs, loose_outputs = np.ones(rows, np.float32), np.zeros(rows, np.float32)
    outputs[-second.columns :], loose_outputs[-second.columns :] = np.float32(1) / factors, loose
    made = {
        second.name: _with(second, base, inputs=factors, loose_inputs=loose),
        first.name: _with(first, base, outputs=outputs, loose_outputs=loose_outputs),
    }
    if bias := found.get(f"{first.name}.bias"):
        made[bias.name] = _with(bias, base, inputs=outputs, loose_inputs=loose_outputs)
    return made


def sample(span: Span, checkpoint: Reader, base: Reader) -> Sample | None:
    """Return the first rows of a layer; None where it is not stored as whole numbers."""
    align, rows = span.codec.align if span.codec else 32, span.last - span.first
    window = Window(span, 0, min(rows, max(SAMPLE // align, 1) * align), 0)
    if span.unmodelled or (stored := whole_numbers(window, checkpoint, base)) is None:
        return None
    codes = stored.codes.copy()  # those of words lie in a buffer that is used again
    return Sample(as_floats(read_weights(base, span, 0, window.last)), replace(stored, codes=codes))


def _is_made(span: Span, checkpoint: Reader, base: Reader) -> bool:
    """Say whether a formula makes the first rows of a layer as it is."""
    align = span.codec.align if span.codec else 1
    window = Window(span, 0, min(span.last - span.first, 8 * align), 0)
    return any(not found for way, found in recompute(window, checkpoint, base).findings.items() if way != NEAR)


def _with(span: Span, base: Reader, **known: Array) -> Span:
    """Return a span with factors: those that it has, or 1, but for those that are known."""
    unit = _unit(span, base)
    sides = {"inputs": span.columns, "outputs": span.last - span.first}
    plain = {side: np.ones(count, np.float32) for side, count in sides.items()}
    plain["loose_inputs"] = np.full(span.columns, ROUNDINGS * unit, np.float32)
    plain["loose_outputs"] = np.zeros(sides["outputs"], np.float32)
    had = {key: getattr(span.factors, key) for key in plain} if span.factors else {}
    return replace(span, factors=Factors(**(plain | had | known), unit=unit))


def _unit(span: Span, base: Reader) -> float:
    return UNIT[span.dtype or base.tensors[span.base].spec.dtype]


def _vector(reader: Reader, name: str) -> Array:
    """Return a float tensor of one dimension as float32."""
    place = reader.tensors[name]
    data = np.empty(place.stop - place.start, np.uint8)
    reader.read(place, 0, data.data)
    return widen(data.view(f"<u{ITEM_BITS[place.spec.dtype] // 8}"), place.spec.dtype)
