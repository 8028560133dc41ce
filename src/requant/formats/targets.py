"""Which layer a name or an expression of a configuration means.

A stranger wrote the expressions, and Python's own matcher can take one longer than anybody waits. RE2 takes time that
grows with the name alone; what it does not have, looking ahead and behind, is not modelled.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

MAX_LENGTH, MAX_EXPRESSIONS = 2_000, 1_000
"""Of an expression, in letters, and of all of them."""


@dataclass(frozen=True)
class Targets:
    """Names, and expressions that a name begins with, in the order in which they stand."""

    names: frozenset[str]
    expressions: tuple[tuple[str, Any], ...]

    def first(self, name: str) -> str | None:
        """Return the target, as it stands in the configuration, that means a name; an exact one first."""
        if name in self.names:
            return name
        return next((each for each, expression in self.expressions if expression.match(name)), None)


def targets(listed: Iterable[str]) -> Targets:
    """Read targets. Raises ValueError, which says why, for an expression that is not understood."""
    names = [each for each in listed if not each.startswith("re:")]
    expressions = [each for each in listed if each.startswith("re:")]
    if len(expressions) > MAX_EXPRESSIONS:
        raise ValueError(f"{len(expressions):,} expressions for names of layers")
    return Targets(frozenset(names), tuple((each, _compile(each.removeprefix("re:"))) for each in expressions))


def _compile(expression: str) -> Any:
    if len(expression) > MAX_LENGTH:
        raise ValueError(f"an expression of {len(expression):,} letters for names of layers")
    import re2  # a pod that builds has none, and reads no expression

    silent = re2.Options()
    silent.log_errors = False
    try:
        return re2.compile(expression, silent)
    except re2.error as error:
        said = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
        raise ValueError(f"re:{expression!r:.80} is no expression that is understood: {said:.80}") from None
