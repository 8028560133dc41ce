"""Where the MTP block of an architecture lies in a base's files, and how it joins what it is given.

An MTP block predicts the token after the next one. Each row of what its decoder layer is given is made of two halves:
the embedding of the next token and the model's hidden state, each through a norm of its own, joined and made one by a
matrix. A wrong choice is silent, as these norms make good for the scale. What is known, and from where:

- Names, and the number that follows on the model's blocks: DeepSeek, README_WEIGHTS.md of DeepSeek-V3; vLLM,
  `_rewrite_spec_layer_name` of models/deepseek_mtp.py and glm4_moe_mtp.py; SGLang, models/deepseek_nextn.py and
  glm4_moe_nextn.py. Of Qwen3.5: vLLM and SGLang, models/qwen3_5_mtp.py.
- The embedding comes first: all of these; llama.cpp, models/glm4-moe.cpp; transformers 5.24, `MtpLayer`. Equation 21 of
  the DeepSeek-V3 report (arXiv:2412.19437) writes the hidden state first; no loader of the published weights does.
- The hidden state is the one behind the model's last norm: vLLM, `forward` of qwen3_next.py, deepseek_v2.py and
  glm4_moe.py; SGLang, `forward` of deepseek_v2.py and glm4_moe.py; llama.cpp, qwen35.cpp and glm4-moe.cpp. The report
  does not say. llama.cpp's change 24025 said in passing that it is not so for DeepSeek and GLM, and its later one for
  GLM (26534) takes the state behind the norm.
- The norms are the model's own class, so 1 + weight for Qwen3.5 and weight for the others: in all of them.
- The layer is a block with experts, even where the model's first ones have none (`first_k_dense_replace`): vLLM by its
  number, SGLang by `is_nextn`. That of Qwen3.5 has full attention.
- It stands at the position of the token whose hidden state it is given: vLLM, v1/spec_decode; SGLang. transformers 5.24
  counts from the token whose embedding it is; rotary embeddings see differences alone.
- Embedding and head are the model's: README_WEIGHTS.md; SGLang, which skips the copies; vLLM, v1/spec_decode, "Sharing
  target model embedding weights"; transformers, `tie_with_main_model`. llama.cpp takes copies where they are stored.
- vLLM sets the embedding at position 0 to zero in deepseek_mtp.py and glm4_moe_mtp.py, though it belongs to token 1
  (vLLM's issue 33299). SGLang, llama.cpp and transformers do not, and neither is it done here.

Standard library only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

Half = Literal["embedding", "state"]
"""The embedding of the next token, and the model's hidden state behind its last norm."""


@dataclass(frozen=True)
class MtpBlock:
    """The names of an MTP block's modules, below `root`; in it `{layers}` stands for the number of the model's blocks.

    `layer` is its decoder layer, a block like the model's own; "" where that is the root itself. `halves` are the norms
    of what is joined, in this order, `joint` is the matrix behind, `norm` what the head is given through. `copies` are
    the model's embedding and head once more, which are not read. Loaders read as float only what has `floats` in its
    name. `one_layer` is what the configuration of a model of this layer alone has otherwise than the model's.
    """

    root: str
    layer: str
    halves: Mapping[Half, str]
    joint: str
    norm: str
    floats: str
    one_layer: Mapping[str, Any]
    copies: tuple[str, ...] = ()

    @property
    def is_numbered(self) -> bool:
        """Whether it has the number that follows on the model's own blocks, and waits for it."""
        return "{layers}" in self.root

    def behind(self, layers: int) -> "MtpBlock":
        """Return that of a model with so many blocks of its own."""
        return replace(self, root=self.root.format(layers=layers))

    @property
    def prefix(self) -> str:
        """What the names of its tensors begin with."""
        return f"{self.root}."

    def holds(self, tensor: str) -> bool:
        """Say whether a tensor is the block's own: below its root, and no copy of the model's."""
        copies = tuple(f"{self.named(each)}." for each in self.copies)
        return tensor.startswith(self.prefix) and not tensor.startswith(copies)

    @property
    def block(self) -> str:
        """The name of its decoder layer."""
        return self.named(self.layer) if self.layer else self.root

    def named(self, part: str) -> str:
        """Return the whole name of one of its parts."""
        return f"{self.root}.{part}"


_QWEN = MtpBlock(
    root="mtp",
    layer="layers.0",
    halves={"embedding": "pre_fc_norm_embedding", "state": "pre_fc_norm_hidden"},
    joint="fc",
    norm="norm",
    floats="mtp.fc",
    one_layer={"layer_types": ["full_attention"]},
)
_NEXT_N = MtpBlock(
    root="model.layers.{layers}",
    layer="",
    halves={"embedding": "enorm", "state": "hnorm"},
    joint="eh_proj",
    norm="shared_head.norm",
    floats="eh_proj",
    one_layer={"first_k_dense_replace": 0},
    copies=("embed_tokens", "shared_head.head"),
)
MTP_BLOCKS: Mapping[str, MtpBlock] = {
    "qwen3_5": _QWEN,
    "qwen3_5_moe": _QWEN,
    "deepseek_v3": _NEXT_N,
    "glm4_moe": _NEXT_N,
}
"""By `model_type`."""
