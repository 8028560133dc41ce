"""Who reads which `quantization_config`, by its `quant_method`: formats whose layers lie row by row."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from requant.formats import bitsandbytes, compressed_tensors, fp8, mlx, modelopt, mxfp4
from requant.formats.codec import Codec, Declaration

READERS: Mapping[str, Callable[[Mapping[str, Any]], Declaration]] = {
    "bitsandbytes": bitsandbytes.read,
    "compressed-tensors": compressed_tensors.read,
    "fp8": fp8.read,
    "mlx": mlx.read,
    "modelopt": modelopt.read,
    "mxfp4": mxfp4.read,
}
"""Each raises ValueError, which says what is not modelled, for a configuration that it cannot read whole."""


MOST = 1_000
"""Entries of a list of layers: each is tried on every layer."""
KNOWN: Mapping[str, frozenset[str]] = {
    "compressed-tensors": frozenset(
        [
            "quant_method",
            "config_groups",
            "format",
            "ignore",
            "kv_cache_scheme",
            "quantization_status",
            "version",
            "sparsity_config",
            "transform_config",
            "global_compression_ratio",
        ]
    ),
    "fp8": frozenset(
        [
            "quant_method",
            "activation_scheme",
            "weight_block_size",
            "modules_to_not_convert",
            "ignored_layers",
            "fmt",
            "scale_fmt",
            "expert_dtype",
            "dequantize",
            "kv_cache_scheme",
            "weight_per_tensor",
            "act_per_tensor",
        ]
    ),
    "modelopt": frozenset(
        [
            "quant_method",
            "quant_algo",
            "kv_cache_quant_algo",
            "kv_cache_scheme",
            "producer",
            "ignore",
            "exclude_modules",
            "group_size",
            "config_groups",
            "quantization",
        ]
    ),
}
"""Keys that are read, or that change nothing of weights; the others' readers say themselves what they do not know."""


def forms(codec: Codec) -> tuple[Codec, ...]:
    """Return the codecs that headers may show where one is declared: nothing declares the dtype of some scales."""
    return (codec, replace(codec, scale="BF16")) if isinstance(codec, fp8.Blocks) else (codec,)


def stated(config: Mapping[str, Any]) -> Any:
    """Return what `config.json` says of codes; MLX writes it under a name of its own, and mostly under both."""
    return config.get("quantization_config", config.get("quantization"))


def declared(value: Mapping[str, Any]) -> Declaration | None:
    """Read a `quantization_config`; None where no reader knows its `quant_method`.

    Raises ValueError for what its reader does not model.
    """
    method = value.get("quant_method", "mlx" if mlx.states(value) else None)
    if not isinstance(method, str) or method not in READERS:
        return None
    if method in KNOWN and (strange := sorted(key for key in value.keys() - KNOWN[method] if value[key])):
        raise ValueError(f"`{strange[0]:.40}` {value[strange[0]]!r:.40}")
    for key, listed in value.items():
        if isinstance(listed, list | dict) and len(listed) > MOST:
            raise ValueError(f"{len(listed):,} entries of `{key:.40}`")
    return READERS[method](value)
