"""Which layer a name or an expression of a configuration means: `re:` expressions of strangers, in bounded time.

Python's own matcher backtracks, so an expression can take it longer than anybody waits. Here all ends of a match are
found together, from all places at once: the time is at most the expression's size times a power of the name's length.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

_parser: Any = import_module("re._parser")
MAX_LENGTH, MAX_EXPRESSIONS, MAX_NAME, MAX_NESTED = 2_000, 1_000, 1_000, 2
"""Of an expression, in letters; of all of them; of a name that one is tried on; of repeats inside of repeats."""

Step = Callable[[str, frozenset[int]], frozenset[int]]
"""From the places in a name where a part of an expression may begin to those where it ends."""


@dataclass(frozen=True)
class Targets:
    """Names, and expressions that a name begins with, in the order in which they stand."""

    names: frozenset[str]
    expressions: tuple[tuple[str, Step], ...]

    def first(self, name: str) -> str | None:
        """Return the target, as it stands in the configuration, that means a name; an exact one first."""
        if name in self.names:
            return name
        place = frozenset({0})
        return next((each for each, step in self.expressions if len(name) <= MAX_NAME and step(name, place)), None)


def targets(listed: Iterable[str]) -> Targets:
    """Read targets. Raises ValueError, which says why, for an expression that is not understood."""
    names = [each for each in listed if not each.startswith("re:")]
    expressions = [each for each in listed if each.startswith("re:")]
    if len(expressions) > MAX_EXPRESSIONS:
        raise ValueError(f"{len(expressions):,} expressions for names of layers")
    return Targets(frozenset(names), tuple((each, _compile(each.removeprefix("re:"))) for each in expressions))


def _compile(expression: str) -> Step:
    if len(expression) > MAX_LENGTH:
        raise ValueError(f"an expression of {len(expression):,} letters for names of layers")
    try:
        parsed = _parser.parse(expression)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"re:{expression!r:.80} is no regular expression: {error}") from None
    if parsed.state.flags & (re.IGNORECASE | re.MULTILINE | re.DOTALL | re.VERBOSE):
        raise ValueError(f"re:{expression!r:.80} has flags")
    try:
        return _sequence(parsed, 0)
    except (LookupError, RecursionError):
        raise ValueError(f"re:{expression!r:.80} is more of an expression than is understood") from None


def _sequence(parsed: Iterable[tuple[Any, Any]], depth: int) -> Step:
    steps = [_STEPS[str(kind)](value, depth) for kind, value in parsed]

    def follow(name: str, starts: frozenset[int]) -> frozenset[int]:
        for step in steps:
            if not starts:
                break
            starts = step(name, starts)
        return starts

    return follow


def _letter(means: Callable[[str], bool]) -> Step:
    return lambda name, starts: frozenset(at + 1 for at in starts if at < len(name) and means(name[at]))


def _between(first: int, last: int) -> Callable[[str], bool]:
    return lambda letter: first <= ord(letter) <= last


def _one_of(items: Sequence[tuple[Any, Any]], _: int) -> Step:
    negate = False
    tests: list[Callable[[str], bool]] = []
    for kind, value in items:
        if str(kind) == "NEGATE":
            negate = True
        elif str(kind) == "LITERAL":
            tests.append(_between(value, value))
        elif str(kind) == "RANGE":
            tests.append(_between(*value))
        else:
            tests.append(_CATEGORIES[str(value)])
    return _letter(lambda letter: any(test(letter) for test in tests) != negate)


def _branch(value: Any, depth: int) -> Step:
    ways = [_sequence(each, depth) for each in value[1]]
    return lambda name, starts: frozenset[int]().union(*(way(name, starts) for way in ways))


def _repeat(value: Any, depth: int) -> Step:
    least, most, inner = value
    if depth >= MAX_NESTED:
        raise LookupError
    step = _sequence(inner, depth + 1)

    def follow(name: str, starts: frozenset[int]) -> frozenset[int]:
        for _ in range(min(least, len(name) + 1)):
            starts = step(name, starts)
        found = new = starts
        for _ in range(min(most - least, len(name) + 1)):
            new = step(name, new) - found
            if not new:
                break
            found |= new
        return found

    return follow


def _group(value: Any, depth: int) -> Step:
    if value[1] or value[2]:
        raise LookupError
    return _sequence(value[3], depth)


def _ahead(wanted: bool) -> Callable[[Any, int], Step]:
    def build(value: Any, depth: int) -> Step:
        direction, inner = value
        if direction != 1:
            raise LookupError
        step = _sequence(inner, depth + 1)
        return lambda name, starts: frozenset(at for at in starts if bool(step(name, frozenset({at}))) == wanted)

    return build


def _at(value: Any, _: int) -> Step:
    means = _PLACES[str(value)]
    return lambda name, starts: frozenset(at for at in starts if means(name, at))


_CATEGORIES: dict[str, Callable[[str], bool]] = {
    "CATEGORY_DIGIT": str.isdecimal,
    "CATEGORY_NOT_DIGIT": lambda letter: not letter.isdecimal(),
    "CATEGORY_WORD": lambda letter: letter.isalnum() or letter == "_",
    "CATEGORY_NOT_WORD": lambda letter: not (letter.isalnum() or letter == "_"),
    "CATEGORY_SPACE": str.isspace,
    "CATEGORY_NOT_SPACE": lambda letter: not letter.isspace(),
}
_PLACES: dict[str, Callable[[str, int], bool]] = {
    "AT_BEGINNING": lambda _, at: at == 0,
    "AT_BEGINNING_STRING": lambda _, at: at == 0,
    "AT_END": lambda name, at: at == len(name) or (at == len(name) - 1 and name[at] == "\n"),
    "AT_END_STRING": lambda name, at: at == len(name),
    "AT_BOUNDARY": lambda name, at: _word(name, at - 1) != _word(name, at),
    "AT_NON_BOUNDARY": lambda name, at: _word(name, at - 1) == _word(name, at),
}


def _word(name: str, at: int) -> bool:
    return 0 <= at < len(name) and (name[at].isalnum() or name[at] == "_")


_STEPS: dict[str, Callable[[Any, int], Step]] = {
    "LITERAL": lambda value, _: _letter(lambda letter: ord(letter) == value),
    "NOT_LITERAL": lambda value, _: _letter(lambda letter: ord(letter) != value),
    "ANY": lambda *_: _letter(lambda letter: letter != "\n"),
    "IN": _one_of,
    "BRANCH": _branch,
    "MAX_REPEAT": _repeat,
    "MIN_REPEAT": _repeat,
    "SUBPATTERN": _group,
    "ASSERT": _ahead(True),
    "ASSERT_NOT": _ahead(False),
    "AT": _at,
}
