"""Sketches of byte strings, by which two that differ in a few places become equal; neither is sent whole.

A sketch is an invertible Bloom lookup table (Goodrich and Mitzenmacher, 2011) of the string, byte by byte. Byte `i`
belongs to four cells, one for each of four primes: cell `i mod prime`, in which it is row `i // prime`. A cell holds
three sums over its rows `r` and their bytes `b`: of `b`, of `r * b` and of `r**2 * b`. Sums are linear, so the
difference of two sketches is that of the strings' difference; where one byte of a cell differs, its row is the quotient
of the first two, and the third confirms it. It is taken out of its other cells, in which others stand alone then.

All sums are of whole numbers below 2**53, so that they are exact in float64, in any order, on any device.
"""

import struct
from bisect import bisect_right
from functools import cache
from typing import Any

CELL = struct.Struct("<HIH")
"""A cell on disk: the three sums, modulo 2**16, 2**32 and `CHECK`."""
CHECK = 65521
"""A prime. Where two bytes of a cell differ, the third sum is as if one did only if their rows are equal modulo this:
it confirms all but that, unless three or more differ. A power of two would divide the changes themselves."""
SPARE = 1.5
"""Cells for each byte that may differ. Four cells a byte need 1.295 in the limit, and more where there are few."""
LEAST = 48
"""Every prime is greater. Two bytes that share all their cells cannot be told: by chance one pair in the product of the
primes does, and a tuning has thousands of sketches."""
CHUNK = 1 << 20
"""Bytes that are summed at a time: eight times as much memory is taken for them."""


@cache
def primes(capacity: int) -> tuple[int, ...]:
    """Return the primes of a sketch that is to tell two strings apart in so many bytes."""
    found: list[int] = []
    number = max(int(capacity * SPARE) // 4, LEAST)
    while len(found) < 4:
        number += 1
        if all(number % each for each in range(2, int(number**0.5) + 1)):
            found.append(number)
    return tuple(found)


def size(capacity: int) -> int:
    """Return the bytes that a sketch takes."""
    return sum(primes(capacity)) * CELL.size


def sketch(data: Any, capacity: int) -> bytes:
    """Return the sketch of a tensor of bytes [n], on any device."""
    import numpy as np

    cells = np.empty(sum(primes(capacity)), np.dtype([("b", "<u2"), ("rb", "<u4"), ("rrb", "<u2")]))
    cells["b"], cells["rb"], cells["rrb"] = (each.numpy() for each in _sums(data, capacity))
    return cells.tobytes()


def _sums(data: Any, capacity: int) -> Any:
    """Return the three sums of each cell [3, cells], int64, as they are on disk."""
    import torch

    found = []
    for prime in primes(capacity):
        step = max(CHUNK // prime, 1) * prime
        sums = torch.zeros((3, prime), dtype=torch.int64)
        for start in range(0, len(data), step):
            part = data[start : start + step]
            rows = -(-len(part) // prime)
            padded = torch.zeros(rows * prime, dtype=torch.float64, device=part.device)
            padded[: len(part)] = part
            row = torch.arange(start // prime, start // prime + rows, device=part.device)
            weights = torch.stack([torch.ones_like(row), row, row * row % CHECK]).to(torch.float64)
            sums += (weights @ padded.view(rows, prime)).to(torch.int64).cpu()
        found.append(sums)
    return torch.cat(found, dim=1) % torch.tensor([[1 << 16], [1 << 32], [CHECK]])


def changes(theirs: bytes, data: Any, capacity: int) -> dict[int, int] | None:
    """Return where the sketched string differs from `data`, of the same length, and its byte at each such place.

    Return None where they differ in too many places to be told, or the sketch is of no such string at all. What comes
    back may be wrong where the sketch is not: hold it against a digest. Raises ValueError for a sketch of another size.
    """
    if len(theirs) != size(capacity):
        raise ValueError(f"a sketch of {len(theirs)} bytes, expected {size(capacity)}")
    moduli = primes(capacity)
    firsts = [sum(moduli[:which]) for which in range(len(moduli))]
    ours = _sums(data, capacity).T.tolist()
    cells = [
        [_signed(a - x, 16), _signed(b - y, 32), (c - z) % CHECK]
        for (a, b, c), (x, y, z) in zip(CELL.iter_unpack(theirs), ours, strict=True)
    ]
    found: dict[int, int] = {}
    waiting = [number for number, cell in enumerate(cells) if any(cell)]
    budget = 4 * len(cells)  # a forged sketch could go round in circles
    while waiting and budget:
        number, budget = waiting.pop(), budget - 1
        which = bisect_right(firsts, number) - 1
        change, weighted, squared = cells[number]
        if not change or weighted % change:
            continue
        row = weighted // change
        place = row * moduli[which] + number - firsts[which]
        if not 0 <= place < len(data) or row * row * change % CHECK != squared:
            continue
        byte = found.get(place, int(data[place])) + change
        if not 0 <= byte <= 255:
            continue
        found[place] = byte
        for first, prime in zip(firsts, moduli, strict=True):
            at, other = first + place % prime, place // prime
            cell = cells[at]
            cell[0], cell[1] = cell[0] - change, cell[1] - other * change
            cell[2] = (cell[2] - other * other * change) % CHECK
            if any(cell):
                waiting.append(at)
    if any(any(cell) for cell in cells):
        return None
    return {place: byte for place, byte in found.items() if byte != int(data[place])}


def _signed(value: int, bits: int) -> int:
    """Return the number of so many bits that is `value` modulo 2**bits, negative from the half on."""
    value %= 1 << bits
    return value - (1 << bits) if value >> (bits - 1) else value
