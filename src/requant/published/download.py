"""A published checkpoint brought here with its proofs: each file by the SHA-256 that its manifest records.

What no manifest records, a card and `.gitattributes`, comes as the Hub states it. It goes on from what an earlier call
got, and nothing that is whole comes twice.
"""

from pathlib import Path

from requant.checkpoint.files import folded_case, is_companion, list_files
from requant.errors import CheckpointError, UsageError
from requant.hub.fetch import PARTS, REJECTED, Fetched, fetch
from requant.hub.pinned import PinnedFile, Pins
from requant.hub.stated import stated_pins
from requant.progress import Progress, Tell, silent
from requant.published.found import Found, is_list

OURS = (".cache/", f"{PARTS}/")
"""What downloads leave beside a checkpoint, on this side."""


def download(found: Found, folder: Path, *, endpoint: str | None = None, tell: Tell = silent) -> Fetched:
    """Bring a checkpoint into `folder`.

    Raises CheckpointError where there are no proofs, or a file is recorded that no checkpoint has, UsageError where
    other files stand in the folder, which would make of it another checkpoint, and what `fetch` raises.
    """
    if found.proofs is None:
        raise CheckpointError(f"{found.name}: has no proofs", "Nothing says what its bytes are to be.")
    recorded = found.proofs.manifest.files
    if taken := [path for path in recorded if _is_not_theirs(path)]:
        raise CheckpointError(f"{found.name}: {taken[0]}: recorded, and never a file of a checkpoint")
    beside = [path for path in found.listing.paths if path not in recorded and is_companion(path)]
    beside = [path for path in beside if not (_is_not_theirs(path) or _is_astray(path, found))]
    if clash := _clash([*recorded, *beside]):
        raise CheckpointError(f"{found.name}: {clash}: some file systems take these for one name")
    pins = stated_pins(found.listing, beside, found.patience, had=found.held, tell=tell)
    files = {path: PinnedFile(each.bytes, each.sha256) for path, each in recorded.items()} | dict(pins.files)
    wanted = Pins(pins.kind, pins.repository, pins.revision, pins.provenance, files)

    there = list_files(folder) if folder.is_dir() else {}
    if astray := [path for path in there if path not in files and not path.endswith(REJECTED)]:
        told_of = f"{folder}: has {astray[0]}, which is no file of {found.name}"
        raise UsageError(told_of, "Name another folder with --out, or move it away.")

    def told(path: str, done: int, total: int) -> None:
        tell(Progress("fetch", done, total, part=path))

    return fetch(wanted, folder, progress=told, endpoint=endpoint)


def _is_not_theirs(path: str) -> bool:
    """Say whether a file would speak for its reader: git's own, which can name programs, or a list of builders."""
    parts = folded_case(path).split("/")
    return ".git" in parts or is_list(path) or folded_case(path).startswith(OURS)


def _is_astray(path: str, found: Found) -> bool:
    """Say whether a file was passed over, or lies in a folder that was."""
    return any(path == each or path.startswith(f"{each}/") for each in found.astray)


def _clash(paths: list[str]) -> str:
    seen: dict[str, str] = {}
    for path in paths:
        other = seen.setdefault(folded_case(path), path)
        if other != path:
            return f"{other}, {path}"
    return ""
