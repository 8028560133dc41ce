"""The worker as a container, with an image of this machine's own Python in place of the real one."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from tests.engines import STAND_IN, answering, left, stand_in
from tests.processes import LIMIT, awaited, started

from requant.environment.image.engine import DIALECTS, Engine, Limits, find
from requant.errors import BuildError, LockError, NotAvailableError
from requant.sandbox.container import Container
from requant.sandbox.running import run_worker

pytestmark = pytest.mark.engine

LIMITS = Limits(memory=1, temporary=1, shared=1)

SetUp = Callable[..., Path]
WAIT = """
def looked_at():
    while not (folder / 'looked').exists():
        time.sleep(0.01)
"""


@pytest.fixture(scope="module", params=DIALECTS)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = answering(request.param)
    stand_in(engine, tmp_path_factory.mktemp("stand-in"))
    yield engine
    engine.ask("image", "rm", "--force", STAND_IN)


def stood_in(engine: Engine) -> Container:
    """A worker in the stand-in's image, by the digest that it has now."""
    image = engine.image(STAND_IN)
    assert image
    return Container(engine, STAND_IN, (image.id,), LIMITS)


@pytest.fixture
def worker(engine: Engine, tmp_path: Path) -> Iterator[Container]:
    yield stood_in(engine)
    for program in tmp_path.glob("*/program.py"):
        assert not left(engine, program.parent)


@pytest.fixture
def set_up(tmp_path: Path) -> SetUp:
    """Make a folder whose worker is a program of one's own, which ends when it was looked at, and not before.

    The engine says how a container runs while it runs: a program that ends at once may be gone before.
    """

    def set_up(program: str, name: str = "folder") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "program.py").write_text(f"{WAIT}\n{program}\nlooked_at()\n")
        return folder

    return set_up


def looked(folder: Path) -> Callable[[], None]:
    """What a worker's `watch` does, so that a program that waits to be looked at goes on."""
    return (folder / "looked").touch


def test_it_is_shut_in(worker: Container, set_up: SetUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AR_SEARCH_SCALE_RATIO", "0.5")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    readable = tmp_path / "a base, with: 'odd' letters"
    readable.mkdir()
    (readable / "weights").write_text("7")
    folder = set_up(f"""
import json, mmap, socket
def refused(path):
    try:
        open(path, "w").close()
    except OSError as error:
        return error.strerror
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
with open("/tmp/it", "wb") as file:
    file.write(bytes(4096))
with open("/tmp/it", "rb") as file:
    mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)
shared = os.statvfs("/dev/shm")
(folder / "seen.json").write_text(json.dumps({{
    "links": [name for _, name in socket.if_nameindex()],
    "root": refused("/it"),
    "readable": refused({str(readable / "weights")!r}),
    "rights": [status["CapEff"].strip(), status["CapBnd"].strip(), status["NoNewPrivs"].strip()],
    "user": [os.getuid(), os.getgid()],
    "read": open({str(readable / "weights")!r}).read(),
    "variables": dict(os.environ),
    "shared": shared.f_frsize * shared.f_blocks,
    "memory": [Path(p).read_text().strip() for p in (
        "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes") if Path(p).exists()],
}}))
""")
    calls: list[None] = []

    def watch() -> None:
        calls.append(None)
        if len(calls) == 3:
            looked(folder)()

    run_worker(worker, folder, (readable,), watch)
    seen = json.loads((folder / "seen.json").read_text())
    assert seen["links"] == ["lo"]
    assert seen["root"] == "Read-only file system"
    assert seen["readable"] == "Read-only file system"
    assert seen["rights"] == ["0000000000000000", "0000000000000000", "1"]
    assert seen["user"] == [os.getuid(), os.getgid()]
    assert seen["read"] == "7"
    assert seen["shared"] == 1 << 30
    assert set(seen["memory"]) <= {str(1 << 30)}
    assert "AR_SEARCH_SCALE_RATIO" not in seen["variables"]
    assert seen["variables"]["HF_HUB_OFFLINE"] == "1"
    assert seen["variables"]["OMP_NUM_THREADS"] == "3"
    assert seen["variables"]["HOME"] == str(folder / "home")
    assert (folder / "seen.json").stat().st_uid == os.getuid()
    assert len(calls) >= 3


def test_what_it_reads_inside_its_folder_stays_as_it_is(worker: Container, set_up: SetUp) -> None:
    folder = set_up("looked_at(); (folder / 'base' / 'weights').write_text('8')")
    (folder / "base").mkdir()
    with pytest.raises(BuildError, match="Read-only file system"):
        run_worker(worker, folder, (folder / "base",), looked(folder))


def test_its_failure_is_told(worker: Container, set_up: SetUp) -> None:
    folder = set_up("looked_at(); sys.exit('out of luck')")
    with pytest.raises(BuildError, match=r"ended with status 1; the last it said:\nout of luck"):
        run_worker(worker, folder, (), looked(folder))
    reason = json.dumps({"message": "too few samples", "advice": "more"})
    folder = set_up(f"looked_at(); (folder / 'error.json').write_text({reason!r}); sys.exit(7)", "other")
    with pytest.raises(BuildError, match=r"^too few samples$"):
        run_worker(worker, folder, (), looked(folder))


def test_more_memory_than_its_limit(worker: Container, set_up: SetUp) -> None:
    folder = set_up("looked_at()\nkept = []\nwhile True: kept.append(bytearray(os.urandom(1 << 20)) * 64)")
    with pytest.raises(NotAvailableError, match="more than its 1 GiB of memory"):
        run_worker(worker, folder, (), looked(folder))


def test_workers_run_side_by_side_and_end_when_left(worker: Container, set_up: SetUp) -> None:
    folders = [set_up("(folder / 'here').touch(); time.sleep(3600)", name) for name in ("one", "two")]
    with ExitStack() as stack:
        workers = [stack.enter_context(worker.start(folder, ())) for folder in folders]
        assert awaited(lambda: all((folder / "here").exists() for folder in folders))
        assert all(each.poll() for each in workers)
        assert all(left(worker.engine, folder) for folder in folders)
    assert not any(each.poll() for each in workers)


def held(path: Path) -> bool:
    """Return whether a process has this file open."""
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):  # it went away meanwhile
            if descriptor.readlink() == path:
                return True
    return False


