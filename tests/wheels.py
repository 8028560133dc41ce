"""Wheels made here, for locks that no index has to serve."""

import base64
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

from requant.digest import sha256_file


def make_wheel(folder: Path, name: str, files: Mapping[str, bytes], requires: str = "") -> str:
    """Write version 1.0 of a package into `folder`; return its line in a lock."""
    info = f"{name.replace('-', '_')}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n" + (
        f"Requires-Dist: {requires}\n" if requires else ""
    )
    wheel = b"Wheel-Version: 1.0\nGenerator: requant's tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    members = {**files, f"{info}/METADATA": metadata.encode(), f"{info}/WHEEL": wheel}
    record = "".join(f"{path},sha256={_digest(data)},{len(data)}\n" for path, data in members.items())
    members[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    folder.mkdir(exist_ok=True)
    file = folder / f"{name.replace('-', '_')}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in members.items():
            archive.writestr(zipfile.ZipInfo(path), data)
    return f"{name}==1.0 --hash=sha256:{sha256_file(file)}"


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
