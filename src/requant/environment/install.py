"""Virtual environments made from locks: packages in the cache, held against their wheels before each use.

The cache has one folder for each lock, `packages/<digest>`: in `tree` what the lock's wheels hold and nothing else,
in `files` the list of it. The digest of that list stands beside the lock, in the repository, so that whoever can
write the cache cannot change what runs. An interpreter is added in a folder of this process's own.
"""

import fcntl
import os
import platform
import shutil
import sys
import tempfile
from contextlib import suppress
from functools import cache as once
from pathlib import Path
from typing import Any

from requant.digest import sha256
from requant.environment.lock import Lock, files_advice, read_files_digest, write_files_digest
from requant.environment.packages import contents, format_list, hold, parse_list, unpack
from requant.environment.wheels import PIP, wheels
from requant.errors import BuildError, LockError, NotAvailableError
from requant.programs import mortal, run
from requant.progress import Progress, Tell, silent


def cache() -> Path:
    """Return the folder that outlives builds: packages, images, and bases that were fetched."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "requant"


def virtual_environment(lock: Lock, tell: Tell = silent) -> Path:
    """Return the Python of a virtual environment with exactly the packages of `lock`, installed now if they are not.

    The environment is this process's own and ends with it; what it holds is in the cache, and is confirmed byte by
    byte here. A cache that has it need not be writable.

    Raises NotAvailableError where this machine is none of the lock's, or lacks its Python, or a package cannot
    be had; LockError where a file is not what the lock states, in the cache or anywhere else.
    """
    require_machine(lock)
    python = interpreter(lock.python)
    place = cache() / "packages" / lock.digest
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.with_suffix(".lock").open("w") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)  # another process may be installing them
            if not place.exists():
                _install(place, lock, python, tell)
    _confirm(place, lock.file)
    return _entrance(place / "tree", python)


def require_machine(lock: Lock) -> None:
    """Raise NotAvailableError where this machine is none of the lock's: neither its wheels nor its image run here."""
    machine = lock.platform.partition("-")[0]
    if platform.machine() != machine:
        raise NotAvailableError(
            f"{lock.file}: is for {machine}, this machine is {platform.machine()}",
            "A lock is for one platform.",
        )


def interpreter(version: str) -> Path:
    """Return the host's CPython of a version such as `3.11`: that of this process, else the first on the PATH."""
    if (*sys.version_info[:2], sys.implementation.name) == (*map(int, version.split(".")), "cpython"):
        return Path(sys._base_executable).resolve()  # type: ignore[attr-defined]  # as `venv` does
    script = "import sys; print(sys.implementation.name, *sys.version_info[:2], sys._base_executable)"
    for folder in os.get_exec_path():
        if not Path(folder, f"python{version}").exists():
            continue
        try:
            said = run([str(Path(folder, f"python{version}")), "-I", "-c", script])
        except (BuildError, NotAvailableError):
            continue  # such as a stand-in that knows no such version
        name, *numbers, path = said.rstrip("\n").split(" ", 3)
        if (name, ".".join(numbers)) == ("cpython", version):
            return Path(path).resolve()
    raise NotAvailableError(
        f"Python {version}, which the lock is for, is not here: no python{version} on the PATH",
        f"Install it (apt-get install python{version}, or uv python install {version}).",
    )


def bytecode(python: Path) -> Path:
    """Return the folder, of this process's own, where an environment's Python is to keep what it compiles.

    Beside sources it could be altered, and Python would run it in their place.
    """
    return python.parent.parent / "bytecode"


def record_files(lock: Lock, tell: Tell = silent) -> Path:
    """Write the digest of all files that a lock's wheels hold beside it, for any machine; return the file's path."""
    found: dict[str, str] = {}
    for file in wheels(cache() / "wheels", lock, tell=tell).values():
        for path, digest in contents(file, lock.python).items():
            if found.setdefault(path, digest) != digest:
                raise LockError(f"{file}: {path}: another wheel of {lock.file} has other bytes there")
    return write_files_digest(lock.file, sha256(format_list(found).encode()))


def _install(place: Path, lock: Lock, python: Path, tell: Tell) -> None:
    """Unpack a lock's wheels beside `place`, confirm them, and give them that name at the end."""
    partial = place.with_name(f".{place.name}")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed: nobody else is here
    found: dict[str, str] = {}
    files = wheels(cache() / "wheels", lock, tell=tell)
    stage = f"packages {lock.name}: Python {lock.python}, {len(files)} wheels"
    for done, (pin, file) in enumerate(files.items()):
        tell(Progress(stage, done, len(files), part=f"{done + 1} of {len(files)}: {pin.name}"))
        found |= unpack(file, partial / "tree", lock.python)
    text = format_list(found)
    recorded, seen = read_files_digest(lock.file), sha256(text.encode())
    if recorded not in ("", seen):
        raise LockError(
            f"{lock.file.with_suffix('.files')}: states {recorded}, and the files in the wheels of {lock.file.name} "
            f"are {seen}",
            files_advice(lock.name),
        )
    (partial / "files").write_text(text)
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        run([*mortal(), *PIP, "--python", str(_entrance(partial / "tree", python)), "check"], env=env)
    except BuildError as error:
        raise NotAvailableError(
            f"{lock.file}: its packages do not go together\n{error}",
            f"Ask for what is missing in {lock.name}.in, and run `nox -s lock`.",
        ) from None
    partial.rename(place)


def _confirm(place: Path, lock_file: Path) -> None:
    """Hold everything in the cache that a lock's environment is made of against the digest beside the lock."""
    advice = f"Something altered the cache. Remove {place}, and it is installed anew."
    listed, recorded = place / "files", read_files_digest(lock_file)
    try:
        data = listed.read_bytes()
        if recorded not in ("", seen := sha256(data)):
            raise ValueError(f"its SHA-256 is {seen}, and {lock_file.with_suffix('.files')} states {recorded}")
        hold(place / "tree", parse_list(data.decode()))
    except (OSError, ValueError) as error:
        raise LockError(f"{listed}: altered: {error}", advice) from None
    except LockError as error:
        raise LockError(str(error), advice) from None


@once
def _entrance(packages: Path, python: Path) -> Path:
    """Return the Python of a virtual environment (PEP 405) over packages that stand elsewhere."""
    place = _private_folder()
    (place / "bin").mkdir()
    (place / "bin" / "python").symlink_to(python)
    (place / "pyvenv.cfg").write_text(f"home = {python.parent}\ninclude-system-site-packages = false\n")
    for each in packages.iterdir():
        if each.name != "bin":
            (place / each.name).symlink_to(each)
    return place / "bin" / "python"


_HELD: list[Any] = []
"""This process's own folders, which are removed when it ends, and the locks that say that it lives."""


def _private_folder() -> Path:
    """Return a new folder that ends with this process; those of processes that were killed are removed on the way."""
    prefix = f"requant-{os.getuid()}-"
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*/lock"):
        if left.parent.lstat().st_uid != os.getuid():
            continue
        with suppress(OSError), left.open() as guard:  # or its process lives, or another one removes it too
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left.parent)
    folder = tempfile.TemporaryDirectory(prefix=prefix)
    new = Path(folder.name, "lock.new")
    guard = new.open("w")
    fcntl.flock(guard, fcntl.LOCK_EX)
    new.rename(new.with_name("lock"))  # nobody sees it before it is taken
    _HELD.extend((folder, guard))
    return Path(folder.name)
