"""Wheels come by their hashes, for any platform, and no other byte is taken for one."""

import zipfile
from pathlib import Path

import pytest
from tests.conftest import ROOT
from tests.test_runner import line, locks

from requant.digest import sha256_file
from requant.environment import Lock
from requant.errors import LockError
from requant.images.wheelhouse import lay_out, wheels
from requant.progress import Progress


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def tiny(folder: Path) -> tuple[Path, Lock]:
    return folder / "tiny.txt", locks(folder, line("six=="), line("idna=="))


def test_fetched_once_and_confirmed(folder: Path) -> None:
    file, lock = tiny(folder)
    told: list[Progress] = []
    found = wheels(file, lock, tell=told.append)
    assert {pin.name: path.name.partition("-")[0] for pin, path in found.items()} == {"idna": "idna", "six": "six"}
    assert all(sha256_file(path) == pin.sha256 for pin, path in found.items())
    assert told[0] == Progress("wheels tiny", 0, 2, "idna, six")
    before = [path.stat() for path in found.values()]
    assert wheels(file, lock) == found
    assert [path.stat().st_mtime_ns for path in found.values()] == [each.st_mtime_ns for each in before]
    assert list((folder / "cache" / "requant" / "wheels").glob(".*")) == []
    assert [pin.name for pin in wheels(file, lock, without=("six",))] == ["idna"]
    lay_out(found, folder / "house")
    lay_out(found, folder / "house")
    assert sorted(path.name for path in (folder / "house").iterdir()) == sorted(path.name for path in found.values())


def test_an_altered_wheel_is_refused_by_name(folder: Path) -> None:
    file, lock = tiny(folder)
    six = next(path for pin, path in wheels(file, lock).items() if pin.name == "six")
    with zipfile.ZipFile(six, "a") as wheel:
        wheel.writestr("six_more.py", "")
    with pytest.raises(LockError, match=r"six-.*\.whl: altered: .* for six") as refused:
        wheels(file, lock)
    assert "fetched anew" in refused.value.advice
    six.unlink()
    assert wheels(file, lock)


def test_another_file_than_the_lock_states(folder: Path) -> None:
    flipped = line("six==")[:-1] + ("0" if line("six==")[-1] != "0" else "1")
    with pytest.raises(LockError, match="does not have the hash that the lock states"):
        wheels(folder / "tiny.txt", locks(folder, flipped))


def test_another_machines_wheels(folder: Path) -> None:
    """What gb10 asks for, on whatever machine this is."""
    text = (ROOT / "lockfiles" / "gb10.txt").read_text().splitlines()
    pin = next(each for each in text if each.startswith("markupsafe=="))
    lock = locks(folder, pin, python="3.12", platform="aarch64-manylinux_2_36")
    ((_, path),) = wheels(folder / "tiny.txt", lock).items()
    assert "cp312" in path.name
    assert "aarch64" in path.name
