"""Where in a base the weight of each layer lies; never guessed from names.

A base whose numbers count on through all its tensors is loaded and unfused by the code that will load and unfuse the
real one: what a layer then holds says where it came from. float64 counts exactly up to 2^53. A base too large for that
has the sources of a small one of its class, by the numbers in its names, held against its own tensors.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from math import prod
from pathlib import Path
from typing import Any

from requant.errors import BuildError
from requant.names import named, numbered
from requant.protocol import Source, Tensors
from requant.worker.autoround import tuning

MAX_NUMBERS = 1 << 27
"""Numbers of the largest base that is counted through, 1 GiB: a tiny model has its architecture."""


Sources = Mapping[str, Source | None]


def weight(module: Any) -> Any:
    """Return the weight of a layer that AutoRound knows, as [out, in]: GPT-2's class keeps its transpose."""
    return module.weight.T if type(module).__name__ == "Conv1D" else module.weight


def counted(config: Path, tensors: Tensors, names: Iterable[str], folder: Path) -> dict[str, Source | None]:
    """Return the sources of layers [out, in], and of other tensors, in a base of `tensors`; `folder` is made for it.

    A source is None where what is named is no such part of one tensor. Raises BuildError for more than `MAX_NUMBERS`.
    """
    from auto_round.modeling.fused_moe.replace_modules import apply_replacements, materialize_model_

    if (numbers := sum(prod(shape) for _, shape in tensors.values())) > MAX_NUMBERS:
        raise BuildError(f"{numbers:,} numbers in {config}, {MAX_NUMBERS:,} at most are counted through")
    begins = _write_counted(config, tensors, folder)
    model = tuning.load_model(folder, "float64")
    apply_replacements(model)
    materialize_model_(model)
    state, found = model.state_dict(), {}
    for name in names:
        values = state[name] if name in state else weight(model.get_submodule(name)).detach()
        first = int(values.flatten()[0])
        start, tensor = begins[bisect_right(begins, first, key=lambda each: each[0]) - 1]
        found[name] = _part(values, first - start, tensor, tensors[tensor][1])
    return found


def general(names: Iterable[str], small: Sources) -> dict[str, Source | None]:
    """Return the sources of layers and tensors from those of a smaller model: their names agree but for numbers.

    Raises BuildError where the smaller model has no such layer, or leaves open which number of a layer's name is meant.
    """
    kinds: dict[str, dict[tuple[int, ...], Source | None]] = {}
    for name, source in small.items():
        pattern, numbers = numbered(name)
        kinds.setdefault(pattern, {})[numbers] = source
    rules = {pattern: _rule(pattern, instances) for pattern, instances in kinds.items()}
    found: dict[str, Source | None] = {}
    for name in names:
        pattern, numbers = numbered(name)
        if pattern not in rules:
            raise BuildError(f"{name}: the smaller model has no such layer, so nothing says where it lies")
        if rule := rules[pattern]:
            like, places = rule
            slots = [fixed if place is None else numbers[place] for place, fixed in places]
            tensor, inside = numbered(like.tensor)
            many = len(inside)
            index = tuple(slots[many:])
            found[name] = replace(like, tensor=named(tensor, slots[:many]), index=index)
        else:
            found[name] = None
    return found


