"""Rules about the scales of a KV cache in FP8 (D34): declared and absent, there and not declared, or no scale at all.

What vLLM 0.33.0 makes of them is from its quantization/kv_cache.py, `CompressedTensorsKVCacheMethod` in
compressed_tensors.py, and `maybe_remap_kv_scale_name` in weight_utils.py. Other loaders are not modelled.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from requant.checkpoint.checkpoint import open_checkpoint
from requant.formats.codec import FLOATS, widen
from requant.formats.declarations import stated
from requant.inspect.findings import Finding
from requant.inspect.headers import MODELOPT
from requant.inspect.rules.seen import Seen

_SCALE = re.compile(r"(.+?)(?:\.(?:[kv]|qkv|qkqkv)_proj)?\.(k|v|kv)_scale")
_INPUTS = re.compile(r"(.+)\.([kv])_proj\..+")
UNTOLD = "compressed-tensors"
"""The `quant_method` for which vLLM begins with scales of 1; for others with -1, which no scale is, and says so."""


def check(seen: Seen) -> Iterator[Finding]:
    """Yield what is declared of the cache and what is there, by headers alone."""
    raw, beside = stated(seen.config), seen.headers.object(MODELOPT)
    value = raw if isinstance(raw, dict) else {}
    found = _scales(seen)
    key, said = _declared(value)
    if beside is not None and isinstance(raw, dict) and bool(key) != bool(_declared(beside)[0]):
        there = f"config.json: {key}" if key else MODELOPT
        text = f"A KV cache in codes is declared there alone, and not in {MODELOPT if key else 'config.json'}."
        yield seen.error("D04", [there], text)
    if not key:
        if found:
            text = (
                "Nothing declares scales of the KV cache: they count only where a server is asked for a cache in FP8."
            )
            yield seen.note("D34", [name for some in found.values() for name in some.values()], text)
        return
    if said:
        yield seen.unmodelled("N01", [f"config.json: {key}"], f"A KV cache {said} is not modelled.")
        return
    where = [f"config.json: {key}"]
    if not found:
        quietly = ", and does not say so" if value.get("quant_method") == UNTOLD else ""
        text = f"It declares a KV cache in FP8, and no layer has scales: vLLM 0.33.0 takes 1 for each{quietly}."
        yield seen.warning("D34", where, text)
        return
    for module, have in found.items():
        if lacking := {"k", "v"} - have.keys():
            if "kv" in have:
                continue
            names = [f"{module}.{half}_scale" for half in sorted(lacking)]
            plain = value.get("quant_method") == UNTOLD
            does = "takes 1 for the other" if plain else "stops" if "k" in lacking else "takes that of k for v"
            yield seen.error("D34", names, f"Only one of k and v has a scale: vLLM 0.33.0 {does}.")
    if bare := [f"{module}.{half}_scale" for module in _halves(seen) - found.keys() for half in ("k", "v")]:
        text = "Other layers have scales of the KV cache: for this one, vLLM 0.33.0 takes 1."
        yield seen.error("D34", sorted(bare), text)


def check_values(seen: Seen) -> Iterator[Finding]:
    """Yield scales that no cache can have, of files on this disk."""
    if seen.headers.folder is None:
        return
    tensors = open_checkpoint(seen.headers.folder).tensors
    wrong: dict[str, list[str]] = {}
    for name in (name for some in _scales(seen).values() for name in some.values()):
        spec = tensors[name].spec
        data = np.frombuffer(tensors[name].read(), {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}[spec.dtype])
        values = widen(data, spec.dtype)
        if not np.isfinite(values).all():
            wrong.setdefault("no finite number", []).append(name)
        elif (values == 0).any():
            wrong.setdefault("0", []).append(name)
        elif (values < 0).any():
            wrong.setdefault("negative", []).append(name)
    raw = stated(seen.config)
    untold = isinstance(raw, dict) and raw.get("quant_method") == UNTOLD
    for what, names in wrong.items():
        absent = "takes it for absent" if what == "negative" else ""
        does = "uses it as it is" if untold else absent
        then = f": vLLM 0.33.0 {does}" if does else ""
        yield seen.error("D34", names, f"The scale is {what}, and a cache in FP8 holds what was divided by it{then}.")


def _declared(value: Mapping[str, Any]) -> tuple[str, str]:
    """Return the key that declares a quantized cache, "" without one, and what of it is not modelled."""
    inner = value.get("quantization")
    for prefix, each in (("", value), ("quantization.", inner if isinstance(inner, dict) else {})):
        algorithm, scheme = each.get("kv_cache_quant_algo"), each.get("kv_cache_scheme")
        if algorithm:
            plain = isinstance(algorithm, str) and algorithm.upper() == "FP8"
            return f"quantization_config.{prefix}kv_cache_quant_algo", "" if plain else f"in {algorithm!r:.40}"
        if isinstance(scheme, dict) and scheme:
            key = f"quantization_config.{prefix}kv_cache_scheme"
            if scheme.get("dynamic") is True:
                return key, "whose scales are found while the model runs"
            plain = (scheme.get("type"), scheme.get("num_bits")) == ("float", 8)
            return key, "" if plain else f"of type {scheme.get('type')!r:.20}, {scheme.get('num_bits')!r:.20} bits"
        if scheme:
            return f"quantization_config.{prefix}kv_cache_scheme", f"that is {scheme!r:.40}"
    return "", ""


def _scales(seen: Seen) -> dict[str, dict[str, str]]:
    """Return the names of scales of k, of v, or of both as `kv`, by the attention that they belong to."""
    found: dict[str, dict[str, str]] = {}
    for name, spec in seen.tensors.items():
        if spec.dtype in FLOATS and (match := _SCALE.fullmatch(name)):
            found.setdefault(match[1], {})[match[2]] = name
    return found


def _halves(seen: Seen) -> set[str]:
    """Return the attentions of the language model that have a projection of k and one of v.

    None where a configuration says that some layers share the cache of others.
    """
    text = seen.config.get("text_config")
    if any(each.get("num_kv_shared_layers") for each in (seen.config, text) if isinstance(each, dict)):
        return set()
    both: dict[str, set[str]] = {}
    for name in seen.tensors:
        if match := _INPUTS.fullmatch(name):
            both.setdefault(match[1], set()).add(match[2])
    return {module for module, halves in both.items() if halves == {"k", "v"} and not _beside(module)}


def _beside(module: str) -> bool:
    """Say whether an attention is of a part that needs no cache, or may be left float: a tower, or MTP."""
    return any(part in module for part in ("vis", "audio", "encoder", "mtp", "nextn"))
