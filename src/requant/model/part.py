"""One level of a config.json: its numbers, read with suspicion, and which of its layers are of a kind."""

import json
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from requant.errors import RecipeError

LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "depth")
LANGUAGE = ("text_config", "language_config", "llm_config", "thinker_config")
"""Nested configs that are the language model, or hold it; every other is a tower, such as `vision_config`."""
TOKEN_ID = re.compile(r"_token_(id|ids|index)$")
MOST_LAYERS = 1_000
"""More than any model has: a stranger's configuration must not fill the memory."""
MOST_NESTED = 8
BIGGEST = 2**63

INDEXES = (
    *("mlp_only_layers", "moe_layers", "attn_layer_indices", "full_attn_idxs", "cross_attention_layers"),
    *("fullatt_block_indexes", "deepstack_visual_indexes"),
)
"""Lists of the layers that differ."""
INTERVALS = {
    **dict.fromkeys(("full_attention_interval", "sliding_window_pattern", "_sliding_window_pattern"), -1),
    **dict.fromkeys(("decoder_sparse_step", "no_rope_layer_interval", "interleave_moe_layer_step"), -1),
    **dict.fromkeys(("moe_layer_freq", "moe_layer_interval", "global_attn_every_n_layers"), 0),
}
"""Every how many layers one differs, and whether it is the first of them or the last."""
PERIODS = (("attn_layer_period", "attn_layer_offset"), ("expert_layer_period", "expert_layer_offset"))
"""The same, with which of them it is."""
THRESHOLDS = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
"""How many of the first layers differ."""


@dataclass(frozen=True)
class Part:
    """A language model, a tower, or the whole config that holds them; `path` ends with a dot unless it is empty."""

    own: Mapping[str, Any]
    size: str
    path: str = ""
    tower: bool = False
    whole: "Part | None" = None

    def child(self, name: str) -> "Part":
        """Return the nested config of this name."""
        tower = self.tower or name not in LANGUAGE
        return Part(self.own[name], self.size, f"{self.path}{name}.", tower, self.whole or self)

    def holds(self, name: str) -> bool:
        """Tell whether a key is a nested config."""
        return name.endswith("_config") and isinstance(self.own.get(name), dict)

    @cached_property
    def language(self) -> "Part":
        """The part of the whole config that is the language model."""
        part = self.whole or self
        while inner := next(filter(part.holds, LANGUAGE), None):
            part = part.child(inner)
        return part

    def stated(self, *names: str) -> str | None:
        """Return the first of these names that is stated and not null."""
        return next((name for name in names if self.own.get(name) is not None), None)

    def number(self, *names: str) -> int | None:
        """Return the number under the first of these names that is stated and not null."""
        name = self.stated(*names)
        return None if name is None else self.checked(name, self.own[name])

    def checked(self, name: str, value: Any) -> int:
        """Return a value that must be a whole number, zero or more."""
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.refusal(name, "expected a whole number, zero or more")
        return value

    def refusal(self, name: str, reason: str, advice: str = "") -> RecipeError:
        """Return the error for what cannot be shrunk."""
        shown = json.dumps(self.own.get(name))
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        return RecipeError(f"config.json: {self.path}{name} is {shown}: {reason}", advice)

    @cached_property
    def layers(self) -> int | None:
        """The number of layers."""
        names = [name for name in LAYERS if self.stated(name)]
        if not names:
            return None
        name = names[0]
        for other in names[1:]:
            if self.own[other] != self.own[name]:
                raise self.refusal(other, f"{name} is another number of layers")
        layers = self.checked(name, self.own[name])
        if not 1 <= layers <= MOST_LAYERS:
            raise self.refusal(name, f"expected 1 to {MOST_LAYERS:,} layers")
        listed = self.own.get("layer_types")
        if isinstance(listed, list) and len(listed) != layers:
            raise self.refusal("layer_types", f"{len(listed)} types for {layers} layers")
        return layers

    def prefix(self, ignored: Container[str]) -> int:
        """Return the length of the shortest run of layers from the first on that has every kind of layer.

        Lists under `ignored` names have one item per layer but make no kinds.
        """
        first: dict[tuple[object, ...], int] = {}
        for layer in range(self.layers or 0):
            first.setdefault(self._kind(layer, ignored), layer)
        return max(first.values(), default=-1) + 1

    def per_layer(self, name: str) -> bool:
        """Tell whether a key holds one item per layer."""
        value = self.own[name]
        listed = isinstance(value, list) or (isinstance(value, str) and name == "hybrid_override_pattern")
        special = name in INDEXES or name == "architectures" or TOKEN_ID.search(name)
        return listed and not special and len(value) == self.layers

    def indexes(self, name: str) -> list[int]:
        """Return the layers that a list names."""
        if not isinstance(self.own[name], list):
            raise self.refusal(name, "expected a list of layers")
        return [self.checked(name, layer) for layer in self.own[name]]

    def _kind(self, layer: int, ignored: Container[str]) -> tuple[object, ...]:
        """Return what tells a layer's kind: two layers that are alike in all of this are of a kind."""
        windows = self.own.get("use_sliding_window") is True and not self.stated("layer_types")
        return (
            *(json.dumps(self.own[name][layer]) for name in self.own if self.per_layer(name) and name not in ignored),
            *(layer in self.indexes(name) for name in INDEXES if self.stated(name)),
            *((layer - which) % every == 0 for name, which in INTERVALS.items() if (every := self._interval(name))),
            *((layer - (self.number(at) or 0)) % every == 0 for name, at in PERIODS if (every := self.number(name))),
            *(layer < (self.number(name) or 0) for name in THRESHOLDS),
            windows and layer >= (self.number("max_window_layers") or 0),
        )

    def _interval(self, name: str) -> int | None:
        """Return every how many layers one differs; some models list it per layer under the same name."""
        return None if isinstance(self.own.get(name), list) else self.number(name)


def plain(value: Any, path: str = "", nested: int = 0) -> Any:
    """Return a copy of a value as JSON has it, to be changed at will, or refuse what no config.json holds."""
    if nested > MOST_NESTED:
        raise RecipeError(f"config.json: {path[:60]}: nested more than {MOST_NESTED} deep")
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {name: plain(inner, f"{path}.{name}".strip("."), nested + 1) for name, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner, path, nested + 1) for inner in value]
    if value is None or isinstance(value, bool | float | str) or (isinstance(value, int) and abs(value) < BIGGEST):
        return value
    raise RecipeError(
        f"config.json: {path[:60]}: expected JSON, whole numbers below 2**63, found {type(value).__name__}"
    )