def confirm(layers: Mapping[str, tuple[int, int]], sources: Sources, tensors: Tensors) -> None:
    """Raise BuildError unless each source is there, and layers take each tensor whole and once, or not at all."""
    taken: dict[str, dict[tuple[int, ...], bytearray]] = {}
    sides: dict[str, bool] = {}
    for name, (out, columns) in layers.items():
        if (source := sources[name]) is None:
            continue
        _, shape = tensors.get(source.tensor, ("", ()))
        matrix = shape[-2:][::-1] if source.transposed else shape[-2:]
        numbers = (*source.index, source.part)
        sizes = (*shape[:-2], source.parts)
        fits = matrix == (source.parts * out, columns) and len(numbers) == len(sizes)
        if not fits or not all(number < size for number, size in zip(numbers, sizes, strict=True)):
            raise BuildError(f"{name}: {[out, columns]} is no part of {source.tensor} {list(shape)}: {source}")
        rows = taken.setdefault(source.tensor, {}).setdefault(source.index, bytearray(matrix[0]))
        if any(rows[source.rows(out)]) or sides.setdefault(source.tensor, source.transposed) != source.transposed:
            raise BuildError(f"{name}: lies in {source.tensor} where another layer lies")
        rows[source.rows(out)] = b"\1" * out
    for tensor, matrices in taken.items():
        if len(matrices) != prod(tensors[tensor][1][:-2]) or not all(all(rows) for rows in matrices.values()):
            raise BuildError(f"{tensor}: is in part layers, and in part none")


def _write_counted(config: Path, tensors: Tensors, folder: Path) -> list[tuple[int, str]]:
    """Write a base of these tensors whose numbers count on from tensor to tensor; return where each begins."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes((config / "config.json").read_bytes())
    start, begins, counting = 0, [], {}
    for name, (_, shape) in tensors.items():
        begins.append((start, name))
        counting[name] = torch.arange(start, start := start + prod(shape), dtype=torch.float64).reshape(shape)
    save_file(counting, folder / "model.safetensors", metadata={"format": "pt"})
    return begins


def _part(values: Any, first: int, tensor: str, shape: tuple[int, ...]) -> Source | None:
    """Return which part of a tensor a counted weight [out, in] or bias [out] is, whose first number is its `first`."""
    import torch

    if values.shape == shape:
        flat = values.flatten()
        if first == 0 and torch.equal(flat, flat[0] + torch.arange(len(flat), dtype=flat.dtype)):
            return Source(tensor)
    if values.dim() == 1:
        values, shape = values[:, None], (*shape, 1)
    if values.dim() != 2 or len(shape) < 2:
        return None
    out, columns = values.shape
    rows, width = shape[-2:]
    place, inside = divmod(first, rows * width)
    index: list[int] = []
    for size in reversed(shape[:-2]):
        place, number = divmod(place, size)
        index.insert(0, number)
    start = values[0, 0] - inside
    matrix = (start + torch.arange(rows * width, dtype=values.dtype)).reshape(rows, width)
    for transposed in (False, True):
        whole = matrix.T if transposed else matrix
        if whole.shape[1] != columns or whole.shape[0] % out:
            continue
        parts = whole.shape[0] // out
        offset = inside if transposed else inside // width
        for interleaved, part in ((False, offset // out), (True, offset)):
            source = Source(tensor, tuple(index), part, parts, interleaved, transposed)
            if part < parts and torch.equal(whole[source.rows(out)], values):
                return source
    return None


def _rule(pattern: str, instances: Mapping[tuple[int, ...], Source | None]) -> Any:
    """Return a source of a kind of layers, and for each number of its tensor's name and index its place in a name.

    A place is None, beside the number, where that is the same in all layers and no number of their names. Returns None
    where these layers have no source.
    """
    sources = [source for source in instances.values() if source]
    alike = {(numbered(each.tensor)[0], len(each.index), *list(asdict(each).values())[2:]) for each in sources}
    if not sources:
        return None
    if len(alike) > 1 or len(sources) < len(instances):
        raise BuildError(f"{pattern}: layers of this name do not all lie alike: {sorted(map(str, alike))}")
    slots = [(*numbered(each.tensor)[1], *each.index) for each in sources]
    places = []
    for column in zip(*slots, strict=True):
        found = [place for place, each in enumerate(zip(*instances, strict=True)) if each == column]
        if len(found) > 1 or not (found or len(set(column)) == 1):
            raise BuildError(f"{pattern}: the smaller model leaves open which number says where it lies")
        places.append((found[0] if found else None, column[0]))
    return sources[0], places
