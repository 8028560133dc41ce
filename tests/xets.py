"""A Xet content store on loopback: as much of the open protocol as hf_xet needs to send files and to get them back.

Written after the protocol's description (huggingface/xet-core, openapi/cas.openapi.yaml, and its metadata_shard and
xorb_object for the two formats). A *xorb* is a row of chunks, each compressed on its own; a *shard* says of files which
chunks of which xorbs they are. What is sent is named by its sender: xorbs are taken under the hash that they come with,
and a file counts only if what its shard puts together has the SHA-256 that the shard states. Of the newer forms of
two calls there is none, so hf_xet falls back to the first ones, as it does for such servers; nothing is deduplicated
across files that one call does not send.
"""

import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import accumulate
from typing import Any

import lz4.frame

WRITE, READ = "xet-write", "xet-read"
"""Tokens of this store; the Hub's own is none."""

_CALL = re.compile(r"/v1/(xorbs|shards|reconstructions)(?:/default)?(?:/([0-9a-f]{64}))?")
_SIGNED = re.compile(r"/signed/([0-9a-f]{64})")

_HEADER = struct.Struct("<32sQQ")
_TERM = struct.Struct("<4QIIII")
_FILE = struct.Struct("<4QIIQ")
_ENTRY = 48
_VERIFIED, _EXTENDED = 1 << 31, 1 << 30
_END = (2**64 - 1,) * 4


class SpoiltError(Exception):
    """What was sent is no xorb or no shard, or is not what it says."""


@dataclass(frozen=True)
class Term:
    """A part of a file: so many bytes, unpacked, of some chunks of a xorb."""

    xorb: str
    size: int
    start: int
    stop: int


@dataclass
class Store:
    """Xorbs by their hash, and files by theirs, each as the terms that it is put together from; and the switches.

    `keep` is given what came whole, by SHA-256, and `asked` has what was asked: method, path, status, bytes of xorbs.
    """

    keep: Callable[[str, bytes], object] = lambda *_: None
    url: str = ""
    xorbs: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, tuple[Term, ...]] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)  # of content: the hash of the file
    asked: list[tuple[str, str, int, int]] = field(default_factory=list)
    cuts: int = 0  # cut so many uploads of xorbs in their middle
    drops: int = 0  # and so many downloads
    troubles: dict[str, list[int]] = field(default_factory=dict)  # part of an address: statuses to answer with first

    def take(self, shard: bytes) -> dict[str, bytes]:
        """Register the files of a shard, and return their content by SHA-256."""
        found = {}
        for name, terms, digest in _files_of(shard):
            content = b"".join(map(self.content, terms))
            if digest != hashlib.sha256(content).hexdigest():
                raise SpoiltError(f"{name}: not the SHA-256 that its shard states")
            self.files[name], self.sha256[digest], found[digest] = terms, name, content
        return found

    def content(self, term: Term) -> bytes:
        """Return the bytes of a term, unpacked."""
        if term.xorb not in self.xorbs:
            raise SpoiltError(f"{term.xorb}: a xorb that was not sent")
        chunks = [*_chunks_of(self.xorbs[term.xorb])][term.start : term.stop]
        data = b"".join(_unpacked(scheme, packed, size) for _, scheme, packed, size in chunks)
        if len(data) != term.size:
            raise SpoiltError(f"{term.xorb}: {len(data)} bytes, and its term states {term.size}")
        return data

    def reconstruction(self, name: str, url: str, start: int, stop: int) -> dict[str, Any] | None:
        """Say which ranges of which xorbs make up a part of a file; None where it has none there."""
        terms = self.files[name]
        begins = [*accumulate((term.size for term in terms), initial=0)]
        chosen = [
            (begin, term)
            for begin, term in zip(begins, terms, strict=False)
            if begin < stop and begin + term.size > start
        ]
        if not chosen:
            return None
        information: dict[str, list[dict[str, Any]]] = {}
        for _, term in chosen:
            chunks = [*_chunks_of(self.xorbs[term.xorb])][term.start : term.stop]
            first, (last, _, packed, _) = chunks[0][0], chunks[-1]
            entry = {
                "url": f"{url}/{term.xorb}",
                "range": {"start": term.start, "end": term.stop},
                "url_range": {"start": first, "end": last + 8 + len(packed) - 1},
            }
            if entry not in (known := information.setdefault(term.xorb, [])):
                known.append(entry)
        return {
            "offset_into_first_range": max(0, start - chosen[0][0]),
            "terms": [
                {"hash": term.xorb, "unpacked_length": term.size, "range": {"start": term.start, "end": term.stop}}
                for _, term in chosen
            ],
            "fetch_info": information,
        }


