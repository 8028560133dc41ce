"""What a Dockerfile takes from elsewhere: each image, `name:tag@sha256:<digest>`, each source, and where it stands.

Read strictly: an instruction that could name an image in a way that is not understood here is a fault, never
passed over. The grammar is BuildKit's (its Dockerfile reference, 1.x): FROM, COPY --from, RUN --mount=from=, the
`# syntax=` line, and ADD of something remote.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

_DIGEST = re.compile(r"(?P<name>[^@\s]+)@(?P<digest>sha256:[0-9a-f]{64})")
_TAGGED = re.compile(r"[^@\s]+:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIRECTIVE = re.compile(r"#\s*(syntax|escape)\s*=\s*(\S+)\s*", re.I)
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
            found += (_judged(name, each) for name in _taken(each, stages))
            found += _remote(each)
    return tuple(found)


def _taken(each: _Instruction, stages: list[str]) -> Iterator[str]:
    """Yield the images of COPY --from and RUN --mount; `# syntax=` came here as an instruction of its own."""
    if each.word == "SYNTAX":
        yield each.rest
        return
    for word in each.rest.split() if each.word in ("COPY", "RUN") else ():
        if word.startswith("--from="):
            name = word.removeprefix("--from=")
        elif word.startswith("--mount=") and (match := re.search(r"[=,]from=([^,\s]+)", word)):
            name = match[1]
        else:
            continue
        if name.lower() not in stages and not (name.isdigit() and int(name) < len(stages)):
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
    lines = iter(enumerate(text.split("\n"), 1))
    first = True
    for number, line in lines:
        stripped = line.strip()
        if first and (match := _DIRECTIVE.fullmatch(stripped)):
            yield _Instruction(match[1].upper(), match[2], number, "")
        elif stripped.startswith("#"):
            comment.append(stripped.lstrip("# "))
            first = False
        elif not stripped:
            comment, first = [], False
        else:
            first, words = False, [stripped]
            while words[-1].endswith("\\"):
                words[-1] = words[-1][:-1]
                # A comment between continued lines is dropped, as BuildKit does.
                words.append(next((each.strip() for _, each in lines if not each.strip().startswith("#")), ""))
            joined = re.sub(r"^ONBUILD\s+", "", " ".join(words), flags=re.I)
            word, _, rest = joined.partition(" ")
            yield _Instruction(word.upper(), rest.strip(), number, " ".join(comment))
            comment = []
            for _, ending in _HEREDOC.findall(rest) if word.upper() in ("RUN", "COPY", "ADD") else ():
                if not any(each.strip() == ending for _, each in lines):
                    yield _Instruction("<<", ending, number, "")
