"""The room's surroundings: installed by hash, cut off from the network, ended with its host."""

import sys
from pathlib import Path

import pytest
from tests.conftest import ROOT

from requant import runner
from requant.environment import Lock, read_lock
from requant.errors import BuildError, LockError, NotAvailableError

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def locks(tmp_path: Path, *lines: str, python: str = HERE, platform: str = "x86_64-manylinux_2_36") -> Lock:
    """A lock of these pins for this Python, resolved from an `.in` that gives them all."""
    head = f"# python = {python}\n# platform = {platform}\n# cutoff = 2026-04-24T00:00:00Z\n"
    (tmp_path / "tiny.in").write_text(head + "".join(f"{line}\n" for line in lines))
    from requant.environment import format_lock, read_intent

    intent = read_intent(tmp_path, "tiny")
    (tmp_path / "tiny.txt").write_text(format_lock(intent, intent.given))
    return read_lock(tmp_path, "tiny")


def line(name: str) -> str:
    """The line of a package in the twin's lock."""
    return next(each for each in (ROOT / "lockfiles" / "cpu.txt").read_text().splitlines() if each.startswith(name))


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_an_environment_is_made_once_and_again_when_it_was_cut_off(empty_cache: Path) -> None:
    lock = locks(empty_cache, line("six=="))
    stages: list[str] = []
    python = runner.virtual_environment(empty_cache / "tiny.txt", lock, stages.append)
    assert runner.run([str(python), "-c", "import six; print(six.__version__)"]).strip() == "1.17.0"
    assert len(stages) == 2
    assert runner.virtual_environment(empty_cache / "tiny.txt", lock, stages.append) == python
    assert len(stages) == 2
    (python.parent.parent / runner.READY).unlink()
    runner.virtual_environment(empty_cache / "tiny.txt", lock, stages.append)
    assert len(stages) == 4


def test_one_flipped_hash_stops_the_install(empty_cache: Path) -> None:
    good = line("six==")
    flipped = good[:-1] + ("0" if good[-1] != "0" else "1")
    lock = locks(empty_cache, flipped)
    with pytest.raises(LockError, match="does not have the hash that the lock states") as error:
        runner.virtual_environment(empty_cache / "tiny.txt", lock)
    assert "six" in str(error.value)
    assert error.value.exit_status == 5
    assert not (runner.cache() / "environments" / lock.digest / runner.READY).exists()


def test_a_lock_that_lacks_a_requirement_is_found(empty_cache: Path) -> None:
    """`python-dateutil` needs six, which this lock does not hold: `pip check` says so."""
    with pytest.raises(NotAvailableError, match="six"):
        runner.virtual_environment(empty_cache / "tiny.txt", locks(empty_cache, line("python-dateutil==")))


def test_another_platform_or_python_is_refused(empty_cache: Path) -> None:
    with pytest.raises(NotAvailableError, match="is for aarch64"):
        lock = locks(empty_cache, line("six=="), platform="aarch64-manylinux_2_36")
        runner.virtual_environment(empty_cache / "tiny.txt", lock)
    with pytest.raises(NotAvailableError, match=r"Python 3\.99"):
        runner.virtual_environment(empty_cache / "tiny.txt", locks(empty_cache, line("six=="), python="3.99"))


def test_no_network_in_the_room() -> None:
    prefix = runner.isolation()
    if not prefix:
        pytest.skip("this kernel grants no network namespace; builds here carry a taint that says so")
    script = "import socket; print([name for _, name in socket.if_nameindex()])"
    assert runner.run([*prefix, sys.executable, "-c", script]).strip() in ("['lo']", "[]")
    with pytest.raises(BuildError, match="unreachable"):
        runner.run([*prefix, sys.executable, "-c", "import socket; socket.create_connection(('127.0.0.1', 9))"])


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(NotAvailableError, match="no such program"):
        runner.run(["requant-has-no-such-program"])


def test_the_room_sees_few_environment_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AutoRound reads dozens of `AR_*` variables, torch and the Hub's library as many."""
    monkeypatch.setenv("AR_SEARCH_SCALE_RATIO", "0.5")
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    package = tmp_path / "sources" / "requant" / "quantizer"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("import os; print(sorted(os.environ))")
    runner.run_room(Path(sys.executable), tmp_path, [], lambda: None)
    seen = (tmp_path / "log").read_text()
    assert "AR_SEARCH_SCALE_RATIO" not in seen
    assert "HF_HUB_OFFLINE" in seen


def test_a_room_that_fails_leaves_its_last_words(tmp_path: Path) -> None:
    package = tmp_path / "sources" / "requant" / "quantizer"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("raise SystemExit('out of luck')")
    with pytest.raises(BuildError, match=r"ended with status 1; the last it said:\nout of luck"):
        runner.run_room(Path(sys.executable), tmp_path, [], lambda: None)
