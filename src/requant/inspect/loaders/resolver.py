"""Which precision a loader gives to a module under a `quantization_config`: five releases, five dialects of one rule.

Own code, held against the released functions by tests/test_loaders.py: `INCConfig.get_layer_config` of vLLM
0.19.1 and 0.22.1, `INCConfigParser.resolve` of 0.25.1 and 0.33.0, `AutoRoundConfig.get_layer_config` of SGLang
0.5.23. `Dialect` names what differs between them.
"""

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from requant.inspect.loaders.declared import Declared
from requant.inspect.loaders.modules import Module

MAX_CHOICES, MAX_ALTERNATIVES = 8, 16
"""Of an expression that is tried: repetitions, each for two, optional parts and groups of alternatives; and bars."""
SPECIAL = frozenset("*+?^$()[]{}|\\")
"""A key with one of these is taken for a regular expression; a dot alone does not make one."""


@dataclass(frozen=True)
class Dialect:
    """How a release reads a configuration."""

    renames: tuple[tuple[str, str], ...]
    """Prefixes of keys and blocks, from the checkpoint's names to the model's; regular expressions escape them."""
    suffix_keys: bool
    """A key also names every module that ends in it, after a dot."""
    fused_by_entry: bool
    """A fused module looks at its parts only where one of them has an entry of its own."""
    expert_keys: bool
    """Keys below the name of the expert layer decide about the whole layer."""
    whole_regex: bool
    """An expression must match the whole name."""
    float_first: bool
    """An exact key of 16 bits, also with `model.` before it, wins over all else."""


@dataclass(frozen=True)
class Precision:
    """Bits per weight (16: float), group size and symmetry."""

    bits: int
    group_size: int
    sym: bool

    @property
    def packed(self) -> bool:
        """Whether the loader creates qweight, qzeros and scales."""
        return self.bits < 16


@dataclass(frozen=True)
class Conflict:
    """The loader refuses: the parts of a fused module do not agree."""

    parts: tuple[str, ...]


def renamed(declared: Declared, dialect: Dialect) -> Declared:
    """Return the configuration under the model's own names, as the loader holds it."""
    blocks = None if declared.blocks is None else tuple(rename(block, dialect.renames) for block in declared.blocks)
    overrides = {rename(key, dialect.renames): value for key, value in declared.overrides.items()}
    return replace(declared, blocks=blocks, overrides=overrides)


def rename(name: str, renames: tuple[tuple[str, str], ...]) -> str:
    """Apply each rename whose prefix the name has, one after the other."""
    for old, new in renames:
        if name.startswith(old):
            name = new + name.removeprefix(old)
    return name


def resolve(declared: Declared, module: Module, dialect: Dialect) -> Precision | Conflict:
    """Return the precision of a module, whose name and configuration are in the model's own names."""
    name, overrides = module.name, declared.overrides
    if dialect.float_first:
        for key in (name, f"model.{name}"):
            if key in overrides and overrides[key].get("bits", 16) >= 16:
                return Precision(16, -1, True)
    if name in overrides:
        return _precision(declared, overrides[name], quantized=True)
    if dialect.suffix_keys:
        for key, entry in overrides.items():
            if name.endswith(f".{key}"):
                return _precision(declared, entry, quantized=True)
    quantized = module.kind != "head"
    if declared.blocks:
        quantized = name.startswith(declared.blocks)
    if module.kind == "experts" and dialect.expert_keys:
        found = {_look_up(declared, key, quantized, dialect) for key in overrides if key.startswith(name)}
        if found:
            return found.pop() if len(found) == 1 else Conflict((name,))
    if overrides:
        for parts in _parts(module):
            if dialect.fused_by_entry and not any(_entry(overrides, part, dialect) is not None for part in parts):
                continue
            found = {_look_up(declared, part, quantized, dialect) for part in parts}
            return found.pop() if len(found) == 1 else Conflict(parts)
    return _look_up(declared, name, quantized, dialect)


def _parts(module: Module) -> Iterator[tuple[str, ...]]:
    """Yield what each key of `packed_modules_mapping` makes of a name that holds the key once, in its order.

    `qkv` is a key too, and part of `in_proj_qkvz`: with it, a loader asks for `in_proj_qkvz` itself.
    """
    for key, parts in module.packed:
        if module.name.count(key) == 1:
            yield tuple(module.name.replace(key, part) for part in parts)


def _look_up(declared: Declared, name: str, quantized: bool, dialect: Dialect) -> Precision:
    entry = _entry(declared.overrides, name, dialect)
    return _precision(declared, {} if entry is None else entry, quantized)


def _entry(overrides: Mapping[str, Mapping[str, Any]], name: str, dialect: Dialect) -> Mapping[str, Any] | None:
    if name in overrides:
        return overrides[name]
    for key in overrides:
        expression = _expression(key)
        if expression and (expression.fullmatch(name) if dialect.whole_regex else expression.search(name)):
            return overrides[key]
    return None


def _precision(declared: Declared, entry: Mapping[str, Any], quantized: bool) -> Precision:
    return Precision(
        entry.get("bits", declared.bits if quantized else 16),
        entry.get("group_size", declared.group_size if quantized else -1),
        entry.get("sym", declared.sym if quantized else True),
    )


@lru_cache(maxsize=4096)
def _expression(key: str) -> re.Pattern[str] | None:
    if not is_expression(key) or not is_harmless(key):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what may mean something else one day
            return re.compile(key)
    except (re.error, OverflowError, RecursionError):
        return None


def matches(key: str, name: str) -> bool:
    """Say whether an expression is found in a name; one that is not harmless never is."""
    expression = _expression(key)
    return expression is not None and expression.search(name) is not None


def is_tried(key: str) -> bool:
    """Say whether an expression is one that `matches` tries: it is harmless, and Python understands it."""
    return _expression(key) is not None


def is_expression(key: str) -> bool:
    """Say whether loaders take a key for a regular expression."""
    return not SPECIAL.isdisjoint(key)


def is_harmless(key: str) -> bool:
    """Say whether an expression surely ends in time: few places where a search can go on in two ways, none in a group.

    A stranger wrote it, and Python's search tries every choice with every other one.
    """
    repetitions = len(re.findall(r"(?<!\\)[*+{]", key))
    optional = len(re.findall(r"(?<![\\(*+?}])\?", key))
    bars = key.count("|")
    choices = 2 * repetitions + optional + (key.count("(") if bars else 0)
    if len(key) > 512 or choices > MAX_CHOICES or bars > MAX_ALTERNATIVES:
        return False
    return re.search(r"\)[*+{]", key) is None
