r"""The headers of a tar that nobody vouches for: what says the same to every reader, in bounded memory, or an error.

Python's own reader holds an extension header whole, however large; follows a chain of them by recursion; takes time
and memory beyond their square for records that overlap; and goes back in the file where a size is negative.
Format: https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html; GNU's long names are of types L and K.
"""

import tarfile
from typing import Self

LARGEST = 1 << 20
"""Bytes of the extension headers of one member: a path has 4 KiB at most in Linux, an attribute 64 KiB."""

_LONG = {tarfile.GNUTYPE_LONGNAME: "path", tarfile.GNUTYPE_LONGLINK: "linkpath"}
_EXTENDED = frozenset({tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, *_LONG})


class Header(tarfile.TarInfo):
    """A member of a tar, for `tarfile.open(tarinfo=Header)`. Raises tarfile.ReadError for what it refuses."""

    __slots__ = ()

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        """Read the next member, with the extension headers before it; their records are its `pax_headers`."""
        file = tar.fileobj
        start, left = file.tell(), LARGEST
        records: dict[str, str] = {}
        while True:
            try:
                found = cls.frombuf(file.read(tarfile.BLOCKSIZE), tar.encoding or "utf-8", tar.errors or "strict")
            except tarfile.HeaderError as error:
                if left == LARGEST:
                    raise  # the end, if it is one
                raise tarfile.ReadError(f"no member follows its extension header: {error}") from None
            if found.size < 0:
                raise tarfile.ReadError(f"{found.name!r}: a size of {found.size:,} bytes")
            if found.type not in _EXTENDED:
                break
            left -= tarfile.BLOCKSIZE + found.size
            if left < 0:
                raise tarfile.ReadError(f"{found.name!r}: extension headers of more than {LARGEST:,} bytes")
            said = _said(found, file.read(_blocks(found.size))[: found.size])
            if twice := said.keys() & records.keys():
                raise tarfile.ReadError(f"{found.name!r}: two extension headers say {sorted(twice)!r:.80}")
            records |= said
        found._say(records)
        found.offset, found.offset_data = start, file.tell()
        data = found.isreg() or found.type not in tarfile.SUPPORTED_TYPES
        tar.offset = found.offset_data + (_blocks(found.size) if data else 0)
        return found

    def _say(self, records: dict[str, str]) -> None:
        if self.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse.") for key in records):
            raise tarfile.ReadError(f"{self.name!r}: a sparse file, expected its bytes")
        said = {key: value for key, value in records.items() if value}  # an empty value leaves what the header says
        self.name = said.get("path", self.name)
        if self.isdir():
            self.name = self.name.rstrip("/")
        self.linkname = said.get("linkpath", self.linkname)
        self.size = _size(said["size"]) if "size" in said else self.size
        self.uid, self.gid = int(said.get("uid", self.uid)), int(said.get("gid", self.gid))
        self.mtime = float(said["mtime"]) if "mtime" in said else self.mtime
        self.pax_headers = records


def _said(header: tarfile.TarInfo, data: bytes) -> dict[str, str]:
    """Return what an extension header says of the member that follows."""
    if header.type in _LONG:
        return {_LONG[header.type]: _text(data.partition(b"\0")[0])}
    records = _records(data)
    if header.type != tarfile.XGLTYPE:
        return records
    # Some engines apply these to every member, others to none.
    if others := records.keys() - {"comment"}:
        raise tarfile.ReadError(f"{header.name!r}: a global header says {sorted(others)!r:.80}")
    return {}


def _records(data: bytes) -> dict[str, str]:
    r"""Return the records `LENGTH KEY=VALUE\n` that fill a pax header."""
    found: dict[str, str] = {}
    place = 0
    while place < len(data):
        digits = data[place : place + len(str(LARGEST)) + 1].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        record = data[place : place + length]
        key, equals, value = record[len(digits) + 1 :].partition(b"=")
        if len(record) < length or not key or not equals or not value.endswith(b"\n"):
            raise tarfile.ReadError(f"a pax header is damaged at byte {place:,}")
        found[_text(key)] = _text(value[:-1])
        place += length
    return found


def _size(written: str) -> int:
    if not (written.isascii() and written.isdecimal()):
        raise tarfile.ReadError(f"a size of {written!r:.40} bytes")
    return int(written)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _blocks(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
