"""Rules about formats that lie row by row: what is declared of each layer, and what is on disk (D31 to D33).

They hold for any architecture and any loader: a layer that is stored otherwise than the declaration says is read as
what it is not, or not at all. Which loader then does what is not modelled.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from requant.checkpoint.safetensors import Spec
from requant.formats.codec import FLOATS, Declaration, holds_codes, layers_of, named
from requant.formats.declarations import declared, left_float, stated
from requant.inspect.findings import Finding
from requant.inspect.headers import MODELOPT
from requant.inspect.rules.seen import Seen

SIDE = 1 << 12
"""Outputs and inputs of a weight that any format can store: only names and dtypes of its tensors are asked for."""
PROMISES = ("num_nextn_predict_layers", "mtp_num_hidden_layers")
"""Keys of configurations that say how many layers predict several tokens: DeepSeek's and GLM's, and Qwen's."""
ROUTERS = re.compile(r"(?:.*\.)?(?:(?:mlp|block_sparse_moe|feed_forward)\.gate|router|shared_expert_gate)")
"""Names of layers that choose experts, as far as is known."""
_BLOCK = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def check(seen: Seen) -> Iterator[Finding]:
    """Yield layers that are stored otherwise than declared, and promised blocks that are not there."""
    layers = layers_of(seen.tensors)
    yield from _promised(seen, seen.tensors)
    yield from _routers(seen, layers)
    read: dict[str, Declaration] = {}
    for where, raw in _stated(seen).items():
        try:
            if declaration := declared(raw):
                read[where] = declaration
        except ValueError as error:
            yield seen.unmodelled("N01", [where], f"Not modelled: {error}.")
    for declaration in [*read.values()][:1]:
        yield from _stored(seen, declaration, layers)
    if len(read) > 1:
        yield from _apart(seen, read, layers)


def _stated(seen: Seen) -> dict[str, Mapping[str, Any]]:
    """Return what is declared, by its place, the one that vLLM 0.33.0 reads first (`get_quant_config`)."""
    beside = seen.headers.object(MODELOPT)
    found = {"config.json: quantization_config": stated(seen.config)}
    found |= {MODELOPT: {"quant_method": "modelopt", **beside}} if beside else {}
    return {where: value for where, value in found.items() if isinstance(value, dict)}


def _apart(seen: Seen, read: Mapping[str, Declaration], layers: Mapping[str, Mapping[str, Spec]]) -> Iterator[Finding]:
    """Yield the layers of which a side file says otherwise than config.json."""
    said: dict[tuple[str, ...], list[str]] = {}
    for layer, held in layers.items():
        if any(name in held for name in ("weight", "weight_packed")):
            with suppress(ValueError):  # `check` says of each layer why it is not modelled
                codecs = [declaration.codec(layer) for declaration in read.values()]
                forms = tuple(codec.name if codec else "float" for codec in codecs)
                if len({*forms}) > 1:
                    said.setdefault(forms, []).append(layer)
    for forms, names in said.items():
        told = " and ".join(f"{form} in {where.partition(':')[0]}" for form, where in zip(forms, read, strict=True))
        yield seen.error("D04", names, f"Declared {told}: tools do not agree on which one to read.")


def _stored(seen: Seen, declaration: Declaration, layers: Mapping[str, Mapping[str, Spec]]) -> Iterator[Finding]:
    coded = {layer for layer, held in layers.items() if holds_codes(held)}
    for layer, held in layers.items():
        try:
            codec = declaration.codec(layer)
            wanted = codec.parts(SIDE, SIDE, "BF16") if codec else {}
        except ValueError:
            continue  # `check` says of each layer why it is not modelled
        if codec is None and layer in coded:
            names = [named(layer, suffix) for suffix, spec in held.items() if spec.dtype not in FLOATS]
            yield seen.error("D32", names, "The declaration says that the layer is float, and codes are stored.")
        elif codec and layer in coded:
            lacking = [named(layer, suffix) for suffix in wanted if suffix not in held]
            apart = [s for s, part in wanted.items() if s in held and _kind(held[s]) != _kind(part.spec)]
            if lacking:
                yield seen.error("D31", lacking, f"Declared {codec.name}: the tensor is not there.")
            for suffix in apart:
                text = f"Declared {codec.name}: found {held[suffix].dtype}, expected {wanted[suffix].spec.dtype}."
                yield seen.error("D31", [named(layer, suffix)], text)
    floats = [layer for layer, held in layers.items() if layer not in coded and "weight" in held]
    yield from _unlisted(seen, declaration, filter(ROUTERS.fullmatch, floats if coded else ()))
    for layer, codec in left_float(declaration, coded, floats):
        yield seen.error("D31", [f"{layer}.weight"], f"Declared {codec.name}: the layer is float.")


def _routers(seen: Seen, layers: Mapping[str, Mapping[str, Spec]]) -> Iterator[Finding]:
    """Yield routers in codes: which loaders have a place for them is known for Qwen3.5-MoE alone (D14)."""
    if seen.modelled:
        return
    routers = (layer for layer, held in layers.items() if ROUTERS.fullmatch(layer) and holds_codes(held))
    if names := [*routers]:
        text = "A router in codes: some loaders build it as a float whatever is declared. Not modelled for this class."
        yield seen.unmodelled("N01", names, text)


def _unlisted(seen: Seen, declaration: Declaration, routers: Iterable[str]) -> Iterator[Finding]:
    """Yield float routers that nothing leaves out.

    Tools pass over routers that are no linear layers to them; vLLM 0.33.0 hands the declaration to that of Qwen3-MoE
    (qwen3_moe.py).
    """
    for layer in routers if not seen.modelled else ():
        with suppress(ValueError):  # `check` says of each layer why it is not modelled
            if codec := declaration.codec(layer):
                text = f"A float router that is declared {codec.name}: some loaders look for codes. Not modelled."
                yield seen.unmodelled("N01", [f"{layer}.weight"], text)


def _kind(spec: Spec) -> str:
    """Return a dtype; scales may be in that of the model, whichever it is."""
    return "float" if spec.dtype in FLOATS else spec.dtype


def _promised(seen: Seen, tensors: Mapping[str, Spec]) -> Iterator[Finding]:
    """Yield blocks that predict several tokens, where the configuration counts some and no tensor is of any."""
    if seen.modelled:
        return  # D07 knows the very tensors
    text = seen.config.get("text_config")
    configs = [seen.config, *([text] if isinstance(text, dict) else [])]
    for config in configs:
        depth = config.get("num_hidden_layers")
        for key in PROMISES:
            count = config.get(key)
            if type(count) is not int or count < 1 or type(depth) is not int:
                continue
            beyond = any((found := _BLOCK.search(name)) and int(found[1]) >= depth for name in tensors)
            if not beyond and not any(re.search(r"(?:^|\.)(?:mtp|nextn)\b", name) for name in tensors):
                said = f"config.json counts {count}, and no tensor is of one: what drafts with it has no weights."
                yield seen.error("D33", [f"config.json: {key}"], said)
