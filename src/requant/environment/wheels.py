"""Wheels of a lock: fetched on the host, kept by their hashes, for images and virtual environments alike.

A wheel stands in the store as `<sha256>/<file name>`. pip finds and fetches it, from wherever pip is set to look,
and runs nothing of it; its bytes are hashed here each time it is used, and pip's own word for them is not taken.
"""

import fcntl
import re
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from requant.digest import sha256_file
from requant.environment.lock import Lock, Pin, platform_tags
from requant.errors import BuildError, LockError, NotAvailableError
from requant.programs import follow, mortal
from requant.progress import Progress, Tell, silent

BATCH = 8
"""Wheels fetched by one run of pip: starting it takes a second, and what it has fetched is kept when it ends."""

TORCH_INDEX = "https://download.pytorch.org/whl/"
"""PyTorch's own index: the builds whose version has a label, such as `+cpu`, are there only."""

PIP = (sys.executable, "-m", "pip")
_SETTINGS = ("--disable-pip-version-check", "--no-input", "--require-hashes", "--no-deps", "--only-binary", ":all:")
_BEGUN = re.compile(r"(?:Collecting|Processing) (?:\S*/)?([^/ ]+)")
_BYTES = re.compile(r"Progress (\d+) of (\d+)")


def wheels(store: Path, lock: Lock, *, without: Collection[str] = (), tell: Tell = silent) -> dict[Pin, Path]:
    """Return a confirmed file for each pin of a lock but those of the packages `without`; fetch what is not here.

    The lock may be for another machine than this one. Raises LockError for a file that has another hash than the
    lock states, NotAvailableError for one that cannot be had.
    """
    pins = [pin for pin in lock.pins if pin.name not in without]
    if not all(_kept(store, pin) for pin in pins):
        store.mkdir(parents=True, exist_ok=True)
        with (store / "lock").open("w") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)  # another process may be fetching the same ones
            for left in store.glob(".*"):  # by one that was killed
                shutil.rmtree(left)
            _fetch_all(store, lock, [pin for pin in pins if not _kept(store, pin)], tell)
    return {pin: _confirmed(store, pin, lock.file) for pin in pins}


def _fetch_all(store: Path, lock: Lock, missing: Sequence[Pin], tell: Tell) -> None:
    stage = f"wheels {lock.name}: {len(missing)} to fetch, each by its hash"
    with tempfile.TemporaryDirectory(prefix=".", dir=store) as scratch:
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            folder = Path(scratch, str(start))
            folder.mkdir()
            hear = _Heard(tell, stage, start, len(missing))
            _fetch(lock, batch, ["--dest", str(folder), *_target(lock)], hear)
            _keep(store, folder, {pin.sha256: pin for pin in batch}, lock.file)


class _Heard:
    """Turns what pip says into progress: which wheel of how many, and how much of it is here."""

    def __init__(self, tell: Tell, stage: str, before: int, total: int) -> None:
        self._tell, self._stage, self._total = tell, stage, total
        self._begun, self._name = before, ""

    def __call__(self, line: str) -> None:
        size = ""
        if match := _BEGUN.match(line):
            self._begun, self._name = self._begun + 1, match[1]
        elif match := _BYTES.match(line):
            size = f", {int(match[1]) / 1e6:.1f} of {int(match[2]) / 1e6:.1f} MB"
        else:
            return
        done = f"{self._begun} of {self._total}: {self._name}{size}"
        self._tell(Progress(self._stage, self._begun - 1, self._total, part=done))


def _fetch(lock: Lock, pins: Sequence[Pin], words: Sequence[str], hear: _Heard) -> None:
    """Let pip fetch pins; those with a label, which stand on no main index, from PyTorch's own where pip has none."""
    labelled = [pin for pin in pins if pin.name in lock.given and "+" in pin.version]
    try:
        for pin in labelled:
            try:
                _pip(words, [pin], hear)
            except BuildError as error:
                if "HASH" in str(error):
                    raise
                label = pin.version.partition("+")[2]
                _pip([*words, "--index-url", TORCH_INDEX + label, "--timeout", "15", "--retries", "1"], [pin], hear)
        _pip(words, [pin for pin in pins if pin not in labelled], hear)
    except BuildError as error:
        if "HASH" in str(error):
            raise LockError(
                f"{lock.file}: a package does not have the hash that the lock states\n{error}",
                "If you trust the package rather than the lock: nox -s lock, and say in the commit why it changed.",
            ) from None
        raise NotAvailableError(
            f"{lock.file}: its wheels cannot be had\n{error}",
            "Check the network, and what pip is told to use: pip config list.",
        ) from None


def _pip(words: Sequence[str], pins: Iterable[Pin], hear: _Heard) -> None:
    requirements = "".join(f"{pin}\n" for pin in pins)
    if not requirements:
        return
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(requirements)
        file.flush()
        command = [*mortal(), *PIP, "download", "--progress-bar", "raw", *_SETTINGS, *words, "--requirement", file.name]
        follow(command, hear)


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