@contextmanager
def running(keep: Callable[[str, bytes], object]) -> Iterator[Store]:
    """Run a store on a free port of the loopback interface."""
    store = Store(keep)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": store}))
    store.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    store: Store
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, *_: object) -> None:
        """Stay silent: the tests read `Store.asked`."""

    def do_POST(self) -> None:
        store, size = self.store, int(self.headers.get("Content-Length", 0))
        if "/xorbs/" in self.path and store.cuts:
            store.cuts -= 1
            self.rfile.read(size // 2)
            return self._cut()
        body, call = self.rfile.read(size), _CALL.fullmatch(self.path)
        if not call or self._refused(WRITE):
            return None if call else self._end(404)
        if call[1] == "xorbs":
            new = call[2] not in store.xorbs
            store.xorbs[call[2]] = body
            return self._end(200, {"was_inserted": new}, size)
        try:
            for digest, content in store.take(body).items():
                store.keep(digest, content)
        except SpoiltError as error:
            return self._end(400, {"error": str(error)})
        return self._end(200, {"result": 1})

    def do_GET(self) -> None:
        call, signed = _CALL.fullmatch(self.path), _SIGNED.fullmatch(self.path)
        start, stop = map(int, re.findall(r"\d+", self.headers.get("Range", f"bytes=0-{1 << 62}")))
        if signed:
            return self._part(self.store.xorbs[signed[1]], start, stop)
        if not call or call[2] not in self.store.files:
            return self._end(404)
        if self._refused(READ):
            return None
        found = self.store.reconstruction(call[2], f"{self.store.url}/signed", start, stop + 1)
        return self._end(200 if found else 416, found)

    def _part(self, xorb: bytes, start: int, stop: int) -> None:
        if trouble := self._trouble():
            return self._end(trouble)
        data, drops = xorb[start : stop + 1], self.store.drops > 0
        sent = data[: len(data) // 2] if drops else data
        self.store.asked.append(("GET", self.path, 206, len(sent)))
        self.send_response(206)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Range", f"bytes {start}-{start + len(data) - 1}/{len(xorb)}")
        self.end_headers()
        self.wfile.write(sent)
        if drops:
            self.store.drops -= 1
            self._cut()
        return None

    def _trouble(self) -> int:
        found = next((each for part, each in self.store.troubles.items() if part in self.path and each), None)
        return found.pop(0) if found else 0

    def _refused(self, token: str) -> bool:
        status = self._trouble() or (0 if self.headers.get("Authorization") == f"Bearer {token}" else 401)
        if status:
            self._end(status)
        return status > 0

    def _cut(self) -> None:
        self.store.asked.append((self.command, self.path, 0, 0))
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _end(self, status: int, answer: Any = None, came: int = 0) -> None:
        self.store.asked.append((self.command, self.path, status, came))
        content = json.dumps(answer or {}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _name(words: tuple[int, ...]) -> str:
    """Return a hash as text, which is its four words, each as a number."""
    return "".join(f"{word:016x}" for word in words)


def _files_of(shard: bytes) -> Iterator[tuple[str, tuple[Term, ...], str]]:
    """Yield the files of a shard: name, terms, and the SHA-256 that it states."""
    try:
        tag, _, _ = _HEADER.unpack_from(shard)
        if not tag.startswith(b"HFRepoMetaData\0"):
            raise SpoiltError("not a shard")
        at = _HEADER.size
        while (header := _FILE.unpack_from(shard, at))[:4] != _END:
            flags, count = header[4:6]
            entries = [_TERM.unpack_from(shard, at + _ENTRY * (1 + number)) for number in range(count)]
            terms = tuple(Term(_name(each[:4]), *each[5:8]) for each in entries)
            at += _ENTRY * (1 + count + (count if flags & _VERIFIED else 0))
            if not flags & _EXTENDED:
                raise SpoiltError("a file without its SHA-256")
            yield _name(header[:4]), terms, _name(_TERM.unpack_from(shard, at)[:4])
            at += _ENTRY
    except struct.error as error:
        raise SpoiltError(f"a shard that breaks off: {error}") from None


def _chunks_of(xorb: bytes) -> Iterator[tuple[int, int, bytes, int]]:
    """Yield the chunks of a xorb: where they begin, how they are packed, packed, and how long they are unpacked."""
    at = 0
    while at + 8 <= len(xorb) and xorb[at : at + 7] != b"XETBLOB":
        length, size = (int.from_bytes(xorb[at + first : at + first + 3], "little") for first in (1, 5))
        scheme = xorb[at + 4]
        yield at, scheme, xorb[at + 8 : at + 8 + length], size
        at += 8 + length


def _unpacked(scheme: int, packed: bytes, size: int) -> bytes:
    """Return a chunk: as it is, by LZ4, or by LZ4 of four groups of bytes, which takes each fourth together."""
    data = packed if scheme == 0 else lz4.frame.decompress(packed)
    if scheme == 2:
        groups, grouped, at = bytearray(len(data)), data, 0
        for number in range(4):
            count = len(range(number, len(data), 4))
            groups[number::4] = grouped[at : at + count]
            at += count
        data = bytes(groups)
    if scheme > 2 or len(data) != size:
        raise SpoiltError(f"a chunk of {len(data)} bytes, which states {size}")
    return data
