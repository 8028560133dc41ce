"""`WHAT`: sketch strings and change them: what is found again, what of it is wrong, and what forged sketches cost."""

import resource
import time
from hashlib import sha256
from typing import Any

import torch
from tests.worker.prepared import answer

from requant.worker import sketch
from requant.worker.autoround.bounds import NoHintError
from requant.worker.autoround.hints import MAGIC, PLAIN, RECORD, SIGNS, Followed, capacity

LENGTHS = (1, 1000, 15_013, 1 << 20)
CAPACITIES = (16, 64, 1000)
TRIES = (30, 30, 30, 3)
"""Of each length."""
CELLS = 100_000


def string(length: int) -> Any:
    """Return bytes that were drawn."""
    return torch.randint(0, 256, (length,), dtype=torch.uint8)


def changed(data: Any, count: int) -> tuple[Any, dict[int, int]]:
    """Return a string with other bytes at so many places that were drawn, and these."""
    other = data.clone()
    where = torch.randperm(len(data))[:count]
    other[where] += torch.randint(1, 256, (len(where),), dtype=torch.uint8)
    return other, {int(place): int(other[place]) for place in where}


def found(what: str) -> dict[str, Any]:
    """Answer one of the questions below."""
    torch.manual_seed(7)
    answers: dict[str, Any] = {"told": told, "chunks": chunks, "forged": forged, "followed": followed}
    result: dict[str, Any] = answers[what]()
    return result


def told() -> dict[str, Any]:
    """Count, by how full the sketch is, what came back right, wrong and not at all.

    Nothing is changed in a string that is shorter than its sketch: hints give it as it is.
    """
    counted: dict[str, dict[str, int]] = {}
    for room in CAPACITIES:
        for length, tries in zip(LENGTHS, TRIES, strict=True):
            for share in (0.0, 0.5, 1.0, 2.0, 32.0):
                count = min(int(share * room), length) if sketch.size(room) < length else 0
                full = (
                    "none" if not count else "half" if 2 * count <= room else "full" if count <= room else f"{share:g}"
                )
                kept = counted.setdefault(full, {})
                for _ in range(tries):
                    data = string(length)
                    theirs, expected = changed(data, count)
                    came = sketch.changes(sketch.sketch(theirs, room), data, room)
                    what = "nothing" if came is None else "right" if came == expected else "wrong"
                    kept[what] = kept.get(what, 0) + 1
    return counted


def chunks() -> dict[str, Any]:
    """Sketch strings of many chunks, whose every byte is the greatest, and hold the sums against whole numbers'."""
    whole = sketch.CHUNK
    equal = []
    for data in (torch.full((200_000,), 255, dtype=torch.uint8), string(123_457)):
        sketch.CHUNK = whole
        at_once = sketch.sketch(data, 64)
        sketch.CHUNK = 1000
        theirs, expected = changed(data, 40)
        numbers, cells = data.tolist(), list(sketch.CELL.iter_unpack(at_once))
        sums = []
        for prime in sketch.primes(64):
            for cell in range(prime):
                of = list(enumerate(numbers[cell::prime]))
                sums.append(
                    (
                        sum(byte for _, byte in of) % 2**16,
                        sum(row * byte for row, byte in of) % 2**32,
                        sum(row * row * byte for row, byte in of) % sketch.CHECK,
                    )
                )
        equal.append(
            [
                sketch.sketch(data, 64) == at_once,
                cells == sums,
                sketch.changes(sketch.sketch(theirs, 64), data, 64) == expected,
            ]
        )
    return {"equal": equal}


def forged() -> dict[str, Any]:
    """Give sketches that are none of the right size, and of other sizes."""
    room = next(each for each in range(int(CELLS / sketch.SPARE), CELLS) if sum(sketch.primes(each)) >= CELLS)
    size, data = sketch.size(room), string(1 << 20)
    one = sketch.CELL.pack(1, 1, 1)
    forgeries = {
        "drawn": string(size).numpy().tobytes(),
        "nothing": bytes(size),
        "full": b"\xff" * size,
        "one change everywhere": one * (size // len(one)),
        "each alone": b"".join(sketch.CELL.pack(1, row, row * row % sketch.CHECK) for row in range(size // len(one))),
    }
    seconds, came = {}, {}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, each in forgeries.items():
        begun = time.process_time()
        came[name] = sketch.changes(each, data, room)
        seconds[name] = time.process_time() - begun
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    refused = []
    for length in (0, size - 1, size + 1, sketch.size(room + 1000)):
        try:
            sketch.changes(bytes(length), data, room)
        except ValueError as error:
            refused.append(str(error))
    return {"came": came, "seconds": seconds, "MiB": grown, "refused": refused, "size": size}


def followed() -> dict[str, Any]:
    """Let hints be followed: honest ones, ones whose sketch gives another string than their digest, and too many."""
    said: dict[str, str] = {}
    own = string(5000)
    room = capacity(SIGNS, len(own) * 4, 0.0)

    def follow(name: str, theirs: Any, meant: Any, room: int = room, drift: float = 0.0) -> None:
        record = RECORD.pack(SIGNS, len(own), room, sha256(meant.numpy().tobytes()).digest())
        file = MAGIC + record + (sketch.sketch(theirs, room) if room else theirs.numpy().tobytes()) + bytes(8)
        try:
            came = Followed(file, drift=drift).decide(SIGNS, own, len(own) * 4)
        except NoHintError as error:
            said[name] = str(error)
        else:
            said[name] = "theirs" if torch.equal(came, meant) else "wrong"

    few, many = changed(own, 20)[0], changed(own, 5000)[0]
    follow("honest", few, few)
    follow("another digest", few, many)
    follow("too many", many, many)
    wide = capacity(SIGNS, len(own) * 4, 3e-4)
    follow("a greater sketch", few, few, wide)
    follow("a greater sketch, of inputs that drift", few, few, wide, 1e-4)
    follow("in plain", few, few, PLAIN)
    return said


if __name__ == "__main__":
    answer(found)
