"""A manifest: what a checkpoint is. Equal checkpoints have byte-equal manifests: no time, host or version in it.

Files are what counts: `Manifest.identity` is taken of them, and a verdict of `identical` rests on them alone.
"""

import hashlib
import os
import reprlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from requant.checkpoint.files import SUFFIX, list_files
from requant.checkpoint.safetensors import ITEM_BITS, Stretch, read_header
from requant.digest import MAX_MANIFEST, canonical_json, read_whole, sha256, strict_json
from requant.errors import CheckpointError

SCHEMA = 1


@dataclass(frozen=True)
class FileRecord:
    """A file, by size in bytes and SHA-256."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class TensorRecord:
    """A tensor: the file it stands in, what it is, and the SHA-256 of its bytes as they stand there."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Every file by path, every tensor by name."""

    files: Mapping[str, FileRecord]
    tensors: Mapping[str, TensorRecord]

    @property
    def weights(self) -> dict[str, str]:
        """The files that hold tensors, by path and SHA-256: what a checkpoint's weights are.

        The records of tensors are no part of it. They follow from the files, and serve to name what differs.
        """
        return {path: record.sha256 for path, record in sorted(self.files.items()) if path.endswith(SUFFIX)}

    @property
    def identity(self) -> str:
        """The SHA-256 of canonical JSON of `weights`."""
        return sha256(canonical_json(self.weights))

    def to_json(self) -> bytes:
        """Return the one form of this manifest: canonical JSON and a line end."""
        files = {path: vars(record) for path, record in self.files.items()}
        tensors = {name: vars(record) for name, record in self.tensors.items()}
        return canonical_json({"schema": SCHEMA, "files": files, "tensors": tensors}) + b"\n"


def make_manifest(folder: Path, progress: Callable[[int], None] = lambda _: None) -> Manifest:
    """Read every byte of a checkpoint once; several files at a time, the largest first. `progress` hears of bytes read.

    Raises CheckpointError where a file is broken, or one tensor name stands in two files.
    """
    found = list_files(folder)
    names = sorted(found, key=lambda name: -found[name].stat().st_size)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        read = dict(zip(names, pool.map(lambda name: read_file(found[name], name, progress), names), strict=True))
    records = {name: read[name] for name in found}
    tensors: dict[str, TensorRecord] = {}
    for _, inside in records.values():
        for name, record in inside.items():
            if name in tensors:
                raise CheckpointError(f"{folder}: tensor {name} stands in {tensors[name].file} and in {record.file}")
            tensors[name] = record
    return Manifest({name: record for name, (record, _) in records.items()}, tensors)


def read_file(
    path: Path, name: str, progress: Callable[[int], None] = lambda _: None
) -> tuple[FileRecord, dict[str, TensorRecord]]:
    """Return the records of one file and of the tensors in it, from one read and in two threads.

    Raises CheckpointError for a file that cannot be read to its end, or is no safetensors file for all its name.
    """
    size = path.stat().st_size
    entries = read_header(path)[0] if name.endswith(SUFFIX) else {}
    data = min((stretch.start for _, stretch in entries.values()), default=size)
    whole = hashlib.sha256()
    tensors = {}
    with ThreadPoolExecutor(1) as second:
        for chunk in Stretch(path, 0, data).chunks():
            whole.update(chunk)
            progress(len(chunk))
        for tensor, (spec, stretch) in entries.items():
            own = hashlib.sha256()
            for chunk in stretch.chunks():
                hashed = second.submit(own.update, chunk)
                whole.update(chunk)
                hashed.result()
                progress(len(chunk))
            tensors[tensor] = TensorRecord(name, spec.dtype, spec.shape, own.hexdigest())
    return FileRecord(size, whole.hexdigest()), tensors


def read_manifest(path: Path) -> Manifest:
    """Read a manifest; raise CheckpointError for anything that `Manifest.to_json` would not have written."""
    try:
        data = read_whole(path, MAX_MANIFEST)
        value = strict_json(data)
        _keys("top level", value, {"schema", "files", "tensors"})
        if value["schema"] != SCHEMA:
            raise ValueError(f"schema: found {reprlib.repr(value['schema'])}, this requant reads {SCHEMA}")
        files = {name: _file(name, record) for name, record in _object("files", value["files"]).items()}
        tensors = {name: _tensor(name, record, files) for name, record in _object("tensors", value["tensors"]).items()}
        manifest = Manifest(files, tensors)
        if manifest.to_json() != data:
            raise ValueError("not in canonical form: keys sorted, no white space, one line end")
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}", "Name a manifest, as build or manifest writes it.") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not a manifest: {error}", "Get it again from where it was published.") from None
    return manifest


def _file(name: str, record: Any) -> FileRecord:
    path = PurePosixPath(name)
    if not name.isprintable() or path.is_absolute() or ".." in path.parts or path.as_posix() != name or name == ".":
        raise ValueError(f"files: {name!r} is no path inside a checkpoint")
    _keys(f"files: {name}", record, {"bytes", "sha256"})
    if type(record["bytes"]) is not int or record["bytes"] < 0:
        raise ValueError(f"files: {name}: bytes: found {reprlib.repr(record['bytes'])}")
    return FileRecord(record["bytes"], _hex(f"files: {name}", record["sha256"]))


def _tensor(name: str, record: Any, files: Mapping[str, FileRecord]) -> TensorRecord:
    if not (name and name.isprintable()):
        raise ValueError(f"tensors: {name!r} is no name for a tensor")
    _keys(f"tensors: {name}", record, {"file", "dtype", "shape", "sha256"})
    shape = record["shape"]
    if not isinstance(shape, list) or not all(type(each) is int and each >= 0 for each in shape):
        raise ValueError(f"tensors: {name}: shape: found {reprlib.repr(shape)}")
    if not isinstance(record["dtype"], str) or record["dtype"] not in ITEM_BITS:
        raise ValueError(f"tensors: {name}: dtype: found {reprlib.repr(record['dtype'])}")
    if not isinstance(record["file"], str) or record["file"] not in files:
        raise ValueError(f"tensors: {name}: file: {reprlib.repr(record['file'])} is not among the files")
    return TensorRecord(record["file"], record["dtype"], tuple(shape), _hex(f"tensors: {name}", record["sha256"]))


def _object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name}: not an object")
    return value


def _keys(name: str, value: Any, allowed: set[str]) -> None:
    found = _object(name, value).keys()
    for key in sorted(found - allowed):
        raise ValueError(f"{name}: unknown key {key!r}")
    for key in sorted(allowed - found):
        raise ValueError(f"{name}: no {key!r}")


def _hex(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise ValueError(f"{name}: sha256: found {reprlib.repr(value)}, expected 64 hexadecimal digits")
    return value
