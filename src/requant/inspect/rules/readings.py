"""Rules about a declaration as a whole: who reads it, and what that reader makes of its values (D15, D30, N01 to N03).

They hold for any architecture, and need neither the modules of a model nor a byte of a tensor.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from requant.formats import PACKED
from requant.inspect.anatomy import Packing, packing
from requant.inspect.findings import Finding, Severity, Target
from requant.inspect.loaders import LOADERS, Loader
from requant.inspect.loaders.declared import Declared
from requant.inspect.loaders.reading import (
    INT_FORMATS,
    MARLIN,
    MARLIN_GROUPS,
    Reading,
    backend_of,
    has_dense_kernel,
    layout,
    read,
)
from requant.inspect.loaders.resolver import Precision
from requant.inspect.rules.seen import Seen

EFFORT = ("iters", "nsamples", "seqlen", "batch_size")
UNDECLARED = "Nothing declares that these layers are packed: loaders look for float weights."
UNFIT = "It does not fit: the loader stops, or copies an expert that is too small into a corner of its place"


def check(seen: Seen) -> Iterator[Finding]:
    """Yield what each loader makes of the declaration, and what of a checkpoint is not modelled."""
    raw = seen.config.get("quantization_config")
    if not seen.modelled:
        text = f"{seen.architecture} is not modelled: its tensors were not compared with any loader's modules."
        yield seen.unmodelled("N02", ["config.json: architectures, model_type"], text)
    if raw is None:
        yield from _undeclared(seen)
        return
    for loader in seen.loaders:
        targets = tuple(Target(loader.name, degree) for degree in seen.degrees)
        yield from _read(loader, seen.readings[loader.name], targets)
        if seen.declared and seen.readings[loader.name].outcome == "reads":
            yield from _order(loader, seen.declared, targets)
            yield from _left_open(seen, loader, raw, targets)
            if loader.dialect and not seen.modelled and not seen.declared.overrides:
                yield from _everywhere(seen, loader, seen.declared, raw, targets)
    if seen.malformed:
        yield seen.error("D30", ["config.json: quantization_config"], seen.malformed)
    if isinstance(raw, dict):
        for key in EFFORT:
            if type(raw.get(key, 0)) is not int:
                yield seen.note(
                    "D30", [_key(key)], f"Found {raw[key]!r:.80}, expected a whole number; no loader reads it."
                )


def is_packed(name: str, dtype: str) -> bool:
    """Say whether a tensor can only be a quantized weight's, whoever wrote it."""
    return (
        name.endswith((".qweight", ".weight_packed")) or dtype.startswith(("F8", "F6", "F4")) or dtype in ("I8", "U8")
    )


def _key(name: str) -> str:
    where = "config.json: quantization_config"
    return where if name in ("", "quantization_config") else f"{where}.{name}"


def _undeclared(seen: Seen) -> Iterator[Finding]:
    text = seen.config.get("text_config")
    elsewhere = {
        "compression_config": seen.config.get("compression_config"),
        "text_config.quantization_config": text.get("quantization_config") if isinstance(text, dict) else None,
    }
    if places := [f"config.json: {where}" for where, value in elsewhere.items() if value is not None]:
        yield seen.unmodelled("N01", places, "A declaration in this place is not modelled.")
        return
    packed = [
        name for file in seen.headers.shards.values() for name, spec in file.items() if is_packed(name, spec.dtype)
    ]
    if not packed:
        yield seen.note(
            "N03",
            ["config.json: quantization_config"],
            "Nothing is quantized, and config.json does not say that anything is.",
        )
    elif not seen.modelled:
        yield seen.error("D15", packed, UNDECLARED)


def _read(loader: Loader, reading: Reading, targets: tuple[Target, ...]) -> Iterator[Finding]:
    subjects = (_key(reading.key),)
    if reading.outcome == "stops":
        yield Finding("D30", Severity.ERROR, subjects, f"The loader stops: {reading.why}.", targets)
    elif reading.outcome == "float":
        end = {"skips": "skips packed tensors and uses uninitialised memory", "refuses": "refuses packed tensors"}
        then = end.get(loader.unknown, "makes new weights in place of the packed ones, which it only lists")
        text = f"The loader treats the checkpoint as unquantized, and {then}: {reading.why}."
        yield Finding("D30", Severity.ERROR, subjects, text, targets)
    elif reading.outcome == "another":
        yield Finding("N01", Severity.UNMODELLED, subjects, f"Not modelled: {reading.why}.", targets)


def _order(loader: Loader, declared: Declared, targets: tuple[Target, ...]) -> Iterator[Finding]:
    if not declared.desc_act:
        return
    if loader.reader.desc_act == "ignored":
        text = "The loader ignores it and takes inputs in their original order, which is how AutoRound stores them."
        yield Finding("D30", Severity.NOTE, (_key("desc_act"),), text, targets)
    elif loader.reader.desc_act == "reorders" and declared.group_size != -1:
        text = "The loader orders the inputs by g_idx, which no file has: it uses uninitialised memory instead."
        yield Finding("D30", Severity.ERROR, (_key("desc_act"),), text, targets)


