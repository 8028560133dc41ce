"""Whether a text states a fact's value: read by what the fact is, and as exact as it is written.

A text that does not look like such a value states nothing: no guess is made.
"""

import math
import re

from requant.card.facts import Fact, Facts
from requant.card.vocabulary import FORMS, SAME

ABOUT = 0.03
"""How far off a size or a time may be that is said to be about right."""
LONGEST = 500
"""Characters of a value that are looked at."""
_INTEGER = re.compile(r"(-?\d{1,3}(?:,\d{3})+|-?\d{1,18})(?![\d.,]*\d)(?= ?(?:$|[(;,\u2014]| - ))")
_NUMBER = re.compile(r"-?(?:\d{1,12}(?:\.\d{0,12})?|\.\d{1,12})(?:[eE]-?\d{1,3})?")
_AMOUNT = re.compile(r"(~ ?|≈ ?|about )?([\d,]{1,24}(?:\.\d{1,9})?) ?([A-Za-z]+)\b")
_FORMED = {
    "version": re.compile(r"v?(\d+(?:\.\w+)*(?:\+[\w.]+)?)(?=$|[\s,;)])"),
    "commit": re.compile(r"([0-9a-f]{7,40})\b"),
    "loss": re.compile(r"(\d\.\d{1,12})"),
}
NONE = ("none", "[]")
"""How a list of nothing is written."""
_UNITS = {"bytes": 1}
_UNITS |= {f"{prefix}b": 10 ** (3 * power) for power, prefix in enumerate("kmgt", 1)}
_UNITS |= {f"{prefix}ib": 2 ** (10 * power) for power, prefix in enumerate("kmgt", 1)}
_TIMES = {"s": 1, "second": 1, "min": 60, "minute": 60, "h": 3600, "hour": 3600, "hr": 3600}

Read = tuple[str, bool] | None
"""What a text states, as it was understood, and whether that is the fact's value; None where it states nothing."""


def agrees(key: str, fact: Fact | None, said: str, facts: Facts) -> Read:
    """Read a text as a value of `key`, and say whether it is the fact's."""
    stated = said[:LONGEST].replace("`", "").strip(" *\"'")
    unit = fact.unit if fact else _unit_of(key)
    if unit in ("bytes", "seconds"):
        recorded = fact.value if fact and isinstance(fact.value, int | float) else None
        return _amount(stated, recorded, _UNITS if unit == "bytes" else _TIMES)
    if unit == "device":
        return _device(stated, str(fact.value)) if fact else (stated, False)
    if unit:
        match = _FORMED[unit].match(stated)
        found = match[1] if match else ""
        if unit == "version" and fact and "+" not in str(fact.value):
            found = _public(found)  # the record has no local label to compare
        return (found, fact is not None and _formed(unit, found, fact.value)) if found else None
    return _plain(key, fact, stated, facts)


def _formed(unit: str, said: str, value: object) -> bool:
    if unit == "version":
        return _public(said) == _public(str(value))
    if unit == "commit":
        return str(value).startswith(said)
    return isinstance(value, float) and _rounds_to(value, said, 1)


def _unit_of(key: str) -> str:
    """Return the unit of a fact that no record has."""
    if key.startswith("loss."):
        return "loss"
    named = {"statement.seconds": "seconds", "hardware.accelerator": "device"}
    for prefix, unit in (("package.", "version"), ("commit.", "commit")):
        if key.startswith(prefix):
            return unit
    return named.get(key, "bytes" if key.endswith(("bytes", "memory")) else "")


def _plain(key: str, fact: Fact | None, stated: str, facts: Facts) -> Read:
    value = fact.value if fact else None
    if key.endswith("learning_rate"):
        return _rate(fact, stated, facts)
    if isinstance(value, bool):
        word = re.match(r"\w+", stated.lower())
        truth = {"yes": True, "true": True, "symmetric": True, "no": False, "false": False, "asymmetric": False}
        return (word[0], truth[word[0]] is value) if word and word[0] in truth else None
    if isinstance(value, tuple):
        items = () if stated in NONE else _items(stated)
        known = items or stated in NONE
        return (", ".join(items) or "none", {*items} == {*map(str, value)}) if known else None
    if isinstance(value, float):
        number = _NUMBER.fullmatch(stated)
        return (stated, math.isclose(float(stated), value)) if number else None
    if isinstance(value, int) or (value is None and key not in FORMS):
        number = _INTEGER.match(stated)
        return (number[1], value is not None and int(number[1].replace(",", "")) == value) if number else None
    head = re.split(r" \(| — |, |; ", stated)[0].strip(" .")
    form = FORMS.get(key)
    if form is None or not form.fullmatch(head):
        return None
    return head, value is not None and _same(head) == _same(str(value))


def _same(text: str) -> str:
    return SAME.get(text.lower(), text.lower())


def _rate(fact: Fact | None, stated: str, facts: Facts) -> Read:
    """Read a learning rate: a number, or AutoRound's own, which is one divided by the iterations."""
    head = stated.split(" (")[0]
    number = _NUMBER.fullmatch(head)
    if fact is None or not (number or _same(head) == "1/iterations"):
        return None
    iterations = facts["tuning.iterations"].value
    own = 1 / iterations if isinstance(iterations, int) and iterations else math.nan
    recorded = own if isinstance(fact.value, str) else float(fact.value)  # type: ignore[arg-type]
    return head, math.isclose(float(head) if number else own, recorded)


def _items(stated: str) -> tuple[str, ...]:
    bare = stated.strip("[]() ")
    items = tuple(each for part in bare.split(",") if (each := part.strip(" \"'`")))
    return items if all(re.fullmatch(r"[\w.]{1,200}", each, re.ASCII) for each in items) else ()


def _amount(stated: str, recorded: float | None, units: dict[str, int]) -> Read:
    match = _AMOUNT.match(stated)
    if not match:
        return None
    about, number, unit = match.groups()
    scale = units.get(unit.lower()) or units.get(unit.lower().removesuffix("s"))
    if scale is None:
        return None
    equal = recorded is not None and (
        _rounds_to(recorded, number.replace(",", ""), scale)
        or (bool(about) and abs(float(number.replace(",", "")) * scale - recorded) <= ABOUT * recorded)
    )
    return match[0], equal


def _rounds_to(recorded: float, written: str, scale: int) -> bool:
    """Whether a number, rounded to the decimals in which another is written, is that one."""
    return f"{recorded / scale:.{len(written.partition('.')[2])}f}" == written


def _public(version: str) -> str:
    """Return a version without its local label: whoever writes 2.6.0 may run 2.6.0+cu124."""
    return version.partition("+")[0]


def _device(stated: str, name: str) -> Read:
    """Read a device: the last word of its name, `H200`, must stand there; another name may be the same device."""
    return (stated, True) if re.search(rf"\b{re.escape(name.split()[-1])}\b", stated) else None
