"""`FOLDER`: write a boundary, spoil it in each way, and answer what reading it back says; and the same of blocks."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests.room.prepared import answer

from requant.errors import BuildError
from requant.journal import Block, Header, Loss
from requant.quantizer.hooks import PACKED
from requant.quantizer.spool import Boundary, Spool, digest

HARDWARE = {"accelerator": "cpu"}
HEADER = Header("r" * 64, "mini", "e" * 64, "b" * 64, "c" * 64, 3)


def spools(folder: str) -> dict[str, Any]:
    """Answer, by what was done to it, what a spool says when it is opened again."""
    place = Path(folder)
    random.seed(7)
    boundary = Boundary.of(
        [torch.rand(1, 4, 8) for _ in range(3)], [torch.rand(1, 4, 8) for _ in range(3)], random.getstate()
    )
    begun = fill(place / "whole", boundary)
    again = Spool(place / "whole", HEADER, HARDWARE)
    read = again.boundary()
    found: dict[str, Any] = {
        "equal": [
            all(map(torch.equal, boundary.full, read.full)),
            all(map(torch.equal, boundary.quantized or [], read.quantized or [])),
            read.random_state == boundary.random_state,
            again.done == begun.done,
        ],
        "kept": sorted(path.name for path in (place / "whole" / "boundaries").iterdir()),
    }
    again.close()
    for name, harm in HARMS.items():
        fill(place / name, boundary)
        harm(place / name)
        found[name] = refusal(place / name)
    for name, value in {"recipe": "x", "environment": "x", "base": "x", "calibration": "x", "twin": "demo"}.items():
        found[f"another {name}"] = refusal(place / "whole", Header(**{**vars(HEADER), name: value}))
    found["another hardware class"] = refusal(place / "whole", HEADER, {"accelerator": "gpu"})
    return found


def fill(folder: Path, boundary: Boundary) -> Spool:
    """Spool two blocks."""
    spool = Spool(folder, HEADER, HARDWARE)
    for number in range(2):
        packed = {f"layer{number}.{part}": torch.arange(4) for part in PACKED}
        tensors = {name: digest([value]) for name, value in packed.items()}
        loss = Loss((0.5).hex(), (0.25).hex(), 1)
        same = boundary.digests
        spool.keep(Block(f"layer{number}", same, "0" * 64, loss, tensors, same), packed, boundary)
    spool.close()
    return spool


def refusal(folder: Path, header: Header = HEADER, hardware: dict[str, Any] = HARDWARE) -> str:
    """Open a spool and read all of it; answer what it says, or nothing."""
    try:
        spool = Spool(folder, header, hardware)
        for number in range(len(spool.done)):
            spool.packed(number)
        spool.boundary()
        spool.close()
    except BuildError as error:
        return f"{error} | {error.advice}"
    return ""


def flip(name: str, at: int) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        path = folder / name
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)

    return harm


def rewrite(folder: Path) -> None:
    """Put another stream into the boundary, consistently."""
    path = folder / "boundaries" / "00002"
    there = Boundary.read(path)
    Boundary.of(there.full, there.full, there.random_state).write(path)


def other_draw(folder: Path) -> None:
    path = folder / "boundaries" / "00002" / "boundary.json"
    value = json.loads(path.read_bytes())
    value["said"]["random_state"][1][5] += 1
    path.write_text(json.dumps(value))


HARMS: dict[str, Callable[[Path], object]] = {
    "a bit of a stream": flip("boundaries/00002/quantized.safetensors", -1),
    "a bit of its header": flip("boundaries/00002/full.safetensors", 3),
    "another stream": rewrite,
    "another random state": other_draw,
    "no boundary": lambda folder: shutil.rmtree(folder / "boundaries" / "00002"),
    "no block": lambda folder: (folder / "blocks" / "00001.safetensors").unlink(),
    "a block cut short": lambda folder: (folder / "blocks" / "00001.safetensors").write_bytes(b"\x10"),
    "no json": lambda folder: (folder / "boundaries" / "00002" / "boundary.json").write_text("[]"),
}


if __name__ == "__main__":
    answer(spools)
