"""A repository that is here already: a snapshot in the cache of huggingface_hub, where it is whole.

Layout: `models--OWNER--NAME/snapshots/COMMIT`. Whatever downloads only what it needs leaves parts of a snapshot there,
so the Hub is asked what belongs to it; offline, all that an index names must do.
"""

from pathlib import Path

from requant.checkpoint.files import INDEX, SUFFIX, is_companion, weight_map
from requant.digest import MAX_INDEX, read_whole
from requant.errors import UsageError
from requant.hub import web
from requant.hub.repository import NAME, SHA1, listing


def snapshot(repository: str, revision: str, endpoint: str | None = None) -> Path | None:
    """Return the folder of a snapshot that has every file of a checkpoint; None where there is none.

    Raises NotAvailableError where the Hub, which is asked if there is any snapshot at all, does not answer.
    """
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}")
    if not (folder / "snapshots").is_dir():
        return None
    if constants.HF_HUB_OFFLINE:
        commit = revision if SHA1.fullmatch(revision) else _ref(folder / "refs" / revision)
        place = folder / "snapshots" / commit
        return place if commit and all((place / name).is_file() for name in _named(place)) else None
    found = listing(repository, revision, web.Patience(), endpoint)
    place = folder / "snapshots" / found.commit
    here = all((place / path).is_file() for path in found.paths if not is_companion(path))
    return place if place.is_dir() and here else None


def folder_of(text: str) -> Path:
    """Return a checkpoint's folder: a whole snapshot where `owner/name@revision` is named, and no such folder is there.

    Raises UsageError where no such snapshot is here.
    """
    match = NAME.fullmatch(text)
    if Path(text).exists() or not match or not match[2]:
        return Path(text)
    if found := snapshot(match[1], match[2]):
        return found
    advice = f"requant fetch {text} --out FOLDER downloads it."
    raise UsageError(f"{text}: not here, and this reads all of it", advice)


def _ref(path: Path) -> str:
    try:
        commit = read_whole(path, 64).decode().strip()
    except (OSError, ValueError):
        return ""
    return commit if SHA1.fullmatch(commit) else ""


def _named(place: Path) -> list[str]:
    """Return what a snapshot must have as far as it says itself."""
    try:
        return ["config.json", *sorted({*weight_map(read_whole(place / INDEX, MAX_INDEX)).values()})]
    except (OSError, ValueError):
        return ["config.json", f"model{SUFFIX}"]
