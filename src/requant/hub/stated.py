"""Pins of a repository by what the hub states of its files; no weight is fetched for them.

Of a file that is stored as LFS a hub states size and SHA-256, which `fetch` confirms. Of any other it states the name
that git gives it, a SHA-1 over its length and its bytes: such a file is small, so it is fetched, held against that
name, and its SHA-256 is taken here.
"""

import hashlib
from collections.abc import Collection, Mapping

from requant.digest import sha256, side_limit
from requant.errors import CheckpointError
from requant.hub import web
from requant.hub.pinned import PinnedFile, Pins
from requant.hub.repository import Listing, Stated
from requant.progress import Progress, Tell, silent

MAX_FETCHED = 1 << 28
"""Bytes of all files that are fetched for their SHA-256: Qwen3.6-35B-A3B has 23 MB beside its weights, LFS included."""


def stated_pins(
    found: Listing,
    wanted: Collection[str],
    patience: web.Patience,
    *,
    had: Mapping[str, bytes],
    tell: Tell = silent,
) -> Pins:
    """Return pins of those files of a listing that are `wanted`; `had` are the bytes of some that came already.

    Raises CheckpointError where bytes are not what the hub states, or a file that is not stored as LFS is larger than
    any that is read whole; NotAvailableError as `web.whole`.
    """
    small = sum(found.stated[path].bytes for path in wanted if found.stated[path].sha256 is None)
    if small > MAX_FETCHED:
        told = f"{small:,} bytes of files that are not stored as LFS, expected {MAX_FETCHED:,} at most"
        raise CheckpointError(f"{found.repository}@{found.commit}: {told}")
    files = {}
    for number, path in enumerate(sorted(wanted)):
        tell(Progress("pinning", number, len(wanted), part=path))
        said, url = found.stated[path], found.address(path)
        digest = said.sha256
        if path in had or digest is None:
            data = had[path] if path in had else web.whole(url, "", patience, side_limit(path))[1]
            confirm_stated(url, said, data)
            digest = sha256(data)
        files[path] = PinnedFile(said.bytes, digest)
    who = web.address(found.endpoint)
    provenance = (
        f"{who} stated size and SHA-256 of files that it stores as LFS; requant new fetched the others, held each "
        "against the name that git gives it at this commit, and took its SHA-256."
    )
    return Pins("model", found.repository, found.commit, provenance, files)


def confirm_stated(url: str, said: Stated, data: bytes) -> None:
    """Raise CheckpointError where bytes that came are not those that the hub states."""
    if said.sha256 is None:
        kind, expected = "git blob", said.git
        came = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    else:
        kind, expected, came = "sha256", said.sha256, sha256(data)
    if (len(data), came) != (said.bytes, expected):
        raise CheckpointError(
            f"{web.address(url)}: found {len(data):,} bytes, {kind} {came}; "
            f"the hub states {said.bytes:,} bytes, {kind} {expected}",
            "The server contradicts itself: look at HF_ENDPOINT and at proxies, and run it again.",
        )
