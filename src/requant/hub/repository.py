"""A repository on the Hub, read by ranges of bytes: nothing of it is kept but a few blocks in memory.

Addresses, token, proxies and the offline switch are huggingface_hub's, as in download.py.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from requant.checkpoint.safetensors import header_length
from requant.digest import side_limit, strict_json
from requant.errors import CheckpointError, NotAvailableError, UsageError
from requant.hub import web
from requant.hub.pinned import path_fault

NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?", re.ASCII)
SHA1, SHA256 = re.compile("[0-9a-f]{40}"), re.compile("[0-9a-f]{64}")
MAX_FILES = 10_000
MAX_HEADERS = 1 << 26
"""Bytes of all headers of a repository: those of 100,000 tensors have 12 MB."""
MAX_LISTING = 1 << 23
"""Bytes of the longest list of files: far more than so many names take."""
ATTEMPTS = 5
BLOCK = 1 << 23
"""Bytes asked for at a time: neighbouring tensors come in one answer."""
BLOCKS = 24
"""Blocks kept in memory."""


def named(text: str, newest: str = "") -> tuple[str, str]:
    """Return the repository and the revision of `owner/name@revision`, where `text` names no folder.

    Raises UsageError for anything else: without a revision, it may as well be a path that was mistyped, unless a verb
    says that it means `newest` then.
    """
    if (match := NAME.fullmatch(text)) and (revision := match[2] or newest):
        return match[1], revision
    written = "owner/name@revision, or owner/name for the newest" if newest else "owner/name@revision"
    raise UsageError(f"{text}: no such folder", f"A repository is written {written}.")


@dataclass(frozen=True)
class Stated:
    """What a hub states of a file: its size, and its SHA-256 where it is stored as LFS.

    `git` is git's name for it, a SHA-1; of a file that is stored as LFS, the name of what git has in its place.
    """

    bytes: int
    git: str
    sha256: str | None


@dataclass(frozen=True)
class Listing:
    """What a repository has at a commit, sorted, hidden names too. `bytes`: what the list took.

    `stated` has every path where that was asked for, and none otherwise.
    """

    endpoint: str
    repository: str
    commit: str
    paths: tuple[str, ...]
    bytes: int
    stated: Mapping[str, Stated] = field(default_factory=dict)

    def address(self, path: str) -> str:
        """Return where a file of this commit is served."""
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repository, path, revision=self.commit, endpoint=self.endpoint)


def listing(
    repository: str, revision: str, patience: web.Patience, endpoint: str | None = None, *, stated: bool = False
) -> Listing:
    """Ask which files a repository has, and at which commit; the only list that any verb asks for.

    With `stated`, also what the hub knows of each of them. Raises NotAvailableError for the network and for what is
    no list, CheckpointError for one that is too long or has names that are none.
    """
    from urllib.parse import quote

    from huggingface_hub import constants

    base = (endpoint or constants.ENDPOINT).rstrip("/")
    url = f"{base}/api/models/{repository}/revision/{quote(revision, safe='')}{'?blobs=true' if stated else ''}"
    _, data = web.whole(url, "", patience, MAX_LISTING)
    try:
        value = strict_json(data)
        paths = sorted(entry["rfilename"] for entry in value["siblings"])
        if not SHA1.fullmatch(value["sha"]):
            raise ValueError("its sha is no commit")
        facts = {entry["rfilename"]: _stated(entry) for entry in value["siblings"]} if stated else {}
        faults = [fault for path in paths if (fault := path_fault(path))]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        advice = "look at HF_ENDPOINT"
        raise NotAvailableError(f"{web.address(url)}: not a list of files: {error!r:.200}", advice) from None
    if len(paths) > MAX_FILES or len({*paths}) < len(paths) or faults:
        told = f"{len(paths):,} names, {len({*paths}):,} different; {(*faults, 'no fault')[0]}"
        raise CheckpointError(f"{repository}@{revision}: not the files of a checkpoint: {told}")
    return Listing(base, repository, value["sha"], tuple(paths), len(data), facts)


def _stated(entry: Mapping[str, Any]) -> Stated:
    """Read an entry of a list; raise KeyError, TypeError or ValueError where it does not say what it should."""
    lfs = entry.get("lfs")
    found = Stated(lfs["size"] if lfs else entry["size"], entry["blobId"], lfs["sha256"] if lfs else None)
    if type(found.bytes) is not int or found.bytes < 0 or not SHA1.fullmatch(found.git):
        raise ValueError(f"{entry['rfilename']}: no size, or no name that git gives")
    if found.sha256 is not None and not SHA256.fullmatch(found.sha256):
        raise ValueError(f"{entry['rfilename']}: its sha256 is none")
    return found


def confirm_headers(name: str, size: int) -> None:
    """Raise CheckpointError where the headers of a repository, taken together, are longer than any have to be."""
    if size > MAX_HEADERS:
        raise CheckpointError(f"{name}: its headers have more than {MAX_HEADERS:,} bytes in all")


class Repository:
    """The files of a repository at one commit."""

    def __init__(self, found: Listing, patience: web.Patience) -> None:
        self.identity = f"{found.repository}@{found.commit}"
        self._url = f"{found.endpoint}/{found.repository}/resolve/{found.commit}"
        self._names, self._patience = list(found.paths), patience
        self._sizes: dict[str, int] = {}
        self._header_bytes = 0
        self._blocks: OrderedDict[tuple[str, int], Future[bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Return the names of all files, sorted."""
        return self._names

    def header(self, name: str) -> tuple[bytes, int]:
        """Return the safetensors header of a file as it stands there, and the size of the file."""
        first, size = self._block(name, 0)[:8], self._sizes[name]
        text = bytearray(header_length(Path(self.identity, name), first, size))
        self._header_bytes += len(text)
        confirm_headers(self.identity, self._header_bytes)
        self.read(name, 8, memoryview(text))
        return bytes(text), size

    def whole(self, name: str) -> bytes:
        """Return the bytes of a small file."""
        if name not in self._names:
            raise CheckpointError(f"{name}: no such file in {self.identity}")
        self._block(name, 0)
        if self._sizes[name] > side_limit(name):
            told = f"{self._sizes[name]:,} bytes, expected at most {side_limit(name):,} of such a file"
            raise CheckpointError(f"{self.identity}: {name}: {told}")
        data = bytearray(self._sizes[name])
        self.read(name, 0, memoryview(data))
        return bytes(data)

    def read(self, name: str, start: int, into: memoryview) -> None:
        """Fill a buffer with the bytes of a file from `start` on."""
        done = 0
        while done < len(into):
            number, offset = divmod(start + done, BLOCK)
            some = self._block(name, number)[offset : offset + len(into) - done]
            if not some:
                raise CheckpointError(
                    f"{web.address(self._url)}/{name}: ends at byte {start + done:,}, its header promises more"
                )
            into[done : done + len(some)] = some
            done += len(some)

    def close(self) -> None:
        """Let go of the blocks."""
        self._blocks.clear()

    def _block(self, name: str, number: int) -> bytes:
        """Return one block; of several threads that want it, one asks."""
        with self._lock:
            found = self._blocks.get((name, number))
            mine = found is None
            if found is None:
                found = self._blocks[name, number] = Future()
                while len(self._blocks) > BLOCKS:
                    self._blocks.popitem(last=False)
            self._blocks.move_to_end((name, number))
        if mine:
            try:
                found.set_result(self._ask(name, number * BLOCK))
            except BaseException as error:
                with self._lock:
                    self._blocks.pop((name, number), None)
                found.set_exception(error)
        return found.result()

    def _ask(self, name: str, start: int) -> bytes:
        from urllib.parse import quote

        url = f"{self._url}/{quote(name)}"
        if 0 < self._sizes.get(name, start + 1) <= start:
            return b""
        trouble = ""
        for _ in web.attempts(ATTEMPTS):
            try:
                status, total, data = _get(url, start, self._patience)
            except Exception as error:
                if not web.is_of_the_network(error):
                    raise
                trouble = web.trouble(error)
                continue
            if total is not None and len(data) == min(BLOCK, total - start):
                self._sizes[name] = total
                return data
            trouble = f"status {status}, {len(data)} bytes for the range from {start:,}"
        raise NotAvailableError(
            f"{web.address(url)}: {trouble}", "look at the network, at HF_ENDPOINT and at proxies; run it again"
        )


def _get(url: str, start: int, patience: web.Patience) -> tuple[int, int | None, bytes]:
    """Ask for one block; return the status, the length of the whole file where the answer tells it, and the bytes."""

    def read(answer: Any) -> tuple[int, int | None, bytes]:
        web.refuse(url, answer)
        status, place = answer.status_code, answer.headers.get("content-range", "")
        if status == 416 and place == "bytes */0":
            return status, 0, b""
        first, _, total = place.removeprefix("bytes ").partition("/")
        if status not in (200, 206) or (status == 206 and not first.startswith(f"{start}-")):
            return status, None, b""
        if status == 200:  # no ranges: good for what begins at the beginning
            total = answer.headers.get("content-length", "") if start == 0 else ""
        data = bytearray()
        for chunk in web.chunks(url, answer, patience):
            data += chunk[: BLOCK - len(data)]
            if len(data) == BLOCK:
                break
        return status, web.number(total), bytes(data)

    return web.ask(url, f"bytes={start}-{start + BLOCK - 1}", patience, read)
