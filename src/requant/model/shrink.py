"""The `config.json` of a tiny model, derived by rules from any base's.

A tiny model stands in for its base where weights or a GPU are missing, so the rules keep what makes the base hard
(every kind of layer, grouped heads, fused and shared experts, widths that no group size divides, tied embeddings,
MTP) and reduce the rest.

A rule sees what the file states, not what the base's class fills in: give a config completed by its class. A number
that no rule covers is kept where it is too small to be a dimension that matters, and refused otherwise: one width
left at full size turns a tiny model into one that fills the memory.
"""

from collections.abc import Mapping
from typing import Any

from requant.errors import RecipeError, UsageError
from requant.model.part import INDEXES, LAYERS, TOKEN_ID, Part, plain
from requant.model.rules import (
    HARMLESS,
    HEADS,
    HIDDEN,
    LARGE,
    REFUSED,
    RULES,
    SIZES,
    TOKEN_IDS,
    VOCABULARY,
    apply,
    depth,
    original_positions,
    share,
)

ROPE = ("rope_parameters", "rope_scaling")


def shrink(config: Mapping[str, Any], size: str) -> dict[str, Any]:
    """Return the tiny model's config: the base's keys in their order, no number larger than the base's but token ids.

    Pure, and nothing changes where it is applied to what it returned. Raises RecipeError, which names the key, for a
    value that is not what its key holds and for what no rule covers; UsageError for a size not in `SIZES`.
    """
    if size not in SIZES:
        raise UsageError(f"{size!r} is no size of a tiny model", f"One of: {', '.join(SIZES)}.")
    if not isinstance(config, Mapping):
        raise RecipeError("config.json: not a JSON object")
    whole = Part(plain(config), size)
    for names in (HIDDEN, LAYERS, HEADS, ("vocab_size",)):
        if not (whole.language.number(*names) or (names == ("vocab_size",) and whole.number(*names))):
            raise RecipeError(
                f"config.json: {whole.language.path}{names[0]} is absent or zero: its class would choose a full size",
                "Complete the config with the defaults of its class.",
            )
    return _part(whole)


def _part(part: Part) -> dict[str, Any]:
    return {name: None if value is None else _value(part, name, value) for name, value in part.own.items()}


def _value(part: Part, name: str, value: Any) -> Any:
    if name in REFUSED and value:
        raise part.refusal(name, *REFUSED[name])
    if part.holds(name):
        return _part(part.child(name))
    if name in ROPE and isinstance(value, dict):
        return _rope(part, name, value)
    if TOKEN_ID.search(name):
        return _token_ids(part, name, value)
    if name in INDEXES:
        return [layer for layer in part.indexes(name) if layer < (depth(part) or layer + 1)]
    if part.per_layer(name):
        value = value[: depth(part)]
    if name in RULES and not (value == "auto" and name.startswith("mamba_")):
        numbers = [part.checked(name, item) for item in (value if isinstance(value, list) else [value])]
        smaller = [apply(part, name, number) for number in numbers]
        return smaller if isinstance(value, list) else smaller[0]
    _refuse_large(part, name, value)
    return value


def _refuse_large(part: Part, name: str, value: Any) -> None:
    if isinstance(value, dict | list):
        for inner_name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if inner_name not in HARMLESS:
                _refuse_large(part, name, inner)
    elif isinstance(value, int) and abs(value) > LARGE and name not in HARMLESS:
        raise part.refusal(
            name,
            "no rule shrinks it",
            "Add a row to requant.model.rules, or to HARMLESS there if it is no dimension.",
        )


def _token_ids(part: Part, name: str, value: Any) -> Any:
    """Return ids of the tokenizer that tiny models have; what has a vocabulary of its size keeps its own."""
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(item, int) and not isinstance(item, bool) for item in ids):
        raise part.refusal(name, "expected token ids")
    holder = part.language if part.language.stated("vocab_size") else part.whole or part
    if holder.number("vocab_size") == VOCABULARY and all(0 <= item < VOCABULARY for item in ids):
        return value
    return [258, 256][: len(ids)] if isinstance(value, list) else TOKEN_IDS.get(TOKEN_ID.sub("", name), 256)


def _rope(part: Part, key: str, table: dict[str, Any]) -> dict[str, Any]:
    """Return tables of rotary positions for the tiny model's heads; some models have one for each kind of layer."""
    result = dict(table)
    for name, value in table.items():
        if isinstance(value, dict):
            result[name] = _rope(part, key, value)
        elif isinstance(value, list) and name == "mrope_section":
            sections = [part.checked(key, section) for section in value]
            first, *rest = [share(part, section) for section in sections] or [0]
            result[name] = [max(first, share(part, sum(sections)) - sum(rest)), *rest][: len(value)]
        elif isinstance(value, list) and name in ("long_factor", "short_factor"):
            count = share(part, len(value))
            result[name] = [value[i * len(value) // count] for i in range(count)]
        elif name == "original_max_position_embeddings" and value is not None:
            result[name] = original_positions(part, part.checked(key, value))
        elif name == "max_position_embeddings" and value is not None:
            result[name] = RULES[name](part, part.checked(key, value))
        elif name not in HARMLESS:
            _refuse_large(part, key, value)
    return result
