"""The headers of a checkpoint on the Hub, by range requests: no byte of a weight is asked for.

Of each safetensors file the first eight bytes are read, which give the header's length, and then the header. The
addresses, the token and the proxies are huggingface_hub's, as in `download`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from requant.digest import MAX_WHOLE, strict_json
from requant.errors import CheckpointError, NotAvailableError
from requant.files import SUFFIX, is_companion
from requant.inspecting.headers import SIDES, Headers, header_length, read_headers, specs, without_collector
from requant.network import web
from requant.network.download import refuse
from requant.network.hub import named

MAX_FILES = 10_000


@dataclass
class _Hub:
    """A repository at a revision; counts the bytes that came."""

    repository: str
    revision: str
    endpoint: str | None
    fetched: int = field(default=0)

    def get(self, path: str, start: int | None = None, stop: int | None = None) -> tuple[bytes, int]:
        """Return a file's bytes `start` to `stop`, or all of them, and the size of the whole file."""
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(self.repository, path, revision=self.revision, endpoint=self.endpoint)
        with self._answer(url, "" if start is None else f"bytes={start}-{(stop or 0) - 1}") as answer:
            limit = MAX_WHOLE if start is None or stop is None else stop - start
            size = 0
            if start is not None:
                place, _, whole = answer.headers.get("content-range", "").removeprefix("bytes ").partition("/")
                if answer.status_code != 206 or not place.startswith(f"{start}-") or not whole.isdigit():
                    raise NotAvailableError(f"{url}: does not serve parts of files", "Download the checkpoint instead.")
                size = int(whole)
            return self._read(url, answer, limit), size

    def list(self) -> list[str]:
        """Return the paths of all files, and stay at the commit that they are of."""
        from huggingface_hub import constants

        address = (
            f"{(self.endpoint or constants.ENDPOINT).rstrip('/')}/api/models/{self.repository}/revision/{self.revision}"
        )
        with self._answer(address, "") as answer:
            data = self._read(address, answer, MAX_WHOLE)
        try:
            value = strict_json(data)
            paths = [entry["rfilename"] for entry in value["siblings"]]
            self.revision = str(value["sha"])
        except (KeyError, TypeError, ValueError) as error:
            raise NotAvailableError(
                f"{address}: not a listing of files: {error!r:.200}", "Look at HF_ENDPOINT."
            ) from None
        if len(paths) > MAX_FILES or not all(isinstance(path, str) and path.isprintable() for path in paths):
            raise CheckpointError(f"{self.repository}: lists {len(paths):,} files, or names that are none")
        return sorted(path for path in paths if not {"", "..", "."} & {*path.split("/")} and not is_companion(path))

    def _read(self, url: str, answer: Any, limit: int) -> bytes:
        parts = []
        left = limit
        for chunk in answer.iter_bytes():
            self.fetched += len(chunk)
            left -= len(chunk)
            if left < 0:
                raise CheckpointError(
                    f"{url}: more than the {limit:,} bytes that were asked for", "Look at HF_ENDPOINT."
                )
            parts.append(chunk)
        return b"".join(parts)

    @contextmanager
    def _answer(self, url: str, part: str) -> Iterator[Any]:
        from huggingface_hub import constants, get_session

        headers = web.headers(part)
        try:
            with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as answer:
                refuse(url, answer.status_code)
                if answer.status_code not in (200, 206):
                    raise NotAvailableError(f"{url}: status {answer.status_code}", "Try again later.")
                yield answer
        except Exception as error:
            if not web.is_of_the_network(error):
                raise
            raise NotAvailableError(
                f"{url}: {type(error).__name__}: {error}", "Look at the network and proxies."
            ) from None


def open_headers(text: str) -> Headers:
    """Read the headers of a folder, or of a repository as `owner/name@revision` where no such folder is."""
    return read_headers(Path(text)) if Path(text).exists() else remote_headers(text)


def remote_headers(text: str, endpoint: str | None = None) -> Headers:
    """Read the headers and side files of `owner/name@revision`.

    Raises NotAvailableError, CheckpointError, or UsageError for another name.
    """
    hub = _Hub(*named(text), endpoint)
    paths = hub.list()
    shards, data_bytes = {}, 0
    with without_collector():
        for path in paths:
            if path.endswith(SUFFIX):
                where = Path(hub.repository, path)
                first, size = hub.get(path, 0, 8)
                length = header_length(where, first, size)
                header, _ = hub.get(path, 8, 8 + length) if length else (b"", size)
                if len(header) != length:
                    raise CheckpointError(f"{where}: {len(header):,} of {length:,} bytes of its header came")
                shards[path] = specs(where, header, size)
                data_bytes += size - 8 - length
    sides = {path: hub.get(path)[0] for path in SIDES if path in paths}
    name = f"{hub.repository}@{hub.revision}"
    return Headers(name, shards, data_bytes, sides, tuple(p for p in paths if p not in shards), None, hub.fetched)
