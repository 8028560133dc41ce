"""What a GGUF file says of hyperparameters and tokenizer, held against the base's configuration and tokenizer.

What llama.cpp computes with follows from these key-values alone. A key that is modelled must say what the base's files
do; one that is not is named. Sources: `TextModel` and `LlamaModel` of llama.cpp (conversion/base.py, llama.py), and
`SpecialVocab` and `Keys` of the package gguf 0.19.0.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from requant.check.findings import Finding
from requant.check.side_files import Side, templates_of
from requant.checkpoint.gguf import Long, Value
from requant.digest import strict_json

ARCHITECTURE = "general.architecture"
MODELS: Mapping[str, tuple[str, ...]] = {
    "llama": ("llama", "mistral", "mixtral"),
    "qwen2": ("qwen2",),
    "qwen3": ("qwen3",),
    "qwen3moe": ("qwen3_moe",),
}
"""By `general.architecture`, the base's `model_type`."""
NUMBERS: Mapping[str, tuple[str, ...]] = {
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads", "num_attention_heads"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.sliding_window": ("sliding_window",),
    "block_count": ("num_hidden_layers",),
    "context_length": ("max_position_embeddings",),
    "embedding_length": ("hidden_size",),
    "expert_count": ("num_local_experts", "num_experts"),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_used_count": ("num_experts_per_tok",),
    "feed_forward_length": ("intermediate_size",),
    "vocab_size": ("vocab_size",),
}
"""Of an architecture: what the base calls it, the first of these that it states."""
WIDTHS = ("attention.key_length", "attention.value_length", "rope.dimension_count")
"""What is the width of a head."""
THETA, PLAIN_THETA = "rope.freq_base", 10_000.0
SCALING: Mapping[str, str] = {
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
    "rope.scaling.attn_factor": "attention_factor",
}
DESCRIBES = ("general.", "split.", "quantize.", "imatrix.")
"""Keys that say who made a file, from what, and how: nothing computes with them."""
TOKENS, TYPES, MERGES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"
SPECIAL: Mapping[str, str] = {
    "tokenizer.ggml.bos_token_id": "bos",
    "tokenizer.ggml.eos_token_id": "eos",
    "tokenizer.ggml.padding_token_id": "pad",
    "tokenizer.ggml.unknown_token_id": "unk",
}
ADDED: Mapping[str, str] = {
    "tokenizer.ggml.add_bos_token": "add_bos_token",
    "tokenizer.ggml.add_eos_token": "add_eos_token",
    "tokenizer.ggml.add_space_prefix": "add_prefix_space",
}
TEMPLATE, MODEL, PRE = "tokenizer.chat_template", "tokenizer.ggml.model", "tokenizer.ggml.pre"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PRES: Mapping[str, str] = {"llama-bpe": _WORDS % r"\p{N}{1,3}", "qwen2": _WORDS % r"\p{N}"}
"""How llama.cpp splits text before it looks for tokens, and the expression that says so in a tokenizer.json."""
NORMAL, CONTROL, DEFINED, UNUSED = 1, 3, 4, 5
"""`TokenType` of the package gguf."""
Listed = Long | tuple[bool | int | float, ...]
MOST = 1 << 22
"""Tokens of a base, at most."""


def key_values(values: Mapping[str, Value], lists: Mapping[str, Long], base: Side) -> list[Finding]:
    """Return what key-values say otherwise than the base's files, and which of them are not compared."""
    config = _config(base)
    tokenizer = _json(base, "tokenizer.json")
    listed: dict[str, Listed] = {**lists, **{key: each for key, each in values.items() if isinstance(each, tuple)}}
    values = {key: each for key, each in values.items() if key not in listed}
    return [
        *_architecture(values, config),
        *_compared(values, _hyperparameters(values, config) | _about_tokens(base, config, tokenizer)),
        *_lists(listed, config, tokenizer),
    ]


def _config(base: Side) -> Mapping[str, Any]:
    found = base.config() or {}
    text = found.get("text_config")
    return {**found, **(text if isinstance(text, dict) else {})}


