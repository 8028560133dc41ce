"""Locks are what their `.in` resolves to, for the target and not for this machine."""

import importlib.util
import json
import os
import re
import shutil
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
from tests.conftest import Refuses

from requant.environment import resolve as lock
from requant.environment.lock import Pin, parse_intent, read_intent, read_lock
from requant.environment.resolve import check_locks, choose_wheels, resolve, write_locks
from requant.errors import LockError, NotAvailableError, RequantError

LOCKFILES = Path(__file__).parents[1] / "lockfiles"
NAMES = sorted(file.stem for file in LOCKFILES.glob("*.in"))
SMALL = "build-auto-round"

TARGET = """\
# python = 3.11
# platform = {}
# cutoff = 2026-04-24T00:00:00Z
"""


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """uv and a package index that it reaches."""
    if importlib.util.find_spec("uv") is None:
        pytest.skip("uv is not installed (the extra `lock`)")
    folder = tmp_path_factory.mktemp("index")
    (folder / "probe.in").write_text(TARGET.format("x86_64-manylinux_2_36") + "wheel==0.45.1\n")
    try:
        resolve(folder, "probe")
    except RequantError as error:
        # What uv says without a network; any other failure is ours.
        if not re.search("Failed to fetch|network (was|is) disabled", str(error)):
            raise
        pytest.skip(f"the package index cannot be reached: {str(error)[-300:]}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for suffix in ("in", "txt"):
        shutil.copy(LOCKFILES / f"{SMALL}.{suffix}", tmp_path)
    return tmp_path


def pylock(wheels: Iterable[str]) -> str:
    files = [
        {"url": f"https://example.org/a%2Bb/{name.replace('+', '%2B')}", "hashes": {"sha256": f"{number:064x}"}}
        for number, name in enumerate(wheels)
    ]
    listed = ", ".join(
        f"{{ url = {json.dumps(file['url'])}, hashes = {{ sha256 = {json.dumps(file['hashes']['sha256'])} }} }}"  # type: ignore[index]
        for file in files
    )
    return f'lock-version = "1.0"\n[[packages]]\nname = "part"\nversion = "1.0+x"\nwheels = [{listed}]\n'


def chosen(platform: str, *wheels: str) -> str:
    (pin,) = choose_wheels(parse_intent(Path("some.in"), TARGET.format(platform).encode()), pylock(wheels))
    assert (pin.name, pin.version) == ("part", "1.0+x")
    return wheels[int(pin.sha256, 16)]


UNFIT = (
    "part-1.0+x-cp312-cp312-manylinux_2_28_x86_64.whl",
    "part-1.0+x-cp311-cp311-manylinux_2_39_x86_64.whl",
    "part-1.0+x-cp311-cp311-musllinux_1_2_x86_64.whl",
    "part-1.0+x-cp311-cp311-macosx_11_0_arm64.whl",
    "part-1.0+x-cp311-cp311-win_amd64.whl",
    "part-1.0+x-cp313-cp313t-manylinux_2_28_x86_64.whl",
    "part-1.0+x-cp312-abi3-manylinux_2_28_x86_64.whl",
    "part-1.0+x-pp311-pypy311_pp73-manylinux_2_28_x86_64.whl",
)
BEST_FIRST = (
    "part-1.0+x-2-cp311-cp311-manylinux_2_34_x86_64.whl",
    "part-1.0+x-1-cp311-cp311-manylinux_2_34_x86_64.whl",
    "part-1.0+x-cp311-cp311-manylinux_2_34_x86_64.whl",
    "part-1.0+x-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
    "part-1.0+x-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
    "part-1.0+x-cp311-cp311-manylinux1_x86_64.manylinux_2_5_x86_64.whl",
    "part-1.0+x-cp311-abi3-manylinux_2_34_x86_64.whl",
    "part-1.0+x-cp38-abi3-manylinux_2_17_x86_64.whl",
    "part-1.0+x-py3-none-manylinux_2_17_x86_64.whl",
    "part-1.0+x-py3-none-any.whl",
    "part-1.0+x-py2.py3-none-any.whl",
)


@pytest.mark.parametrize("best", range(len(BEST_FIRST) - 1))
def test_the_wheel_is_the_best_for_the_target(best: int) -> None:
    listed = (*UNFIT, *reversed(BEST_FIRST[best:]))
    if BEST_FIRST[best] == "part-1.0+x-py3-none-any.whl":
        listed = (*UNFIT, BEST_FIRST[best])
    assert chosen("x86_64-manylinux_2_36", *listed) == BEST_FIRST[best]
    assert chosen("x86_64-manylinux_2_36", *reversed(listed)) == BEST_FIRST[best]


def test_no_wheel_for_the_target(refuses: Refuses) -> None:
    with refuses(LockError):
        chosen("aarch64-manylinux_2_36", *UNFIT, *BEST_FIRST[:-2])


def test_aarch64_has_no_old_names() -> None:
    wheels = (
        "part-1.0+x-cp311-cp311-manylinux1_aarch64.whl",
        "part-1.0+x-cp311-cp311-manylinux2014_aarch64.whl",
    )
    assert chosen("aarch64-manylinux_2_36", *wheels) == wheels[1]


def test_pip_ranks_the_same_way() -> None:
    """On this very interpreter and C library, the order of tags is the one that packaging gives to pip."""
    packaging = pytest.importorskip("packaging.tags")
    own = [str(tag) for tag in packaging.sys_tags() if not tag.platform.startswith("linux")]
    platform = re.search(r"manylinux_2_(\d+)_(x86_64|aarch64)", own[0])
    if platform is None or sys.implementation.name != "cpython":
        pytest.skip("this machine's own tags are not those of a target: another C library or Python")
    target = TARGET.replace("3.11", f"3.{sys.version_info.minor}").format(f"{platform[2]}-manylinux_2_{platform[1]}")
    ranks = lock._ranks(parse_intent(Path("some.in"), target.encode()))
    assert [str(tag) for tag in sorted(ranks, key=ranks.__getitem__)] == own


@pytest.mark.parametrize("absent", ["uv", "packaging"])
def test_uv_is_needed(absent: str, folder: Path, monkeypatch: pytest.MonkeyPatch, refuses: Refuses) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == absent else found(name))
    with refuses(NotAvailableError) as refused:
        resolve(folder, SMALL)
    named = refused.value.advice
    assert "pipx install --force '.[lock]'" in named
    extra = tomllib.loads((LOCKFILES.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]["lock"]
    assert {re.split("[<>=]", each)[0] for each in extra} == {"packaging", "uv"}


@pytest.mark.parametrize("name", NAMES)
def test_ours_are_what_they_would_be(name: str, index: None) -> None:
    assert check_locks(LOCKFILES, [name]) == []


def test_what_is_given_is_never_looked_up(index: None, tmp_path: Path) -> None:
    """No index has this torch; accelerate requires one, and the lock holds the given one."""
    given = Pin("torch", "99.0+nowhere", 64 * "e")
    target = TARGET.format("x86_64-manylinux_2_36")
    (tmp_path / "some.in").write_text(f"{target}{given}\naccelerate==1.13.0\n")
    write_locks(tmp_path, ["some"])
    pins = read_lock(tmp_path, "some").pins
    assert given in pins
    assert {"accelerate", "numpy", "torch"} <= {pin.name for pin in pins}
    assert not [pin for pin in pins if pin.name.startswith("nvidia")]


def test_settings_of_this_machine_change_nothing(index: None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_EXCLUDE_NEWER", "2020-01-01T00:00:00Z")
    monkeypatch.setenv("UV_PRERELEASE", "allow")
    monkeypatch.setenv("UV_CONSTRAINT", os.devnull + "/nothing")
    (folder / "uv.toml").write_text('exclude-newer = "2020-01-01T00:00:00Z"\n')
    monkeypatch.chdir(folder)
    assert check_locks(folder, [SMALL]) == []


def test_an_edited_intent_disagrees(index: None, folder: Path, refuses: Refuses) -> None:
    asked = folder / f"{SMALL}.in"
    asked.write_text(asked.read_text().replace("packaging==25.0", "packaging==24.2"))
    with refuses(LockError):
        read_lock(folder, SMALL)
    differences = check_locks(folder, [SMALL])
    assert [line.partition(" --hash")[0] for line in differences if "packaging" in line] == [
        "-packaging==25.0",
        "+packaging==24.2",
    ]
    write_locks(folder, [SMALL])
    assert check_locks(folder, [SMALL]) == []
    assert read_lock(folder, SMALL).pins[0].version == "24.2"


def test_an_edited_or_absent_lock_disagrees(index: None, folder: Path) -> None:
    file = folder / f"{SMALL}.txt"
    recorded = file.read_bytes()
    for edited in (recorded[:-1], recorded.replace(b"\n", b"\r\n"), recorded[:-2] + b"?\n", b"\xff", b""):
        file.write_bytes(edited)
        assert check_locks(folder, [SMALL])
    file.unlink()
    expected = [f"+{line}" for line in recorded.decode().splitlines()]
    assert set(expected) <= set(check_locks(folder, [SMALL]))


def test_what_cannot_be_resolved(index: None, folder: Path) -> None:
    before = (folder / f"{SMALL}.txt").read_bytes()
    (folder / "never.in").write_text(TARGET.format("x86_64-manylinux_2_36") + "packaging==0.0.0.1\n")
    with pytest.raises(LockError, match=r"never\.in: "):
        write_locks(folder, [SMALL, "never"])
    assert (folder / f"{SMALL}.txt").read_bytes() == before
    assert not (folder / "never.txt").exists()


def test_the_card_is_obeyed() -> None:
    """The versions that the published checkpoint's card states, and the commit that it names."""
    pins = {pin.name: pin.version for pin in read_lock(LOCKFILES, "cu124").pins}
    stated = {"torch": "2.6.0", "transformers": "5.5.1", "safetensors": "0.7.0", "huggingface-hub": "1.11.0"}
    assert stated.items() <= pins.items()
    commit = dict(read_intent(LOCKFILES, "cu124").sources)["auto-round.commit"]
    assert pins["auto-round"] == f"0.13.0+g{commit[:12]}"
