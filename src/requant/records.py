"""Frozen dataclasses from JSON, strictly: exactly their fields, each of exactly its type. `asdict` is the way back.

Journals are read by this, and so is what host and worker tell each other. Standard library only.
"""

import reprlib
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from itertools import repeat
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

Record = TypeVar("Record")


def record(kind: type[Record], value: Any) -> Record:
    """Return a dataclass from an object of parsed JSON; arrays become tuples.

    Fields may be plain types, `Any`, literals, dataclasses, tuples and mappings of these, or one of these or None.
    Raises ValueError, which says where, what was found and what was expected.
    """
    found: Record = _read(kind, value, "")
    return found


_hints = cache(get_type_hints)


def _read(kind: Any, value: Any, where: str) -> Any:
    if kind is Any or type(value) is kind:
        return value
    if is_dataclass(kind):
        return _fields(kind, value, where)
    origin, inside = get_origin(kind), get_args(kind)
    if origin is tuple and isinstance(value, list):
        kinds = repeat(inside[0], len(value)) if inside[-1] is ... else inside
        if kinds is not inside or len(inside) == len(value):
            return tuple(_read(each, one, where) for each, one in zip(kinds, value, strict=True))
    elif origin is Mapping and isinstance(value, dict):
        if inside[1] is not str:
            return {key: _read(inside[1], each, f"{where}[{reprlib.repr(key)}]") for key, each in value.items()}
        if set(map(type, value.values())) <= {str}:
            return value
    elif origin is Literal and any(type(value) is type(each) and value == each for each in inside):
        return value
    elif NoneType in inside:
        return None if value is None else _read(next(each for each in inside if each is not NoneType), value, where)
    raise ValueError(f"{where}: found {reprlib.repr(value)}, expected {kind if inside else kind.__name__}")


def _fields(kind: Any, value: Any, where: str) -> Any:
    hints, prefix = _hints(kind), where and f"{where}: "
    if not isinstance(value, dict):
        raise ValueError(f"{prefix}found {reprlib.repr(value)}, expected an object with {', '.join(hints)}")
    for key in sorted(value.keys() ^ hints.keys()):
        raise ValueError(f"{prefix}{'unknown key' if key in value else 'no'} {reprlib.repr(key)}")
    return kind(**{key: _read(hint, value[key], f"{where}.{key}" if where else key) for key, hint in hints.items()})
