"""One file from a hub over HTTP, going on from what an earlier attempt left. Nothing here is confirmed yet.

Addresses, token, proxies and the offline switch are huggingface_hub's (HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE);
the transfer is not. From its pull request 4228 on `hf_hub_download` throws away what an interrupted download
had got, up to 4 GB of a shard, and its Xet transfer goes on only from a cache of its own.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from requant.errors import CheckpointError, NotAvailableError
from requant.network import web
from requant.network.pinned import Pins

Progress = Callable[[str, int, int], None]
"""Told a path, how many bytes of it were read or have arrived, and of how many (0: not known)."""

ATTEMPTS = 5
"""Attempts in a row that bring no byte before a download is given up; one that brings some starts anew."""

PAUSE = 1.0
"""Seconds before a second attempt, doubled with every further one in a row."""


def download(pins: Pins, path: str, part: Path, progress: Progress, endpoint: str | None = None) -> str:
    """Complete `part` with what the hub serves as `path`; return the address that it came from.

    Raises NotAvailableError for the network and refusals, CheckpointError where another size is offered,
    OSError for the disk; `part` keeps what has arrived. `endpoint` overrides the library's.
    """
    # Not at the top: a folder can be confirmed where the library is not installed, and it takes long to import.
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(pins.repository, path, repo_type=pins.kind, revision=pins.revision, endpoint=endpoint)
    size = pins.files[path].bytes
    with _opened(part) as file:
        idle = 0
        while (start := file.seek(0, os.SEEK_END)) != size:
            try:
                trouble = _transfer(url, file, size, lambda done, total: progress(path, done, total))
            except Exception as error:
                if not web.is_of_the_network(error):
                    raise
                trouble = f"{type(error).__name__}: {error}"
            if not trouble:
                break
            idle = 0 if file.tell() > start else idle + 1
            if idle == ATTEMPTS:
                advice = "look at the network, at HF_ENDPOINT and at proxies; what has arrived is kept"
                raise NotAvailableError(f"{url}: {trouble}", advice)
            time.sleep(PAUSE * 2**idle)
    return url


@contextmanager
def _opened(part: Path) -> Iterator[BinaryIO]:
    with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NotAvailableError(f"{part}: another fetch is writing it", "wait until it is done") from None
        yield file


def _transfer(url: str, file: BinaryIO, size: int | None, arrived: Callable[[int, int], None]) -> str:
    """Append the rest of a file; return "" where nothing more comes, else a trouble that may pass."""
    from huggingface_hub import constants, get_session

    start = file.tell()
    asked = web.headers(f"bytes={start}-" if start else "")
    with get_session().stream("GET", url, headers=asked, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        status, answer = response.status_code, response.headers
        refuse(url, status)
        place, _, length = answer.get("content-range", "").removeprefix("bytes ").partition("/")
        if status == 416 and length == str(start):
            return ""
        resumed = status == 206 and place.startswith(f"{start}-")
        if status in (200, 206, 416) and not resumed:  # the server cannot go on from there
            file.seek(0)
            file.truncate()
        if status != 200 and not resumed:
            return f"status {status}"
        total = length if resumed else "" if "content-encoding" in answer else answer.get("content-length", "")
        offered = int(total) if total.isdigit() else None
        if size is not None and offered not in (None, size):
            raise CheckpointError(f"{url}: found {offered} bytes, expected {size}", "the pins or the server are wrong")
        for chunk in response.iter_bytes():
            file.write(chunk)
            arrived(file.tell(), size or offered or 0)
            if size is not None and file.tell() > size:
                break  # more than can be right, and perhaps without an end
    file.flush()
    return ""


def refuse(url: str, status: int) -> None:
    """Raise for an answer that trying again does not change."""
    if status in (401, 403):
        advice = "set HF_TOKEN to a token that may read this repository, and accept its conditions"
        raise NotAvailableError(f"{url}: refused, status {status}", advice)
    if status in (404, 410):
        advice = "the repository, the revision or the file is gone or private; look at HF_TOKEN and HF_ENDPOINT"
        raise NotAvailableError(f"{url}: no such file, status {status}", advice)
    if status not in (200, 206, 408, 416, 429) and status < 500:
        raise NotAvailableError(f"{url}: status {status}", "look at HF_ENDPOINT and at proxies")
