"""Where tensors are read from by ranges: a folder, or a repository on the Hub. Headers are read at once, data never.

A range is read into a buffer that the caller owns and uses again, so that memory does not grow with the checkpoint.
"""

import itertools
import os
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol, Self, TypeVar

from requant.check.gguf import SUFFIX as GGUF
from requant.check.gguf import files_of, is_gguf, read_model
from requant.check.place import Place
from requant.checkpoint.files import SUFFIX, is_companion, list_files
from requant.checkpoint.gguf import Long, Value
from requant.checkpoint.loadable import Loadable, deciding, findings, opened
from requant.checkpoint.safetensors import header_text, parse_header
from requant.digest import CHUNK, canonical_json, read_whole, sha256, sha256_chunks, sha256_file, side_limit
from requant.errors import CheckpointError
from requant.formats.codec import Declaration
from requant.hub import web
from requant.hub.repository import Repository, named
from requant.hub.snapshots import here_or_there

T = TypeVar("T")


class Files(Protocol):
    """Files by name, read by ranges from several threads."""

    @property
    def identity(self) -> str:
        """Something that changes when the files do."""

    def names(self) -> list[str]:
        """Return the names of all files, sorted."""

    def header(self, name: str) -> tuple[bytes, int]:
        """Return the safetensors header of a file, as it stands there, and the size of the file."""

    def whole(self, name: str) -> bytes:
        """Return the bytes of a small file."""

    def read(self, name: str, start: int, into: memoryview) -> None:
        """Fill a buffer with the bytes of a file from `start` on."""

    def close(self) -> None:
        """Give back what is held."""


@dataclass(frozen=True)
class Reader:
    """A checkpoint that is somewhere: its tensors by name, and the names that stand in two files.

    Tensors are those of the files that a loader opens; `loadable` is whatever else could be opened or run. Of GGUF
    files, `declaration` is what they say of their layers, `heads` of which of them the rows of each head are in another
    order, `beyond` names what no base is known to have, and why, and `values` and `lists` are their key-values.
    """

    name: str
    files: Files
    tensors: Mapping[str, Place]
    twice: tuple[tuple[str, str], ...]
    remote: bool
    loadable: tuple[Loadable, ...] = ()
    declaration: Declaration | None = None
    heads: Mapping[str, int] = field(default_factory=dict)
    beyond: tuple[tuple[str, str], ...] = ()
    values: Mapping[str, Value] = field(default_factory=dict)
    lists: Mapping[str, Long] = field(default_factory=dict)

    def read(self, place: Place, start: int, into: memoryview) -> None:
        """Fill a buffer with bytes of a tensor, from its byte `start` on."""
        self.files.read(place.file, place.start + start, into)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.files.close()


def open_reader(name: str, endpoint: str | None = None) -> Reader:
    """Open a folder, a GGUF file, or `owner/name@revision` where there is neither: in the Hub's cache, or on the Hub.

    Raises CheckpointError for what cannot be read, NotAvailableError for the network, UsageError for neither.
    """
    files: Files
    if is_gguf(Path(name)):
        return _open_gguf(Path(name))
    patience = web.Patience()
    found = Path(name) if Path(name).exists() else here_or_there(*named(name), patience, endpoint)
    remote = not isinstance(found, Path)
    if isinstance(found, Path):
        name, files = str(found), Folder(found)
    else:
        files = Repository(found, patience)
    with ExitStack() as cleanup:
        cleanup.callback(files.close)
        tensors: dict[str, Place] = {}
        twice = []
        names = [each for each in files.names() if not (remote and is_companion(each))]
        texts = {each: files.whole(each) for each in deciding(names)}
        held = {file: parse_header(Path(name, file), *files.header(file))[0] for file in opened(names, texts)}
        for file, inside in held.items():
            for key, (spec, stretch) in inside.items():
                if key in tensors:
                    twice.append((key, file))
                else:
                    tensors[key] = Place(spec, file, stretch.start, stretch.stop)
        cleanup.pop_all()
    if not tensors:
        files.close()
        raise CheckpointError(f"{name}: has no tensors", "Name a folder or a repository with .safetensors files.")
    return Reader(name, files, tensors, tuple(twice), remote, findings(names, texts, held))


def _open_gguf(path: Path) -> Reader:
    folder, names = path if path.is_dir() else path.parent, files_of(path)
    files = Folder(folder, names)
    try:
        model = read_model(folder, names)
    except CheckpointError:
        files.close()
        raise
    return Reader(
        str(path),
        files,
        model.tensors,
        model.twice,
        False,
        declaration=model.types,
        heads=model.heads,
        beyond=model.beyond,
        values=model.values,
        lists=model.lists,
    )


class Folder:
    """Files on disk, or those `only`; each is opened once."""

    def __init__(self, folder: Path, only: Collection[str] | None = None) -> None:
        self._paths = list_files(folder) if only is None else {}
        self._open: dict[str, int] = {}
        try:
            self._paths |= {name: (folder / name).resolve(strict=True) for name in only or ()}
            for name, path in self._paths.items():
                if name.endswith((SUFFIX, GGUF)):
                    self._open[name] = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            facts = {name: _identity(self._open.get(name, path)) for name, path in self._paths.items()}
        except RuntimeError as error:  # a loop of symbolic links
            self.close()
            raise CheckpointError(f"{folder}: {error}") from None
        except OSError as error:
            self.close()
            raise CheckpointError(f"{error.filename}: {error.strerror}") from None
        self.identity = sha256(canonical_json([str(folder.resolve()), facts]))

    def names(self) -> list[str]:
        """Return the names of all files, sorted."""
        return list(self._paths)

    def header(self, name: str) -> tuple[bytes, int]:
        """Return the safetensors header of a file, as it stands there, and the size of the file."""
        return header_text(self._paths[name])

    def whole(self, name: str) -> bytes:
        """Return the bytes of a small file; raise CheckpointError where it is not there."""
        return _told(name, lambda: read_whole(self._paths[name], side_limit(name)))

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of every file: of weights as they are open, whatever stands under their name by now."""
        return {name: _told(name, partial(self._digest, name)) for name in self._paths}

    def _digest(self, name: str) -> str:
        if name not in self._open:
            return sha256_file(self._paths[name])
        starts = itertools.count(0, CHUNK)
        return sha256_chunks(iter(lambda: os.pread(self._open[name], CHUNK, next(starts)), b""))

    def read(self, name: str, start: int, into: memoryview) -> None:
        """Fill a buffer with the bytes of a safetensors file; raise CheckpointError where they have gone."""
        done = 0
        while done < len(into):
            count = _told(name, partial(self._some, name, start + done, into[done:]))
            if not count:
                raise CheckpointError(f"{name}: ends at byte {start + done:,}, its header promised more a moment ago")
            done += count

    def _some(self, name: str, start: int, into: memoryview) -> int:
        return os.preadv(self._open[name], [into], start)

    def close(self) -> None:
        """Close the files."""
        while self._open:
            os.close(self._open.popitem()[1])


def _identity(file: int | Path) -> list[int]:
    """Return what tells a file from another, and from itself before a change, without reading it.

    The time of change is the kernel's own: no program sets it, as `touch` sets the time of modification.
    """
    told = os.fstat(file) if isinstance(file, int) else file.stat()
    return [told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns, told.st_ctime_ns]


def _told(name: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except KeyError:
        raise CheckpointError(f"{name}: no such file in the checkpoint") from None
    except OSError as error:
        raise CheckpointError(f"{name}: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}") from None
