"""An image as a builder writes it to a file: what names it, and where two of them differ.

Format: what `docker save` writes, with the OCI layout in the same file where the builder is BuildKit
(https://github.com/opencontainers/image-spec, image-layout.md).
"""

import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from requant.digest import sha256, strict_json
from requant.errors import BuildError
from requant.images import rootfs
from requant.images.rootfs import Entry, members

LIMIT = 1 << 24
"""Bytes of the largest manifest or configuration that is read."""


@dataclass(frozen=True)
class Archive:
    """The digests that name an image, as `sha256:…`; `layers` are names of files within, `manifest` may be absent."""

    path: Path
    config: str
    manifest: str | None
    layers: tuple[str, ...]


def read_archive(path: Path) -> Archive:
    """Read the digests of the one image in an archive. Raises BuildError for what is none."""
    try:
        with tarfile.open(path, "r:") as tar:
            (image,) = strict_json(_read(tar, "manifest.json"))
            config = f"sha256:{sha256(_read(tar, image['Config']))}"
            manifest = None
            if "index.json" in tar.getnames():
                (only,) = strict_json(_read(tar, "index.json"))["manifests"]
                manifest = f"sha256:{sha256(_read(tar, 'blobs/' + only['digest'].replace(':', '/')))}"
            return Archive(path, config, manifest, tuple(image["Layers"]))
    except (tarfile.TarError, OSError, ValueError, KeyError, TypeError) as error:
        raise BuildError(f"{path}: not an image as `docker save` writes it: {error!r}") from None


def differences(first: Archive, second: Archive) -> tuple[str, ...]:
    """Name what keeps two images from having one digest: files by their layer, and keys of the configuration."""
    found: list[str] = []
    if len(first.layers) != len(second.layers):
        found.append(f"layers: {len(first.layers)} in the first, {len(second.layers)} in the second")
    for number, names in enumerate(zip(first.layers, second.layers, strict=False)):
        layers = _layer(first, names[0]), _layer(second, names[1])
        found += [f"layer {number}: {each}" for each in rootfs.differences(*layers)]
    one, two = _config(first), _config(second)
    found += [f"configuration: {key}" for key in sorted(one.keys() | two.keys()) if one.get(key) != two.get(key)]
    if not found and (first.config, first.manifest) != (second.config, second.manifest):
        found.append("the manifests, and no file: layers are written in another form")
    return tuple(found)


@dataclass(frozen=True)
class _Dated(Entry):
    time: int


def _layer(archive: Archive, name: str) -> Mapping[str, _Dated]:
    with tarfile.open(archive.path, "r:") as tar:
        stream = tar.extractfile(name)
        if stream is None:
            raise BuildError(f"{archive.path}: its layer {name} is no file")
        found = members(stream, f"{archive.path}, {name}")
        return {each.path: _Dated(**vars(each.entry), time=each.mtime) for each in found}


def _config(archive: Archive) -> dict[str, Any]:
    with tarfile.open(archive.path, "r:") as tar:
        (image,) = strict_json(_read(tar, "manifest.json"))
        value: dict[str, Any] = strict_json(_read(tar, image["Config"]))
        return value


def _read(tar: tarfile.TarFile, name: str) -> bytes:
    member = tar.getmember(name)
    file = tar.extractfile(member)
    if file is None or member.size > LIMIT:
        raise ValueError(f"{name}: not a file of at most {LIMIT:,} bytes")
    return file.read()
