"""What a model of a base's class, and of other sizes, would hold in files: the same kinds of tensors, in their order.

What its class has is known from its configuration. What no class loads, such as a block that other engines use to
predict more tokens, is scaled by its likeness to a tensor that is loaded, or by the hidden size; where it is numbered
on from the blocks, it is so here.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from requant.errors import BuildError
from requant.names import NUMBER, numbered
from requant.protocol import Tensors
from requant.worker.autoround.tensors import Base, hidden_size, saved

MULTIPLES = range(1, 9)
"""What may stand before the hidden size in a shape without likeness: an `fc` of two streams is [hidden, 2 hidden]."""


def scaled(model: Any, base: Base) -> tuple[Tensors, tuple[str, ...]]:
    """Return the tensors that files of this model would hold, and which of them transformers would not load.

    They stand in the order of the base's, and have its dtypes. Raises BuildError where the base's names, or a shape,
    say nothing about this model.
    """
    shapes = saved(model, base)
    known = {numbered(name)[0]: dtype for name, (dtype, _) in reversed([*base.tensors.items()])}
    if strange := [name for name in shapes if numbered(name)[0] not in known]:
        raise BuildError(f"{strange[0]}: a model of this class has it, and no tensor of the base has such a name")
    unloaded = _unloaded(shapes, base, hidden_size(model))
    everything = shapes | unloaded
    table: dict[str, tuple[str, tuple[int, ...]]] = {}
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
    loaded = {_group(name) for name in base.tensors if name not in apart}
    here: dict[tuple[str, str], set[tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        here.setdefault((numbered(name)[0], _within(name)), set()).add(shape)
    groups = {_group(name) for name in shapes}
    before, after = _last(loaded), _last(groups)
    found: dict[str, tuple[int, ...]] = {}
    for stored in base.unloaded:
        shape, within, (stem, number) = base.tensors[stored][1], _within(stored), _group(stored)
        name = stored
        if stem in after and number > before.get(stem, number):
            name = f"{stem}{number - before[stem] + after[stem]}{stored.removeprefix(f'{stem}{number}')}"
        elif stem in after and (stem, number) not in groups:
            continue  # of a block that this model is too short for
        if within and (alike := likeness.get((within, shape))):
            sizes = {size for pattern in alike for size in here.get((pattern, within), ())}
            if len(sizes) > 1 or not (sizes or alike & {pattern for pattern, _ in here}):
                raise BuildError(f"{name}: is like tensors of the shapes {sorted(map(list, sizes))} in this model")
            if sizes:  # else its number, of an expert, is beyond this model's
                found[name] = sizes.pop()
            continue
        # Such as a copy of the embedding.
        sizes = {size for pattern in likeness.get(("", shape), ()) for size in here.get((pattern, ""), ())}
        found[name] = (
            sizes.pop() if len(sizes) == 1 else tuple(_multiple(name, size, base.hidden) * hidden for size in shape)
        )
    return found


def _last(groups: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Return the greatest number of each kind of group."""
    return {stem: number for stem, number in sorted(groups) if stem}


def _within(name: str) -> str:
    """Return what is behind the first number of a name: its place in a block."""
    return NUMBER.split(name, maxsplit=1)[-1].removeprefix(".") if NUMBER.search(name) else ""


def _group(name: str) -> tuple[str, int]:
    """Return what is before the first number of a name, and the number."""
    pattern, numbers = numbered(name)
    return (pattern.partition("*")[0], numbers[0]) if numbers else ("", 0)


def _multiple(name: str, size: int, hidden: int) -> int:
    if size % hidden or size // hidden not in MULTIPLES:
        raise BuildError(f"{name}: nothing says what size {size} would be in a smaller model")
    return size // hidden


def arranged(names: Iterable[str], like: Iterable[str]) -> list[str]:
    """Return names in the order that others of their kind have in `like`; numbers ascend.

    Names that agree up to a number are a group, such as a block. A group is ordered as the one of its own number, or as
    the first that has all its members: blocks differ in kind, and not every number of one is in the other.
    """
    return list(_walk(_tree(names), [_tree(like)]))


def _tree(names: Iterable[str]) -> dict[Any, Any]:
    """Return nested groups: the text up to a number, the number, the text behind it; `None` holds the whole name."""
    root: dict[Any, Any] = {}
    for name in names:
        node = root
        *parts, rest = NUMBER.split(name)
        for text, number in zip(parts[::2], parts[1::2], strict=True):
            node = node.setdefault(text, {}).setdefault(int(number), {})
        node.setdefault(rest, {})[None] = name
    return root


def _walk(node: dict[Any, Any], likes: list[dict[Any, Any]]) -> Iterator[str]:
    """Walk over texts in an order that the first fitting group of `likes` has, else all of them together."""
    every = {text: None for like in likes for text in like}
    order = next((list(like) for like in likes if node.keys() <= like.keys()), [*every, *node])
    for text in dict.fromkeys(text for text in order if text in node):
        group = node[text]
        same = [like[text] for like in likes if text in like]
        if None in group:
            yield group[None]
        for number in sorted(each for each in group if each is not None):
            own = [each[number] for each in same if number in each]
            others = [each[other] for each in same for other in each if other is not None and other != number]
            yield from _walk(group[number], [*own, *others])
