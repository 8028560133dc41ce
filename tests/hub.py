"""A hub on loopback: folders served under the Hub's URL scheme by a real HTTP server that can be broken.

Addresses as in huggingface_hub 1.11 and 2.4: files under `/[datasets/]{repository}/resolve/{revision}/{path}`,
listings under `/api/{models,datasets}/{repository}/…`. Large files answer as LFS does, with a redirect to
another host where `cdn` is set. The library reads HF_ENDPOINT once, when it is imported: hand `Hub.url` to
`endpoint=`, or set HF_ENDPOINT for a new process (`Hub.environment`).
"""

import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

PREFIXES = {"model": "", "dataset": "datasets/"}

_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_LISTING = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+?)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")


@dataclass(frozen=True)
class Request:
    """What was asked, and how many bytes of a file's content were sent in answer."""

    method: str
    path: str
    headers: dict[str, str]
    status: int
    sent: int


@dataclass
class Hub:
    """What is served, what was asked, and the switches; all may change while it runs."""

    url: str = ""
    repositories: dict[str, tuple[str, Path]] = field(default_factory=dict)  # "datasets/o/n": (commit, folder)
    requests: list[Request] = field(default_factory=list)

    drop_at: int | None = None  # cut the connection there, in bytes from the start of each file
    drops: int | None = None  # how many times (None: always)
    status: dict[str, int] = field(default_factory=dict)  # path in the repository: answer with this instead
    content: dict[str, bytes] = field(default_factory=dict)  # path in the repository: serve this instead
    token: str | None = None  # ask for this token
    ranges: bool = True  # answer to Range
    start: int | None = None  # answer to it from there, whatever was asked
    lengths: bool = True  # say how long the content is
    cdn: bool = False  # send large files from another host
    large: int = 1024  # bytes from which on a file is stored as LFS stores it

    def serve(self, kind: str, repository: str, commit: str, folder: Path) -> None:
        """Serve the files below `folder` as one revision of a repository."""
        self.repositories[PREFIXES[kind] + repository] = (commit, folder)

    def downloads(self) -> list[Request]:
        """Return the requests that content was sent for."""
        return [request for request in self.requests if request.method == "GET" and request.sent]

    @property
    def environment(self) -> dict[str, str]:
        """What a new process needs in order to talk to this hub and to nothing else."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HUB_DISABLE_XET": "1",  # would ask an address of the server's choice for its own protocol
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "*",
        }


@contextmanager
def running() -> Iterator[Hub]:
    """Run a hub on a free port of the loopback interface."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def answering(answer: Callable[[str], Iterable[bytes]]) -> Iterator[tuple[str, list[int]]]:
    """Answer each request with raw bytes, of its address, until they end or nobody listens; tell how many went out."""
    sent: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                request = b""
                while b"\r\n\r\n" not in request:
                    request += connection.recv(1 << 16)
                for chunk in answer(request.split()[1].decode()):
                    connection.sendall(chunk)
                    sent.append(len(chunk))

        def accept() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=server.accept()[:1], daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", sent
        server.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client may go away at any time; some tests make it
            super().handle()

    def log_message(self, *_: object) -> None:
        """Stay silent: the tests read `Hub.requests`."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = unquote(urlsplit(self.path).path)
        if url.startswith("/cdn/"):
            self._file(url.removeprefix("/cdn"), cdn=True)
        elif self.hub.token is not None and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._end(401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "this repository asks for a token"})
        elif _FILE.fullmatch(url):
            self._file(url, cdn=False)
        elif match := _LISTING.fullmatch(url):
            self._listing(body, *match.groups())
        else:
            self._end(404)

    def _file(self, url: str, *, cdn: bool) -> None:
        match = _FILE.fullmatch(url)
        prefix, repository, revision, path = match.groups() if match else ("", "", "", "")
        commit, folder = self.hub.repositories.get((prefix or "") + repository, ("", Path()))
        if not commit:
            return self._end(404, {"X-Error-Code": "RepoNotFound"})
        if revision not in (commit, "main"):
            return self._end(404, {"X-Error-Code": "RevisionNotFound"})
        if not (folder / path).is_file():
            return self._end(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        if status := self.hub.status.get(path):
            return self._end(status)
        content = self.hub.content.get(path, (folder / path).read_bytes())
        large = len(content) >= self.hub.large
        headers = {"ETag": f'"{_sha256(content) if large else _git(content)}"', "X-Repo-Commit": commit}
        if large and not cdn:
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
            if self.hub.cdn:
                port = self.hub.url.rpartition(":")[2]
                return self._end(302, {**headers, "Location": f"http://localhost:{port}/cdn{self.path}"})
        return self._content(content, headers)

    def _content(self, content: bytes, headers: dict[str, str]) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if self.hub.ranges else None
        if asked is None:
            return self._end(200, headers, content)
        start, stop = self.hub.start or int(asked[1]), min(int(asked[2] or len(content)) + 1, len(content))
        if start >= len(content):
            return self._end(416, {**headers, "Content-Range": f"bytes */{len(content)}"})
        place = f"bytes {start}-{stop - 1}/{len(content)}"
        return self._end(206, {**headers, "Content-Range": place}, content[start:stop], start=start)

    def _listing(
        self, body: bytes, kinds: str, repository: str, what: str | None, revision: str, below: str | None
    ) -> None:
        name = PREFIXES[kinds.removesuffix("s")] + repository
        commit, folder = self.hub.repositories.get(name, ("", Path()))
        if not commit:  # a stranger is not told which private ones there are
            return self._end(404 if self.headers.get("Authorization") else 401, {"X-Error-Code": "RepoNotFound"})
        if what and revision not in (commit, "main"):
            return self._end(404, {"X-Error-Code": "RevisionNotFound"})
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if what == "tree":
            below = f"{below}/" if below else ""
            entries = [entry for path in files if (entry := self._entry(folder, path))["path"].startswith(below)]
            return self._json(entries)
        if what == "paths-info":
            asked = parse_qs(body.decode()).get("paths", [])
            return self._json([entry for path in files if (entry := self._entry(folder, path))["path"] in asked])
        blobs = parse_qs(urlsplit(self.path).query).get("blobs") == ["true"]
        names = [self._sibling(folder, path, blobs) for path in files]
        return self._json({"id": repository, "sha": commit, "private": False, "siblings": names})

    def _sibling(self, folder: Path, path: Path, blobs: bool) -> dict[str, Any]:
        entry = self._entry(folder, path)
        more = {"size": entry["size"], "blobId": entry["oid"]} if blobs else {}
        if blobs and (lfs := entry.get("lfs")):
            more["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
        return {"rfilename": entry["path"], **more}

    def _entry(self, folder: Path, path: Path) -> dict[str, Any]:
        content = path.read_bytes()
        name = path.relative_to(folder).as_posix()
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": _git(content)}
        if len(content) >= self.hub.large:
            entry["lfs"] = {"oid": _sha256(content), "size": len(content), "pointerSize": 133}
        return entry

    def _json(self, value: Any) -> None:
        self._end(200, {"Content-Type": "application/json"}, json.dumps(value).encode(), start=None)

    def _end(
        self, status: int, headers: dict[str, str] | None = None, content: bytes = b"", start: int | None = 0
    ) -> None:
        """Answer; `start` is where in a file the content begins, None where it is no file's."""
        hub, sends = self.hub, self.command != "HEAD"
        sent = content if sends else b""
        cut = sends and content and start is not None and hub.drop_at is not None and hub.drops != 0
        if cut and hub.drop_at is not None and start is not None:
            sent = content[: max(0, hub.drop_at - start)]
            hub.drops = None if hub.drops is None else hub.drops - 1
        asked = {name.lower(): value for name, value in self.headers.items()}
        hub.requests.append(Request(self.command, self.path, asked, status, 0 if start is None else len(sent)))
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if hub.lengths:
            self.send_header("Content-Length", str(len(content)))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(sent)
        if cut:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git(content: bytes) -> str:
    """Return git's name for a blob, the entity tag of what is not stored as LFS."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
