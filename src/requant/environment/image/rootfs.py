"""What a file system is, apart from the engine that holds it: one digest over an export's every path.

Engines and builders give equal files other identities: history, compression and headers differ. So each path counts
with its type, mode, owner, link, extended attributes and content, and nothing else: no times, and no order. A hard
link counts as a file of that content. The tar is read as a stream, of any size; kept is one small record a path.

The engine writes this tar, of files on its disk: whoever made the files chose their names and contents, and no header.
"""

import hashlib
import io
import tarfile
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import IO, Protocol

from requant.digest import CHUNK, canonical_json, sha256
from requant.errors import BuildError

MOUNTED = frozenset({"dev", "proc", "run", "sys"})
"""Folders that an engine fills when it starts a container."""
WRITTEN = frozenset({".dockerenv", "etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf"})
"""Files that an engine writes itself; so the time of their folder is the engine's too."""
LARGEST_KEPT = 1 << 26
"""Bytes of the largest file whose content is kept."""

_KINDS = {
    tarfile.DIRTYPE: "folder",
    tarfile.SYMTYPE: "link",
    tarfile.CHRTYPE: "character device",
    tarfile.BLKTYPE: "block device",
    tarfile.FIFOTYPE: "pipe",
}
_ATTRIBUTE = "SCHILY.xattr."


@dataclass(frozen=True)
class Entry:
    """A path. `target` is a link's target or a device's numbers; `attributes` maps names to hexadecimal values."""

    kind: str
    mode: int
    uid: int
    gid: int
    target: str
    sha256: str
    attributes: Mapping[str, str]


@dataclass(frozen=True)
class Rootfs:
    """A file system's entries by path, their times in seconds, and the content of the files that were asked for."""

    entries: Mapping[str, Entry]
    times: Mapping[str, int]
    kept: Mapping[str, bytes]

    @property
    def digest(self) -> str:
        """The SHA-256 over all paths, in order, each with its entry as canonical JSON."""
        lines = (canonical_json([path, asdict(self.entries[path])]) for path in sorted(self.entries))
        return sha256(b"\n".join(lines))


class Readable(Protocol):
    """A stream, such as a program's output."""

    def read(self, size: int, /) -> bytes:
        """Return the next bytes, at most `size` of them; none at the end."""
        ...


def read_rootfs(stream: Readable, name: str, keep: Collection[str] = ()) -> Rootfs:
    r"""Read the tar of a whole file system, called `name` in errors, and keep the content of the files in `keep`.

    A name that is not UTF-8 has its bytes as `\xff`, and a backslash is doubled. Raises BuildError for a tar that is
    cut off or damaged, or holds a path twice.
    """
    watched = _Watched(stream)
    entries: dict[str, Entry] = {}
    times: dict[str, int] = {}
    kept: dict[str, bytearray] = {}
    try:
        with tarfile.open(fileobj=watched, mode="r|", errorlevel=2, encoding="utf-8") as tar:
            for found in tar:
                tar.members.clear()  # type: ignore[attr-defined] # tarfile keeps every header
                path = _path(found.name)
                if path in entries:
                    raise BuildError(f"{name}: holds {path} twice")
                if found.islnk():
                    target = _path(found.linkname)
                    if target not in entries:
                        raise BuildError(f"{name}: {path} is a hard link to {target}, which is not before it")
                    entries[path] = entries[target]
                else:
                    content = kept.setdefault(path, bytearray()) if path in keep and found.isreg() else None
                    entries[path] = _entry(name, tar, found, content)
                times[path] = int(found.mtime)
            end = tar.offset
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
        raise BuildError(f"{name}: not the tar of a file system, or cut off: {error}") from None
    rest = watched.drain() - end
    # tarfile stops at what it does not understand as it does at the end; the format ends in two blocks of zeros.
    if rest < 2 * tarfile.BLOCKSIZE or watched.zeros < rest:
        raise BuildError(f"{name}: cut off or damaged after {len(entries):,} paths")
    ours = [path for path in entries if path and path not in WRITTEN and path.partition("/")[0] not in MOUNTED]
    touched = {path.rpartition("/")[0] for path in WRITTEN}
    return Rootfs(
        entries={path: entries[path] for path in ours},
        times={path: times[path] for path in ours if path not in touched},
        kept={path: bytes(content) for path, content in kept.items()},
    )


def differences(first: Rootfs, second: Rootfs) -> tuple[str, ...]:
    """Name each path that is not the same in both, and what of it is not; its time too."""
    found = []
    for path in sorted(first.entries.keys() | second.entries.keys()):
        ours, theirs = first.entries.get(path), second.entries.get(path)
        if ours is None or theirs is None:
            found.append(f"{path}: only in the {'second' if ours is None else 'first'}")
            continue
        one = {**asdict(ours), "time": first.times.get(path)}
        two = {**asdict(theirs), "time": second.times.get(path)}
        if one != two:
            found.append(f"{path}: {', '.join(key for key in one if one[key] != two[key])}")
    return tuple(found)


def _path(written: str) -> str:
    return _text("/".join(part for part in written.split("/") if part not in ("", ".")))


def _text(written: str) -> str:
    return written.replace("\\", "\\\\").encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _entry(name: str, tar: tarfile.TarFile, member: tarfile.TarInfo, content: bytearray | None) -> Entry:
    kind = "file" if member.isreg() else _KINDS.get(member.type, "")
    if not kind:
        raise BuildError(f"{name}: {member.name} is of the unknown type {member.type!r}")
    target = _text(member.linkname) if member.issym() else ""
    if member.isdev() and not member.isfifo():
        target = f"{member.devmajor}:{member.devminor}"
    digest = ""
    if member.isreg():
        digest = _hash(name, tar, member, content)
    attributes = {
        key.removeprefix(_ATTRIBUTE): value.encode("utf-8", "surrogateescape").hex()
        for key, value in sorted(member.pax_headers.items())
        if key.startswith(_ATTRIBUTE)
    }
    return Entry(kind, member.mode & 0o7777, member.uid, member.gid, target, digest, attributes)


def _hash(name: str, tar: tarfile.TarFile, member: tarfile.TarInfo, content: bytearray | None) -> str:
    if content is not None and member.size > LARGEST_KEPT:
        raise BuildError(f"{name}: {member.name} has {member.size:,} bytes, expected at most {LARGEST_KEPT:,}")
    source: IO[bytes] | None = tar.extractfile(member)
    digest = hashlib.sha256()
    while source and (chunk := source.read(CHUNK)):
        digest.update(chunk)
        if content is not None:
            content += chunk
    return digest.hexdigest()


class _Watched(io.RawIOBase):
    """A stream that knows how many bytes were read, and how many zeros the last of them are."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._bytes = 0
        self.zeros = 0

    def read(self, size: int = CHUNK, /) -> bytes:
        data = self._stream.read(size)
        kept = len(data.rstrip(b"\0"))
        self.zeros = len(data) - kept + (0 if kept else self.zeros)
        self._bytes += len(data)
        return data

    def drain(self) -> int:
        """Read to the end and return the number of bytes read in all."""
        while self.read():
            continue
        return self._bytes
