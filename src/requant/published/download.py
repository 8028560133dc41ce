"""A published checkpoint brought here with its proofs: each file by the SHA-256 that its manifest records.

What no manifest records, a card and `.gitattributes`, comes as the Hub states it. It goes on from what an earlier call
got, and nothing that is whole comes twice.
"""

from pathlib import Path

from requant.checkpoint.files import folded_case, is_companion
from requant.errors import CheckpointError
from requant.hub.fetch import Fetched, fetch
from requant.hub.pinned import PinnedFile, Pins
from requant.hub.stated import stated_pins
from requant.progress import Progress, Tell, silent
from requant.published.found import Found


def download(found: Found, folder: Path, *, endpoint: str | None = None, tell: Tell = silent) -> Fetched:
    """Bring a checkpoint into `folder`; raise CheckpointError where there are no proofs, else what `fetch` raises."""
    if found.proofs is None:
        raise CheckpointError(f"{found.name}: has no proofs", "Nothing says what its bytes are to be.")
    recorded = found.proofs.manifest.files
    beside = [path for path in found.listing.paths if path not in recorded and is_companion(path)]
    beside = [path for path in beside if path not in found.left_out]
    if clash := _clash([*recorded, *beside]):
        raise CheckpointError(f"{found.name}: {clash}: some file systems take these for one name")
    pins = stated_pins(found.listing, beside, found.patience, had=found.held, tell=tell)
    files = {path: PinnedFile(each.bytes, each.sha256) for path, each in recorded.items()} | dict(pins.files)
    wanted = Pins(pins.kind, pins.repository, pins.revision, pins.provenance, files)

    def told(path: str, done: int, total: int) -> None:
        tell(Progress("fetch", done, total, part=path))

    return fetch(wanted, folder, progress=told, endpoint=endpoint)


def _clash(paths: list[str]) -> str:
    seen: dict[str, str] = {}
    for path in paths:
        other = seen.setdefault(folded_case(path), path)
        if other != path:
            return f"{other}, {path}"
    return ""
