"""The resume state: what a killed tuning needs to go on, and what a block needs to be tuned alone, on disk.

    journal.jsonl             the journal so far
    hardware.json             the class of the machine that began it
    blocks/00003.safetensors  what a tuned block was packed to
    hints/00003               its hints, where the recipe asks for them
    inputs/00004/         what the block after it is given: both streams, and Python's random state

A file appears under its name when it is whole and on disk, and a journal's line after all that it speaks of; so
after any interruption there is everything that the last line needs. Two block inputs are kept, not all: at full
scale one is 8.6 GB. Every tensor is hashed when it is read back.
"""

import json
import operator
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from requant.digest import canonical_json, sha256, sha256_chunks
from requant.errors import BuildError
from requant.evidence.journal import Block, Header, Writer
from requant.protocol import HINTS, label

FRESH = "Start anew: --fresh."


@dataclass(frozen=True)
class BlockInputs:
    """What a block is given: two streams of tensors [1, tokens, hidden], and the state of Python's generator.

    `quantized` is None for the first block, which has one stream only; `digests` are those of a journal. `again` are
    the first samples of `full` in another arithmetic, and `drift` is how far those that the last block put out were
    from its own, of themselves (`autoround/drift.py`): where hints are written or followed.
    """

    full: list[Any]
    quantized: list[Any] | None
    random_state: Any
    digests: Mapping[str, str]
    again: list[Any] | None = None
    drift: float = 0.0

    @classmethod
    def of(
        cls, full: list[Any], quantized: list[Any] | None, random_state: Any, hashed: Callable[[Any], str] | None = None
    ) -> Self:
        """Hash the streams, which are gigabytes; `hashed` may know them already."""
        hashed = hashed or digest
        of_full = hashed(full)
        digests = {"full": of_full, "quantized": of_full if quantized is None else hashed(quantized)}
        return cls(full, quantized, random_state, digests)

    def write(self, folder: Path) -> None:
        """Write it to the folder, which appears when all is on disk."""
        from safetensors.torch import save_file

        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        said: dict[str, Any] = {"random_state": self.random_state, "digests": self.digests, "streams": []}
        if self.drift:
            said["drift"] = self.drift.hex()
        if self.again is not None:
            said["digests"] = {**self.digests, "again": digest(self.again)}
        for name, stream in (("full", self.full), ("quantized", self.quantized), ("again", self.again)):
            if stream is not None:
                said["streams"].append(name)
                tensors = {f"{number:06d}": tensor.contiguous() for number, tensor in enumerate(stream)}
                save_file(tensors, part / f"{name}.safetensors")
        (part / "inputs.json").write_bytes(canonical_json({"said": said, "sha256": sha256(canonical_json(said))}))
        for path in (*part.iterdir(), part):
            _flush(path)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
        _flush(folder.parent)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read it back. Raises BuildError where it is not what was written."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            value = json.loads((folder / "inputs.json").read_bytes())
            said = value["said"]
            if sha256(canonical_json(said)) != value["sha256"]:
                raise ValueError("inputs.json is not what was written")
            streams: dict[str, list[Any]] = {}
            for name in said["streams"]:
                tensors = load_file(folder / f"{name}.safetensors")
                streams[name] = [tensors[each] for each in sorted(tensors)]
            version, numbers, rest = said["random_state"]
            found = cls.of(streams["full"], streams.get("quantized"), (version, tuple(numbers), rest))
            digests = dict(found.digests)
            if again := streams.get("again"):
                digests["again"] = digest(again)
            for name, expected in said["digests"].items():
                if digests[name] != expected:
                    raise ValueError(f"{name}.safetensors is not what was written")
            return replace(found, again=again, drift=float.fromhex(said.get("drift", "0x0p+0")))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise BuildError(f"{folder}: kept block inputs cannot be read: {error}", FRESH) from None


