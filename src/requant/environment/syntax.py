"""What source code does, as data: its syntax tree without what only people read.

Two sources with one `meaning` compile to the same instructions. It is the same on every Python that can parse
them, from 3.11 on, whose own `ast.dump` are not: fields that hold nothing are left out (3.12 added an empty
`type_params`), and so is how a string is cut into pieces (f-strings are parsed anew since 3.12). Standard library only.
"""

import ast
from typing import Any

from requant.digest import canonical_json


def meaning(source: bytes) -> bytes:
    """Return a module's syntax tree as canonical JSON, without positions, comments and docstrings.

    Annotations stay: dataclasses read them. Raises SyntaxError for what is no module.
    """
    return canonical_json(_plain(ast.parse(source)))


def _plain(value: Any) -> Any:
    if isinstance(value, ast.JoinedStr):
        return ["JoinedStr", _pieces(value)]
    if isinstance(value, ast.Constant):
        return ["Constant", type(value.value).__name__, ascii(value.value)]  # not repr, which follows Unicode's version
    if isinstance(value, ast.AST):
        fields = {name: _plain(getattr(value, name, None)) for name in value._fields if name != "type_comment"}
        if fields.get("format_spec") == ["JoinedStr", []]:
            del fields["format_spec"]  # `{x:}` is `{x}`
        return [type(value).__name__, {name: plain for name, plain in fields.items() if plain not in (None, [])}]
    if isinstance(value, list):
        return [_plain(each) for each in value if not _does_nothing(each)]
    return value


def _does_nothing(statement: Any) -> bool:
    """Say whether a statement is a constant alone, such as a docstring, or `...` where Python wants a statement."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _pieces(string: ast.JoinedStr) -> list[Any]:
    """Return an f-string's values; constants that follow one another are one, and an empty one is none."""
    pieces: list[Any] = []
    for each in string.values:
        piece = each.value if isinstance(each, ast.Constant) else _plain(each)
        if pieces and isinstance(piece, str) and isinstance(pieces[-1], str):
            piece = pieces.pop() + piece
        if piece:
            pieces.append(piece)
    return [ascii(each) if isinstance(each, str) else each for each in pieces]