def _left_open(seen: Seen, loader: Loader, raw: Mapping[str, Any], targets: tuple[Target, ...]) -> Iterator[Finding]:
    """Yield what a loader leaves to classes that are not modelled, and that is not as AutoRound usually has it."""
    if loader.reader.formats is None:
        usual = {"data_type": ("int",), "packing_format": (INT_FORMATS[0], "auto_round:gptq"), "backend": ("auto",)}
        keys = [_key(key) for key, values in usual.items() if raw.get(key, values[0]) not in values]
        if keys:
            text = "What auto_round's own classes make of this value is not modelled."
            yield Finding("N01", Severity.UNMODELLED, tuple(keys), text, targets)
        if layers := _fit_nothing(seen):
            text = "Bits or group size match nothing declared; what auto_round's own classes then do is not modelled."
            yield Finding("N01", Severity.UNMODELLED, tuple(layers), text, targets)


def _fit_nothing(seen: Seen) -> list[str]:
    if seen.declared is None:
        return []
    ours = (seen.declared.bits, seen.declared.group_size)
    stated = {(each.get("bits", ours[0]), each.get("group_size", ours[1])) for each in seen.declared.overrides.values()}
    found = packed_layers(seen).items()
    return [name for name, each in found if each and not any(each.fits(*one) for one in {ours, *stated})]


def _everywhere(
    seen: Seen, loader: Loader, declared: Declared, raw: Mapping[str, Any], targets: tuple[Target, ...]
) -> Iterator[Finding]:
    """Yield what a declaration without overrides means for every packed layer, whatever the model is."""
    precision = Precision(declared.bits, declared.group_size, declared.sym)
    found = {name: each for name, each in packed_layers(seen).items() if name.startswith(declared.blocks or ("",))}
    yield from unfit(loader, precision, declared, raw, found, targets)
    dense = [name for name in found if ".experts." not in name]
    yield from kernel(loader, precision, declared, raw, dense, targets)


def packed_layers(seen: Seen) -> dict[str, Packing | None]:
    """Return every packed layer of a checkpoint by name, with what its three tensors say; None where they disagree."""
    tensors = seen.tensors
    found = {}
    for name in tensors:
        if name.endswith(".qweight"):
            layer = name.removesuffix(".qweight")
            three = [tensors.get(f"{layer}.{suffix}") for suffix in PACKED]
            found[layer] = packing(*three) if None not in three else None  # type: ignore[arg-type]
    return found


def unfit(
    loader: Loader,
    precision: Precision,
    declared: Declared,
    raw: Mapping[str, Any],
    found: Mapping[str, Packing | None],
    targets: tuple[Target, ...],
) -> Iterator[Finding]:
    """Yield packed layers that have other bits, groups or another order of codes than a loader makes room for."""
    order = layout(declared.packing_format, backend_of(raw, loader.reader))
    for name, each in found.items():
        if each is None:
            continue
        if each.layout != order:
            text = f"{UNFIT}: codes are in {each.layout.upper()}'s order, the loader expects {order.upper()}'s."
            yield Finding("D19", Severity.ERROR, (name,), text, targets)
        elif not each.fits(precision.bits, precision.group_size):
            size = precision.group_size if precision.group_size > 0 else each.inputs
            text = f"{UNFIT}: found {each}, the loader expects {precision.bits} bits in groups of {size}."
            yield Finding("D19", Severity.ERROR, (name,), text, targets)
        elif order == "awq":
            yield Finding("N01", Severity.UNMODELLED, (name,), "AWQ's order of codes is not modelled.", targets)


def kernel(
    loader: Loader,
    precision: Precision,
    declared: Declared,
    raw: Mapping[str, Any],
    dense: list[str],
    targets: tuple[Target, ...],
) -> Iterator[Finding]:
    """Yield dense layers for whose precision a loader has no kernel."""
    backend = backend_of(raw, loader.reader)
    if not dense or layout(declared.packing_format, backend) == "awq":
        return
    if not has_dense_kernel(precision, backend, loader.reader):
        said = f"{precision.bits} bits, groups of {precision.group_size} and sym {str(precision.sym).lower()}"
        asked = "" if backend == "auto" else f", backend {backend}"
        text = f"The loader stops: it has no kernel for a dense layer with {said}{asked}."
        yield Finding("D30", Severity.ERROR, tuple(dense), text, targets, advice=_elsewhere(precision, raw))


def _elsewhere(precision: Precision, raw: Mapping[str, Any]) -> str:
    """Return what helps where a loader has no kernel: the declaration may be right, and then another loader does."""
    able = [loader.name for loader in LOADERS if _runs(loader, precision, raw)]
    others = f"use a loader that has a kernel for it: {' or '.join(able)}" if able else ""
    marlin = precision.group_size in MARLIN_GROUPS and (precision.bits, True) in MARLIN
    if marlin and precision.sym:  # then only the backend is in the way
        key = next(key for key in ("backend", "vllm_backend", "sglang_backend") if key in raw)
        return "; or ".join(filter(None, (f"remove {key} from quantization_config", others)))
    symmetric = "if the weights are symmetric after all, set sym to true" if marlin else ""
    again = "" if able else "build again, symmetric, with 4 or 8 bits in groups of 32, 64 or 128"
    return "; ".join(filter(None, (others, symmetric, again)))


def _runs(loader: Loader, precision: Precision, raw: Mapping[str, Any]) -> bool:
    backend = backend_of(raw, loader.reader)
    known = loader.reader.formats is not None or backend == "auto"  # what auto_round's classes do is not modelled
    return known and read(raw, loader.reader).outcome == "reads" and has_dense_kernel(precision, backend, loader.reader)