class ResumeState:
    """A tuning's journal and what it needs to go on, in one folder; `done` are the blocks that it has."""

    def __init__(self, folder: Path, header: Header, hardware: Mapping[str, Any]) -> None:
        """Begin, or go on. Raises BuildError where the folder holds another tuning's, or another hardware class's."""
        self._folder = folder
        folder.mkdir(exist_ok=True)
        path = folder / "journal.jsonl"
        place = folder / "hardware.json"
        self.done: tuple[Block, ...] = ()
        if not path.exists() or b"\n" not in path.read_bytes():
            path.unlink(missing_ok=True)
            place.write_bytes(canonical_json(hardware))
            _flush(place)
            self._writer = Writer(path, header)
            return
        if not place.exists() or place.read_bytes() != canonical_json(hardware):
            raise BuildError(f"{folder}: was begun on another hardware class than this machine's", FRESH)
        self._writer, found = Writer.reopen(path)
        for name, value in vars(header).items():
            if (other := getattr(found.header, name)) != value:
                raise BuildError(f"{folder}: was begun with another {name}: {other}, now {value}", FRESH)
        self.done = found.blocks
        for path in (folder / "inputs").glob("*"):  # none, where no block was done
            if path.name != self._block_inputs(len(self.done)).name:
                shutil.rmtree(path)

    def keep(self, block: Block, packed: dict[str, Any], after: BlockInputs, hints: bytes | None) -> None:
        """Keep a tuned block and what the next one is given, then write its line."""
        from safetensors.torch import save_file

        number = len(self.done)
        path = self._block(number)
        _whole(path, lambda part: save_file(packed, part))
        if hints is not None:
            _whole(self._folder / HINTS / label(number), lambda part: part.write_bytes(hints))
        after.write(self._block_inputs(number + 1))
        self._writer.append(block)
        self.done = (*self.done, block)
        shutil.rmtree(self._block_inputs(number), ignore_errors=True)

    def packed(self, number: int) -> dict[str, Any]:
        """Return what a block was packed to, by the name of its tensor; raise BuildError where that is lost."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(self._block(number)))
        except (OSError, SafetensorError) as error:
            raise BuildError(f"{self._block(number)}: cannot be read: {error}", FRESH) from None

    def block_inputs(self) -> BlockInputs:
        """Return what the first block that is not done is given; raise BuildError unless the journal says so too."""
        found = BlockInputs.read(self._block_inputs(len(self.done)))
        if found.digests != self.done[-1].outputs:
            raise BuildError(
                f"{self._folder}: the kept block inputs are not what the journal's last block put out", FRESH
            )
        return found

    def close(self) -> None:
        """Close the journal."""
        self._writer.__exit__()

    def _block(self, number: int) -> Path:
        return self._folder / "blocks" / f"{label(number)}.safetensors"

    def _block_inputs(self, number: int) -> Path:
        return self._folder / "inputs" / label(number)


def digest(tensors: Any) -> str:
    """Return the SHA-256 of the bytes of tensors, one after the other, row-major, as they lie in a file."""
    import torch

    def data(tensor: Any) -> bytes:
        return bytes(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())

    return sha256_chunks(data(tensor) for tensor in tensors)


def digest_of_nest(value: Any) -> str:
    """Return the digest of dictionaries, lists, tensors and plain values in each other, as AutoRound's `input_others`.

    It is the SHA-256 of their canonical JSON, in which a tensor stands as its dtype, its shape and its bytes' SHA-256.
    Raises BuildError for a value of another kind: it would be in no digest.
    """
    return sha256(canonical_json(_described(value)))


def _described(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return {"dtype": str(value.dtype), "shape": list(value.shape), "sha256": digest([value])}
    if isinstance(value, Mapping):
        return {"of": {str(key): _described(each) for key, each in value.items()}}
    if isinstance(value, list | tuple):
        return [_described(each) for each in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return {"float": value.hex()}
    raise BuildError(f"AutoRound gives its blocks a {type(value).__name__}, which has no digest", "Report this.")


class Hashed:
    """Hashes streams, and knows those of the last block again: what a block puts out is what the next one is given."""

    def __init__(self) -> None:
        self._known: list[tuple[Any, tuple[Any, ...], list[int], str]] = []

    def __call__(self, stream: Any) -> str:
        """Return a stream's `digest`, without hashing where it is a known one, in which nothing has changed."""
        for known, tensors, sums, found in self._known:
            if known is stream and _same(stream, tensors) and _sums(stream) == sums:
                return found
        found = digest(stream)
        self._known.append((stream, tuple(stream), _sums(stream), found))
        return found

    def forget(self) -> None:
        """Know no stream any more: AutoRound frees their memory while it tunes."""
        self._known.clear()


def _same(stream: Any, tensors: tuple[Any, ...]) -> bool:
    return len(stream) == len(tensors) and all(map(operator.is_, stream, tensors))


def _sums(stream: Any) -> list[int]:
    """Return a checksum of each tensor's words, exact on every device and far cheaper there than to fetch and hash it.

    The words are weighted by the odd numbers and added up modulo 2**64: no change of one word, and no exchange of two
    (of up to 32 bits), can leave the sum as it is. It is to notice a write past torch;
    it is no defence against intent.
    """
    import torch

    words = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    found = []
    for tensor in stream:
        flat = tensor.detach().contiguous().view(-1).view(words[tensor.element_size()]).to(torch.int64)
        odd = torch.arange(1, 2 * flat.numel() + 1, 2, device=flat.device)
        found.append(int((flat * odd).sum()))
    return found


def _whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file that appears when it is on disk."""
    path.parent.mkdir(exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    write(part)
    _flush(part)
    part.rename(path)
    _flush(path.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
