"""Names in templates: `model.layers.{0..39}.mlp.experts.{0..255}.gate_proj` for 10,240 names that a person can read.

What is folded has an order, that of a model: block by block. Folding keeps it, as far as blocks agree on it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from math import prod
from typing import Generic, TypeVar

from requant.errors import CheckpointError
from requant.names import NUMBER

MAX_NAMES = 1 << 20
"""More than any model has: a stranger's template must not fill the memory."""
MAX_PLACES = 8
"""Numbers in one name, at most: each is a level of recursion."""
SHOWN = 200
"""Letters of a stranger's template that an error shows."""
_BRACE = re.compile(r"\{([0-9.,]*)\}")

T = TypeVar("T")


@dataclass(frozen=True)
class Template(Generic[T]):
    """Names that differ in numbers, and what they have in common.

    `texts` stand between the `numbers`; each number of one place goes with each one of the others.
    """

    texts: tuple[str, ...]
    numbers: tuple[tuple[int, ...], ...]
    value: T

    @property
    def count(self) -> int:
        """How many names it stands for."""
        return prod(map(len, self.numbers))

    def __str__(self) -> str:
        places = (f"{number[0]}" if len(number) == 1 else f"{{{_runs(number)}}}" for number in self.numbers)
        return self.texts[0] + "".join(f"{place}{text}" for place, text in zip(places, self.texts[1:], strict=True))


def fold(named: Mapping[str, T]) -> list[Template[T]]:
    """Return templates that stand for these names, in their order; `unfold` inverts it.

    Where blocks differ in the order of what they hold, it is that of the first one.
    """
    rows = []
    for name, value in named.items():
        parts = NUMBER.split(name)
        rows.append((tuple(parts[::2]), tuple(map(int, parts[1::2])), value))
    return _fold(rows)


def unfold(templates: Iterable[Template[T]]) -> dict[str, T]:
    """Return the names that templates stand for, block by block. Raises CheckpointError for more than `MAX_NAMES`."""
    held, count = [], 0
    for each in templates:
        held.append(each)
        count += each.count
        if count > MAX_NAMES:
            raise CheckpointError(f"templates of more than {MAX_NAMES:,} names")
    return dict(_unfold(held))


def parse(text: str, value: T) -> Template[T]:
    """Return the template that `str` gives as `text`. Raises CheckpointError where it is none."""
    texts, numbers, end = [""], [], 0
    for match in re.finditer(rf"{_BRACE.pattern}|{NUMBER.pattern}", text):
        texts[-1] += text[end : match.start()]
        numbers.append(_numbers(text, match[1]) if match[1] is not None else (int(match[2]),))
        if len(numbers) > MAX_PLACES or prod(map(len, numbers)) > MAX_NAMES:
            raise CheckpointError(
                f"{text[:SHOWN]!r}: a template of too many names, or of more than {MAX_PLACES} numbers"
            )
        texts.append("")
        end = match.end()
    texts[-1] += text[end:]
    if any("{" in each or "}" in each for each in texts):
        raise CheckpointError(f"{text[:SHOWN]!r}: expected numbers in braces, and no other braces")
    return Template(tuple(texts), tuple(numbers), value)


_Row = tuple[tuple[str, ...], tuple[int, ...], T]


def _fold(rows: list[_Row[T]]) -> list[Template[T]]:
    found: list[Template[T]] = []
    for (text, numbered), group in groupby(rows, lambda row: (row[0][0], bool(row[1]))):
        if not numbered:
            found += [Template((text,), (), value) for _, _, value in group]
            continue
        inside: dict[int, list[_Row[T]]] = {}
        for texts, (first, *rest), value in group:
            inside.setdefault(first, []).append((texts[1:], tuple(rest), value))
        for template, numbers in _merged({number: _fold(rows) for number, rows in inside.items()}):
            found.append(Template((text, *template.texts), (tuple(sorted(numbers)), *template.numbers), template.value))
    return found


def _merged(sequences: Mapping[int, list[Template[T]]]) -> list[tuple[Template[T], list[int]]]:
    """Merge what each number has into one sequence: what is new comes after what precedes it in its own."""
    merged: dict[Template[T], list[int]] = {}
    for number, sequence in sequences.items():
        order, before = list(merged), -1
        for each in sequence:
            if each in merged:
                before = max(before, order.index(each))
                merged[each].append(number)
            else:
                before += 1
                order.insert(before, each)
                merged[each] = [number]
        merged = {each: merged[each] for each in order}
    return list(merged.items())


def _unfold(templates: list[Template[T]]) -> Iterable[tuple[str, T]]:
    for (text, numbered), group in groupby(templates, lambda each: (each.texts[0], bool(each.numbers))):
        if not numbered:
            yield from ((text, each.value) for each in group)
            continue
        inside: dict[int, list[Template[T]]] = {}
        for each in group:
            rest = Template(each.texts[1:], each.numbers[1:], each.value)
            for number in each.numbers[0]:
                inside.setdefault(number, []).append(rest)
        for number in sorted(inside):
            yield from ((f"{text}{number}{name}", value) for name, value in _unfold(inside[number]))


def _numbers(text: str, inside: str) -> tuple[int, ...]:
    found: list[int] = []
    for run in inside.split(","):
        match = re.fullmatch(r"(0|[1-9]\d{0,6})(?:\.\.(0|[1-9]\d{0,6}))?", run)
        if (
            not match
            or (last := int(match[2] or match[1])) < (first := int(match[1]))
            or (found and first <= found[-1])
        ):
            raise CheckpointError(f"{text[:SHOWN]!r}: expected numbers in order, such as {{0..3,7}}")
        if len(found) + last - first >= MAX_NAMES:
            raise CheckpointError(f"{text[:SHOWN]!r}: a template of more than {MAX_NAMES:,} names")
        found += range(first, last + 1)
    return tuple(found)


def _runs(numbers: tuple[int, ...]) -> str:
    """Return `0..2,4` for 0, 1, 2 and 4."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("..".join(map(str, run)) for run in runs)
