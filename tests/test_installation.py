"""Environments are what their wheels hold, on every use, and whatever ends an install."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conftest import ROOT, Refuses
from tests.test_running import HERE, locks
from tests.wheels import make_wheel

from requant.digest import sha256_file
from requant.environment import install as installation
from requant.environment.lock import Lock, read_files_digest, read_lock
from requant.errors import LockError, NotAvailableError
from requant.programs import run
from requant.progress import Progress

KILLS = 5
HEART = {
    "heart/__init__.py": b"BEATS = 60\n",
    "heart/left.py": b"SIDE = 'left'\n",
    "heart-1.0.data/data/share/heart/chart.txt": b"as in a book\n",
    "heart-1.0.data/scripts/beat": b"#!python\n",
}
PACKAGES = f"lib/python{HERE}/site-packages"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the lock `tiny` of two wheels, the digest of their files, and a cache that has them."""
    folder = tmp_path_factory.mktemp("project")
    body = {f"body/part{number}.py": f"PART = {number}\n".encode() for number in range(300)}
    lines = make_wheel(folder / "wheels", "body", body, "heart"), make_wheel(folder / "wheels", "heart", HEART)
    with pytest.MonkeyPatch.context() as patch:
        offline(folder, patch)
        installation.record_files(locks(folder, *lines))
        installation.virtual_environment(read_lock(folder, "tiny"))
    return folder


def offline(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Let the cache and all that pip finds be in a folder."""
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    patch.setenv("PIP_NO_INDEX", "1")
    patch.setenv("PIP_FIND_LINKS", str(folder / "wheels"))


@pytest.fixture
def lock(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Lock:
    """The lock `tiny` in a copy of the project that is this test's own."""
    shutil.copytree(project, tmp_path, dirs_exist_ok=True)
    offline(tmp_path, monkeypatch)
    return read_lock(tmp_path, "tiny")


@pytest.fixture
def install(tmp_path: Path, lock: Lock) -> Callable[[], Path]:
    """Return the environment's Python, as every verb asks for it."""
    return lambda: installation.virtual_environment(lock)


def place(lock: Lock) -> Path:
    return installation.cache() / "packages" / lock.digest


def asked(python: Path, script: str) -> str:
    """What Python says as the workers start it."""
    env = {"PATH": os.defpath, "PYTHONPYCACHEPREFIX": str(installation.bytecode(python))}
    return run([str(python), "-s", "-P", "-c", script], env=env).strip()


def test_it_holds_what_the_wheels_hold_and_nothing_else(tmp_path: Path, lock: Lock) -> None:
    told: list[Progress] = []
    shutil.rmtree(place(lock))
    python = installation.virtual_environment(lock, told.append)
    assert [each.part for each in told] == ["1 of 2: body", "2 of 2: heart"]
    assert asked(python, "import heart, body.part7; print(heart.BEATS, body.part7.PART)") == "60 7"
    assert asked(python, "import sys; print((sys.prefix != sys.base_prefix, sys.flags.no_user_site))") == "(True, 1)"
    chart = "import sys, pathlib; print(pathlib.Path(sys.prefix, 'share/heart/chart.txt').read_text())"
    assert asked(python, chart) == "as in a book"
    there = {
        str(path.relative_to(place(lock) / "tree")) for path in (place(lock) / "tree").rglob("*") if path.is_file()
    }
    assert {path for path in there if "body" not in path} == {
        "share/heart/chart.txt",
        *(f"{PACKAGES}/heart/{name}" for name in ("__init__.py", "left.py")),
        *(f"{PACKAGES}/heart-1.0.dist-info/{name}" for name in ("METADATA", "RECORD", "WHEEL")),
    }
    again: list[Progress] = []
    assert installation.virtual_environment(lock, again.append) == python
    assert again == []
    assert sha256_file(place(lock) / "files") == read_files_digest(tmp_path / "tiny.txt")
    run(["sha256sum", "--check", "--quiet", "--strict", str(place(lock) / "files")], cwd=place(lock) / "tree")


def rewrite(path: Path, data: bytes) -> None:
    """Write other bytes, and hide it as well as times can."""
    before = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def heart(folder: Path) -> Path:
    return folder / "tree" / PACKAGES / "heart"


def relist(folder: Path) -> None:
    """Alter a source, and the list of files with it."""
    source = heart(folder) / "__init__.py"
    before = sha256_file(source)
    rewrite(source, b"BEATS = 61\n")
    rewrite(folder / "files", (folder / "files").read_bytes().replace(before.encode(), sha256_file(source).encode()))


def add(name: str, data: bytes = b"raise SystemExit\n") -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        path = folder / "tree" / PACKAGES / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)

    return write


