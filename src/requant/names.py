"""Numbers in names of tensors and modules: the parts between dots that are whole numbers, without leading zeros.

What holds for a few blocks or experts holds for many of them: their names agree but for these. Standard library only.
"""

import re
from collections.abc import Iterable

NUMBER = re.compile(r"(?<=\.)(0|[1-9][0-9]{0,6})(?=\.|$)")
"""A number of a name; the first part of a name is none."""


def numbered(name: str) -> tuple[str, tuple[int, ...]]:
    """Return a name with `*` in the place of each number, and the numbers: `named` puts them back."""
    return NUMBER.sub("*", name), tuple(map(int, NUMBER.findall(name)))


def named(pattern: str, numbers: Iterable[int]) -> str:
    """Return the name whose `numbered` this is."""
    left = iter(numbers)
    return ".".join(str(next(left)) if part == "*" else part for part in pattern.split("."))
