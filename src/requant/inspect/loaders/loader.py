"""A loader's release as data: what differs between releases is a field, what does not is code."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from requant.inspect.loaders.modules import Names
from requant.inspect.loaders.reading import Reader
from requant.inspect.loaders.resolver import Dialect


@dataclass(frozen=True)
class Loader:
    """A release of a loader.

    `unknown` is what becomes of a tensor that fits nowhere. `replicates_ba` gives every rank all of in_proj_ba.
    `pads` fills a dense layer up to the kernel's tiles. `knows_new_tokenizers` says whether it runs on transformers 5
    only, which knows the tokenizer classes that it writes. A missing tensor is noticed by none of them.
    """

    program: Literal["vllm", "sglang", "transformers"]
    version: str
    names: Names
    dialect: Dialect | None
    unknown: Literal["skips", "refuses", "lists"]
    replicates_ba: bool
    pads: bool
    head_has_precision: bool
    reader: Reader
    knows_new_tokenizers: bool

    @property
    def name(self) -> str:
        """The name as a requirement, such as `vllm==0.33.0`."""
        return f"{self.program}=={self.version}"

    def order(self, files: Iterable[str]) -> list[str]:
        """Return files in the order in which they are read; of two tensors of one name, the later one is served.

        vLLM sorts numbers as numbers (weight_utils.py, `_natural_sort_key`), the others by code point, in which
        `-` comes before `_`.
        """
        if self.program != "vllm":
            return sorted(files)
        return sorted(
            files,
            key=lambda file: [int(part) if part.isascii() and part.isdigit() else part for part in _DIGITS.split(file)],
        )


_DIGITS = re.compile(r"([0-9]+)")
