"""`FOLDER`: write block inputs, spoil them in each way, and answer what reading them says; and the same of blocks."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tests.worker.prepared import answer

from requant.errors import BuildError
from requant.evidence.journal import Block, Header, Loss
from requant.worker.autoround.hooks import PACKED
from requant.worker.resume import BlockInputs, ResumeState, digest

HARDWARE = {"accelerator": "cpu"}
HEADER = Header("r" * 64, "mini", "e" * 64, "b" * 64, "c" * 64, 3)


def resume_states(folder: str) -> dict[str, Any]:
    """Answer, by what was done to it, what a resume state says when it is opened again."""
    place = Path(folder)
    random.seed(7)
    full, quantized, more = ([torch.rand(1, 4, 8) for _ in range(count)] for count in (3, 3, 2))
    block_inputs = replace(BlockInputs.of(full, quantized, random.getstate()), again=more, drift=3e-6)
    begun = fill(place / "whole", block_inputs)
    again = ResumeState(place / "whole", HEADER, HARDWARE)
    read = again.block_inputs()
    found: dict[str, Any] = {
        "equal": [
            all(map(torch.equal, block_inputs.full, read.full)),
            all(map(torch.equal, block_inputs.quantized or [], read.quantized or [])),
            all(map(torch.equal, block_inputs.again or [], read.again or [])),
            (read.random_state, read.drift) == (block_inputs.random_state, block_inputs.drift),
            again.done == begun.done,
        ],
        "kept": sorted(path.name for path in (place / "whole" / "inputs").iterdir()),
    }
    again.close()
    for name, harm in HARMS.items():
        fill(place / name, block_inputs)
        harm(place / name)
        found[name] = refusal(place / name)
    for name, value in {"recipe": "x", "environment": "x", "base": "x", "calibration": "x", "tiny": "demo"}.items():
        found[f"another {name}"] = refusal(place / "whole", Header(**{**vars(HEADER), name: value}))
    found["another hardware class"] = refusal(place / "whole", HEADER, {"accelerator": "gpu"})
    return found


def fill(folder: Path, block_inputs: BlockInputs) -> ResumeState:
    """Keep two blocks."""
    resume_state = ResumeState(folder, HEADER, HARDWARE)
    for number in range(2):
        packed = {f"layer{number}.{part}": torch.arange(4) for part in PACKED}
        tensors = {name: digest([value]) for name, value in packed.items()}
        loss = Loss((0.5).hex(), (0.25).hex(), 1)
        same = block_inputs.digests
        resume_state.keep(Block(f"layer{number}", same, "0" * 64, loss, tensors, same), packed, block_inputs, None)
    resume_state.close()
    return resume_state


def refusal(folder: Path, header: Header = HEADER, hardware: dict[str, Any] = HARDWARE) -> str:
    """Open a resume state and read all of it; answer what it says, or nothing."""
    try:
        resume_state = ResumeState(folder, header, hardware)
        for number in range(len(resume_state.done)):
            resume_state.packed(number)
        resume_state.block_inputs()
        resume_state.close()
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
    """Put another stream into the block inputs, consistently."""
    path = folder / "inputs" / "00002"
    there = BlockInputs.read(path)
    BlockInputs.of(there.full, there.full, there.random_state).write(path)


def other_draw(folder: Path) -> None:
    path = folder / "inputs" / "00002" / "inputs.json"
    value = json.loads(path.read_bytes())
    value["said"]["random_state"][1][5] += 1
    path.write_text(json.dumps(value))


HARMS: dict[str, Callable[[Path], object]] = {
    "a bit of a stream": flip("inputs/00002/quantized.safetensors", -1),
    "a bit of the samples in another arithmetic": flip("inputs/00002/again.safetensors", -1),
    "a bit of its header": flip("inputs/00002/full.safetensors", 3),
    "another stream": rewrite,
    "another random state": other_draw,
    "no block inputs": lambda folder: shutil.rmtree(folder / "inputs" / "00002"),
    "no block": lambda folder: (folder / "blocks" / "00001.safetensors").unlink(),
    "a block cut short": lambda folder: (folder / "blocks" / "00001.safetensors").write_bytes(b"\x10"),
    "no json": lambda folder: (folder / "inputs" / "00002" / "inputs.json").write_text("[]"),
}


if __name__ == "__main__":
    answer(resume_states)
