"""Names of tensors and modules with their numbers as wildcards: what holds for few blocks holds for many."""

from collections.abc import Iterable, Iterator
from typing import Any


def numbered(name: str) -> tuple[str, tuple[int, ...]]:
    """Return a name with `*` for each part that is a number, and the numbers: `named` puts them back."""
    parts = name.split(".")
    numbers = tuple(int(part) for part in parts if part.isdecimal())
    return ".".join("*" if part.isdecimal() else part for part in parts), numbers


def named(pattern: str, numbers: Iterable[int]) -> str:
    """Return the name whose `numbered` this is."""
    left = iter(numbers)
    return ".".join(str(next(left)) if part == "*" else part for part in pattern.split("."))


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
        node, text = root, list[str]()
        for part in name.split("."):
            if part.isdecimal():
                node = node.setdefault(".".join(text), {}).setdefault(int(part), {})
                text = []
            else:
                text.append(part)
        node.setdefault(".".join(text), {})[None] = name
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
