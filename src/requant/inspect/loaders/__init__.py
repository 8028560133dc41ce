"""The loaders that are modelled, each release as a value; `named` finds one by its requirement."""

from requant.errors import UsageError
from requant.inspect.loaders.loader import Loader
from requant.inspect.loaders.sglang import SGLANG
from requant.inspect.loaders.transformers import TRANSFORMERS
from requant.inspect.loaders.vllm import VLLM

__all__ = ["DEFAULT", "LOADERS", "TENSOR_PARALLEL", "Loader", "named"]

LOADERS = (*VLLM, SGLANG, TRANSFORMERS)
DEFAULT = VLLM[-1]
TENSOR_PARALLEL = (1, 2, 4, 8)


def named(requirement: str) -> Loader:
    """Return the loader with a name such as `vllm==0.33.0`; raise UsageError where it is not modelled."""
    for loader in LOADERS:
        if loader.name == requirement:
            return loader
    raise UsageError(
        f"--loader {requirement}: not modelled; the modelled ones are {', '.join(each.name for each in LOADERS)}"
    )
