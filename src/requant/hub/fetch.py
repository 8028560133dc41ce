"""`fetch`: bring pinned files into a folder and confirm every byte of them.

A file counts as fetched only after its size and its SHA-256 were read back from the disk. A file without a
recorded digest is never fetched: a build would read bytes that nobody vouched for.
"""

import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from requant.digest import file_chunks, sha256_chunks
from requant.errors import CheckpointError, NotAvailableError, RecipeError
from requant.hub.download import Progress, download
from requant.hub.pinned import PinnedFile, Pins, path_fault

PARTS = ".requant-fetch"
"""Folder of what has arrived in part, each file under the digest that it is to have."""
REJECTED = ".rejected"
"""End of the name under which a file of other bytes is moved aside."""


def _silent(*_: object) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Survey:
    """What a folder holds of what is pinned. `wrong` says of each path what was found there instead."""

    right: tuple[str, ...]
    wrong: Mapping[str, str]
    absent: tuple[str, ...]
    unpinned: tuple[str, ...]


@dataclass(frozen=True)
class Missing:
    """What is still to be downloaded: `bytes` in all, without those in `unsized`, whose size is not pinned."""

    files: tuple[str, ...]
    bytes: int
    unsized: tuple[str, ...]
    unpinned: tuple[str, ...]


@dataclass(frozen=True)
class Fetched:
    """Every file that was confirmed, which of them were downloaded now, and those that no digest covers."""

    files: tuple[Path, ...]
    downloaded: tuple[str, ...]
    unpinned: tuple[str, ...]


def fetch(
    pins: Pins,
    folder: Path,
    *,
    wanted: Collection[str] | None = None,
    progress: Progress = _silent,
    endpoint: str | None = None,
) -> Fetched:
    """Bring the pinned files, or those `wanted`, into `folder`, going on where an earlier call was interrupted.

    A file that is there with other bytes is moved aside as `<name>.rejected`; one that arrives with other bytes
    is removed. Either raises CheckpointError. Raises RecipeError where a wanted file is not pinned, and
    NotAvailableError for the network, a refusal, or the disk. `endpoint` overrides the library's.
    """
    survey = verify_folder(pins, folder, wanted=wanted, progress=progress)
    try:
        _move_aside(folder, survey)
        folder.mkdir(parents=True, exist_ok=True)
        needed, free = missing(pins, folder, wanted=wanted).bytes, shutil.disk_usage(folder).free
        if needed > free:
            advice = "make room, or fetch into a folder on another disk"
            raise NotAvailableError(f"{folder}: {needed} bytes are still to be downloaded, {free} are free", advice)
        for path in survey.absent:
            _fetch(pins, folder, path, progress, endpoint)
        with suppress(OSError):
            (folder / PARTS).rmdir()
    except OSError as error:
        advice = "what has arrived is kept: once this is mended, fetch goes on from it"
        raise NotAvailableError(f"{folder}: {error}", advice) from error
    chosen, unpinned = _choose(pins, wanted)
    return Fetched(tuple(folder / path for path in chosen), survey.absent, unpinned)


def verify_folder(
    pins: Pins,
    folder: Path,
    *,
    wanted: Collection[str] | None = None,
    progress: Progress = _silent,
) -> Survey:
    """Read every pinned file that is in `folder` and compare size and SHA-256; touches no network.

    Raises CheckpointError for a symbolic link or anything else that is no plain file, RecipeError as `fetch`.
    """
    chosen, unpinned = _choose(pins, wanted)
    places = {path: _place(folder, path) for path in chosen}
    wrong = {}
    for path, place in places.items():
        if place.exists() and (fault := _fault(place, path, chosen[path], progress)):
            wrong[path] = fault
    absent = tuple(path for path, place in places.items() if not place.exists())
    return Survey(tuple(path for path in chosen if path not in {*wrong, *absent}), wrong, absent, unpinned)


