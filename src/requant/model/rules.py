"""What becomes of each number of a base's config.json in a tiny model: the table, and the rules it names.

Changing one changes the bytes of every tiny model.
"""

import math
from collections.abc import Callable

from requant.model.part import Part

SIZES = ("mini", "demo", "wide")
"""For tests; twice as deep, with twice the experts; the language model's own widths at mini's depth."""
LARGE = 512
"""A whole number above this that no rule covers is taken for a dimension."""
VOCABULARY = 320
"""The ids of a tiny model's tokenizer: 256 bytes, `requant.model.tiny.SPECIALS`, and room."""

HIDDEN = ("hidden_size", "n_embd", "d_model")
HEADS = ("num_attention_heads", "n_head", "num_heads")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")

Rule = Callable[[Part, int], int]


def apply(part: Part, name: str, value: int) -> int:
    """Return what a number of a part becomes."""
    return value if part.size == "wide" and not part.tower and name in WIDTHS else RULES[name](part, value)


def new(part: Part, *names: str) -> int | None:
    """Return what the number under the first of these names that is stated becomes."""
    name = part.stated(*names)
    return None if name is None else apply(part, name, part.checked(name, part.own[name]))


def share(part: Part, length: int) -> int:
    """Return a length that is a share of what is rotated of a head; the share stays, the head shrinks."""
    name = part.stated("qk_rope_head_dim", "head_dim")
    if name:
        before, after = part.number(name) or 1, new(part, name) or 1
    else:
        before = (part.number(*HIDDEN) or 1) // (part.number(*HEADS) or 1) or 1
        after = (new(part, *HIDDEN) or 1) // (new(part, *HEADS) or 1) or 1
    return min(length, length * after // before)


def _at_most(most: int, tower: int | None = None) -> Rule:
    return lambda part, value: min(value, tower if tower and part.tower else most)


def _odd(least: int) -> Rule:
    """Keep a width's remainder by 128: what no group size divides stays undivided."""
    return lambda _, value: min(value, least + value % 128)


def depth(part: Part, _: int = 0) -> int:
    """Return how many layers a part keeps, 0 where it has none: every kind, and in a language model of demo twice."""
    if part.layers is None:
        return 0
    mini = max(2, part.prefix(ignored=WIDTHS))
    return min(part.layers, 2 * mini if part.size == "demo" and not part.tower else mini)


def _heads(part: Part, value: int) -> int:
    """Four; where their width is not stated but follows, as many as divide the hidden size."""
    before, hidden = part.number(*HIDDEN), new(part, *HIDDEN)
    if part.stated("head_dim", "qk_nope_head_dim") or not before or not hidden:
        return min(value, 4)
    return value if before == hidden else max((n for n in (1, 2, 3, 4) if n <= value and hidden % n == 0), default=0)


def _key_value_heads(part: Part, value: int) -> int:
    """Multi-head stays multi-head, grouped grouped, multi-query multi-query."""
    before, heads = part.number(*HEADS), new(part, *HEADS)
    if before is None or heads is None or before == heads:
        return value
    return min(value, heads if value >= before else 2, heads)


def _head_dim(part: Part, value: int) -> int:
    """DeepSeek's classes give the width of the rotated part under this name too."""
    return min(value, 32 if part.tower or value == part.number("qk_rope_head_dim") else 64)


def _qk_head_dim(part: Part, value: int) -> int:
    return min(value, (new(part, "qk_nope_head_dim") or 0) + (new(part, "qk_rope_head_dim") or 0) or value)


def _state_heads(part: Part, value: int) -> int:
    """Mamba's, where the inner width follows from the hidden size: their width stays, and their number follows."""
    hidden, expand, width = new(part, *HIDDEN), part.number("mamba_expand"), part.own.get("mamba_d_head")
    return min(value, expand * hidden // width) if hidden and expand and isinstance(width, int) and width > 0 else value


def _state_head_dim(part: Part, value: int) -> int:
    return value if part.stated("mamba_expand") else min(value, 16)


def _experts(part: Part, value: int) -> int:
    return min(value, 8 if part.size == "demo" else 4)


def _groups(part: Part, value: int) -> int:
    """Of equal size, two experts at least: DeepSeek's router ranks groups by the sum of their best two."""
    experts = new(part, *EXPERTS) or 1
    return max((n for n in range(1, min(value, experts // 2) + 1) if experts % n == 0), default=min(value, 1))


def _chosen_groups(part: Part, value: int) -> int:
    before, groups = part.number("n_group") or 1, new(part, "n_group") or 1
    return min(value, groups, max(1, value * groups // before))


def _vocabulary(part: Part, value: int) -> int:
    if value < VOCABULARY:
        raise part.refusal("vocab_size", f"the tokenizer of tiny models has {VOCABULARY} ids")
    return VOCABULARY


def original_positions(part: Part, value: int) -> int:
    """Return the same share of the new positions as of the base's, so that a scaling keeps its factor."""
    before, after = part.number("max_position_embeddings"), new(part, "max_position_embeddings")
    return max(min(value, 1), min(value, value * after // before)) if before and after else value


def _image(part: Part, value: int) -> int:
    """Eight patches a side: 64 positions."""
    return min(value, 8 * (part.number("patch_size") or value))


def _image_tokens(part: Part, value: int) -> int:
    """Gemma 3 pools the patches of an image to a square of tokens: as many patches for a token as before."""
    tower = part.child("vision_config") if part.holds("vision_config") else part
    before, after, patch = tower.number("image_size"), new(tower, "image_size"), tower.number("patch_size")
    pool = before // patch // math.isqrt(value) if before and patch and value else 0
    return min(value, (after // patch // pool) ** 2) if pool and after and patch else value


def _tower_output(part: Part, value: int) -> int:
    """Follow the language model, which takes in what a tower gives out."""
    if value != part.language.number(*HIDDEN):
        raise part.refusal("out_hidden_size", f"the language model's {HIDDEN[0]} is another")
    return new(part.language, *HIDDEN) or value


def _table(*rows: tuple[Rule, str]) -> dict[str, Rule]:
    return {name: rule for rule, names in rows for name in names.split()}


WIDTHS = _table(
    (_at_most(256, tower=128), "hidden_size n_embd d_model"),
    (_odd(256), "intermediate_size n_inner ffn_dim ffn_hidden_size intermediate_size_mlp"),
    (_odd(128), "moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size"),
    (_odd(128), "shared_intermediate_size expert_ffn_hidden_size q_lora_rank kv_lora_rank"),
    (_heads, "num_attention_heads n_head num_heads"),
    (_key_value_heads, "num_key_value_heads num_global_key_value_heads"),
    (_head_dim, "head_dim"),
    (share, "global_head_dim rotary_dim"),
    (_at_most(32), "qk_nope_head_dim qk_rope_head_dim v_head_dim"),
    (_qk_head_dim, "qk_head_dim"),
    (_at_most(64), "index_head_dim"),
    (_at_most(16), "linear_key_head_dim linear_value_head_dim ssm_state_size mamba_d_state mamba_dt_rank"),
    (_state_heads, "mamba_n_heads"),
    (_state_head_dim, "mamba_d_head mamba_head_dim"),
    (_experts, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    (_at_most(2), "num_experts_per_tok moe_k moe_topk top_k_experts"),
    (_groups, "n_group"),
    (_chosen_groups, "topk_group"),
)
"""What the language model of size wide has from its base."""

RULES = WIDTHS | _table(
    (depth, "num_hidden_layers n_layer num_layers depth"),
    (_at_most(1), "num_nextn_predict_layers mtp_num_hidden_layers num_mtp_layers"),
    (_vocabulary, "vocab_size vocab_size_per_layer_input"),
    (_at_most(4096), "max_position_embeddings n_positions n_ctx max_seq_len seq_length"),
    (original_positions, "original_max_position_embeddings initial_context_length"),
    (_at_most(32), "sliding_window attention_chunk_size attention_window_size index_topk"),
    (_at_most(64), "num_position_embeddings"),
    (_image, "image_size"),
    (_image_tokens, "mm_tokens_per_image"),
    (_tower_output, "out_hidden_size"),
)

TOKEN_IDS = {name: 259 + i for i, names in enumerate((
    "vision_start image_start boi", "vision_end image_end eoi", "image vision", "video",
    "audio", "audio_start boa", "audio_end eoa", "video_start", "video_end",
)) for name in names.split()}  # fmt: skip
"""The tokenizer's own up to video; further ids have no text. Every other token is 256, `<|endoftext|>`."""
HARMLESS = ("rope_theta", "rope_local_base_freq", "max_window_layers", "floor_scale", "chunk_size", "mamba_chunk_size")
"""Numbers that may be large and are no dimension."""
REFUSED = {
    "quantization_config": ("the base is already quantized", "Name the model that it was quantized from."),
    "compression_config": ("the base is already quantized", "Name the model that it was quantized from."),
    "num_kv_shared_layers": ("layers that share keys and values lie at the end, which no prefix keeps", ""),
}
