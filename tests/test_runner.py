"""The room's surroundings: installed by hash, cut off from the network, ended with its host."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.conftest import ROOT
from tests.processes import LIMIT

from requant import installation
from requant.environment import Lock, read_lock
from requant.errors import BuildError, LockError, NotAvailableError
from requant.programs import run
from requant.rooms import runner

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
    python = installation.virtual_environment(empty_cache / "tiny.txt", lock, stages.append)
    assert run([str(python), "-c", "import six; print(six.__version__)"]).strip() == "1.17.0"
    assert len(stages) == 2
    assert installation.virtual_environment(empty_cache / "tiny.txt", lock, stages.append) == python
    assert len(stages) == 2
    (python.parent.parent / installation.READY).unlink()
    installation.virtual_environment(empty_cache / "tiny.txt", lock, stages.append)
    assert len(stages) == 4


def test_one_flipped_hash_stops_the_install(empty_cache: Path) -> None:
    good = line("six==")
    flipped = good[:-1] + ("0" if good[-1] != "0" else "1")
    lock = locks(empty_cache, flipped)
    with pytest.raises(LockError, match="does not have the hash that the lock states") as error:
        installation.virtual_environment(empty_cache / "tiny.txt", lock)
    assert "six" in str(error.value)
    assert error.value.exit_status == 5
    assert not (installation.cache() / "environments" / lock.digest / installation.READY).exists()


def test_a_lock_that_lacks_a_requirement_is_found(empty_cache: Path) -> None:
    """`python-dateutil` needs six, which this lock does not hold: `pip check` says so."""
    with pytest.raises(NotAvailableError, match="six"):
        installation.virtual_environment(empty_cache / "tiny.txt", locks(empty_cache, line("python-dateutil==")))


def test_another_platform_or_python_is_refused(empty_cache: Path) -> None:
    with pytest.raises(NotAvailableError, match="is for aarch64"):
        lock = locks(empty_cache, line("six=="), platform="aarch64-manylinux_2_36")
        installation.virtual_environment(empty_cache / "tiny.txt", lock)
    with pytest.raises(NotAvailableError, match=r"Python 3\.99"):
        installation.virtual_environment(empty_cache / "tiny.txt", locks(empty_cache, line("six=="), python="3.99"))


def test_no_network_in_the_room() -> None:
    prefix = runner.isolation()
    if not prefix:
        pytest.skip("this kernel grants no network namespace; builds here carry a taint that says so")
    script = "import socket; print([name for _, name in socket.if_nameindex()])"
    assert run([*prefix, sys.executable, "-c", script]).strip() in ("['lo']", "[]")
    with pytest.raises(BuildError, match="unreachable"):
        run([*prefix, sys.executable, "-c", "import socket; socket.create_connection(('127.0.0.1', 9))"])


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(NotAvailableError, match="no such program"):
        run(["requant-has-no-such-program"])


@pytest.fixture
def furnish(tmp_path: Path) -> Callable[[str], Path]:
    """Make a folder whose room is a program of one's own."""

    def furnish(program: str, name: str = "folder") -> Path:
        package = tmp_path / name / "sources" / "requant" / "quantizer"
        package.mkdir(parents=True)
        (package.parent / "__init__.py").touch()
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(f"import os, sys, time\nfrom pathlib import Path\n{program}")
        return tmp_path / name

    return furnish


HERE_ROOM = runner.VirtualEnvironment(Path(sys.executable), ())


def test_the_room_sees_few_environment_variables(
    furnish: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """AutoRound reads dozens of `AR_*` variables, torch and the Hub's library as many."""
    monkeypatch.setenv("AR_SEARCH_SCALE_RATIO", "0.5")
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    folder = furnish("print(sorted(os.environ))")
    runner.run_room(HERE_ROOM, folder, (), lambda: None)
    seen = (folder / "log").read_text()
    assert "AR_SEARCH_SCALE_RATIO" not in seen
    assert "HF_HUB_OFFLINE" in seen


def test_a_room_that_fails_leaves_its_last_words(furnish: Callable[[str], Path]) -> None:
    folder = furnish("raise SystemExit('out of luck')")
    with pytest.raises(BuildError, match=r"ended with status 1; the last it said:\nout of luck"):
        runner.run_room(HERE_ROOM, folder, (), lambda: None)


def test_what_an_earlier_room_left_is_not_this_ones(furnish: Callable[[str], Path]) -> None:
    folder = furnish("Path(os.environ['HOME'], 'kept').touch(exist_ok=False)")
    (folder / "error.json").write_text('{"message": "of an earlier room"}')
    for _ in range(2):
        runner.run_room(HERE_ROOM, folder, (), lambda: None)


def test_rooms_run_side_by_side_and_end_when_left(furnish: Callable[..., Path]) -> None:
    """Each waits for what the other writes; then they would sleep for an hour."""
    meet = "Path('here').touch()\nwhile not Path('../{}/here').exists(): time.sleep(0.01)\ntime.sleep(3600)"
    folders = [furnish(meet.format("two"), "one"), furnish(meet.format("one"), "two")]
    with ExitStack() as stack:
        rooms = [stack.enter_context(HERE_ROOM.start(folder, ())) for folder in folders]
        while not all((folder / "here").exists() for folder in folders):
            time.sleep(0.01)
        assert all(room.poll() for room in rooms)
    assert not any(room.poll() for room in rooms)
    with pytest.raises(BuildError, match="status -9"):
        rooms[0].confirm()


@pytest.mark.room
@pytest.mark.parametrize("leash", ["1", "0"])
def test_a_room_on_a_leash_ends_with_its_host(room: Path, tmp_path: Path, leash: str) -> None:
    """A container is no child of this process: that its standard input ends is all that it sees of its host's end."""
    request = tmp_path / "request.json"
    os.mkfifo(request)  # the room opens it, and waits for words that never come
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT / "src"), runner.LEASH: leash}
    command = [str(room), "-s", "-m", runner.MODULE, str(tmp_path)]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE) as process, request.open("w"):
        assert process.stdin is not None
        assert process.poll() is None
        process.stdin.close()
        if leash == "1":
            assert process.wait(LIMIT) == 1
        else:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(2)
            process.kill()
