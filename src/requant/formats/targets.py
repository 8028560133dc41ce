"""Which layer a name or an expression of a configuration means.

A stranger wrote the expressions, and Python's own matcher can take one longer than anybody waits. RE2 takes time that
grows with the name alone; what it does not have, looking ahead and behind, is not modelled.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MAX_LENGTH, MAX_EXPRESSIONS = 2_000, 1_000
"""Of an expression, in letters, and of all of them."""
MAX_MEMORY = 1 << 20
"""Bytes that RE2 may take for one: an eighth of its default, which some expressions need seconds to fill."""


@dataclass(frozen=True)
class Targets:
    """Names, by their places in the list, and expressions that a name begins with, in the order in which they stand."""

    names: Mapping[str, int]
    expressions: tuple[tuple[int, str, Any], ...]

    def first(self, name: str) -> str | None:
        """Return the first target, as it stands in the configuration, that means a name."""
        place = self.names.get(name)
        for number, each, expression in self.expressions:
            if place is not None and place < number:
                break
            if expression.match(name):
                return each
        return None if place is None else name


def targets(listed: Iterable[str]) -> Targets:
    """Read targets. Raises ValueError, which says why, for an expression that is not understood."""
    places = {each: number for number, each in reversed([*enumerate(listed)])}
    expressions = [(number, each) for each, number in places.items() if each.startswith("re:")]
    if len(expressions) > MAX_EXPRESSIONS:
        raise ValueError(f"{len(expressions):,} expressions for names of layers")
    read = tuple((number, each, _compile(each.removeprefix("re:"))) for number, each in sorted(expressions))
    return Targets({each: number for each, number in places.items() if not each.startswith("re:")}, read)


def _compile(expression: str) -> Any:
    if len(expression) > MAX_LENGTH:
        raise ValueError(f"an expression of {len(expression):,} letters for names of layers")
    import re2  # a pod that builds has none, and reads no expression

    silent = re2.Options()
    silent.log_errors, silent.max_mem = False, MAX_MEMORY
    try:
        return re2.compile(expression, silent)
    except re2.error as error:
        said = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
        raise ValueError(f"re:{expression!r:.80} is no expression that is understood: {said:.80}") from None
