"""Whether the files around the weights are the base's: configuration, tokenizer, template, generation, processors.

Tools write these files anew. So JSON is compared by value, key by key; two spellings of one thing are one key; what
both sides state must agree, and what one side alone states is named and not accused. Everything here is pure: parsed
values in, findings out.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from requant.check.findings import Finding, Kind
from requant.digest import count_values, strict_json
from requant.errors import CheckpointError

CONFIG = "config.json"
SIDE_FILES = ("quantization_config.json", "quantize_config.json")
"""Files that repeat `quantization_config`; some loaders read one of them first."""
TEMPLATE = "chat_template"
MORE_TEMPLATES = "additional_chat_templates"
"""Folder of templates by name (transformers, `CHAT_TEMPLATE_DIR`): one called `default` wins over the others' file."""
TEMPLATES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
ALIASES = {"torch_dtype": "dtype", "num_local_experts": "num_experts"}
"""Spellings of one key: transformers 4 and 5 differ in them."""
ROPE: dict[str, tuple[str, ...]] = {
    "rope_theta": ("rope_theta",),
    "rope_local_base_freq": ("sliding_attention", "rope_theta"),
    "partial_rotary_factor": ("partial_rotary_factor",),
}
"""Keys of transformers 4, and where in `rope_parameters` transformers 5 writes them."""
ROPES = ("rope_parameters", "rope_scaling")
SAID = 80
"""Characters of a value that is shown."""
TOOLS = ("transformers_version", "_name_or_path", "_commit_hash")
REWRITTEN: dict[str, tuple[str, ...]] = {
    CONFIG: (*TOOLS, "use_cache"),  # off while a tool calibrates, and of no meaning for what is computed
    "generation_config.json": (*TOOLS, "_from_model_config"),
    "tokenizer.json": ("truncation", "padding"),  # what it was last called with; every call sets them anew
    # transformers 5 names a class of its own for any fast tokenizer, and lists what was an object.
    "tokenizer_config.json": (*TOOLS, "name_or_path", "tokenizer_class", "extra_special_tokens"),
}
"""Keys that tools rewrite and that change nothing that a model computes: named, not accused."""
READ = (".json", ".jinja", ".txt", ".model", ".tiktoken")
"""Files that loaders read, by suffix."""
TOKENS = ("tokenizer_config.json", "special_tokens_map.json")
"""Files in which a token is its text, or an object with that text as `content`."""
PLAIN = {"__type": "AddedToken", "lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
PLAIN |= {"special": True}
"""What transformers 5.5.1 makes of a special token that is its text alone: `add_special_tokens` and `AddedToken`, both
in tokenization_utils_base.py.

Flags that `tokenizer.json` or `added_tokens_decoder` state of the same text win over both spellings
(`_from_pretrained`, `added_tokens_map`), and `save_pretrained` writes the text alone. So what an object's flags mean
depends on other files, and they are named, not accused.
"""
LARGE = 1_000
"""An object of more keys is a vocabulary: one value."""

Path = tuple[str, ...]
Read = Callable[[str], bytes]


@dataclass(frozen=True)
class Side:
    """One side's files: their names, and how to read one whole."""

    name: str
    names: frozenset[str]
    read: Read

    def parse(self, file: str) -> Any:
        """Return a JSON file's value; raise CheckpointError where it is none."""
        try:
            return strict_json(self.read(file))
        except ValueError as error:
            raise CheckpointError(f"{self.name}: {file}: {error}") from None

    def config(self, file: str = CONFIG) -> dict[str, Any] | None:
        """Return a JSON file that has to be an object; None where it is not there."""
        if file not in self.names:
            return None
        value = self.parse(file)
        if not isinstance(value, dict):
            raise CheckpointError(f"{self.name}: {file}: not a JSON object")
        return value


def bind(checkpoint: Side, base: Side, foreign: str = "", dtypes: Collection[str] = ()) -> list[Finding]:
    """Compare all files that loaders read, and that are no weights: by value where they are JSON, else by bytes.

    `foreign` says why the checkpoint's packing is not modelled, where it is not: another dtype may belong to it.
    `dtypes` are those that its tensors were converted to, or that its exporter states whatever they are.
    Raises CheckpointError where a `config.json` is not a JSON object.
    """
    found = [*_configs(checkpoint, base, foreign, dtypes), *_templates(checkpoint, base)]
    for file in sorted(filter(_is_read, checkpoint.names | base.names)):
        if file not in base.names:
            found.append(_added(file, checkpoint, base))
        elif file not in checkpoint.names:
            found.append(Finding("stated by the base alone", file))
        elif (theirs := checkpoint.read(file)) != (ours := base.read(file)):
            found += _unlike(file, theirs, ours)
    return found


def _added(file: str, checkpoint: Side, base: Side) -> Finding:
    """Return what a file is that the base has not: accused where transformers takes it in place of the base's."""
    if re.fullmatch(r"tokenizer\..+\.json", file):
        return Finding("differs from the base", file, detail="transformers may open it instead of tokenizer.json")
    template = PurePosixPath(file)
    if template.parts[0] == MORE_TEMPLATES and template.suffix == ".jinja":
        theirs, ours = checkpoint.read(file).decode(errors="replace").removesuffix("\n"), _named_templates(base)
        if ours.get(template.stem) != theirs:
            return Finding("differs from the base", file, detail="a chat template that the base does not have")
    return Finding("stated by the checkpoint alone", file)


def _unlike(file: str, theirs: bytes, ours: bytes) -> Iterator[Finding]:
    if not file.endswith(".json"):
        yield Finding("differs from the base", file, detail=f"{len(theirs):,} bytes, the base has {len(ours):,}")
        return
    try:
        count_values(theirs, ours)  # both are held at once
    except ValueError as error:
        yield Finding("not modelled", file, detail=f"other bytes than the base's, and too large to compare: {error}")
        return
    try:
        values = strict_json(theirs), strict_json(ours)
    except ValueError as error:
        yield Finding("differs from the base", file, detail=str(error))
    else:
        yield from compare(file, *values)


def compare(file: str, theirs: Any, ours: Any) -> list[Finding]:
    """Return what two values of one JSON file state differently, and what one of them alone states, key by key.

    A key that one side spells in two ways must have a value of the other side's in both.
    """
    try:
        return list(_compare(file, theirs, ours))
    except RecursionError:
        return [Finding("differs from the base", file, detail="nested too deeply to be compared")]


def _compare(file: str, theirs: Any, ours: Any) -> Iterator[Finding]:
    left, right = _spelled(file, theirs), _spelled(file, ours)
    clashes = _clashes(left, right)
    for path in sorted(clashes):
        yield Finding(_kind(file, path), _where(file, path), detail="an object on one side alone")
    for key in sorted(left.keys() | right.keys()):
        if any(key[:length] in clashes for length in range(len(key) + 1)):
            continue
        if key not in right or key not in left:
            path, value = next(iter((left.get(key) or right[key]).items()))
            kind: Kind = "stated by the checkpoint alone" if key in left else "stated by the base alone"
            yield Finding(kind, _where(file, path), detail=_said(value))
            continue
        for path, value in left[key].items():
            others = [right[key][path]] if path in right[key] else list(right[key].values())
            same = next((at for at, other in enumerate(others) if _same(value, other)), None)
            if same is None:
                yield Finding(_kind(file, path), _where(file, path), detail=_differ(value, others[0]))
                break
            if file in TOKENS:
                yield from _flags(file, path, value, others[same])


def _flags(file: str, path: Path, theirs: Any, ours: Any) -> Iterator[Finding]:
    """Yield the flags of tokens that are objects on one side alone, where a plain token has others (`PLAIN`)."""
    if isinstance(theirs, list) and isinstance(ours, list):
        for number, each in enumerate(zip(theirs, ours, strict=True)):
            yield from _flags(file, (*path, str(number)), *each)
    elif isinstance(theirs, dict) and isinstance(ours, dict):
        for key, value in theirs.items():
            yield from _flags(file, (*path, key), value, ours[key])
    elif isinstance(theirs, dict) or isinstance(ours, dict):
        here = isinstance(theirs, dict)
        kind: Kind = "stated by the checkpoint alone" if here else "stated by the base alone"
        token, text, other = (theirs, ours, "the base") if here else (ours, theirs, "the checkpoint")
        for flag, value in token.items():
            if flag != "content" and not (flag in PLAIN and _same(value, PLAIN[flag])):
                yield Finding(
                    kind, _where(file, (*path, flag)), detail=f"{_said(value)}, {other} has {_said(text)} alone"
                )


def _clashes(left: Mapping[Path, Any], right: Mapping[Path, Any]) -> set[Path]:
    """Return the paths under which one side has an object and the other a value: both state them, and disagree."""
    found: set[Path] = set()
    for one, other in ((left, right), (right, left)):
        above = {key[:length] for key in other for length in range(len(key))}
        found |= {path for path in one if path in above and path not in other}
    return found


def _kind(file: str, path: Path) -> Kind:
    rewritten = {path[:1], path[-1:]} & {(name,) for name in REWRITTEN.get(file, ())}
    return "rewritten by a tool" if rewritten else "differs from the base"


def _configs(checkpoint: Side, base: Side, foreign: str, dtypes: Collection[str]) -> Iterator[Finding]:
    theirs, ours = checkpoint.config(), base.config()
    if theirs is None and ours is not None:
        yield Finding("differs from the base", CONFIG, detail="there is none, so nothing says how to read the weights")
    elif theirs is not None and ours is None:
        yield Finding("stated by the checkpoint alone", CONFIG, detail="the base has none to compare it with")
    elif theirs is not None and ours is not None:
        stated = {key: value for key, value in theirs.items() if key != "quantization_config"}
        expected = {key: value for key, value in ours.items() if key != "quantization_config"}
        if expected and not stated.keys() & expected.keys():
            yield Finding("differs from the base", CONFIG, detail="states nothing of what the base's states")
        for each in compare(CONFIG, stated, expected):
            converted = each.kind == "differs from the base" and each.tensor.endswith("dtype")
            if converted and foreign:
                yield replace(each, kind="not modelled", detail=f"{foreign}, {each.detail}")
            elif converted and each.detail.startswith(tuple(f"{dtype!r}," for dtype in dtypes)):
                yield replace(each, kind="rewritten by a tool")
            else:
                yield each


def _templates(checkpoint: Side, base: Side) -> Iterator[Finding]:
    """Yield where chat templates differ, in whichever of three files they stand."""
    left, right = templates_of(checkpoint), templates_of(base)
    for file, theirs in left.items():
        for other, ours in right.items():
            if theirs != ours:
                detail = "" if file == other else f"not the one in the base's {other}"
                yield Finding("differs from the base", f"{file}: {TEMPLATE}", detail=detail)
                break
    if bool(left) != bool(right):
        file = next(iter(left or right))
        yield Finding("stated by the checkpoint alone" if left else "stated by the base alone", f"{file}: {TEMPLATE}")


def templates_of(side: Side) -> dict[str, Any]:
    """Return the chat templates by the file that has them; jinja drops one newline at the end."""
    found: dict[str, Any] = {}
    for file in TEMPLATES:
        if file not in side.names:
            continue
        try:
            data = side.read(file)
            value = data.decode() if file.endswith(".jinja") else strict_json(data)
        except ValueError:
            continue  # as a file, it is compared by its bytes
        if isinstance(value, dict):
            value = value.get(TEMPLATE)
        if value is not None:
            found[file] = value.removesuffix("\n") if isinstance(value, str) else value
    return found


def _named_templates(side: Side) -> dict[str, str]:
    """Return chat templates by name: `tokenizer_config.json` may list several."""
    found: dict[str, str] = {}
    for value in templates_of(side).values():
        if isinstance(value, str):
            found["default"] = value
        for each in value if isinstance(value, list) else ():
            if isinstance(each, dict) and isinstance(text := each.get("template"), str):
                found[str(each.get("name"))] = text.removesuffix("\n")
    return found


def _is_read(name: str) -> bool:
    path = PurePosixPath(name)
    known = (CONFIG, *SIDE_FILES, *TEMPLATES[:2])
    listed = path.suffix in READ and not name.endswith((".index.json", ".manifest.json"))
    prose = path.suffix == ".txt" and path.name.upper().startswith(("README", "LICENSE", "NOTICE"))
    return listed and name not in known and not prose


def _spelled(file: str, value: Any) -> dict[Path, dict[Path, Any]]:
    """Return the values of a file by canonical key, each under the spellings that are there."""
    found: dict[Path, dict[Path, Any]] = {}
    for path, each in _leaves((), value, file in TOKENS):
        found.setdefault(canonical(path) if file == CONFIG else path, {})[path] = _plain(path, each)
    for above in {key[: key.index("rope")] for key in found if file == CONFIG and "rope" in key}:
        # Who states a rope and no type of it states the plain one.
        found.setdefault((*above, "rope", "rope_type"), {(*above, "rope_parameters", "rope_type"): "default"})
    if file in TEMPLATES:
        found.pop((TEMPLATE,), None)  # compared with those in other files
    return found


def canonical(path: Path) -> Path:
    """Return the one path of a key of `config.json`, for `rope_theta` and all others that are spelled in two ways."""
    *above, last = path or ("",)
    for table in ROPES:
        if table in path:
            at = path.index(table)
            below = tuple("rope_type" if name == "type" else name for name in path[at + 1 :])
            return (*path[:at], "rope", *(below[1:] if below[:1] == ("full_attention",) else below))
    if last in ROPE:
        return (*above, "rope", *ROPE[last])
    return (*above, ALIASES.get(last, last))


def _leaves(path: Path, value: Any, tokens: bool) -> Iterator[tuple[Path, Any]]:
    """Yield the values of an object by path: no objects, but empty ones, `tokens`, and what is too large to go through.

    What is null or empty below a rope, or instead of one, states nothing.
    """
    token = tokens and path and isinstance(value, dict) and isinstance(value.get("content"), str)
    if isinstance(value, dict) and value and len(value) <= LARGE and not token:
        for key, each in value.items():
            yield from _leaves((*path, key), each, tokens)
    elif value not in (None, {}) or not any(name in ROPES for name in path):
        yield path, value


def _plain(path: Path, value: Any) -> Any:
    """Return a value in its newer form: merges of a tokenizer as pairs."""
    if path == ("model", "merges") and isinstance(value, list):
        return [each.split(" ") if isinstance(each, str) else each for each in value]
    return value


def _same(left: Any, right: Any) -> bool:
    """Compare JSON values: 1 and 1.0 are one number, and true is none."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, str) != isinstance(right, str):  # a token may be an object, or its content
        left, right = (each.get("content") if isinstance(each, dict) else each for each in (left, right))
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(each, right[key]) for key, each in left.items())
    return bool(left == right)


def _differ(theirs: Any, ours: Any) -> str:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        keys = (key for key in sorted(theirs.keys() | ours.keys()) if key not in theirs or theirs[key] != ours.get(key))
        return f"{len(theirs):,} entries, the base has {len(ours):,}; first at {next(keys, '')!r:.80}"
    return f"{_said(theirs)}, the base has {_said(ours)}"


def _said(value: Any) -> str:
    """Return a value as it is shown: of a long list, the first elements that fit, each of them whole."""
    text = repr(value)
    if len(text) <= SAID:
        return text
    whole, length = [], 0
    for each in map(repr, value if isinstance(value, list) else ()):
        length += len(each) + 2
        if length >= SAID:
            break
        whole.append(each)
    return f"[{', '.join(whole)}, … ({len(value):,} in all)]" if whole else f"{text[:SAID]}…"


def _where(file: str, path: Path) -> str:
    return f"{file}: {'.'.join(path)}" if path else file
