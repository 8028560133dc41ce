"""The worker's environment: installed by hash, cut off from the network, ended with its host."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from tests.conftest import ROOT, Refuses
from tests.processes import LIMIT

from requant.environment.lock import Lock, read_lock
from requant.errors import BuildError, NotAvailableError
from requant.programs import run
from requant.protocol import LEASH
from requant.sandbox import running as sandbox

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def locks(tmp_path: Path, *lines: str, python: str = HERE, platform: str = "x86_64-manylinux_2_36") -> Lock:
    """A lock of these pins for this Python, resolved from an `.in` that gives them all."""
    head = f"# python = {python}\n# platform = {platform}\n# cutoff = 2026-04-24T00:00:00Z\n"
    (tmp_path / "tiny.in").write_text(head + "".join(f"{line}\n" for line in lines))
    from requant.environment.lock import format_lock, read_intent

    intent = read_intent(tmp_path, "tiny")
    (tmp_path / "tiny.txt").write_text(format_lock(intent, intent.given))
    return read_lock(tmp_path, "tiny")


def line(name: str) -> str:
    """The line of a package in the tiny model's lock."""
    return next(each for each in (ROOT / "lockfiles" / "cpu.txt").read_text().splitlines() if each.startswith(name))


def test_no_network_in_the_worker() -> None:
    prefix = sandbox.isolation()
    if not prefix:
        pytest.skip("this kernel grants no network namespace; builds here carry a taint that says so")
    script = "import socket; print([name for _, name in socket.if_nameindex()])"
    assert run([*prefix, sys.executable, "-c", script]).strip() in ("['lo']", "[]")
    with pytest.raises(BuildError, match="unreachable"):
        run([*prefix, sys.executable, "-c", "import socket; socket.create_connection(('127.0.0.1', 9))"])


def test_a_program_that_is_not_there(refuses: Refuses) -> None:
    with refuses(NotAvailableError):
        run(["requant-has-no-such-program"])


@pytest.fixture
def set_up(tmp_path: Path) -> Callable[[str], Path]:
    """Make a folder whose worker is a program of one's own."""

    def set_up(program: str, name: str = "folder") -> Path:
        package = tmp_path / name / "sources" / "requant" / "worker"
        package.mkdir(parents=True)
        (package.parent / "__init__.py").touch()
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(f"import os, sys, time\nfrom pathlib import Path\n{program}")
        return tmp_path / name

    return set_up


IN_PLACE = sandbox.VirtualEnvironment(Path(sys.executable), ())


def test_the_worker_sees_few_environment_variables(
    set_up: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """AutoRound reads dozens of `AR_*` variables, torch and the Hub's library as many."""
    monkeypatch.setenv("AR_SEARCH_SCALE_RATIO", "0.5")
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    folder = set_up("print(sorted(os.environ))")
    sandbox.run_worker(IN_PLACE, folder, (), lambda: None)
    seen = (folder / "log").read_text()
    assert "AR_SEARCH_SCALE_RATIO" not in seen
    assert "HF_HUB_OFFLINE" in seen


def test_the_worker_is_shown_one_gpu_and_forks_for_no_text(
    set_up: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the host's variable names: in a container the numbers are others."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    program = "print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['AR_DISABLE_DATASET_SUBPROCESS'])"
    folder = set_up(program)
    for worker, seen in ((IN_PLACE, "3 1\n"), (replace(IN_PLACE, accelerator="GPU-7f"), "GPU-7f 1\n")):
        sandbox.run_worker(worker, folder, (), lambda: None)
        assert (folder / "log").read_text() == seen


def test_a_worker_that_fails_leaves_its_last_words(set_up: Callable[[str], Path], refuses: Refuses) -> None:
    folder = set_up("raise SystemExit('out of luck')")
    with refuses(BuildError):
        sandbox.run_worker(IN_PLACE, folder, (), lambda: None)


def test_what_an_earlier_worker_left_is_not_this_ones(set_up: Callable[[str], Path]) -> None:
    folder = set_up("Path(os.environ['HOME'], 'kept').touch(exist_ok=False)")
    (folder / "error.json").write_text('{"message": "of an earlier worker", "advice": ""}')
    for _ in range(2):
        sandbox.run_worker(IN_PLACE, folder, (), lambda: None)


def test_workers_run_side_by_side_and_end_when_left(set_up: Callable[..., Path], refuses: Refuses) -> None:
    """Each waits for what the other writes; then they would sleep for an hour."""
    meet = "Path('here').touch()\nwhile not Path('../{}/here').exists(): time.sleep(0.01)\ntime.sleep(3600)"
    folders = [set_up(meet.format("two"), "one"), set_up(meet.format("one"), "two")]
    with ExitStack() as stack:
        workers = [stack.enter_context(IN_PLACE.start(folder, ())) for folder in folders]
        while not all((folder / "here").exists() for folder in folders):
            time.sleep(0.01)
        assert all(worker.poll() for worker in workers)
    assert not any(worker.poll() for worker in workers)
    with refuses(BuildError):
        workers[0].confirm()


@pytest.mark.worker
@pytest.mark.parametrize("leash", ["1", "0"])
def test_a_worker_on_a_leash_ends_with_its_host(worker: Path, tmp_path: Path, leash: str) -> None:
    """A container is no child of this process: that its standard input ends is all that it sees of its host's end."""
    request = tmp_path / "request.json"
    os.mkfifo(request)  # the worker opens it, and waits for words that never come
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT / "src"), LEASH: leash}
    command = [str(worker), "-s", "-m", sandbox.MODULE, str(tmp_path)]
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
