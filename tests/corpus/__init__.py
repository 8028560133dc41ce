"""Checkpoints by other tools, by their headers: README.md says where they come from."""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from requant.checkpoint.safetensors import Spec
from requant.inspect.headers import SIDES, Headers

FOLDER = Path(__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
BASES = [name for name in NAMES if name.startswith("base-")]


@cache
def _read(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_bytes())
    return value


def _specs(tensors: dict[str, str]) -> dict[str, Spec]:
    parts = {name: text.split() for name, text in tensors.items()}
    return {name: Spec(dtype, tuple(map(int, shape))) for name, (dtype, *shape) in parts.items()}


def headers(name: str) -> Headers:
    """The headers of a checkpoint, as if they came from a repository."""
    held = _read(name)
    shards = {file: _specs(tensors) for file, tensors in held["tensors"].items()}
    total = sum(spec.nbytes for specs in shards.values() for spec in specs.values())
    sides = {path: json.dumps(value).encode() for path, value in held["sides"].items() if path in SIDES}
    return Headers(name, shards, total, sides, tuple(held["paths"]))


def on_disk(name: str, folder: Path) -> Path:
    """Write a checkpoint whose tensors are all zero; the data is a hole in each file."""
    folder.mkdir()
    held = _read(name)
    for path in held["paths"]:
        (folder / path).write_text(json.dumps(held["sides"].get(path, {})))
    for file, tensors in held["tensors"].items():
        described, end = {}, 0
        for key, spec in _specs(tensors).items():
            described[key] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [end, end + spec.nbytes]}
            end += spec.nbytes
        text = json.dumps(described).encode()
        (folder / file).write_bytes(len(text).to_bytes(8, "little") + text)
        os.truncate(folder / file, 8 + len(text) + end)
    return folder
