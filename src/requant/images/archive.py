"""An image as a builder writes it to a file: what names it, and where two of them differ.

Format: what `docker save` writes, with the OCI layout in the same file where the builder is BuildKit
(https://github.com/opencontainers/image-spec, image-layout.md).
"""

import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from requant.digest import sha256, strict_json
from requant.errors import BuildError
from requant.images import rootfs
from requant.images.rootfs import Entry, members
from requant.images.tar import Header

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
    with _opened(path) as files:
        name, layers = _image(files)
        _config(files)
        for layer in layers:
            files.open(layer)
        manifest = None
        if "index.json" in files.found:
            manifest = f"sha256:{sha256(files.read('blobs/' + _manifest(files).replace(':', '/')))}"
        return Archive(path, f"sha256:{sha256(files.read(name))}", manifest, layers)


def differences(first: Archive, second: Archive) -> tuple[str, ...]:
    """Name what keeps two images from having one digest: files by their layer, and keys of the configuration."""
    found: list[str] = []
    if len(first.layers) != len(second.layers):
        found.append(f"layers: {len(first.layers)} in the first, {len(second.layers)} in the second")
    for number, names in enumerate(zip(first.layers, second.layers, strict=False)):
        layers = _layer(first, names[0]), _layer(second, names[1])
        found += [f"layer {number}: {each}" for each in rootfs.differences(*layers)]
    with _opened(first.path) as files:
        one = _config(files)
    with _opened(second.path) as files:
        two = _config(files)
    found += [f"configuration: {key}" for key in sorted(one.keys() | two.keys()) if one.get(key) != two.get(key)]
    if not found and (first.config, first.manifest) != (second.config, second.manifest):
        found.append("the manifests, and no file: layers are written in another form")
    return tuple(found)


@dataclass(frozen=True)
class _Dated(Entry):
    time: int


def _layer(archive: Archive, name: str) -> Mapping[str, _Dated]:
    with _opened(archive.path) as files:
        found = members(files.open(name), f"{archive.path}, {name}")
        return {each.path: _Dated(**vars(each.entry), time=each.mtime) for each in found}


@dataclass(frozen=True)
class _Files:
    """An archive that is open, and what it holds by name: the last where one stands twice."""

    tar: tarfile.TarFile
    found: Mapping[str, tarfile.TarInfo]

    def open(self, name: str, limit: int | None = None) -> IO[bytes]:
        """Open a file of at most `limit` bytes. Raises ValueError for all else: a link's target can be anything."""
        if name not in self.found:
            raise ValueError(f"{name}: not in the archive")
        member = self.found[name]
        file = self.tar.extractfile(member) if member.isreg() else None
        if file is None:
            raise ValueError(f"{name}: not a file, but of the type {member.type!r}")
        if limit is not None and member.size > limit:
            raise ValueError(f"{name}: not a file of at most {limit:,} bytes")
        return file

    def read(self, name: str) -> bytes:
        return self.open(name, LIMIT).read()


@contextmanager
def _opened(path: Path) -> Iterator[_Files]:
    try:
        with tarfile.open(path, "r:", tarinfo=Header) as tar:
            found = {}
            for each in tar:
                each.pax_headers = {}
                found[each.name] = each
            yield _Files(tar, found)
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        raise BuildError(f"{path}: not an image as `docker save` writes it: {error!r}") from None


def _image(files: _Files) -> tuple[str, tuple[str, ...]]:
    """Return the names of the one image's configuration and of its layers."""
    match strict_json(files.read("manifest.json")):
        case [{"Config": str(config), "Layers": [*layers]}] if all(isinstance(each, str) for each in layers):
            return config, tuple(layers)
    raise ValueError("manifest.json: expected one image, with the names of its Config and its Layers")


def _manifest(files: _Files) -> str:
    match strict_json(files.read("index.json")):
        case {"manifests": [{"digest": str(digest)}]}:
            return digest
    raise ValueError("index.json: expected one manifest, with its digest")


def _config(files: _Files) -> dict[str, Any]:
    name, _ = _image(files)
    value = strict_json(files.read(name))
    if not isinstance(value, dict):
        raise ValueError(f"{name}: a configuration is an object")
    return value
