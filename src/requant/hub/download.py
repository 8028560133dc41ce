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
from typing import Any, BinaryIO

from requant.errors import CheckpointError, NotAvailableError
from requant.hub import web
from requant.hub.pinned import Pins

Progress = Callable[[str, int, int], None]
"""Told a path, how many bytes of it were read or have arrived, and of how many (0: not known)."""

ATTEMPTS = 5
"""Attempts in a row that bring no byte before a download is given up; one that brings some starts anew."""

MAX_UNSIZED = 1 << 30
"""Bytes of the largest file that is downloaded where its pin states no size."""

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
    patience = web.Patience(most=MAX_UNSIZED if size is None else size)
    with _opened(part) as file:
        idle = 0
        while (start := file.seek(0, os.SEEK_END)) != size:
            try:
                trouble = _transfer(url, file, size, patience, lambda done, total: progress(path, done, total))
            except Exception as error:
                if not web.is_of_the_network(error):
                    raise
                trouble = web.trouble(error)
            if not trouble:
                break
            idle = 0 if file.tell() > start else idle + 1
            if idle == ATTEMPTS:
                advice = "look at the network, at HF_ENDPOINT and at proxies; what has arrived is kept"
                raise NotAvailableError(f"{web.address(url)}: {trouble}", advice)
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


def _transfer(
    url: str, file: BinaryIO, size: int | None, patience: web.Patience, arrived: Callable[[int, int], None]
) -> str:
    """Append the rest of a file; return "" where nothing more comes, else a trouble that may pass."""
    start = file.tell()

    def read(answer: Any) -> str:
        web.refuse(url, answer)
        status, place, length = answer.status_code, *_place(answer)
        if status == 416 and length == start:
            return ""
        resumed = status == 206 and place == start
        if status in (200, 206, 416) and not resumed:  # the server cannot go on from there
            file.seek(0)
            file.truncate()
        if status != 200 and not resumed:
            return f"status {status}"
        offered = length if resumed else web.number(answer.headers.get("content-length", ""))
        _confirm(url, size, offered)
        for chunk in web.chunks(url, answer, patience):
            file.write(chunk)
            arrived(file.tell(), size or offered or 0)
            if file.tell() > (MAX_UNSIZED if size is None else size):
                break  # more than can be right, and perhaps without an end
        _confirm(url, None, file.tell() if size is None else None)
        return ""

    trouble = web.ask(url, f"bytes={start}-" if start else "", patience, read)
    file.flush()
    return trouble


def _place(answer: Any) -> tuple[int | None, int | None]:
    """Return where a part begins, and how long the whole file is, as far as the answer says."""
    place, _, length = answer.headers.get("content-range", "").removeprefix("bytes ").partition("/")
    return web.number(place.partition("-")[0]), web.number(length)


def _confirm(url: str, size: int | None, offered: int | None) -> None:
    """Raise CheckpointError for a size that is not the pinned one, or too great for one that is not pinned."""
    if size is not None and offered not in (None, size):
        advice = "the pins or the server are wrong"
        raise CheckpointError(f"{web.address(url)}: found {offered} bytes, expected {size}", advice)
    if size is None and offered is not None and offered > MAX_UNSIZED:
        advice = f"record its size in the pins: without one, {MAX_UNSIZED:,} bytes are the most that is fetched"
        raise CheckpointError(f"{web.address(url)}: found {offered:,} bytes or more, and no size is pinned", advice)
