"""What memory `check` takes: of each format at two sizes, and of one very large tensor.

    python benchmarks/memory.py [FOLDER]

Each check is a process of its own, which says at its end what it held at most (`VmHWM`, which counts no file that the
system keeps in memory). The pairs are those of `formats.py`, with layers of 1 and 4 times as many; then one layer of
151,936 outputs and 4,096 inputs, the embedding of an 8B model. A checkpoint is removed once it was checked.
"""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import peers

sys.path.append(str(Path(__file__).parent.parent))

from tests.test_limits import PROGRAM

import formats

Size = tuple[int, tuple[int, int], int]
"""How many layers, of which outputs and inputs, whose outputs are repeated so many times."""
COUNT, EMBEDDING = 12, (1, (128, 4096), 1187)
LARGE = ("int4, groups", "FP8, channels", "FP8, one scale", "FP8 of AutoFP8", "NVFP4", "nf4", "MLX 4 bits", "GGUF Q8_0")
MOST = 1 << 10
"""MiB that nothing may take."""


def peak(base: Path, made: Path) -> int:
    """Return the MiB that a check takes at most."""
    command = [sys.executable, "-c", PROGRAM, "check", str(made), "--base", str(base), "--fresh"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 3), done.stdout[-2000:] + done.stderr[-2000:]
    return int(done.stderr.rpartition("KiB ")[2]) >> 10


def measured(title: str, names: Sequence[str], sizes: Sequence[Size]) -> dict[str, int]:
    """Print and return the peaks of formats, exact and not, with so many layers of a shape."""
    found = {}
    told = [f"{count} x {times * rows:,} x {columns:,}" for count, (rows, columns), times in sizes]
    print(f"\n{title}\n\n| format | {' | '.join(told)} |\n{'|---' * (1 + len(told))}|")
    for name in names:
        for exact in (True, False):
            title, some = f"{name}{'' if exact else ', by no formula'}", []
            for count, shape, times in sizes:
                folder = peers.folder() / "memory" / f"{count}-{times}"
                pair = formats.write(folder, name, exact=exact, count=count, shape=shape, times=times)
                some.append(peak(*pair))
                shutil.rmtree(pair[1])
            print(f"| {title} | {' | '.join(f'{each} MiB' for each in some)} |", flush=True)
            found[title] = max(some)
    return found


def main() -> None:
    """Measure and print."""
    names = (*formats.NAMES, *formats.KINDS)
    found = measured("By size", names, [(COUNT, formats.SHAPE, 1), (4 * COUNT, formats.SHAPE, 1)])
    large = measured("One tensor", LARGE, [EMBEDDING])
    peers.told({"memory/MiB": max(*found.values(), *large.values())})
    assert max(*found.values(), *large.values()) < MOST


if __name__ == "__main__":
    main()
