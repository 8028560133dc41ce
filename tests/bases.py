"""Bases of the corpus as files, and checkpoints with other bytes."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.conftest import ROOT

from requant.checkpoint.checkpoint import open_checkpoint, write_checkpoint
from requant.checkpoint.safetensors import Spec
from requant.model.tiny import stand_in


def base(name: str, folder: Path) -> Path:
    """Write a base with configuration and tensors of one of the corpus; its weights are the stream's."""
    value = json.loads((ROOT / "tests" / "corpus" / f"base-{name}.json").read_text())
    specs: dict[str, Spec] = {}
    for inside in value["tensors"].values():
        for tensor, text in inside.items():
            dtype, *shape = text.split()
            specs[tensor] = Spec(dtype, tuple(map(int, shape)))
    write_checkpoint(stand_in("mini", value["sides"]["config.json"], specs, zero_centred=False), folder)
    return folder


def alter(folder: Path, name: str, edit: Callable[[bytes], bytes]) -> None:
    """Change the bytes of a tensor."""
    checkpoint = open_checkpoint(folder)
    file = next(file for file, held in checkpoint.shards.items() if name in held)
    before, data = checkpoint.shards[file][name].read(), (folder / file).read_bytes()
    assert data.count(before) == 1
    (folder / file).write_bytes(data.replace(before, edit(before)))
