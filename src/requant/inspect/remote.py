"""The headers of a checkpoint on the Hub, by range requests: no byte of a weight is asked for.

Of each safetensors file the first eight bytes are read, which give the header's length, and then the header. The
addresses, the token and the proxies are huggingface_hub's, as in `download`.
"""

from dataclasses import dataclass
from pathlib import Path

from requant.checkpoint.files import SUFFIX
from requant.checkpoint.safetensors import header_length
from requant.digest import side_limit
from requant.errors import CheckpointError, NotAvailableError
from requant.hub import web
from requant.hub.repository import Listing, confirm_headers, named
from requant.hub.snapshots import here_or_there
from requant.inspect.headers import SIDES, Headers, read_headers, specs, without_collector
from requant.progress import Progress, Tell, silent


@dataclass
class _Hub:
    """A repository at a commit; counts the bytes that came."""

    found: Listing
    patience: web.Patience
    fetched: int

    def get(self, path: str, start: int | None = None, stop: int | None = None) -> tuple[bytes, int]:
        """Return a file's bytes `start` to `stop`, or all of them, and the size of the whole file."""
        url = self.found.address(path)
        if start is None or stop is None:
            _, data = web.whole(url, "", self.patience, side_limit(path))
            size = len(data)
        else:
            answer, data = web.whole(url, f"bytes={start}-{stop - 1}", self.patience, stop - start)
            place, _, length = answer.headers.get("content-range", "").removeprefix("bytes ").partition("/")
            size = web.number(length) or 0
            if not place.startswith(f"{start}-") or not size:
                told = f"{web.address(url)}: does not serve parts of files"
                raise NotAvailableError(told, "Download the checkpoint instead.")
        self.fetched += len(data)
        return data, size


def open_headers(text: str, endpoint: str | None = None) -> Headers:
    """Read the headers of a folder, or of a repository as `owner/name@revision` where no such folder is.

    A snapshot in the Hub's cache that is whole is a folder too. Raises NotAvailableError, CheckpointError, or
    UsageError for another name.
    """
    if Path(text).exists():
        return read_headers(Path(text))
    patience = web.Patience()
    found = here_or_there(*named(text), patience, endpoint)
    return read_headers(found) if isinstance(found, Path) else headers_at(found, patience)


def headers_at(found: Listing, patience: web.Patience, tell: Tell = silent) -> Headers:
    """Read the headers and side files of a repository at a commit."""
    name = f"{found.repository}@{found.commit}"
    hub, paths = _Hub(found, patience, found.bytes), found.paths
    shards, data_bytes, headers_bytes = {}, 0, 0
    files = [path for path in paths if path.endswith(SUFFIX)]
    with without_collector():
        for number, path in enumerate(files):
            tell(Progress("reading headers", number, len(files), part=path))
            where = Path(found.repository, path)
            first, size = hub.get(path, 0, 8)
            length = header_length(where, first, size)
            headers_bytes += length
            confirm_headers(name, headers_bytes)
            header, _ = hub.get(path, 8, 8 + length) if length else (b"", size)
            if len(header) != length:
                raise CheckpointError(f"{where}: only {len(header):,} of {length:,} bytes of its header arrived")
            shards[path] = specs(where, header, size)
            data_bytes += size - 8 - length
    sides = {path: hub.get(path)[0] for path in SIDES if path in paths}
    return Headers(name, shards, data_bytes, sides, tuple(p for p in paths if p not in shards), None, hub.fetched)
