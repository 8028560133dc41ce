"""Who reads which `quantization_config`, by its `quant_method`: formats whose layers lie row by row."""

from collections.abc import Callable, Mapping
from typing import Any

from requant.formats import bitsandbytes, mlx, mxfp4
from requant.formats.codec import Declaration

READERS: Mapping[str, Callable[[Mapping[str, Any]], Declaration]] = {
    "bitsandbytes": bitsandbytes.read,
    "mlx": mlx.read,
    "mxfp4": mxfp4.read,
}
"""Each raises ValueError, which says what is not modelled, for a configuration that it cannot read whole."""