def link(folder: Path) -> None:
    source = heart(folder) / "left.py"
    source.rename(folder.parent / "left.py")
    source.symlink_to(folder.parent / "left.py")


OWN = r"\b\w{16,}\b|python3\.\d+"
"""Digests, and the Python of this machine."""

ALTERED: dict[str, Callable[[Path], object]] = {
    "one byte": lambda at: rewrite(at / "tree" / PACKAGES / "heart/__init__.py", b"BEATS = 61\n"),
    "a byte more": lambda at: rewrite(at / "tree" / PACKAGES / "heart/left.py", b"SIDE = 'left'\n\n"),
    "a file less": lambda at: (heart(at) / "left.py").unlink(),
    "a module more": add("stray.py"),
    "bytecode": add(f"heart/__pycache__/left.{sys.implementation.cache_tag}.pyc"),
    "a .pth": add("stray.pth"),
    "sitecustomize": add("sitecustomize.py"),
    "an empty package": lambda at: (heart(at).parent / "flash_attn").mkdir(),
    "a link": link,
    "the list": lambda at: (at / "files").write_bytes(b""),
    "no list": lambda at: (at / "files").unlink(),
    "a file and the list": relist,
}


@pytest.mark.parametrize("alter", ALTERED.values(), ids=ALTERED)
def test_what_was_altered_is_found_before_it_runs(
    install: Callable[[], Path], lock: Lock, alter: Callable[[Path], object], refuses: Refuses
) -> None:
    install()
    alter(place(lock))
    with refuses(LockError, vary=OWN):
        install()


def test_bytecode_beside_sources_is_not_run(install: Callable[[], Path], lock: Lock) -> None:
    """Even where it comes after all has been confirmed: Python looks for it elsewhere, and leaves none there."""
    python = install()
    assert asked(python, "import heart; print(heart.BEATS)") == "60"
    source = heart(place(lock)) / "__init__.py"
    stray = place(lock).parent / "stray.py"
    stray.write_text("BEATS = 61\n")
    program = (
        "import py_compile, sys; py_compile.compile(*sys.argv[1:], invalidation_mode=py_compile.PycInvalidationMode"
    )
    target = source.parent / "__pycache__" / f"__init__.{sys.implementation.cache_tag}.pyc"
    run([sys.executable, "-c", f"{program}.UNCHECKED_HASH)", str(stray), str(target)])
    assert asked(python, "import heart; print(heart.BEATS)") == "60"


def test_a_cache_that_has_it_is_not_written(install: Callable[[], Path], tmp_path: Path) -> None:
    install()

    def seen() -> dict[Path, tuple[int, int, int]]:
        paths = [tmp_path / "cache", *(tmp_path / "cache").rglob("*")]
        return {path: (path.lstat().st_mtime_ns, path.lstat().st_ctime_ns, path.lstat().st_ino) for path in paths}

    before = seen()
    assert asked(install(), "import heart; print(heart.BEATS)") == "60"
    assert seen() == before


def test_files_that_were_recorded_from_other_wheels(
    install: Callable[[], Path], tmp_path: Path, lock: Lock, refuses: Refuses
) -> None:
    recorded = tmp_path / "tiny.files"
    recorded.write_text(recorded.read_text().replace(read_files_digest(tmp_path / "tiny.txt"), 64 * "a"))
    shutil.rmtree(place(lock))
    with refuses(LockError, vary=OWN):
        install()
    assert not place(lock).exists()


def test_without_a_record_the_list_decides(
    install: Callable[[], Path], tmp_path: Path, lock: Lock, refuses: Refuses
) -> None:
    (tmp_path / "tiny.files").unlink()
    install()
    (heart(place(lock)) / "left.py").write_bytes(b"")
    with refuses(LockError, vary=OWN):
        install()


@pytest.mark.parametrize(
    "text", ["", "sha256:00\n", f"sha256:{64 * '0'}\n", f"# a\nsha256:{64 * '0'}", f"# a\n{64 * '0'}\n"]
)
def test_a_record_is_read_strictly(tmp_path: Path, text: str, refuses: Refuses) -> None:
    (tmp_path / "tiny.files").write_text(text)
    with refuses(LockError, shared=True):
        read_files_digest(tmp_path / "tiny.txt")


FIRST = """
import sys
from pathlib import Path
from requant.environment import install as installation
from requant.environment.lock import read_lock
folder = Path({folder!r})
print(installation.virtual_environment(read_lock(folder, "tiny")))
"""


