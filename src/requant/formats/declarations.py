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
    reader = READERS.get(method) if isinstance(method, str) else None
    return reader(value) if reader else None
