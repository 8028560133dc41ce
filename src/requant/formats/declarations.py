"""Who reads which `quantization_config`, by its `quant_method`: formats whose layers lie row by row."""

from collections.abc import Callable, Mapping
from typing import Any

from requant.formats import compressed_tensors, fp8, modelopt
from requant.formats.codec import Declaration

READERS: Mapping[str, Callable[[Mapping[str, Any]], Declaration]] = {
    "compressed-tensors": compressed_tensors.read,
    "fp8": fp8.read,
    "modelopt": modelopt.read,
}
"""Each raises ValueError, which says what is not modelled, for a configuration that it cannot read whole."""
