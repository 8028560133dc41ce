"""Wheels of a lock, fetched on the host and kept by their hashes: what an image is made of, without network.

A wheel stands in the cache as `wheels/<sha256>/<file name>`. Its bytes are hashed each time it is used, here, and
once more where it is installed: pip's own word for what it fetched is not taken.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

from requant.digest import sha256_file
from requant.environment import Lock, Pin, platform_tags
from requant.errors import LockError
from requant.installation import cache, make_environment, pip
from requant.progress import Progress, Tell, silent

BATCH = 8
"""Wheels fetched by one run of pip: starting it takes a second, and only its end tells how far it is."""


def wheels(lock_file: Path, lock: Lock, *, without: Collection[str] = (), tell: Tell = silent) -> dict[Pin, Path]:
    """Return a confirmed file for each pin of a lock but those of the packages `without`; fetch what is not here.

    The lock may be for another machine than this one. Raises LockError for a file that has another hash than the
    lock states, NotAvailableError for one that cannot be had.
    """
    store = cache() / "wheels"
    store.mkdir(parents=True, exist_ok=True)
    pins = [pin for pin in lock.pins if pin.name not in without]
    missing = [pin for pin in pins if not _kept(store, pin)]
    stage = f"wheels {lock.name}"
    with tempfile.TemporaryDirectory(prefix=".", dir=store) as name:
        scratch = Path(name)
        if missing:
            here = f"{sys.version_info.major}.{sys.version_info.minor}"
            python = make_environment(scratch / "pip", here)
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            tell(Progress(stage, len(pins) - len(missing) + start, len(pins), ", ".join(pin.name for pin in batch)))
            folder = scratch / str(start)
            pip(python, ["download", "--dest", str(folder), *_target(lock)], lock_file, lock, batch)
            _keep(store, folder, {pin.sha256: pin for pin in batch}, lock_file)
    found = {}
    for done, pin in enumerate(pins):
        tell(Progress(stage, done, len(pins)))
        found[pin] = _confirmed(store, pin, lock_file)
    return found


def lay_out(files: Mapping[Pin, Path], folder: Path) -> None:
    """Put wheels into one folder, as links where its file system allows it."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files.values():
        try:
            os.link(file, folder / file.name)
        except FileExistsError:
            continue  # two locks may hold the same wheel
        except OSError:
            shutil.copyfile(file, folder / file.name)


def _kept(store: Path, pin: Pin) -> list[Path]:
    return sorted(store.glob(f"{pin.sha256}/*.whl"))


def _confirmed(store: Path, pin: Pin, lock_file: Path) -> Path:
    file = _kept(store, pin)[0]
    found = sha256_file(file)
    if found != pin.sha256:
        raise LockError(
            f"{file}: altered: its SHA-256 is {found}, and {lock_file} states {pin.sha256} for {pin.name}",
            "Remove it, and it is fetched anew.",
        )
    return file


def _keep(store: Path, folder: Path, expected: Mapping[str, Pin], lock_file: Path) -> None:
    for file in sorted(folder.iterdir()):
        found = sha256_file(file)
        if found not in expected:
            raise LockError(f"{file.name}: its SHA-256 is {found}, which {lock_file} does not state")
        (store / found).mkdir(exist_ok=True)
        file.replace(store / found / file.name)
    if absent := [pin for pin in expected.values() if not _kept(store, pin)]:
        raise LockError(f"{lock_file}: pip fetched no file for {absent[0]}")


def _target(lock: Lock) -> list[str]:
    words = ["--python-version", lock.python, "--implementation", "cp", "--abi", f"cp{lock.python.replace('.', '')}"]
    for tag in platform_tags(lock.platform):
        words += ["--platform", tag]
    return words