def missing(pins: Pins, folder: Path, *, wanted: Collection[str] | None = None) -> Missing:
    """Say what is still to be downloaded, by the sizes of what is in `folder` alone: no proof of content."""
    chosen, unpinned = _choose(pins, wanted)
    files = []
    left = 0
    for path, pinned in chosen.items():
        place, part = _place(folder, path), _place(folder, f"{PARTS}/{pinned.sha256}")
        if place.exists() and pinned.bytes in (None, place.stat().st_size):
            continue
        files.append(path)
        left += max(0, (pinned.bytes or 0) - (part.stat().st_size if part.exists() else 0))
    return Missing(tuple(files), left, tuple(path for path in files if chosen[path].bytes is None), unpinned)


def _move_aside(folder: Path, survey: Survey) -> None:
    for path in survey.wrong:
        place = _place(folder, path)
        place.replace(place.with_name(f"{place.name}{REJECTED}"))
    if survey.wrong:
        found = "\n".join(f"{folder / path}: {wrong}" for path, wrong in survey.wrong.items())
        raise CheckpointError(found, "each was moved aside as <name>.rejected: look at it, then fetch again")


def _choose(pins: Pins, wanted: Collection[str] | None) -> tuple[dict[str, PinnedFile], tuple[str, ...]]:
    source = f"{pins.repository} at {pins.revision}"
    for path in wanted or ():
        if path not in pins.files:
            raise RecipeError(f"{path}: not among the {len(pins.files)} files pinned for {source}")
        if pins.files[path].sha256 is None:
            advice = "record the digest in the pins, with its provenance; no build reads a file without one"
            raise RecipeError(f"{path}: no sha256 is pinned for it in {source}", advice)
    chosen = {path: file for path, file in pins.files.items() if wanted is None or path in wanted}
    unpinned = tuple(path for path, file in chosen.items() if file.sha256 is None)
    return {path: file for path, file in chosen.items() if file.sha256 is not None}, unpinned


def _place(folder: Path, path: str) -> Path:
    if fault := path_fault(path):
        raise RecipeError(f"{path!r}: a pinned path must stay in its folder: {fault}")
    place = folder
    try:
        for part in path.split("/"):
            place /= part
            if place.is_symlink():
                advice = "requant reads and writes plain files only: copy what it points to in its place"
                raise CheckpointError(f"{place}: a symbolic link", advice)
        if place.exists() and not place.is_file():
            raise CheckpointError(f"{place}: not a plain file", f"{path} is pinned as a file: move this away")
    except OSError as error:
        raise CheckpointError(f"{place}: cannot be read: {error.strerror}") from None
    return place


def _fault(place: Path, path: str, pinned: PinnedFile, progress: Progress) -> str:
    def watched(size: int) -> Iterator[bytes]:
        done = 0
        for chunk in file_chunks(place):
            yield chunk
            done += len(chunk)
            progress(path, done, size)

    try:
        size = place.stat().st_size
        found = sha256_chunks(watched(size))
    except OSError as error:
        raise CheckpointError(f"{place}: cannot be read: {error.strerror}") from None
    if found == pinned.sha256 and pinned.bytes in (None, size):
        return ""
    expected = "" if pinned.bytes is None else f"{pinned.bytes} bytes, "
    return f"found {size} bytes, sha256 {found}; expected {expected}sha256 {pinned.sha256}"


def _fetch(pins: Pins, folder: Path, path: str, progress: Progress, endpoint: str | None) -> None:
    place, part = _place(folder, path), _place(folder, f"{PARTS}/{pins.files[path].sha256}")
    part.parent.mkdir(exist_ok=True)
    url = download(pins, path, part, progress, endpoint)
    if fault := _fault(part, path, pins.files[path], _silent):
        part.unlink()
        advice = "it was removed. Fetch again; if it comes again, the pins or the server are wrong"
        raise CheckpointError(f"{url}: {fault}", advice)
    place.parent.mkdir(parents=True, exist_ok=True)
    part.replace(place)
