"""Who reads which `quantization_config`, by its `quant_method`: formats whose layers lie row by row."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
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


_INDEX = re.compile(r"\.\d+(?=\.)")
MOST = 1_000
"""Entries of a list of layers: each is tried on every layer."""


def forms(codec: Codec) -> tuple[Codec, ...]:
    """Return the codecs that a layer may have where one is declared: nothing declares the dtype of some scales.

    Nor which version of compressed-tensors packed codes that do not fill words.
    """
    if isinstance(codec, fp8.Blocks):
        return codec, replace(codec, scale="BF16")
    if isinstance(codec, compressed_tensors.Packed) and 32 % codec.bits:
        return codec, replace(codec, padded=True)
    return (codec,)


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
    for key, listed in value.items():
        if isinstance(listed, list | dict) and len(listed) > MOST:
            raise ValueError(f"{len(listed):,} entries of `{key:.40}`")
    return READERS[method](value)


def left_float(declaration: Declaration, stored: Iterable[str], floats: Iterable[str]) -> Iterator[tuple[str, Codec]]:
    """Yield float layers that are declared to be stored in a format, and how, as `stored` ones with like names are.

    An expression for all layers also means embeddings and routers that no tool takes, so others say nothing; but a
    head, which loaders of compressed-tensors look for as for any linear layer.
    """
    likes = {_INDEX.sub(".#", layer) for layer in stored}
    heads = isinstance(declaration, compressed_tensors.CompressedTensors)
    for layer in floats:
        if isinstance(declaration, mlx.Declared) and layer not in declaration.own:
            continue  # mlx-lm takes a layer for what it is by its tensors, unless the layer is named
        if _INDEX.sub(".#", layer) in likes or (likes and heads and layer.endswith("lm_head")):
            with suppress(ValueError):  # what is not modelled is said where it is stored
                if codec := declaration.codec(layer):
                    yield layer, codec
