"""A loader's release as data: what differs between releases is a field, what does not is code."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from requant.loaders.modules import Names
from requant.loaders.resolver import Dialect


@dataclass(frozen=True)
class Loader:
    """A release of a loader.

    `unknown` is what becomes of a tensor that fits nowhere. `replicates_ba` gives every rank all of in_proj_ba.
    `pads` fills a dense layer up to the kernel's tiles. A missing tensor is noticed by none of them.
    """

    program: Literal["vllm", "sglang", "transformers"]
    version: str
    names: Names
    dialect: Dialect | None
    unknown: Literal["skips", "refuses", "lists"]
    replicates_ba: bool
    pads: bool
    head_has_precision: bool

    @property
    def name(self) -> str:
        """The name as a requirement, such as `vllm==0.33.0`."""
        return f"{self.program}=={self.version}"

    def winner(self, files: Iterable[str]) -> str:
        """Return which of the files that hold one name is read last, and so wins.

        vLLM sorts naturally since 0.19 (weight_utils.py, `_natural_sort_key`), SGLang and transformers by code
        point; for `model-00001-of-00010` and `model_extra_tensors` the order is the same, and it is code points
        that decide between `-` and `_`.
        """
        return max(files)
