"""Wheels come by their hashes, for any platform, and no other byte is taken for one."""

import zipfile
from pathlib import Path

import pytest
from tests.conftest import ROOT, Refuses
from tests.test_running import line, locks

from requant.digest import sha256_file
from requant.environment.image import lay_out
from requant.environment.lock import Lock, Pin
from requant.environment.wheels import _Heard as Heard
from requant.environment.wheels import wheels as fetched
from requant.errors import LockError
from requant.progress import Progress, Tell, silent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def wheels(lock: Lock, without: tuple[str, ...] = (), tell: Tell = silent) -> dict[Pin, Path]:
    return fetched(lock.file.parent / "store", lock, without=without, tell=tell)


def tiny(folder: Path) -> Lock:
    return locks(folder, line("six=="), line("idna=="))


def test_fetched_once_and_confirmed(folder: Path) -> None:
    lock = tiny(folder)
    told: list[Progress] = []
    found = wheels(lock, tell=told.append)
    assert {pin.name: path.name.partition("-")[0] for pin, path in found.items()} == {"idna": "idna", "six": "six"}
    assert all(sha256_file(path) == pin.sha256 for pin, path in found.items())
    assert {(each.stage, each.total) for each in told} == {("wheels tiny: 2 to fetch, each by its hash", 2)}
    begun = [(each.done, each.part[:11]) for each in told if "MB" not in each.part]
    assert begun == [(0, "1 of 2: idn"), (1, "2 of 2: six")]
    before = [path.stat() for path in found.values()]
    assert wheels(lock) == found
    assert [path.stat().st_mtime_ns for path in found.values()] == [each.st_mtime_ns for each in before]
    assert list((folder / "store").glob(".*")) == []
    assert [pin.name for pin in wheels(lock, without=("six",))] == ["idna"]
    lay_out(found.values(), folder / "house")
    lay_out(found.values(), folder / "house")
    assert sorted(path.name for path in (folder / "house").iterdir()) == sorted(path.name for path in found.values())


def test_an_altered_wheel_is_refused_by_name(folder: Path, refuses: Refuses) -> None:
    lock = tiny(folder)
    six = next(path for pin, path in wheels(lock).items() if pin.name == "six")
    with zipfile.ZipFile(six, "a") as wheel:
        wheel.writestr("six_more.py", "")
    with refuses(LockError, vary=r"\b[0-9a-f]{64}\b"):
        wheels(lock)
    six.unlink()
    assert wheels(lock)


def test_another_file_than_the_lock_states(folder: Path) -> None:
    flipped = line("six==")[:-1] + ("0" if line("six==")[-1] != "0" else "1")
    with pytest.raises(LockError, match="six"):
        wheels(locks(folder, flipped))


def test_another_machines_wheels(folder: Path) -> None:
    """What gb10 asks for, on whatever machine this is."""
    text = (ROOT / "lockfiles" / "gb10.txt").read_text().splitlines()
    pin = next(each for each in text if each.startswith("markupsafe=="))
    lock = locks(folder, pin, python="3.12", platform="aarch64-manylinux_2_36")
    ((_, path),) = wheels(lock).items()
    assert "cp312" in path.name
    assert "aarch64" in path.name


def test_what_pip_says_is_progress() -> None:
    """Lines of pip 26.3: from an index, and from a folder."""
    told: list[Progress] = []
    hear = Heard(told.append, "stage", 8, 62)
    for said in (
        "Looking in links: /opt/wheels",
        "Collecting idna==3.13 (from -r /tmp/x.txt (line 1))",
        "  Downloading idna-3.13-py3-none-any.whl (68 kB)",
        "Progress 1234567 of 190000000",
        "Processing /opt/files/six-1.17.0-py2.py3-none-any.whl (from -r /tmp/x.txt (line 2))",
        "Saved ./d/six-1.17.0-py2.py3-none-any.whl",
    ):
        hear(said)
    assert told == [
        Progress("stage", 8, 62, part="9 of 62: idna==3.13"),
        Progress("stage", 8, 62, part="9 of 62: idna==3.13, 1.2 of 190.0 MB"),
        Progress("stage", 9, 62, part="10 of 62: six-1.17.0-py2.py3-none-any.whl"),
    ]


def test_what_a_killed_process_left_is_removed(folder: Path) -> None:
    lock = tiny(folder)
    (folder / "store" / ".left" / "0").mkdir(parents=True)
    wheels(lock)
    assert list((folder / "store").glob(".*")) == []
