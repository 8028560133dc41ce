"""What a declaration says of who wrote it, and in which formats it and the tensors say that layers are.

Anybody can copy a configuration: its keys name a tool, and prove nothing.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from requant.checkpoint.safetensors import Spec
from requant.formats import ORDER, PACKED
from requant.formats.codec import Declaration, holds_codes, layers_of
from requant.formats.declarations import declared
from requant.inspect.anatomy import Packing

SHOWN = 40
"""Letters of a version, which a stranger wrote."""


@dataclass(frozen=True)
class Mark:
    """A key, or a file, that one tool writes; `said` returns the version that stands there, or "", None without it."""

    tool: str
    where: str
    said: Callable[[Mapping[str, Any]], Any]


def _quantizer(value: Mapping[str, Any]) -> str | None:
    """Return the version in `meta.quantizer`, a list such as `gptqmodel:7.7.0`."""
    meta = value.get("meta")
    named = meta.get("quantizer") if isinstance(meta, dict) else None
    first = named[0] if isinstance(named, list) and named else named
    tool, _, version = first.partition(":") if isinstance(first, str) else ("", "", "")
    return version if tool == "gptqmodel" else None


def _producer(value: Mapping[str, Any]) -> str | None:
    producer = value.get("producer")
    named = isinstance(producer, dict) and producer.get("name") == "modelopt"
    return str(producer.get("version", "")) if named and isinstance(producer, dict) else None


def _compressed(value: Mapping[str, Any]) -> Any:
    ours = value.get("quant_method") == "compressed-tensors" and "quantization_status" in value
    return value.get("version", "") if ours else None


MARKS = (
    # auto-round 0.12.2 and 0.16.1, in every format; `provider` in those for other tools (tests/corpus).
    Mark("AutoRound, or requant", "autoround_version", lambda value: value.get("autoround_version")),
    Mark("AutoRound, or requant", "provider", lambda value: "" if value.get("provider") == "auto-round" else None),
    # gptqmodel 7.7.0 (tests/corpus).
    Mark("GPTQModel", "meta.quantizer", _quantizer),
    # llm-compressor 0.14.0.1 (tests/corpus); `version` is that of compressed-tensors.
    Mark("a tool that saves through compressed-tensors, as llm-compressor does", "quantization_status", _compressed),
    # vLLM 0.33.0, modelopt.py, reads this where nothing else names the tool.
    Mark("ModelOpt", "producer", _producer),
    # transformers 5.5.1: utils/quantization_config.py, GPTQConfig and BitsAndBytesConfig.
    Mark("transformers, with Optimum", "cache_block_outputs", lambda value: _there(value, "cache_block_outputs")),
    Mark("transformers, with bitsandbytes", "_load_in_4bit", lambda value: _there(value, "_load_in_4bit")),
)
"""Of `quantization_config`: keys that no other tool is known to write."""
FILES = {"recipe.yaml": "llm-compressor"}
"""Files that stand beside the weights."""


def _there(value: Mapping[str, Any], key: str) -> str | None:
    return "" if key in value else None


def tools(config: Mapping[str, Any], paths: Collection[str]) -> Iterator[str]:
    """Yield the tools that a configuration and the names of files name, each with the key that does."""
    value = config.get("quantization_config")
    keys = value if isinstance(value, dict) else {}
    for mark in MARKS:
        if (said := mark.said(keys)) is not None:
            version = f" {said:.{SHOWN}}" if isinstance(said, str) and said else ""
            yield f"{mark.tool}: {mark.where}{version}"
    if isinstance(config.get("quantization"), dict):
        yield "MLX: config.json: quantization"
    yield from (f"{tool}: {file}" for file, tool in FILES.items() if file in paths)


def formats(
    value: Any, tensors: Mapping[str, Spec], packed: Mapping[str, Packing | None]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return in which format each layer is, by declaration and tensors, and why of others nothing is known.

    `packed` are the layers of words, of GPTQ or AWQ, and what their tensors say.
    """
    found = {layer: f"words of {each.layout.upper()}, {each}" for layer, each in packed.items() if each}
    unknown = {layer: "tensors that fit no packing" for layer, each in packed.items() if not each}
    declaration: Declaration | None = None
    why = "nothing declares how they are stored" if value is None else f"quant_method {_method(value)!r:.{SHOWN}}"
    try:
        declaration = declared(value) if isinstance(value, dict) else None
    except ValueError as error:
        why = f"{error}"
    for layer, held in layers_of(tensors).items():
        if layer in packed or not holds_codes(held) or {*held} <= {*PACKED, ORDER}:
            continue
        try:
            codec = declaration.codec(layer) if declaration else None
        except ValueError as error:
            unknown[layer] = f"{error}"
            continue
        if codec:
            found[layer] = codec.name
        else:
            unknown[layer] = "declared as floats" if declaration else why
    return found, unknown


def _method(value: Any) -> str:
    return str(value.get("quant_method", "")) if isinstance(value, dict) else ""
