"""What a checkpoint's `quantization_config` declares, as a value.

Fields are AutoRound's; what each release makes of a configuration as a whole, whoever wrote it, is in reading.py.
Everything here was written by others and is checked before it is believed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from requant.errors import CheckpointError

MAX_OVERRIDES = 100_000
"""More entries than this in `extra_config` are refused: a checkpoint of this architecture has 31,181 linear layers."""


@dataclass(frozen=True)
class Declared:
    """Global precision, the blocks that have it (None: all), and overrides by name or regular expression."""

    bits: int
    group_size: int
    sym: bool
    packing_format: str
    desc_act: bool
    blocks: tuple[str, ...] | None
    overrides: Mapping[str, Mapping[str, Any]]


def read_declared(value: Any) -> Declared | None:
    """Read a `quantization_config`; None where there is none. Raises CheckpointError where it is something else."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _wrong("", value, "an object")
    keys = ("block_name_to_quantize", "to_quant_block_names")
    blocks = next((value[key] for key in keys if key in value), None)  # also where that is null, as in vLLM and SGLang
    if isinstance(blocks, str):
        blocks = blocks.split(",")
    if blocks is not None and not (isinstance(blocks, list) and all(isinstance(each, str) for each in blocks)):
        raise _wrong("block_name_to_quantize", blocks, "a name or a list of names")
    overrides = {} if value.get("extra_config") is None else value["extra_config"]
    if not isinstance(overrides, dict) or not all(isinstance(each, dict) for each in overrides.values()):
        raise _wrong("extra_config", overrides, "an object of objects")
    if len(overrides) > MAX_OVERRIDES:
        raise _wrong("extra_config", f"{len(overrides):,} entries", f"{MAX_OVERRIDES:,} at most")
    for name, override in overrides.items():
        for key in ("bits", "group_size"):
            if key in override and type(override[key]) is not int:
                raise _wrong(f"extra_config.{name}.{key}", override[key], "a whole number")
        if type(override.get("sym", True)) is not bool:
            raise _wrong(f"extra_config.{name}.sym", override["sym"], "true or false")
    return Declared(
        bits=_typed(value, "bits", int),
        group_size=_typed(value, "group_size", int),
        sym=_typed(value, "sym", bool, True),
        packing_format=_typed(value, "packing_format", str, "auto_round:auto_gptq"),
        desc_act=bool(value.get("desc_act")),
        blocks=None if blocks is None else tuple(blocks),
        overrides=MappingProxyType(overrides),
    )


def _typed(value: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    found = default if value.get(key) is None else value[key]
    if type(found) is not kind:
        raise _wrong(key, found, {int: "a whole number", bool: "true or false", str: "a string"}[kind])
    return found


def _wrong(key: str, found: Any, expected: str) -> CheckpointError:
    where = f"quantization_config.{key}".rstrip(".")
    return CheckpointError(
        f"{where}: found {found!r:.200}, expected {expected}", "This is not how AutoRound writes it."
    )
