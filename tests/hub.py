"""A hub on loopback: folders served under the Hub's URL scheme by a real HTTP server that can be broken.

Addresses as in huggingface_hub 1.11 and 2.4: files under `/[datasets/]{repository}/resolve/{revision}/{path}`,
listings under `/api/{models,datasets}/{repository}/…`. Large files answer as LFS does, with a redirect to
another host where `cdn` is set. The library reads HF_ENDPOINT once, when it is imported: hand `Hub.url` to
`endpoint=`, or set HF_ENDPOINT for a new process (`Hub.environment`).

Where it has a `store`, models can be written to: repositories made, and commits of files that are sent along or lie in
its LFS store, which takes them by the protocol of git-lfs (batch, `basic` transfer) and keeps none that came in part.
With `xet` it offers Xet as the Hub does: tokens for a content store (tests/xets.py), and what Xet calls a file. Before
2.0 the library asks whether to use it; from then on it asks no server and falls back from none, and HF_HUB_DISABLE_XET
alone tells it not to.
"""

import base64
import hashlib
import json
import os
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import close_session, constants
from tests import xets

from requant.hub import download

PREFIXES = {"model": "", "dataset": "datasets/"}

_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_COMMIT = re.compile(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/([^/]+)")
_BATCH = re.compile(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch")
_OBJECT = re.compile(r"/lfs/([0-9a-f]{64})")
_TOKEN = re.compile(r"/api/models/([^/]+/[^/]+)/xet-(read|write)-token/([^/]+)")
_LISTING = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+?)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")


@contextmanager
def only_loopback(patch: pytest.MonkeyPatch, folder: Path) -> Iterator[None]:
    """Ask for no address elsewhere, send no token of a developer's, who has none in `folder`, and hardly wait."""
    ask = socket.getaddrinfo

    def loopback(host: Any, *args: Any, **more: Any) -> Any:
        assert host in ("127.0.0.1", "localhost", b"127.0.0.1", b"localhost"), host
        return ask(host, *args, **more)

    patch.setattr(socket, "getaddrinfo", loopback)
    patch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no token"))
    patch.delenv("HF_TOKEN", raising=False)
    patch.setenv("NO_PROXY", "*")
    patch.setattr(download, "PAUSE", 0.001)
    close_session()
    yield
    close_session()


@dataclass(frozen=True)
class Request:
    """What was asked, how many bytes of a file's content were sent in answer, and how many had come with it."""

    method: str
    path: str
    headers: dict[str, str]
    status: int
    sent: int
    received: int = 0


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

    xet: xets.Store | None = None  # offer Xet
    store: Path | None = None  # take what is written, and keep it there
    history: dict[tuple[str, str], Path] = field(default_factory=dict)  # repository and commit: what it was then
    cut_at: int | None = None  # read so many bytes of what is uploaded, and cut the connection
    cuts: int | None = None  # how many times (None: always)
    troubles: dict[str, list[int]] = field(default_factory=dict)  # part of an address: statuses to answer with first
    lock: threading.Lock = field(default_factory=threading.Lock)

    def serve(self, kind: str, repository: str, commit: str, folder: Path) -> None:
        """Serve the files below `folder` as one revision of a repository."""
        self.repositories[PREFIXES[kind] + repository] = (commit, folder)

    def at(self, name: str, revision: str) -> tuple[str, Path | None]:
        """Return the commit that a revision of a repository is, and its files; "" and None where there is none."""
        if name not in self.repositories:
            return "", None
        commit, folder = self.repositories[name]
        return (commit, folder) if revision in (commit, "main") else (revision, self.history.get((name, revision)))

    def head(self, repository: str) -> tuple[str, Path]:
        """Return the newest commit of a repository, and the folder of its files."""
        return self.repositories[repository]

    def commit(self, repository: str, files: Mapping[str, bytes | Path], deleted: Iterable[str] = ()) -> str:
        """Make the next commit of a repository: files that are written, or lie in the LFS store, and some that go."""
        assert self.store
        before, old = self.repositories.get(repository, ("", None))
        commit = _sha1("".join((before, repository, *sorted(files), *deleted)).encode())
        folder = self.store / "trees" / commit
        shutil.copytree(old, folder, copy_function=os.link) if old else folder.mkdir(parents=True)
        for path in deleted:
            (folder / path).unlink()
        for path, content in files.items():
            place = folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            place.write_bytes(content) if isinstance(content, bytes) else os.link(content, place)
        if old:
            self.history[repository, before] = old
        self.repositories[repository] = (commit, folder)
        return commit

    def object(self, digest: str) -> Path:
        """Return where the LFS store has an object, whether it is there or not."""
        assert self.store
        (self.store / "lfs").mkdir(parents=True, exist_ok=True)
        return self.store / "lfs" / digest

    def uploads(self) -> list[str]:
        """Return the digests of objects that came whole, in order."""
        return [each.path.rpartition("/")[2] for each in self.requests if each.method == "PUT" and each.status == 200]

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
    received = 0
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

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, body = self.hub, self._body()
        self.received = len(body)
        url = unquote(urlsplit(self.path).path)
        with hub.lock:
            trouble = next((found for part, found in hub.troubles.items() if part in url and found), None)
            status = trouble.pop(0) if trouble else 0
        if self.close_connection and self.command == "PUT":
            hub.requests.append(Request("PUT", self.path, {}, 0, 0, len(body)))
        elif status:
            self._end(status, {"Retry-After": "0"}, start=None)
        elif url.startswith("/cdn/"):
            self._file(url.removeprefix("/cdn"), cdn=True)
        elif self.hub.token is not None and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._end(401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "this repository asks for a token"})
        elif _FILE.fullmatch(url):
            self._file(url, cdn=False)
        elif hub.store and self._written(url, body):
            pass
        elif hub.xet and (match := _TOKEN.fullmatch(url)):
            self._token(hub.xet, match[2])
        elif match := _LISTING.fullmatch(url):
            self._listing(body, *match.groups())
        else:
            self._end(404)

    def _body(self) -> bytes:
        """Read what comes with a request; of an upload that is to be cut, a part, and then no more."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size + 2)[:-2]
            self.rfile.readline()
            return data
        size = int(self.headers.get("Content-Length", 0))
        hub = self.hub
        if self.command == "PUT" and hub.cut_at is not None and hub.cuts != 0 and size > hub.cut_at:
            hub.cuts = None if hub.cuts is None else hub.cuts - 1
            data = self.rfile.read(hub.cut_at)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return data
        return self.rfile.read(size)

    def _written(self, url: str, body: bytes) -> bool:
        """Answer what writes, and say whether it was that."""
        hub = self.hub
        if url == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in hub.repositories:
                self._end(409, {}, start=None)
            else:
                hub.commit(name, {})
                self._json({"url": f"{hub.url}/{name}"})
        elif url == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif match := _BATCH.fullmatch(url):
            asked = json.loads(body)
            by = "xet" if hub.xet and "xet" in asked.get("transfers", ()) else "basic"
            self._json({"transfer": by, "objects": [*map(self._batched, asked["objects"])]})
        elif match := _OBJECT.fullmatch(url):
            self._object(match[1], body)
        elif match := _COMMIT.fullmatch(url):
            if match[1] not in hub.repositories:
                self._end(404, {"X-Error-Code": "RepoNotFound"}, start=None)
            elif match[3] != "main":
                self._end(404, {"X-Error-Code": "RevisionNotFound"}, start=None)
            else:
                self._preupload(match[1], body) if match[2] == "preupload" else self._commit(match[1], body)
        else:
            return False
        return True

    def _token(self, xet: xets.Store, kind: str) -> None:
        token, ends = {"read": xets.READ, "write": xets.WRITE}[kind], 1 << 34
        headers = {"X-Xet-Cas-Url": xet.url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(ends)}
        self._json({"casUrl": xet.url, "accessToken": token, "exp": ends}, headers)

    def _batched(self, asked: dict[str, Any]) -> dict[str, Any]:
        if self.hub.object(asked["oid"]).exists():
            return asked
        return {**asked, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}"}}}

    def _object(self, digest: str, body: bytes) -> None:
        if _sha256(body) != digest:
            return self._end(400, start=None)
        place = self.hub.object(digest)
        partial = place.with_name(f"{digest}.{threading.get_ident()}")
        partial.write_bytes(body)
        partial.rename(place)
        return self._end(200, start=None)

    def _preupload(self, repository: str, body: bytes) -> None:
        _, folder = self.hub.head(repository)
        answer = []
        for asked in json.loads(body)["files"]:
            large = asked["size"] >= self.hub.large
            entry = {"path": asked["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if (there := folder / asked["path"]).is_file():
                known = self._entry(folder, there)
                entry["oid"] = known["lfs"]["oid"] if "lfs" in known else known["oid"]
            answer.append(entry)
        self._json({"files": answer})

    def _commit(self, repository: str, body: bytes) -> None:
        hub = self.hub
        header, *operations = (json.loads(line) for line in body.splitlines())
        files: dict[str, bytes | Path] = {}
        deleted = []
        for each in operations:
            value = each["value"]
            if each["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif each["key"] == "lfsFile":
                files[value["path"]] = hub.object(value["oid"])
            else:
                deleted.append(value["path"])
        with hub.lock:
            if header["value"].get("parentCommit", hub.head(repository)[0]) != hub.head(repository)[0]:
                return self._end(412, {"X-Error-Message": "the parent is not the newest commit"}, start=None)
            if any(isinstance(each, Path) and not each.exists() for each in files.values()):
                return self._end(400, {"X-Error-Message": "an LFS file is not there"}, start=None)
            commit = hub.commit(repository, files, deleted)
        return self._json(
            {"success": True, "commitOid": commit, "commitUrl": f"{hub.url}/{repository}/commit/{commit}"}
        )

    def _file(self, url: str, *, cdn: bool) -> None:
        match = _FILE.fullmatch(url)
        prefix, repository, revision, path = match.groups() if match else ("", "", "", "")
        commit, folder = self.hub.at((prefix or "") + repository, revision)
        if not commit:
            return self._end(404, {"X-Error-Code": "RepoNotFound"})
        if folder is None:
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
            if self.hub.xet and (name := self.hub.xet.sha256.get(_sha256(content))):
                route = f"{self.hub.url}/api/models/{repository}/xet-read-token/{commit}"
                headers |= {"X-Xet-Hash": name, "Link": f'<{route}>; rel="xet-auth"'}
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
        commit, folder = self.hub.at(name, revision or "main")
        if not commit:  # a stranger is not told which private ones there are
            return self._end(404 if self.headers.get("Authorization") else 401, {"X-Error-Code": "RepoNotFound"})
        if folder is None:
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
            if self.hub.xet and (hash_ := self.hub.xet.sha256.get(_sha256(content))):
                entry["xetHash"] = hash_
        return entry

    def _json(self, value: Any, headers: dict[str, str] | None = None) -> None:
        self._end(200, {"Content-Type": "application/json", **(headers or {})}, json.dumps(value).encode(), start=None)

    def _end(
        self, status: int, headers: dict[str, str] | None = None, content: bytes = b"", start: int | None = 0
    ) -> None:
        """Answer; `start` is where in a file the content begins, None where it is no file's."""
        hub, sends = self.hub, self.command != "HEAD"
        sent = content if sends else b""
        cut = sends and content and start is not None and hub.drop_at is not None and hub.drops != 0
        cut = cut and start is not None and hub.drop_at is not None and start + len(content) > hub.drop_at
        if cut and hub.drop_at is not None and start is not None:
            sent = content[: max(0, hub.drop_at - start)]
            hub.drops = None if hub.drops is None else hub.drops - 1
        asked = {name.lower(): value for name, value in self.headers.items()}
        sent_of_file = 0 if start is None else len(sent)
        hub.requests.append(Request(self.command, self.path, asked, status, sent_of_file, self.received))
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


def _sha1(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def _git(content: bytes) -> str:
    """Return git's name for a blob, the entity tag of what is not stored as LFS."""
    return _sha1(b"blob %d\0" % len(content) + content)
