"""What a Dockerfile takes from elsewhere: each image, `name:tag@sha256:<digest>`, each source, and where it stands.

Read strictly: an instruction that could name an image in a way that is not understood here is a fault, never
passed over. The grammar is BuildKit's (its Dockerfile reference, 1.x): FROM, COPY --from, RUN --mount=from=, the
`# syntax=` line, and ADD of something remote.
"""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

_DIGEST = re.compile(r"(?P<name>[^@\s]+)@(?P<digest>sha256:[0-9a-f]{64})")
_TAGGED = re.compile(r"[^@\s]+:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIRECTIVE = re.compile(r"(?:#|//)\s*(syntax|escape|check)\s*=\s*(\S+).*", re.I)
_CONTINUED = re.compile(r"(?<!\\)\\[ \t\r]*$")
_FLAG = re.compile(r"""--(?:[^\s\\"']|\\.|"(?:[^\\"]|\\.)*"|'(?:[^\\']|\\.)*')*(?:\s+|$)""")
_QUOTED = re.compile(r"""\\(.)|"((?:[^\\"]|\\.)*)"|'((?:[^\\']|\\.)*)'""")
_HEREDOC = re.compile(r"<<-?\s*([\"']?)(\w+)\1")
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_REMOTE = re.compile(r"(?:(?:https?|ssh|git)://|git@)\S+", re.I)
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class Reference:
    """One thing that a file has from elsewhere, in its `line`, counted from 1.

    `by` is what holds it: `sha256:…`, a commit, a range, or "" for nothing. `source` says where that comes from, in
    the words of the file; `fault` what is lacking, or "".
    """

    kind: str
    name: str
    by: str
    line: int
    source: str
    fault: str


@dataclass(frozen=True)
class _Instruction:
    word: str
    rest: str
    line: int
    comment: str


def references(text: str) -> tuple[Reference, ...]:
    """Return everything that a Dockerfile takes from elsewhere, in its order; stages of its own are none of it."""
    found: list[Reference] = []
    arguments: dict[str, tuple[str | None, int, str]] = {}
    stages: list[str] = []
    for each in _instructions(text):
        if each.word == "ARG" and not stages:
            for name, equals, default in (word.partition("=") for word in each.rest.split()):
                arguments[name] = (default.strip("\"'") if equals else None, each.line, each.comment)
        elif each.word == "FROM":
            words = [word for word in each.rest.split() if not word.startswith("--")]
            if not words:
                found.append(_faulty(each.rest, each, "a FROM that names no image"))
            elif words[0].lower() not in (*stages, "scratch"):
                found.append(_resolved(words[0], each, arguments))
            stages.append(words[2].lower() if len(words) == 3 and words[1].upper() == "AS" else "")
        else:
            found += _taken(each, stages)
            found += _remote(each)
    return tuple(found)


def _taken(each: _Instruction, stages: list[str]) -> Iterator[Reference]:
    """Yield the images of COPY --from and RUN --mount; `# syntax=` came here as an instruction of its own."""
    if each.word == "SYNTAX":
        yield _judged(each.rest, each)
    if each.word not in ("COPY", "RUN"):
        return
    numbers = [str(number) for number in range(len(stages))] if each.word == "COPY" else []
    try:
        for name in _named(each.rest):
            if name.lower() not in (*stages, *numbers):
                yield _judged(name, each)
    except (ValueError, csv.Error) as error:
        yield _faulty(each.rest, each, f"flags that cannot be read: {error}")


def _named(rest: str) -> Iterator[str]:
    """Yield what the flags at the beginning name: without quotes and escapes; a mount is a line of CSV then."""
    while rest.startswith("--"):
        if not (match := _FLAG.match(rest)):
            raise ValueError("a quote or an escape without an end")
        key, equals, value = _QUOTED.sub(_unquoted, match[0].strip()).partition("=")
        if key in ("--from", "--mount") and not equals:
            raise ValueError(f"{key} without a value")
        if key == "--from":
            yield value
        elif key == "--mount":
            yield from _mounted(value)
        rest = rest[match.end() :]


def _unquoted(match: re.Match[str]) -> str:
    return match[1] or re.sub(r"\\(.)", r"\1", match[2] or match[3] or "")


def _mounted(value: str) -> Iterator[str]:
    (fields,) = csv.reader([value], strict=True)
    if not fields or any('"' in field for field in fields):
        raise ValueError(f"a mount that is no CSV: {value!r}")
    for key, _, name in (field.partition("=") for field in fields):
        if key.lower() == "from":
            yield name


def _remote(each: _Instruction) -> Iterator[Reference]:
    if each.word in _UNREADABLE:
        yield _faulty(each.rest, each, _UNREADABLE[each.word])
    if each.word != "ADD":
        return
    if "$" in each.rest:
        yield Reference("download", each.rest, "", each.line, each.comment, "an argument here can be any address")
    checksum = re.search(r"--checksum=(sha256:[0-9a-f]{64})\s", each.rest)
    for match in _REMOTE.finditer(each.rest):
        at, fragment = match[0].partition("#")[::2]
        commit = fragment.partition(":")[0]  # a folder may follow
        by = checksum[1] if checksum else commit if _COMMIT.fullmatch(commit) else ""
        fault = "" if by else "fetched by neither commit nor checksum"
        yield Reference("git commit" if fragment else "download", at, by, each.line, each.comment, fault)


_UNREADABLE = {
    "ESCAPE": "another escape character: lines cannot be read",
    "<<": "a here-document without an end: the lines below cannot be read",
}


def _resolved(word: str, each: _Instruction, arguments: dict[str, tuple[str | None, int, str]]) -> Reference:
    """Put the defaults of arguments in place; where one is the whole image, the pin stands where it is given."""
    if (match := _VARIABLE.fullmatch(word)) and (given := arguments.get(match[1] or match[2])):
        each = replace(each, line=given[1], comment=given[2] or each.comment)

    def default(match: re.Match[str]) -> str:
        return arguments.get(match[1] or match[2], (None, 0, ""))[0] or match[0]

    name = _VARIABLE.sub(default, word)
    if "$" in name:
        return _faulty(name, each, "an argument without a default: whoever builds chooses the image")
    return _judged(name, each)


def _judged(name: str, each: _Instruction) -> Reference:
    if match := _DIGEST.fullmatch(name):
        return Reference("base image", match["name"], match["digest"], each.line, each.comment, "")
    if "@" in name:
        fault = "a digest that is not sha256: and 64 hexadecimal digits"
    elif "$" in name:
        fault = "an argument here can be any image"
    else:
        fault = "a tag without a digest" if _TAGGED.fullmatch(name) else "neither a tag nor a digest"
    return _faulty(name, each, fault)


def _faulty(name: str, each: _Instruction, fault: str) -> Reference:
    return Reference("base image", name, "", each.line, each.comment, fault)


def _instructions(text: str) -> Iterator[_Instruction]:
    """Yield instructions with continued lines joined; the bodies of here-documents are no instructions."""
    comment: list[str] = []
    lines = iter(enumerate(text.removeprefix("\ufeff").split("\n"), 1))
    first = True
    for number, line in lines:
        stripped = line.strip()
        if first and (match := _DIRECTIVE.fullmatch(stripped)):
            yield _Instruction(match[1].upper(), match[2], number, "")
        elif stripped.startswith("#"):
            comment.append(stripped.lstrip("# "))
            first = first and number == 1 and stripped.startswith("#!")
        elif not stripped:
            comment, first = [], False
        else:
            first, parts = False, [line.lstrip()]
            while match := _CONTINUED.search(parts[-1]):
                parts[-1] = parts[-1][: match.start()]
                # As BuildKit does: joined without a blank, and comments and empty lines between are dropped.
                parts.append(next((each for _, each in lines if each.strip() and each.lstrip()[0] != "#"), ""))
            joined = re.sub(r"^ONBUILD\s+", "", "".join(parts), flags=re.I)
            word, rest = [*joined.split(None, 1), "", ""][:2]
            yield _Instruction(word.upper(), rest.strip(), number, " ".join(comment))
            comment = []
            for _, ending in _HEREDOC.findall(rest) if word.upper() in ("RUN", "COPY", "ADD") else ():
                if not any(each.strip() == ending for _, each in lines):
                    yield _Instruction("<<", ending, number, "")