HOST = """
import sys
from pathlib import Path
from requant.cli import _stop
import signal
from requant.sandbox.container import Container
from requant.environment.image.engine import Limits, find
from requant.sandbox.running import run_worker

signal.signal(signal.SIGTERM, _stop)
signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs tests in the background may have it ignored
engine = find(sys.argv[1])
worker = Container(engine, sys.argv[2], (engine.image(sys.argv[2]).id,), Limits(1, 1, 1))
run_worker(worker, Path(sys.argv[3]), (), lambda: None)
"""


@pytest.mark.parametrize("signalled", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("early", [False, True])
def test_it_ends_with_its_host(worker: Container, set_up: SetUp, signalled: int, early: bool) -> None:
    """Early: while the engine is about to make the container."""
    folder = set_up("(folder / 'here').touch(); time.sleep(3600)")
    with started([sys.executable, "-c", HOST, worker.engine.words[0], STAND_IN, folder]) as host:
        assert awaited((folder / ("log" if early else "here")).exists)
        host.send_signal(signalled)
        assert host.wait(LIMIT) != 0
    if signalled == signal.SIGKILL or early:  # nobody waits for the end then, or not yet: it ends by itself
        assert awaited(lambda: not held(folder / "log") and not left(worker.engine, folder))
    assert not left(worker.engine, folder)


def test_it_ends_with_the_engines_client(worker: Container, set_up: SetUp) -> None:
    """The client alone is killed: the container's standard input ends, and with it the worker."""
    folder = set_up("(folder / 'here').touch(); time.sleep(3600)")
    with pytest.raises(BuildError, match="status -9"), worker.start(folder, ()) as running:
        assert awaited((folder / "here").exists)
        running._process.kill()
        assert awaited(lambda: not left(worker.engine, folder))
        running.confirm()


def test_an_image_that_is_not_there(engine: Engine, set_up: SetUp) -> None:
    with pytest.raises(NotAvailableError, match="not in the engine's store") as error:
        Container(engine, "requant-nobody-made-this:1", (), LIMITS).start(set_up(""), ())
    assert "requant image" in error.value.advice


def test_another_image_of_this_name(worker: Container, set_up: SetUp) -> None:
    other = "sha256:" + "0" * 64
    with pytest.raises(LockError, match=f"expected {other}"):
        replace(worker, digests=(other,)).start(set_up(""), ())


def test_a_folder_that_the_engine_does_not_see(worker: Container, set_up: SetUp, tmp_path: Path) -> None:
    with pytest.raises(NotAvailableError, match="does not see a folder"):
        worker.start(set_up(""), (tmp_path / "absent",))


def test_a_gpu_that_is_not_there(worker: Container, set_up: SetUp) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has an NVIDIA GPU")
    with pytest.raises(NotAvailableError, match="cannot give a container the GPU") as error:
        replace(worker, accelerator="GPU-7f").start(set_up(""), ())
    assert "NVIDIA Container Toolkit" in error.value.advice


@pytest.mark.parametrize(
    ("asked", "done", "named"),
    [
        ("--read-only", "--interactive", "root file system writable, expected read-only"),
        ("--network none", "--network host", "network host, expected none"),
        ("--cap-drop ALL", "--privileged", "privileges all, expected none"),
    ],
)
def test_an_engine_that_does_something_else_is_refused(
    engine: Engine, set_up: SetUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, done: str, named: str
) -> None:
    """A wrapper that weakens the worker on its way to the engine: the engine's own account of it is what counts."""
    wrapper = tmp_path / "bin" / engine.words[0]
    wrapper.parent.mkdir()
    real = subprocess.check_output(["which", engine.words[0]], text=True).strip()
    wrapper.write_text(
        f"#!{sys.executable}\nimport os, sys\n"
        f"words = '\\0'.join(sys.argv[1:]).replace({asked!r}.replace(' ', '\\0'), {done!r}.replace(' ', '\\0'))\n"
        f"os.execv({real!r}, [{real!r}, *words.split('\\0')])\n"
    )
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    folder = set_up("time.sleep(3600)")
    with pytest.raises(BuildError, match=named):
        replace(stood_in(engine), engine=find(engine.words[0])).start(folder, ())
    assert not left(engine, folder)
