"""Images in files: their digests are those of their bytes, and what two do not have in common is named."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from tests.test_rootfs import END, FILES, Made, block, extended, little, record, tar

from requant.digest import sha256
from requant.errors import BuildError
from requant.images.archive import Archive, differences, read_archive


def image(path: Path, *layers: bytes, oci: bool = True, **config: Any) -> Path:
    """Write an image as BuildKit does, or without the OCI layout, as `docker save` did and Podman does."""
    files = {sha256(layer): layer for layer in layers}
    data = json.dumps({"architecture": "amd64", **config}).encode()
    manifest = json.dumps({"config": sha256(data), "layers": [sha256(layer) for layer in layers]}).encode()
    files |= {sha256(data): data, **({sha256(manifest): manifest} if oci else {})}
    files = {f"blobs/sha256/{digest}": content for digest, content in files.items()}
    names = {"Config": f"blobs/sha256/{sha256(data)}", "Layers": [f"blobs/sha256/{sha256(layer)}" for layer in layers]}
    files["manifest.json"] = json.dumps([names]).encode()
    if oci:
        files["index.json"] = json.dumps({"manifests": [{"digest": f"sha256:{sha256(manifest)}"}]}).encode()
    path.write_bytes(tar([Made(name, content) for name, content in files.items()]))
    return path


def test_digests_are_of_the_bytes(tmp_path: Path) -> None:
    layer = tar(FILES)
    found = read_archive(image(tmp_path / "image.tar", layer, created="now"))
    config = json.dumps({"architecture": "amd64", "created": "now"}).encode()
    assert found.config == f"sha256:{sha256(config)}"
    assert found.manifest is not None
    assert found.layers == (f"blobs/sha256/{sha256(layer)}",)
    plain = read_archive(image(tmp_path / "plain.tar", layer, oci=False, created="now"))
    assert (plain.config, plain.manifest) == (found.config, None)


def test_equal_images(tmp_path: Path) -> None:
    one = read_archive(image(tmp_path / "1.tar", tar(FILES)))
    two = read_archive(image(tmp_path / "2.tar", tar(FILES)))
    assert (one.config, one.manifest) == (two.config, two.manifest)
    assert differences(one, two) == ()


def test_what_differs_is_named_with_its_layer(tmp_path: Path) -> None:
    later = [Made("a", b"1", time=1), Made("b", b"1"), Made("c")]
    other = [Made("a", b"1", time=2), Made("b", b"2"), Made("d")]
    one = read_archive(image(tmp_path / "1.tar", tar(FILES), tar(later), created="now", history=[]))
    two = read_archive(image(tmp_path / "2.tar", tar(FILES), tar(other), created="then", history=[]))
    assert differences(one, two) == (
        "layer 1: a: time",
        "layer 1: b: sha256",
        "layer 1: c: only in the first",
        "layer 1: d: only in the second",
        "configuration: created",
    )


def test_another_number_of_layers(tmp_path: Path) -> None:
    one = read_archive(image(tmp_path / "1.tar", tar(FILES)))
    two = read_archive(image(tmp_path / "2.tar", tar(FILES), tar(FILES)))
    assert differences(one, two)[0] == "layers: 1 in the first, 2 in the second"


def test_no_difference_is_invisible(tmp_path: Path) -> None:
    """The same files in another form of tar: other digests, and no path to name."""
    one = read_archive(image(tmp_path / "1.tar", tar(FILES)))
    two = read_archive(image(tmp_path / "2.tar", tar(FILES, tarfile.GNU_FORMAT)))
    assert differences(one, two) == ("the manifests, and no file: layers are written in another form",)


@pytest.mark.parametrize("name", ["manifest.json", "config"])
def test_no_image(tmp_path: Path, name: str) -> None:
    path = image(tmp_path / "image.tar", tar(FILES))
    with tarfile.open(path) as file:
        kept = {member.name: file.extractfile(member).read() for member in file}  # type: ignore[union-attr]
    gone = name if name in kept else json.loads(kept["manifest.json"])[0]["Config"]
    path.write_bytes(tar([Made(name, data) for name, data in kept.items() if name != gone]))
    with pytest.raises(BuildError, match=r"image\.tar: not an image"):
        read_archive(path)


@pytest.mark.parametrize("data", [b"", b"garbage", tar(FILES), tar([Made("manifest.json", b"[{}]")])])
def test_garbage(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "image.tar").write_bytes(data)
    with pytest.raises(BuildError, match=r"image\.tar: not an image"):
        read_archive(tmp_path / "image.tar")


def test_the_layers_of_a_damaged_image(tmp_path: Path) -> None:
    one = read_archive(image(tmp_path / "1.tar", tar(FILES)))
    two = read_archive(image(tmp_path / "2.tar", tar(FILES)[:-9000]))
    with pytest.raises(BuildError, match=r"2\.tar, blobs/sha256/[0-9a-f]+: cut off or damaged|or cut off"):
        differences(one, two)


def test_a_large_manifest_is_not_read(tmp_path: Path) -> None:
    header = tarfile.TarInfo("manifest.json")
    header.size = 1 << 30
    with (tmp_path / "image.tar").open("wb") as file:
        file.write(header.tobuf())
        file.truncate((1 << 30) + 4096)
    with little(), pytest.raises(BuildError, match="at most"):
        read_archive(tmp_path / "image.tar")


def written(path: Path, files: dict[str, Any], *more: Made) -> Path:
    """Write files as they are, or as JSON."""
    made = [Made(name, data if isinstance(data, bytes) else json.dumps(data).encode()) for name, data in files.items()]
    path.write_bytes(tar([*made, *more]))
    return path


LAYER = tar(FILES)
PLAIN = {"manifest.json": [{"Config": "c", "Layers": ["l"]}], "c": {"os": "linux"}, "l": LAYER}
OCI = {**PLAIN, "index.json": {"manifests": [{"digest": "sha256:m"}]}, "blobs/sha256/m": {}}


@pytest.mark.parametrize("files", [PLAIN, OCI])
def test_the_least_image(tmp_path: Path, files: dict[str, Any]) -> None:
    long = Made("x" * 5000, b"1", pax=(("SCHILY.xattr.user.a", "1"),))
    found = read_archive(written(tmp_path / "image.tar", files, long))
    assert (found.config, found.layers) == (f"sha256:{sha256(json.dumps(PLAIN['c']).encode())}", ("l",))
    assert (found.manifest is None) == (files is PLAIN)
    assert differences(found, found) == ()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("manifest.json", [], "expected one image"),
        ("manifest.json", {}, "expected one image"),
        ("manifest.json", [{}, {}], "expected one image"),
        ("manifest.json", [{"Config": 1, "Layers": []}], "expected one image"),
        ("manifest.json", [{"Config": ["c"], "Layers": []}], "expected one image"),
        ("manifest.json", [{"Config": "c", "Layers": "l"}], "expected one image"),
        ("manifest.json", [{"Config": "c", "Layers": ["l", 1]}], "expected one image"),
        ("manifest.json", [{"Config": "c"}], "expected one image"),
        ("manifest.json", [{"Config": "d", "Layers": []}], "d: not in the archive"),
        ("manifest.json", [{"Config": "c", "Layers": ["k"]}], "k: not in the archive"),
        ("manifest.json", b"[" * 100_000, "nested too deeply"),
        ("c", [], "a configuration is an object"),
        ("c", b"{", "JSONDecodeError"),
        ("index.json", [], "expected one manifest"),
        ("index.json", {"manifests": [{"digest": 1}]}, "expected one manifest"),
        ("index.json", {"manifests": [{"digest": "sha256:n"}]}, "blobs/sha256/n: not in the archive"),
        ("index.json", {"manifests": [1]}, "expected one manifest"),
        ("index.json", {"manifests": []}, "expected one manifest"),
    ],
)
def test_what_is_named_is_text_and_in_the_archive(tmp_path: Path, name: str, content: Any, said: str) -> None:
    path = written(tmp_path / "image.tar", {**OCI, name: content})
    with pytest.raises(BuildError, match=rf"image\.tar: not an image .*{said}"):
        read_archive(path)


@pytest.mark.parametrize("name", [*OCI])
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, b"Z"])
@pytest.mark.parametrize("target", ["self", "other"])
def test_only_files_are_read(tmp_path: Path, name: str, kind: bytes, target: str) -> None:
    """A link may name itself, or a file of any size."""
    link = Made(name, kind=kind, link=name if target == "self" else "other")
    files = {each: content for each, content in OCI.items() if each != name}
    path = written(tmp_path / "image.tar", {"other": OCI[name], **files}, link)
    with pytest.raises(BuildError, match=rf"image\.tar: not an image .*{name}: not a file, but of the type"):
        read_archive(path)


@pytest.mark.parametrize("name", ["c", "l"])
def test_what_is_gone_when_images_are_held_together(tmp_path: Path, name: str) -> None:
    first = read_archive(written(tmp_path / "1.tar", PLAIN))
    second = read_archive(written(tmp_path / "2.tar", PLAIN))
    written(second.path, {each: content for each, content in PLAIN.items() if each != name})
    with pytest.raises(BuildError, match=rf"2\.tar: not an image .*{name}: not in the archive"):
        differences(first, second)
    second.path.unlink()
    with pytest.raises(BuildError, match=r"2\.tar: not an image .*FileNotFoundError"):
        differences(first, second)


HOSTILE = {
    "a size of -512 bytes": block("a", -512),
    "a size of -1,024 bytes": block("a", -1024),
    "a size of .*-512.* bytes": extended(record("size", "-512")) + block("a"),
    "extension headers of more than 1,048,576 bytes": block("a", 1 << 40, tarfile.XHDTYPE),
    "extension headers of more than": extended(b"") * 3000 + block("a"),
    "a sparse file": block("a", 0, tarfile.GNUTYPE_SPARSE),
    "unexpected end of data": block("a", 1 << 40),
    "Error": block("a", 1 << 87),
}


@pytest.mark.parametrize("said", HOSTILE)
@pytest.mark.parametrize("place", ["first", "last"])
def test_hostile_members_are_refused_at_once(tmp_path: Path, said: str, place: str) -> None:
    path = written(tmp_path / "image.tar", PLAIN, Made("x", b"x" * tarfile.BLOCKSIZE))
    honest = path.read_bytes().rstrip(b"\0")
    path.write_bytes(HOSTILE[said] + honest + END if place == "first" else honest + HOSTILE[said] + END)
    match = rf"image\.tar: not an image .*{said}"
    with little(), pytest.raises(BuildError, match=match):
        read_archive(path)
    with little(), pytest.raises(BuildError, match=match):
        differences(*[Archive(path, "", None, ("l",))] * 2)
