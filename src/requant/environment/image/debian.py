"""A base for images where no registry answers: Debian's Python, unpacked from packages into one tar.

Whatever apt is set to use decides the versions, so equal package lists give equal bytes, and other lists others. An
image on this base is tainted: its manifests are compared like any other's, and it is no evidence about the pinned base.
"""

import io
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from requant.errors import BuildError, NotAvailableError
from requant.programs import run

NEEDED = ("base-files", "coreutils", "dash", "libstdc++6")
"""What an image needs beside Python: a shell and its tools while it is built, and what compiled wheels link."""
LEFT_OUT = ("awk", "dpkg")
"""Dependencies that only the installation of a package has."""
STATUS = "var/lib/dpkg/status"
"""Where Debian lists the packages of a file system."""

_FILES = {
    "etc/group": b"root:x:0:\n",
    "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n",
    # Where they are missing, an engine makes them for a moment, and the time of their folder changes.
    "etc/hostname": b"",
    "etc/hosts": b"",
    "etc/resolv.conf": b"",
}


def require(python: str) -> None:
    """Raise NotAvailableError where apt has no such Python, such as 3.12 on Debian 12: then no base can be made."""
    _show([f"python{python}"])


def write_base(target: Path, python: str, epoch: int, scratch: Path) -> None:
    """Write the tar of a file system with `python3.11`, say.

    Every time in it is `epoch`, every owner is root, and the members are sorted. Raises NotAvailableError where apt
    is not here, or has no such Python.
    """
    names = _closure([f"python{python}", *NEEDED])
    debs, root = scratch / "debs", scratch / "root"
    debs.mkdir()
    root.mkdir()
    try:
        run(["apt-get", "download", "--quiet", *names], cwd=debs)
    except BuildError as error:
        raise NotAvailableError(f"apt cannot fetch the packages of a base: {error}", "Try `apt-get update`.") from None
    stanzas = []
    for deb in sorted(debs.iterdir()):
        run(["dpkg-deb", "--extract", str(deb), str(root)])
        package, _, rest = run(["dpkg-deb", "--field", str(deb)]).partition("\n")
        stanzas.append(f"{package}\nStatus: install ok installed\n{rest}\n")
    status = "".join(stanzas).encode()
    for name, data in {**_FILES, STATUS: status}.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        file.chmod(0o644)
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(root.rglob("*")):
            _add(tar, path, str(path.relative_to(root)), epoch)


def packages(status: bytes) -> Iterator[tuple[str, str]]:
    """Yield name and version of each installed package of a dpkg status file. Raises BuildError where it is none."""
    try:
        text = status.decode()
    except UnicodeDecodeError as error:
        raise BuildError(f"{STATUS}: not UTF-8: {error}") from None
    for stanza in text.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status|Version): (.*)$", stanza, re.MULTILINE))
        if fields.get("Status") != "install ok installed":
            continue
        if lacking := {"Package", "Version"} - fields.keys():
            raise BuildError(
                f"{STATUS}: found {stanza.strip()!r:.200}, expected its {' and '.join(sorted(lacking))} too"
            )
        yield fields["Package"], fields["Version"]


def _closure(names: Sequence[str]) -> list[str]:
    """Return the packages with all that they depend on, of alternatives the first."""
    found: dict[str, None] = {}
    wanted = set(names)
    while wanted:
        text = _show(sorted(wanted))
        found |= dict.fromkeys(wanted)
        depends = re.findall(r"^(?:Pre-)?Depends: (.*)$", text, re.MULTILINE)
        first = {re.split(r"[ :|(]", each.strip())[0] for line in depends for each in line.split(",")}
        wanted = first - found.keys() - set(LEFT_OUT)
    return sorted(found)


def _show(names: Sequence[str]) -> str:
    try:
        return run(["apt-cache", "show", "--no-all-versions", *names])
    except BuildError as error:
        raise NotAvailableError(
            f"apt does not know {', '.join(names)}: {error}",
            "A base of Debian packages has the Python of this machine's Debian only: name an image with --base.",
        ) from None


def _add(tar: tarfile.TarFile, path: Path, name: str, epoch: int) -> None:
    member = tar.gettarinfo(str(path), name)
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = epoch
    if member.isreg() or member.islnk():
        member.type = tarfile.REGTYPE  # a hard link has a content like any other name of it
        data = path.read_bytes()
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    else:
        tar.addfile(member)
