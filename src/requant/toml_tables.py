"""Frozen dataclasses from the tables of a TOML document, strictly: their fields are the whole language of the document.

A field with a default may be left out; everything else has to be there, and nothing more. Standard library only.
"""

import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from requant.errors import RecipeError


def read_tables(path: Path, kinds: Mapping[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a document by key; those whose kind is a dataclass are tables.

    Raises RecipeError, which names the file, the key, what was found and what is allowed.
    """
    _same_keys(path, "", document, set(kinds), set(kinds))
    return {
        key: (_table if is_dataclass(kind) else _value)(path, key, kind, document[key]) for key, kind in kinds.items()
    }


def _table(path: Path, name: str, kind: Any, found: object) -> Any:
    if not isinstance(found, dict):
        raise RecipeError(f"{path}: {name}: found {found!r}, expected a table [{name}]")
    hints = get_type_hints(kind)
    needed = {each.name for each in fields(kind) if not _has_default(each)}
    _same_keys(path, f"{name}.", found, {each.name for each in fields(kind)}, needed)
    return kind(
        **{
            key: _tables(path, f"{name}.{key}", get_args(hints[key])[1], value)
            if get_origin(hints[key]) is Mapping
            else _value(path, f"{name}.{key}", hints[key], value)
            for key, value in found.items()
        }
    )


def _tables(path: Path, name: str, kind: Any, found: object) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise RecipeError(f"{path}: {name}: found {reprlib.repr(found)}, expected a table [{name}] of tables")
    return {key: _table(path, f"{name}.{json.dumps(key)}", kind, value) for key, value in found.items()}


def _has_default(each: Field[Any]) -> bool:
    return not (each.default is MISSING and each.default_factory is MISSING)


def _same_keys(path: Path, prefix: str, found: dict[str, Any], allowed: set[str], needed: set[str]) -> None:
    for key in found:
        if key not in allowed:
            raise RecipeError(f"{path}: {prefix}{key}: unknown key; allowed here: {', '.join(sorted(allowed))}")
    for key in sorted(needed - found.keys()):
        raise RecipeError(f"{path}: {prefix}{key}: missing", "A recipe states every value; see builds/ec/recipe.toml.")


def _value(path: Path, key: str, kind: Any, found: Any) -> Any:
    for each in get_args(kind) if get_origin(kind) not in (Literal, tuple) and get_args(kind) else (kind,):
        if get_origin(each) is Literal:
            if any(type(found) is type(allowed) and found == allowed for allowed in get_args(each)):
                return found
        elif get_origin(each) is tuple:
            if isinstance(found, list) and all(isinstance(item, str) for item in found):
                return tuple(found)
        elif (
            type(found) is each
            and (each is not float or math.isfinite(found))
            and (each is not int or abs(found) < 2**63)
        ):
            return found
    shown = reprlib.repr(found) if not isinstance(found, int) or abs(found) < 2**63 else "a number of more than 63 bits"
    raise RecipeError(f"{path}: {key}: found {shown}, allowed: {_allowed(kind)}")


def _allowed(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(repr(each) for each in get_args(kind))
    if get_origin(kind) is tuple:
        return "a list of strings"
    if get_args(kind):
        return " or ".join(_allowed(each) for each in get_args(kind) if each is not NoneType)
    return {int: "a whole number", float: "a finite number with a point", bool: "true or false", str: "a string"}[kind]
