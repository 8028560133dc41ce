"""A checkpoint without its weights: every tensor by dtype and shape, and the small side files that decide.

One pass over each header, in the time of parsing it: dtype and shape are checked once for each pair that occurs,
not once for each tensor. Whatever looks unusual is left to `safetensors.parse_header`, which says what is wrong.
"""

import gc
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any

from requant.checkpoint.checkpoint import INDEX
from requant.checkpoint.files import SUFFIX, list_files
from requant.checkpoint.loadable import CONFIGS
from requant.checkpoint.safetensors import ITEM_BITS, QUOTES, Spec, header_text, parse_header, require_plausible
from requant.digest import count_values, read_whole, shallow, side_limit, strict_json
from requant.errors import CheckpointError

MODELOPT = "hf_quant_config.json"
"""What ModelOpt declares in a file of its own, beside or instead of `quantization_config`."""
SIDES = (INDEX, "quantization_config.json", MODELOPT, *CONFIGS)
"""The side files that are read; of all others it matters only that they are there."""

Specs = dict[str, Spec]


@dataclass(frozen=True)
class Headers:
    """What stands in a checkpoint: tensors by file, the side files that were read, and the names of all others.

    `data_bytes` is what the tensors weigh. `folder` is where it lies, None for a repository; `fetched` is how many
    bytes came over the network.
    """

    name: str
    shards: Mapping[str, Mapping[str, Spec]]
    data_bytes: int
    sides: Mapping[str, bytes]
    paths: tuple[str, ...]
    folder: Path | None = None
    fetched: int = 0
    _parsed: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def json(self, path: str) -> Any:
        """Return what a side file holds, None where there is none; raise CheckpointError where it is no JSON."""
        if path not in self.sides:
            return None
        if path in self._parsed:
            return self._parsed[path]
        limit = side_limit(path)
        if len(self.sides[path]) > limit:
            raise CheckpointError(f"{self.name}/{path}: {len(self.sides[path]):,} bytes, expected {limit:,} at most")
        try:
            value = _index(self.sides[path]) if path == INDEX else strict_json(self.sides[path])
            return self._parsed.setdefault(path, value)
        except ValueError as error:
            raise CheckpointError(f"{self.name}/{path}: not JSON as requant reads it: {error}") from None

    def object(self, path: str) -> dict[str, Any] | None:
        """Return the JSON object in a side file, None where there is none."""
        value = self.json(path)
        if value is not None and not isinstance(value, dict):
            raise CheckpointError(f"{self.name}/{path}: found {value!r:.80}, expected a JSON object")
        return value


def read_headers(folder: Path) -> Headers:
    """Read the headers and side files of a checkpoint on disk; raises CheckpointError where it is none."""
    found = list_files(folder)
    with without_collector():
        read = {name: _read(path) for name, path in found.items() if name.endswith(SUFFIX)}
    shards = {name: tensors for name, (tensors, _) in read.items()}
    data_bytes = sum(count for _, count in read.values())
    sides = {name: _side(found[name]) for name in SIDES if name in found}
    paths = tuple(name for name in found if name not in shards)
    return Headers(str(folder), shards, data_bytes, sides, paths, folder)


def _index(data: bytes) -> Any:
    with without_collector():
        try:
            found = _plain_index(data)
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
            found = None
        return strict_json(data) if found is None else found


def _plain_index(data: bytes) -> Any:
    """Parse an index without looking at each pair: a key that stands twice shows in the number of quotes.

    None, or an exception, where it is not exactly as usual.
    """
    count_values(data)
    value = json.loads(data.decode())
    weight_map = value["weight_map"]
    if b"\\" in data or set(map(type, weight_map.values())) != {str}:
        return None
    rest = json.dumps({**value, "weight_map": {}}, allow_nan=False).count('"')
    return shallow(value) if data.count(b'"') == rest + 4 * len(weight_map) else None


def _side(path: Path) -> bytes:
    try:
        return read_whole(path, side_limit(path.name))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _read(path: Path) -> tuple[Specs, int]:
    text, size = header_text(path)
    return specs(path, text, size), size - len(text) - 8


def specs(path: Path, text: bytes, size: int) -> Specs:
    """Return the tensors that a header names, in order of offset; `size` is that of the whole file.

    Raises CheckpointError for anything that is not a complete safetensors header of this file.
    """
    require_plausible(path, text)
    try:
        found = _fast(text, size, text.count(b'"'))
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        found = None
    if found is None:
        found = {name: spec for name, (spec, _) in parse_header(path, text, size)[0].items()}
    return found


def _fast(text: bytes, size: int, quotes: int) -> Specs | None:
    """Return the tensors of a header that is exactly as usual, None (or an exception) where it may not be."""
    if b"\\" in text or b"true" in text or b"false" in text:
        return None
    header = json.loads(text.decode(), parse_float=_refuse, parse_constant=_refuse)
    if "__metadata__" in header:
        if header.pop("__metadata__") != {"format": "pt"}:
            return None
        quotes -= 6
    rows = list(map(itemgetter("dtype", "shape", "data_offsets"), header.values()))
    # A key that stands twice, or one too many, has quotes of its own. All that is left in a list are whole numbers.
    if quotes != QUOTES * len(rows) or set(map(type, map(itemgetter(1), rows))) - {list}:
        return None
    if not all(map(str.isprintable, header)) or "" in header:
        return None
    known: dict[tuple[Any, ...], tuple[Spec, int] | None] = {}
    end = 0
    for name, (dtype, shape, offsets) in zip(header, rows, strict=True):
        key = (dtype, *shape)
        spec = known[key] if key in known else known.setdefault(key, _spec(dtype, tuple(shape)))
        # An empty tensor may share its place with another, and then their names decide the order.
        if spec is None or not spec[1] or offsets != [end, end + spec[1]]:
            return None
        end += spec[1]
        header[name] = spec[0]  # in its own place: a second dictionary of this size takes its time
    return header if 8 + len(text) + end == size else None


def _refuse(number: str) -> Any:
    raise ValueError(f"{number} is no whole number")


@lru_cache(maxsize=4096)  # equal ones are one object, in all files: comparing blocks is comparing addresses
def _spec(dtype: str, shape: tuple[int, ...]) -> tuple[Spec, int] | None:
    if dtype not in ITEM_BITS:
        return None
    spec = Spec(dtype, shape)
    if spec.size * ITEM_BITS[dtype] % 8:
        return None
    return (spec, spec.nbytes) if len(shape) <= 64 and all(0 <= each < 2**63 for each in shape) else None


@contextmanager
def without_collector() -> Iterator[None]:
    """Pause the cyclic collector: headers are a million small objects without a cycle, and it would walk over all.

    It doubles the time of parsing (measured: benchmarks/inspect_headers.py).
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()
