"""Layers that real tools stored, and what a formula makes of them otherwise."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from requant.checkpoint.safetensors import read_header
from requant.formats.codec import Array, Arrays, Part
from requant.rounding.formula import Formula

NUMPY = {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "I32": "<i4", "I64": "<i8", "I8": "i1", "U32": "<u4"}


@dataclass(frozen=True)
class Stored:
    """The tensors of a file: specs, and values as `Arrays` has them."""

    specs: Mapping[str, Any]
    tensors: Mapping[str, Array]

    def layer(self, name: str, parts: Mapping[str, Part]) -> dict[str, Array]:
        """Return a layer's tensors, which are all that `parts` expects, and no others but `again`."""
        assert {key for key in self.specs if key.startswith(f"{name}.")} - {f"{name}.again"} == {
            f"{name}.{suffix}" for suffix in parts
        }
        assert {suffix: self.specs[f"{name}.{suffix}"] for suffix in parts} == {
            suffix: part.spec for suffix, part in parts.items()
        }
        return {suffix: self.tensors[f"{name}.{suffix}"] for suffix in parts}


def load(path: Path) -> Stored:
    """Read a file of safetensors."""
    header, _ = read_header(path)
    return Stored(
        {name: spec for name, (spec, _) in header.items()},
        {
            name: np.frombuffer(b"".join(stretch.chunks()), NUMPY.get(spec.dtype, "u1")).reshape(spec.shape)
            for name, (spec, stretch) in header.items()
        },
    )


def wrong(
    formula: Formula, weights: Array, dtype: str, stored: Arrays, parts: Mapping[str, Part]
) -> dict[str, list[int]]:
    """Return where a formula's tensors are not those that are stored, by suffix: places of elements, flat."""
    made = {**formula.whole(float(np.abs(weights).max()), dtype), **formula.encode(weights, dtype, stored)}
    assert {suffix for suffix, part in parts.items() if part.every} <= set(made)
    found = {}
    for suffix, value in made.items():
        assert value.shape == stored[suffix].shape and value.nbytes == stored[suffix].nbytes, suffix
        one, two = (np.frombuffer(each.tobytes(), np.uint8).reshape(value.size, -1) for each in (value, stored[suffix]))
        if len(places := np.flatnonzero((one != two).any(axis=1))):
            found[suffix] = places.tolist()
    return found


def damaged(stored: Arrays, suffix: str, place: int) -> dict[str, Array]:
    """Return tensors of which one element has another lowest bit."""
    value = stored[suffix].copy()
    octets = value.reshape(-1).view(np.uint8)
    octets[place * value.itemsize] ^= 1
    return {**stored, suffix: value}
