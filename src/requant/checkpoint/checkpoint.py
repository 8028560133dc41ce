"""A checkpoint: tensors spread over safetensors files, and side files. A value that reads nothing until asked.

Which files of a folder belong to it: files.py.
"""

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from requant.checkpoint.files import INDEX as INDEX
from requant.checkpoint.files import SUFFIX, list_files
from requant.checkpoint.safetensors import Spec, Stretch, read_header
from requant.digest import canonical_json, side_limit
from requant.errors import CheckpointError


class Content(Protocol):
    """Bytes that are somewhere; a value that can be hashed, so that what is made of it can be kept."""

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes in bounded pieces."""

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class Held:
    """Bytes in memory."""

    data: bytes

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes."""
        yield self.data


@dataclass(frozen=True)
class Made:
    """Bytes that are computed when they are wanted, and not kept."""

    make: Callable[[], bytes]

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes."""
        yield self.make()


@dataclass(frozen=True)
class Tensor:
    """A tensor: what it is, and where its bytes are."""

    spec: Spec
    content: Content

    def read(self) -> bytes:
        """Return all its bytes: row-major, little-endian."""
        return b"".join(self.content.chunks())

    def part(self, start: int, stop: int) -> Content:
        """Return its bytes `start` to `stop`; on disk, nothing else is read."""
        if isinstance(self.content, Stretch):
            return replace(self.content, start=self.content.start + start, stop=self.content.start + stop)
        return Held(self.read()[start:stop])


@dataclass(frozen=True)
class Checkpoint:
    """`shards`: file name to its tensors in file order. `files`: path to content, for everything else."""

    shards: Mapping[str, Mapping[str, Tensor]]
    files: Mapping[str, Content]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name; where two files hold one name, the last file in sorted order, as loaders do."""
        return {name: tensor for file in sorted(self.shards) for name, tensor in self.shards[file].items()}

    def file(self, path: str) -> bytes:
        """Return the bytes of a side file; raise CheckpointError where there is none."""
        if path not in self.files:
            raise CheckpointError(
                f"{path}: not in the checkpoint, which has {', '.join(sorted(self.files)) or 'no side files'}"
            )
        limit, data = side_limit(path), bytearray()
        for chunk in self.files[path].chunks():
            data += chunk
            if len(data) > limit:
                raise CheckpointError(f"{path}: larger than {limit:,} bytes, the most that is read of such a file")
        return bytes(data)


def spread(tensors: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """Spread tensors over files, in order: a tensor goes to the file in whose equal share of bytes it begins.

    A last tensor without bytes goes to the last file. Raises CheckpointError where a file would stay empty.
    """
    total = sum(tensor.spec.nbytes for tensor in tensors.values())
    shards: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    begin = 0
    for key, tensor in tensors.items():
        shards[names[begin * len(names) // total if begin < total else -1]][key] = tensor
        begin += tensor.spec.nbytes
    if empty := [name for name, shard in shards.items() if not shard]:
        raise CheckpointError(f"{empty[0]}: would be empty: {len(tensors)} tensors do not fill {len(names)} files")
    return shards


def shard_names(count: int) -> list[str]:
    """Return the names of `count` shards, as transformers writes them."""
    return [f"model-{i:05d}-of-{count:05d}{SUFFIX}" for i in range(1, count + 1)]


def index(shards: Mapping[str, Mapping[str, Tensor]]) -> Held:
    """Return `model.safetensors.index.json`: each tensor's file, and the bytes of all of them."""
    total = sum(tensor.spec.nbytes for tensors in shards.values() for tensor in tensors.values())
    weight_map = {name: file for file in sorted(shards) for name in shards[file]}
    return json_file({"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})


def json_file(value: object) -> Held:
    """Return a JSON side file as transformers formats it: two spaces, final newline."""
    return Held((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read the headers of a checkpoint's safetensors files; everything else is read when it is asked for."""
    shards, files = {}, {}
    for name, path in list_files(folder).items():
        if name.endswith(SUFFIX):
            entries, _ = read_header(path)
            shards[name] = {key: Tensor(spec, stretch) for key, (spec, stretch) in entries.items()}
        else:
            files[name] = Stretch(path, 0, path.stat().st_size)
    return Checkpoint(shards, files)


def write_checkpoint(checkpoint: Checkpoint, folder: Path, progress: Callable[[str], None] = lambda _: None) -> None:
    """Write a checkpoint into an empty or new folder, file by file; `progress` hears each file's name first."""
    for path in (folder, *((folder / name).parent for name in (*checkpoint.shards, *checkpoint.files))):
        path.mkdir(parents=True, exist_ok=True)
    for name, tensors in checkpoint.shards.items():
        progress(name)
        write_file(folder / name, {key: (tensor.spec, tensor.content.chunks()) for key, tensor in tensors.items()})
    for name, content in checkpoint.files.items():
        progress(name)
        with (folder / name).open("xb") as file:
            for chunk in content.chunks():
                file.write(chunk)


def header_of(specs: Mapping[str, Spec]) -> bytes:
    """Return what a file of these tensors begins with, length and all: metadata `format: pt`, as transformers asks for.

    The header is padded with spaces to a multiple of eight bytes, so that the data is aligned.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, spec in specs.items():
        header[name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [end, end + spec.nbytes],
        }
        end += spec.nbytes
    text = canonical_json(header)
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write_file(path: Path, tensors: Mapping[str, tuple[Spec, Iterable[bytes]]]) -> None:
    """Write tensors in the given order, behind the header that says so."""
    with path.open("xb") as file:
        file.write(header_of({name: spec for name, (spec, _) in tensors.items()}))
        for name, (spec, chunks) in tensors.items():
            written = sum(file.write(chunk) for chunk in chunks)
            if written != spec.nbytes:
                raise CheckpointError(f"{path}: tensor {name!r} came with {written:,} bytes, expected {spec.nbytes:,}")
