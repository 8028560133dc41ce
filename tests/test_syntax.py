"""What code does is its meaning: any other edit of the worker's sources changes no environment's name."""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import ROOT

from requant.environment import Environment, identity
from requant.environment.identity import instructions, worker_sources
from requant.environment.syntax import meaning
from requant.programs import run

SOURCE = b'''\
"""A module."""

from dataclasses import dataclass  # why

LIMIT = 16
"""What it is."""


@dataclass(frozen=True)
class Part:
    """One part."""

    size: int = 4

    def doubled(self, times: int = 2) -> float:
        """Return more."""
        # A reason.
        if self.size > LIMIT and times:
            raise ValueError(f"{self.size:>{times}d} of {LIMIT!r}" "!")
        return self.size * times + -0.5
'''
SAME = {
    "a comment": (b"# A reason.", b"# A better reason."),
    "a comment more": (b"LIMIT = 16\n", b"LIMIT = 16  # by hand\n"),
    "a docstring": (b'"""Return more."""', b'"""Return twice as much."""'),
    "no docstring": (b'        """Return more."""\n', b""),
    "what a constant is for": (b'"""What it is."""\n', b""),
    "layout": (b"self.size * times + -0.5", b"(\n            self.size*times\n            + -0.5\n        )"),
    "another way to write a string": (b'd} of {LIMIT!r}" "!"', b"d} \" f'of {LIMIT!r}!'"),
    "another way to write a number": (b"LIMIT = 16", b"LIMIT = 0x10"),
    "ends of lines": (b"\n", b"\r\n"),
}
OTHER = {
    "a constant": (b"LIMIT = 16", b"LIMIT = 17"),
    "the type of a constant": (b"LIMIT = 16", b"LIMIT = 16.0"),
    "a name": (b"doubled", b"twice"),
    "an operator": (b"self.size * times", b"self.size / times"),
    "a comparison": (b"self.size > LIMIT", b"self.size >= LIMIT"),
    "a sign": (b"-0.5", b"+0.5"),
    "a default": (b"times: int = 2", b"times: int = 3"),
    "an annotation": (b"size: int", b"size: float"),
    "a decorator": (b"frozen=True", b"frozen=False"),
    "a format": (b"d} of", b"x} of"),
    "words of a message": (b" of ", b" from "),
    "a statement less": (b"            raise ValueError", b"            return ValueError"),
    "the order of statements": (b"if self.size > LIMIT and times", b"if times and self.size > LIMIT"),
    "precedence": (b"self.size * times + -0.5", b"self.size * (times + -0.5)"),
}


@pytest.mark.parametrize("name", SAME)
def test_what_only_people_read_is_not_in_it(name: str) -> None:
    before, after = SAME[name]
    assert before in SOURCE
    assert meaning(SOURCE.replace(before, after)) == meaning(SOURCE)


@pytest.mark.parametrize("name", OTHER)
def test_whatever_else_is_edited_is_in_it(name: str) -> None:
    before, after = OTHER[name]
    assert before in SOURCE
    assert meaning(SOURCE.replace(before, after, 1)) != meaning(SOURCE)


@given(st.lists(st.text(max_size=3), max_size=4), st.lists(st.text(max_size=3), max_size=4))
def test_pieces_of_a_string_are_its_text(one: list[str], other: list[str]) -> None:
    def f_string(pieces: list[str]) -> bytes:
        values: list[ast.expr] = [ast.FormattedValue(ast.Name("x", ast.Load()), -1, None)]
        values += [ast.Constant(piece) for piece in pieces]
        tree = ast.Module([ast.Expr(ast.JoinedStr(values))], [])
        return meaning(ast.unparse(ast.fix_missing_locations(tree)).encode())

    assert (f_string(one) == f_string(other)) == ("".join(one) == "".join(other))


def edited(data: bytes) -> bytes:
    """Give every line of a source that may have one a comment, by the tokens of the language."""
    lines = data.decode().split("\n")
    tokens = tokenize.generate_tokens(io.StringIO(data.decode()).readline)
    ends = {token.end[0] for token in tokens if token.type == tokenize.NEWLINE}
    return "\n".join(
        f"{line}  # another word" if number in ends else line for number, line in enumerate(lines, 1)
    ).encode()


