"""A repository on the Hub, read by ranges of bytes: nothing of it is kept but a few blocks in memory.

Addresses, token, proxies and the offline switch are huggingface_hub's, as in download.py.
"""

import re
import tempfile
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

from requant.errors import CheckpointError, NotAvailableError, UsageError
from requant.network import web

NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)@([\w./-]+)", re.ASCII)
ATTEMPTS = 5
PAUSE = 1.0
"""Seconds before a second attempt, doubled with every further one."""
BLOCK = 1 << 23
"""Bytes asked for at a time: neighbouring tensors come in one answer."""
MAX_HEADER_BYTES = 1 << 25
"""Bytes of a header that are brought: no more than `safetensors` reads."""
BLOCKS = 24
"""Blocks kept in memory."""


def named(text: str) -> tuple[str, str]:
    """Return the repository and the revision of `owner/name@revision`, where `text` names no folder.

    Raises UsageError for anything else: without a revision, it may as well be a path that was mistyped.
    """
    if match := NAME.fullmatch(text):
        return match[1], match[2]
    raise UsageError(f"{text}: no such folder", "A repository is written owner/name@revision.")


class Repository:
    """The files of a repository at one commit."""

    def __init__(self, url: str, identity: str, names: list[str]) -> None:
        self.identity = identity
        self._url, self._names = url, names
        self._sizes: dict[str, int] = {}
        self._blocks: OrderedDict[tuple[str, int], Future[bytes]] = OrderedDict()
        self._lock = threading.Lock()
        self._headers = tempfile.TemporaryDirectory(prefix="requant-headers-")

    @classmethod
    def open(cls, repository: str, revision: str, endpoint: str | None = None) -> Self:
        """Find the commit that a revision stands for, and its files; raise NotAvailableError where there is none."""
        from huggingface_hub import HfApi, constants
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        base = (endpoint or constants.ENDPOINT).rstrip("/")
        try:
            told = HfApi(endpoint=base).model_info(repository, revision=revision)
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            advice = "look at the name, at HF_TOKEN, HF_ENDPOINT and the network; or name a folder"
            raise NotAvailableError(f"{repository}@{revision}: {str(error).splitlines()[0]}", advice) from None
        except Exception as error:
            if not web.is_of_the_network(error):
                raise
            raise NotAvailableError(f"{repository}@{revision}: {type(error).__name__}", "look at the network") from None
        names = sorted(each.rfilename for each in told.siblings or ())
        return cls(f"{base}/{repository}/resolve/{told.sha}", f"{repository}@{told.sha}", names)

    def names(self) -> list[str]:
        """Return the names of all files, sorted."""
        return self._names

    def header(self, name: str) -> Path:
        """Return a file that has the header of `name`, and its length, but holes for data."""
        start = self._block(name, 0)[:8]
        length = min(int.from_bytes(start.ljust(8, b"\xff"), "little"), max(0, self._sizes[name] - 8), MAX_HEADER_BYTES)
        text = bytearray(8 + length)
        self.read(name, 0, memoryview(text)[: min(len(text), self._sizes[name])])
        path = Path(self._headers.name, str(self._names.index(name)))
        with path.open("wb") as file:
            file.write(text)
            file.truncate(self._sizes[name])
        return path

    def whole(self, name: str) -> bytes:
        """Return the bytes of a small file."""
        if name not in self._names:
            raise CheckpointError(f"{name}: no such file in {self.identity}")
        self._block(name, 0)
        data = bytearray(min(self._sizes[name], 8 * BLOCK))
        self.read(name, 0, memoryview(data))
        return bytes(data)

    def read(self, name: str, start: int, into: memoryview) -> None:
        """Fill a buffer with the bytes of a file from `start` on."""
        done = 0
        while done < len(into):
            number, offset = divmod(start + done, BLOCK)
            some = self._block(name, number)[offset : offset + len(into) - done]
            if not some:
                raise CheckpointError(f"{self._url}/{name}: ends at byte {start + done:,}, its header promises more")
            into[done : done + len(some)] = some
            done += len(some)

    def close(self) -> None:
        """Remove the headers."""
        self._headers.cleanup()

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
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE * 2 ** (attempt - 1))
            try:
                status, total, data = _get(url, start)
            except Exception as error:
                if not web.is_of_the_network(error):
                    raise
                trouble = type(error).__name__
                continue
            if total is not None and len(data) == min(BLOCK, total - start):
                self._sizes[name] = total
                return data
            if status not in (200, 206, 408, 416, 429) and status < 500:
                raise NotAvailableError(f"{url}: status {status}", "look at HF_TOKEN, HF_ENDPOINT and at the name")
            trouble = f"status {status}, {len(data)} bytes for the range from {start:,}"
        raise NotAvailableError(f"{url}: {trouble}", "look at the network, at HF_ENDPOINT and at proxies; run it again")


def _get(url: str, start: int) -> tuple[int, int | None, bytes]:
    """Ask for one block; return the status, the length of the whole file where the answer tells it, and the bytes."""
    from huggingface_hub import constants, get_session

    headers = web.headers(f"bytes={start}-{start + BLOCK - 1}")
    session: Any = get_session()
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    data = bytearray()
    with session.stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
        status, place = response.status_code, response.headers.get("content-range", "")
        if status == 416 and place == "bytes */0":
            return status, 0, b""
        first, _, total = place.removeprefix("bytes ").partition("/")
        if status not in (200, 206) or (status == 206 and not first.startswith(f"{start}-")):
            return status, None, b""
        if status == 200:  # no ranges: good for what begins at the beginning
            total = response.headers.get("content-length", "") if start == 0 else ""
        for chunk in response.iter_bytes():
            data += chunk
            if len(data) >= BLOCK:
                break
    return status, int(total) if total.isdigit() else None, bytes(data[:BLOCK])
