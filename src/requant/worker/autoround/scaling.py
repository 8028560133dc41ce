"""What a model of a base's class, and of other sizes, would hold in files: the same kinds of tensors, in their order.

What its class has is known from its configuration. What no class loads, such as a block that other engines use to
predict more tokens, is scaled by its likeness to a tensor that is loaded, or by the hidden size.
"""

import re
from collections.abc import Mapping
from typing import Any

from requant.errors import BuildError
from requant.worker.autoround.names import arranged, numbered
from requant.worker.autoround.tensors import Base, Table, hidden_size, saved

MULTIPLES = range(1, 9)
"""What may stand before the hidden size in a shape without likeness: an `fc` of two streams is [hidden, 2 hidden]."""


def scaled(model: Any, base: Base) -> tuple[Table, tuple[str, ...]]:
    """Return the tensors that files of this model would hold, and which of them transformers would not load.

    They stand in the order of the base's, and have its dtypes. Raises BuildError where the base's names, or a shape,
    say nothing about this model.
    """
    shapes = saved(model, base)
    known = {numbered(name)[0]: dtype for name, (dtype, _) in reversed(base.tensors.items())}
    if strange := [name for name in shapes if numbered(name)[0] not in known]:
        raise BuildError(f"{strange[0]}: a model of this class has it, and no tensor of the base has such a name")
    unloaded = _unloaded(shapes, base, hidden_size(model))
    everything = shapes | unloaded
    table: Table = {}
    for name in arranged(everything, base.tensors):
        dtype = base.tensors[name][0] if name in base.tensors else known[numbered(name)[0]]
        table[name] = (dtype, everything[name])
    return table, tuple(name for name in table if name in unloaded)


def _unloaded(shapes: Mapping[str, tuple[int, ...]], base: Base, hidden: int) -> dict[str, tuple[int, ...]]:
    """Return shapes, for a model of these, of what the base holds beside what is loaded."""
    apart = set(base.unloaded)
    likeness: dict[tuple[str, tuple[int, ...]], set[str]] = {}
    for name, (_, shape) in base.tensors.items():
        if name not in apart:
            likeness.setdefault((_within(name), shape), set()).add(numbered(name)[0])
    here: dict[tuple[str, str], set[tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        here.setdefault((numbered(name)[0], _within(name)), set()).add(shape)
    groups = {_group(name) for name in shapes}
    stems = {stem for stem, _ in groups}
    found: dict[str, tuple[int, ...]] = {}
    for name in base.unloaded:
        shape, within = base.tensors[name][1], _within(name)
        if _group(name)[0] in stems and _group(name) not in groups:
            continue  # of a block that this model is too short for
        if within and (alike := likeness.get((within, shape))):
            sizes = {size for pattern in alike for size in here.get((pattern, within), ())}
            if len(sizes) > 1 or not (sizes or alike & {pattern for pattern, _ in here}):
                raise BuildError(f"{name}: is like tensors of the shapes {sorted(map(list, sizes))} in this model")
            if sizes:  # else its number, of an expert, is beyond this model's
                found[name] = sizes.pop()
        else:
            found[name] = tuple(_multiple(name, size, base.hidden) * hidden for size in shape)
    return found


def _within(name: str) -> str:
    """Return what is behind the first number of a name: its place in a block."""
    return re.split(r"\.\d+\.", name, maxsplit=1)[1] if re.search(r"\.\d+\.", name) else ""


def _group(name: str) -> tuple[str, int]:
    """Return what is before the first number of a name, and the number."""
    pattern, numbers = numbered(name)
    return (pattern.partition("*")[0], numbers[0]) if numbers else ("", 0)


def _multiple(name: str, size: int, hidden: int) -> int:
    if size % hidden or size // hidden not in MULTIPLES:
        raise BuildError(f"{name}: nothing says what size {size} would be in a smaller model")
    return size // hidden
