"""The tiny model: a small model of the base's architecture, the same bytes for ever, from its own names alone.

It has what makes the base hard: hybrid layers, fused experts, a shared expert and its gate, an MTP block, a
visual tower whose width is no multiple of 128, untied embeddings, several shards. Each weight is a bell-shaped
number from SHAKE-256 of the tensor's name, made with integers and one exact product, so no platform and no
library can round it differently. Changing anything here changes the bytes of every tiny model: see CHANGELOG.md.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any

import numpy as np

from requant.checkpoint.checkpoint import (
    INDEX,
    Checkpoint,
    Content,
    Held,
    Tensor,
    index,
    json_file,
    shard_names,
    spread,
)
from requant.checkpoint.safetensors import Spec
from requant.errors import NotModelledError

CALIBRATION = "calibration.jsonl"
SHARDS = 3
NUMBERS_AT_ONCE = 1 << 20
"""Numbers drawn per SHAKE-256 message; part of the format of the stream."""

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def stand_in(
    size: str,
    config: Mapping[str, Any],
    specs: Mapping[str, Spec],
    *,
    zero_centred: bool,
    tied: Mapping[str, str] = MappingProxyType({}),
) -> Checkpoint:
    """Return a model of these tensors as a checkpoint whose weights are computed when they are read.

    `zero_centred` says that the class stores the scale of a norm less one; what is `tied` to another tensor is equal.
    """

    def weights(name: str, spec: Spec) -> Content:
        return stream(size, tied.get(name, name), spec, zero_centred=zero_centred)

    tensors = {name: Tensor(spec, weights(name, spec)) for name, spec in specs.items()}
    shards = spread(tensors, shard_names(SHARDS))
    return Checkpoint(shards, {**_side_files(size, config), INDEX: index(shards)})


def stream(size: str, name: str, spec: Spec, *, zero_centred: bool = True) -> Content:
    """Return the weights of one of a tiny model's tensors."""
    return _Stream(f"{size}/{name}", name, spec, zero_centred)


def calibration_text() -> bytes:
    """Return the tiny model's calibration text: JSON lines with a `text` each."""
    return resources.files(__name__).joinpath(CALIBRATION).read_bytes()


@dataclass(frozen=True)
class _Stream:
    seed: str
    name: str
    spec: Spec
    zero_centred: bool

    def chunks(self) -> Iterator[bytes]:
        for number, start in enumerate(range(0, self.spec.size, NUMBERS_AT_ONCE)):
            count = min(NUMBERS_AT_ONCE, self.spec.size - start)
            stream = hashlib.shake_256(f"requant twin/{self.seed}/{number}".encode()).digest(4 * count)
            bell = np.frombuffer(stream, np.uint8).reshape(count, 4).sum(axis=1, dtype=np.int32) - 510
            yield _float(self.spec.dtype, _shaped(self.name, bell, self.zero_centred))


def _shaped(name: str, bell: Any, zero_centred: bool) -> Any:
    """Scale whole numbers of mean 0 and deviation 148 to what a trained tensor of this name looks like."""
    if name.endswith("A_log"):
        # Slow decay: a fast one fills the delta rule with subnormal numbers, and CPUs are slow on these.
        return (bell - 1024) * np.float32(2**-9)
    if name.endswith("dt_bias"):
        return bell * np.float32(2**-9)
    if name.endswith("conv1d.weight"):
        return bell * np.float32(2**-9)
    if name.endswith("linear_attn.norm.weight") or ("visual" in name and "norm" in name and name.endswith("weight")):
        return 1 + bell * np.float32(2**-12)
    if not zero_centred and name.endswith("norm.weight"):
        return 1 + bell * np.float32(2**-12)
    return bell * np.float32(2**-12)


def _float(dtype: str, values: Any) -> bytes:
    """Return float32 numbers in the dtype of a base. Raises NotModelledError for one that is no float."""
    if dtype == "BF16":
        return _bfloat16(values)
    if dtype not in ("F16", "F32"):
        raise NotModelledError(f"a tensor of {dtype}: a tiny model has BF16, F16 or F32")
    return bytes(values.astype({"F16": "<f2", "F32": "<f4"}[dtype]).tobytes())


def _bfloat16(values: Any) -> bytes:
    """Round float32 to bfloat16, to nearest, ties to even, in integers."""
    bits = values.astype("<f4").view("<u4")
    return bytes(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes())


def _side_files(size: str, config: Mapping[str, Any]) -> dict[str, Content]:
    templates = {
        name: Held(resources.files(__name__).joinpath(name).read_bytes())
        for name in (
            "LICENSE",
            "chat_template.jinja",
            *(("preprocessor_config.json", "video_preprocessor_config.json") if "vision_config" in config else ()),
        )
    }
    vocabulary = _vocabulary()
    return {
        **templates,
        "README.md": Held(
            f"Generated by `requant tiny --size {size}`. No trained model: see requant's documentation.\n".encode()
        ),
        "config.json": json_file(config),
        "generation_config.json": json_file(
            {"eos_token_id": [258, 256], "pad_token_id": 256, "transformers_version": "5.5.1"}
        ),
        "merges.txt": Held(b"#version: 0.2\n"),
        "tokenizer.json": json_file(_tokenizer(vocabulary)),
        "tokenizer_config.json": json_file(
            {
                "eos_token": "<|im_end|>",
                "pad_token": "<|endoftext|>",
                "tokenizer_class": "PreTrainedTokenizerFast",
            }
        ),
        "vocab.json": Held(json.dumps(vocabulary, ensure_ascii=False).encode()),
    }


def _vocabulary() -> dict[str, int]:
    """Return GPT-2's printable stand-ins for the 256 bytes, each a token: a byte is printable or moved up by 256."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(moved)}
    return {letters[byte]: byte for byte in range(256)}


def _tokenizer(vocabulary: Mapping[str, int]) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": 256 + i, "content": name, **flags} for i, name in enumerate(SPECIALS)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": dict(vocabulary),
            "merges": [],
        },
    }