def first(folder: Path) -> "subprocess.Popen[str]":
    """Start an install in a process of its own; everything that it starts can be told by REQUANT_TEST."""
    env = {**os.environ, "REQUANT_TEST": str(folder), "TMPDIR": str(folder / "tmp")}
    (folder / "tmp").mkdir(exist_ok=True)
    script = FIRST.format(folder=str(folder))
    return subprocess.Popen([sys.executable, "-c", script], env=env, stdout=subprocess.PIPE, text=True)


def alive(folder: Path) -> list[str]:
    """What runs of an install."""
    found = []
    for each in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"REQUANT_TEST={folder}".encode() in each.read_bytes().split(b"\0"):
                found.append((each.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # it has ended
    return found


def test_no_kill_leaves_a_broken_cache(install: Callable[[], Path], tmp_path: Path, lock: Lock) -> None:
    """Each kill falls on another part of the install, and each install goes on from what those before have left."""
    store = installation.cache() / "wheels"
    empty(tmp_path, lock)
    started = time.monotonic()
    with first(tmp_path) as process:
        assert process.wait() == 0
    whole = time.monotonic() - started
    for kill in range(KILLS):
        if place(lock).exists():
            install()
            empty(tmp_path, lock)
        with first(tmp_path) as process:
            time.sleep(whole * (kill + 1) / (KILLS + 1))
            process.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 30
        while alive(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert alive(tmp_path) == []
    assert asked(install(), "import heart, body.part299; print(heart.BEATS)") == "60"
    assert [path.name for path in (*place(lock).parent.glob(".*"), *store.glob(".*"))] == []


def empty(folder: Path, lock: Lock) -> None:
    """Take everything out of the cache."""
    for path in (place(lock), installation.cache() / "wheels"):
        path.rename(folder / f"{path.name}.{time.monotonic_ns()}")


def test_two_first_installs_at_once(tmp_path: Path, lock: Lock) -> None:
    empty(tmp_path, lock)
    with first(tmp_path) as one, first(tmp_path) as other:
        assert (one.wait(), other.wait()) == (0, 0)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_what_a_killed_process_left_elsewhere_is_removed(
    tmp_path: Path, lock: Lock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = tmp_path / f"requant-{os.getuid()}-dead"
    dead.mkdir()
    (dead / "lock").touch()
    living = installation._private_folder()
    assert not dead.exists()
    assert installation._private_folder() != living
    assert living.exists()


def test_one_flipped_hash_stops_the_install(tmp_path: Path, lock: Lock) -> None:
    good = str(lock.pins[1])
    flipped = good[:-1] + ("0" if good[-1] != "0" else "1")
    other = locks(tmp_path, flipped)
    with pytest.raises(LockError, match="heart"):
        installation.virtual_environment(other)
    assert not place(other).exists()


def test_a_lock_that_lacks_a_requirement_is_found(tmp_path: Path, lock: Lock, refuses: Refuses) -> None:
    """The body needs a heart, which this lock does not hold: `pip check` says so."""
    (tmp_path / "tiny.files").unlink()
    with refuses(NotAvailableError, vary="(?m)^.* -m pip .*$"):
        installation.virtual_environment(locks(tmp_path, str(lock.pins[0])))


def test_another_platform_or_python_is_refused(tmp_path: Path, lock: Lock, refuses: Refuses) -> None:
    with refuses(NotAvailableError):
        other = locks(tmp_path, str(lock.pins[1]), platform="aarch64-manylinux_2_36")
        installation.virtual_environment(other)
    with refuses(NotAvailableError):
        installation.virtual_environment(locks(tmp_path, str(lock.pins[1]), python="3.99"))


def test_an_interpreter_is_what_it_says_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in that fails, and one of another version, are passed over for the one that is right."""
    for name, script in {"a": "exit 127", "b": "echo cpython 3 98 /b", "c": "echo cpython 3 99 /of c/python"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "python3.99").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name / "python3.99").chmod(0o755)
    monkeypatch.setenv("PATH", ":".join([*(str(tmp_path / name) for name in "abc"), os.environ["PATH"]]))
    assert installation.interpreter("3.99") == Path("/of c/python")
    assert installation.interpreter(HERE) == Path(sys._base_executable).resolve()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["cpu", "cu124", "cu130", "current", "gb10"])
def test_ours_say_what_their_files_are(name: str) -> None:
    assert read_files_digest(ROOT / "lockfiles" / f"{name}.txt")
