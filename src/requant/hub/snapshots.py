"""A repository that is here already: a snapshot in the cache of huggingface_hub, where it is whole.

Layout: `models--OWNER--NAME/snapshots/COMMIT`. Whatever downloads only what it needs leaves parts of a snapshot there,
so the Hub is asked what belongs to it; offline, all that an index names must do.
"""

from pathlib import Path

from requant.checkpoint.files import INDEX, SUFFIX, is_companion, weight_map
from requant.digest import MAX_INDEX, read_whole
from requant.errors import UsageError
from requant.hub import web
from requant.hub.repository import NAME, SHA1, Listing, listing


def snapshot(repository: str, revision: str) -> Path | None:
    """Return the folder of a snapshot that has every file of a checkpoint; None where there is none.

    Raises NotAvailableError where the Hub, which is asked if there is any snapshot at all, does not answer.
    """
    from huggingface_hub import constants

    if not (_cached(repository) / "snapshots").is_dir():
        return None
    if constants.HF_HUB_OFFLINE:
        return _offline(repository, revision)
    found = here_or_there(repository, revision, web.Patience())
    return found if isinstance(found, Path) else None


def here_or_there(
    repository: str, revision: str, patience: web.Patience, endpoint: str | None = None
) -> Path | Listing:
    """Return the folder of a whole snapshot, or else what the Hub lists of the repository, which is asked once.

    Raises NotAvailableError where it does not answer.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE and (place := _offline(repository, revision)):
        return place
    found = listing(repository, revision, patience, endpoint)
    place = _cached(repository) / "snapshots" / found.commit
    here = place.is_dir() and all((place / path).is_file() for path in found.paths if not is_companion(path))
    return place if here else found


def _cached(repository: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}")


def _offline(repository: str, revision: str) -> Path | None:
    folder = _cached(repository)
    commit = revision if SHA1.fullmatch(revision) else _ref(folder / "refs" / revision)
    place = folder / "snapshots" / commit
    return place if commit and all((place / name).is_file() for name in _named(place)) else None


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