def test_an_edit_of_comments_and_docstrings_renews_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    before, sources = Environment.load(ROOT / "lockfiles", "cpu").digest, worker_sources()
    told = {path: re.sub(rb'(?m)^( *)"""(?=\S)', rb'\1"""Besides: ', edited(data)) for path, data in sources.items()}
    assert all(told[path] != sources[path] for path in sources)
    monkeypatch.setattr(identity, "worker_sources", lambda: told)
    assert Environment.load(ROOT / "lockfiles", "cpu").digest == before


def edits(tree: ast.AST) -> Iterator[tuple[ast.AST, str, Any]]:
    """Yield each constant number, operator and name of a tree, with another one for its place."""
    for node in ast.walk(tree):
        for field, value in ast.iter_fields(node):
            if isinstance(node, ast.Constant) and isinstance(value, int | float):
                yield node, field, value + 1
            elif isinstance(value, ast.operator) and not isinstance(value, ast.Pow):
                yield node, field, ast.Pow()
            elif isinstance(value, ast.boolop):
                yield node, field, ast.And() if isinstance(value, ast.Or) else ast.Or()
            elif isinstance(value, str) and isinstance(node, ast.Name | ast.Attribute | ast.keyword | ast.arg):
                yield node, field, f"{value}_"


@pytest.mark.parametrize("path", worker_sources())
def test_an_edit_of_one_constant_operator_or_name_does(path: str) -> None:
    """A dozen of each source, evenly spread."""
    data = worker_sources()[path]
    tree, known = ast.parse(data), meaning(data)
    found = list(edits(tree))
    for node, field, other in found[:: len(found) // 12 + 1]:
        value = getattr(node, field)
        setattr(node, field, other)
        assert meaning(ast.unparse(tree).encode()) != known, f"line {getattr(node, 'lineno', 0)}: {value!r}"
        setattr(node, field, value)
    assert meaning(ast.unparse(tree).encode()) == known


def test_no_source_of_the_worker_reads_what_is_left_out() -> None:
    for path, data in worker_sources().items():
        for word in (b"__doc__", b"getsource", b"co_firstlineno", b"getdoc"):
            assert word not in data, path


PYTHONS = sorted(each for each in Path.home().glob(".pyenv/versions/3.1[1-9]*/bin/python"))
TRICKY = rb"""
f'{x:}', f'{x!r:}', f'{x:{y}>{z}}', f'a' 'b' f'{x}' '' 'c\x00\'"\U0001fae8', f'{x=}', f'', u'u', 1_0, 1e400, 1j
def f(x, /, *, y=None): pass
class C: ...
async def g():
  async with a as b: pass
"""


def test_pythons_agree(tmp_path: Path) -> None:
    """The digests were seen with 3.11.7, 3.12.1 and 3.13.0; those that are here are asked again."""
    for name, data in {"source.py": SOURCE, "tricky.py": TRICKY}.items():
        (tmp_path / name).write_bytes(data)
    script = "import sys; from requant.environment.syntax import meaning; from requant.digest import sha256\n"
    script += "print(*(sha256(meaning(open(each, 'rb').read())) for each in sys.argv[1:]))"
    files = [tmp_path / "source.py", tmp_path / "tricky.py", *sorted((ROOT / "src/requant/worker").rglob("*.py"))]
    said = {run([str(each), "-c", script, *map(str, files)], cwd=ROOT / "src") for each in (sys.executable, *PYTHONS)}
    assert len(said) == 1
    assert said.pop().split()[:2] == [
        "bc55763cbfe1c15aa342bdfc0ec608f95ada9e54338333915b11c244eb67925b",
        "b0263969e3ea902e4f8aac745f9b9a6d021d66a2b8f4c58528f1dbcd2b2a9911",
    ]


DOCKERFILE = b"# generated by 'x'\nFROM a AS b\n\n# Why.\nRUN c \\\n    # not here\n && d '#e'\n"


def test_a_dockerfile_is_what_it_instructs() -> None:
    assert instructions(DOCKERFILE) == b"FROM a AS b\nRUN c \\\n && d '#e'\n"
    assert instructions(DOCKERFILE.replace(b"Why", b"Because")) == instructions(DOCKERFILE)
    assert instructions(DOCKERFILE.replace(b"#e", b"#f")) != instructions(DOCKERFILE)
    for whole in (b"# syntax=docker/dockerfile:1\n" + DOCKERFILE, DOCKERFILE + b"RUN <<E\n# f\nE\n"):
        assert instructions(whole) == whole