def _json(base: Side, name: str) -> Mapping[str, Any]:
    """Return an object of the base's; empty where there is none, or another value: `tokenizer.json` may be damaged."""
    if name not in base.names:
        return {}
    try:
        value = strict_json(base.read(name))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _architecture(values: Mapping[str, Value], config: Mapping[str, Any]) -> Iterator[Finding]:
    said, model = values.get(ARCHITECTURE), config.get("model_type")
    if model not in {each for some in MODELS.values() for each in some}:
        yield Finding("not modelled", ARCHITECTURE, detail=f"{said!r:.40}, the base's model_type is {model!r:.40}")
    elif model not in MODELS.get(str(said), ()):
        yield Finding("differs from the base", ARCHITECTURE, detail=f"{said!r:.40}, the base is of {model!r:.40}")


def _hyperparameters(values: Mapping[str, Value], config: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Return what the base's configuration allows each key to say; nothing of what it does not state."""
    prefix = f"{values.get(ARCHITECTURE)}."
    allowed: dict[str, tuple[Any, ...]] = {}
    for key, names in NUMBERS.items():
        stated = [config[name] for name in names if isinstance(config.get(name), int | float)]
        allowed |= {prefix + key: (stated[0],)} if stated else {}
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    width = config.get("head_dim") or (hidden // heads if type(heads) is type(hidden) is int and heads else None)
    allowed |= {prefix + key: (width,) for key in WIDTHS if width}
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = rope.get("full_attention", rope) if isinstance(rope, dict) else {}
    allowed[prefix + THETA] = (config.get("rope_theta", rope.get("rope_theta", PLAIN_THETA)),)
    kind = rope.get("rope_type", rope.get("type", "default"))
    named = {"default": ("none",), "llama3": ("none",), "linear": ("linear",), "yarn": ("yarn",)}.get(str(kind))
    if named:
        allowed[f"{prefix}rope.scaling.type"] = named
        allowed |= {prefix + key: (rope[name],) for key, name in SCALING.items() if name in rope}
    return allowed


def _about_tokens(base: Side, config: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Return what the base's tokenizer allows each key to say, but for long lists."""
    stated, generation = _json(base, "tokenizer_config.json"), _json(base, "generation_config.json")
    ids = _ids(tokenizer)
    allowed: dict[str, tuple[Any, ...]] = {}
    for key, name in SPECIAL.items():
        token = stated.get(f"{name}_token")
        text = token.get("content") if isinstance(token, dict) else token
        said = [ids[text]] if isinstance(text, str) and text in ids else []
        for each in (config.get(f"{name}_token_id"), generation.get(f"{name}_token_id")):
            said += each if isinstance(each, list) else [each] if type(each) is int else []
        allowed |= {key: tuple(said)} if said else {}
    allowed |= {key: (stated[name],) for key, name in ADDED.items() if isinstance(stated.get(name), bool)}
    if templates := [each for each in templates_of(base).values() if isinstance(each, str)]:
        allowed[TEMPLATE] = tuple(text + end for text in templates for end in ("", "\n"))
    splits = [_expression(each) for each in _inside(tokenizer.get("pre_tokenizer"))]
    if _is_bytes(tokenizer):
        allowed[MODEL] = ("gpt2",)
    if known := tuple(name for name, expression in PRES.items() if expression in splits):
        allowed[PRE] = known
    return allowed


def _compared(values: Mapping[str, Value], allowed: Mapping[str, tuple[Any, ...]]) -> Iterator[Finding]:
    for key, found in sorted(values.items()):
        if key in allowed and not any(_same(found, each) for each in allowed[key]):
            yield Finding("differs from the base", key, detail=f"{found!r:.80}, the base has {allowed[key][0]!r:.80}")
        elif key not in allowed and key in (*SPECIAL, *ADDED, TEMPLATE):
            yield Finding("stated by the checkpoint alone", key, detail=f"{found!r:.80}")
        elif key not in allowed and not key.startswith(DESCRIBES):
            yield Finding("not modelled", key, detail="a key-value that is not compared")
    for key, some in sorted(allowed.items()):
        if key in values:
            continue
        if key.endswith(THETA) and not any(_same(PLAIN_THETA, each) for each in some):
            yield Finding(
                "differs from the base", key, detail=f"not there: {PLAIN_THETA:g}, the base has {some[0]!r:.80}"
            )
        elif key in (*SPECIAL, TEMPLATE):
            yield Finding("stated by the base alone", key, detail=f"{some[0]!r:.80}")


def _same(found: Any, wanted: Any) -> bool:
    """Say whether a value is the base's; floats are stored in float32."""
    if isinstance(found, bool | str) or isinstance(wanted, bool | str):
        return type(found) is type(wanted) and bool(found == wanted)
    if not (isinstance(found, int | float) and isinstance(wanted, int | float)):
        return False
    small = all(abs(each) < np.finfo(np.float32).max for each in (found, wanted))
    return found == wanted or (small and bool(np.float32(found) == np.float32(wanted)))


def _lists(lists: Mapping[str, Listed], config: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield where tokens, their types or merges are not the base's; other lists are not compared."""
    wanted = _tokens(config, tokenizer)
    for key in sorted(lists):
        if key.startswith(DESCRIBES):
            continue
        listed = lists[key]
        if key == TOKENS and wanted:
            yield from _apart(key, _read(listed), [{each.text, each.plain} for each in wanted])
        elif key == TYPES and wanted and _is_bytes(tokenizer):
            yield from _apart(key, _read(listed), [each.types for each in wanted])
        elif key == MERGES and (merges := _merges(tokenizer)):
            yield from _apart(key, _read(listed), [{each} for each in merges])
        else:
            yield Finding("not modelled", key, detail="a list that is not compared")


def _read(listed: Listed) -> Sequence[Any]:
    return listed.read() if isinstance(listed, Long) else listed


def _apart(key: str, found: Sequence[Any], wanted: Sequence[Collection[Any]]) -> Iterator[Finding]:
    if len(found) != len(wanted):
        yield Finding("differs from the base", key, detail=f"{len(found):,} of them, the base has {len(wanted):,}")
    off = [at for at, (one, some) in enumerate(zip(found, wanted, strict=False)) if one not in some]
    if off:
        first = off[0]
        detail = f"{found[first]!r:.40}, the base has {next(iter(wanted[first]), None)!r:.40}"
        yield Finding("differs from the base", key, len(off), (first,), detail)


@dataclass(frozen=True)
class Token:
    """A token of the base: its text, what a converter may make of it, and which types it can have."""

    text: str
    plain: str
    types: frozenset[int]


def _tokens(config: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> list[Token]:
    """Return the base's tokens in the order of their numbers, and what stands for numbers that it does not use."""
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    size, added = config.get("vocab_size"), _added(tokenizer)
    if not isinstance(vocabulary, dict) or type(size) is not int or not 0 < size <= MOST:
        return []
    texts = {number: text for text, number in vocabulary.items() if type(number) is int}
    texts |= {number: each["content"] for number, each in added.items()}
    count = max((size, *(number + 1 for number in texts if number < MOST)))
    made = []
    for number in range(count):
        if number not in texts:
            made.append(Token(f"[PAD{number}]", f"[PAD{number}]", frozenset({UNUSED})))
            continue
        own = added.get(number)
        types = {NORMAL} if own is None else {CONTROL} if own.get("special") is True else {CONTROL, DEFINED}
        made.append(Token(texts[number], texts[number].replace("\u2581", " "), frozenset(types)))
    return made


def _added(tokenizer: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    stated = tokenizer.get("added_tokens")
    some = [each for each in stated if isinstance(each, dict)] if isinstance(stated, list) else []
    return {each["id"]: each for each in some if type(each.get("id")) is int and isinstance(each.get("content"), str)}


def _ids(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    return {each["content"]: number for number, each in _added(tokenizer).items()}


def _merges(tokenizer: Mapping[str, Any]) -> list[str]:
    """Return the base's merges as GGUF has them: two parts with a space between, a space in one of them as U+0120."""
    model = tokenizer.get("model")
    stated = model.get("merges") if isinstance(model, dict) else None
    merges: list[str] = []
    for each in stated if isinstance(stated, list) else []:
        parts = each.split(" ") if isinstance(each, str) else each
        if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
            return []
        merges.append(" ".join(part.replace(" ", "\u0120") for part in parts))
    return merges


def _is_bytes(tokenizer: Mapping[str, Any]) -> bool:
    """Say whether tokens are made of bytes, as GPT-2's are."""
    return any(each.get("type") == "ByteLevel" for each in _inside(tokenizer.get("pre_tokenizer")))


def _inside(step: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a pre-tokenizer, those of a sequence one by one."""
    if isinstance(step, dict):
        yield step
        listed = step.get("pretokenizers")
        yield from (each for each in listed if isinstance(each, dict)) if isinstance(listed, list) else ()


def _expression(step: Mapping[str, Any]) -> str:
    pattern = step.get("pattern")
    return str(pattern.get("Regex")) if isinstance(pattern, dict) else ""
