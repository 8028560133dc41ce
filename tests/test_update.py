"""What an update would change is told pin by pin, and nothing is written unasked."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tests.conftest import ROOT, Refuses
from typer.testing import CliRunner

from requant.cli.options import app
from requant.environment import update
from requant.environment.image.dockerfile import dockerfile, read_bases, write_dockerfiles
from requant.environment.lock import Pin, format_lock, read_intent, read_lock
from requant.environment.update import Change, update_images, update_locks
from requant.errors import LockError, NotAvailableError, UsageError
from requant.hub.pins import find_pins

CUTOFF = "2026-06-01T00:00:00Z"
OLD, NEW = "1" * 64, "2" * 64


@pytest.fixture
def lockfiles(tmp_path: Path) -> Path:
    """The locks of this project, and its Dockerfiles above them."""
    folder = shutil.copytree(ROOT / "lockfiles", tmp_path / "lockfiles")
    write_dockerfiles(folder)
    return folder


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def lock_text(*pins: Pin) -> str:
    return "# a heading\n" + "".join(f"{pin}\n" for pin in pins)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ([Pin("a", "1", OLD)], [Pin("a", "1", OLD)], []),
        ([Pin("a", "1", OLD)], [Pin("a", "2", NEW)], [("a", "1", "2")]),
        ([Pin("a", "1", OLD)], [Pin("a", "1", NEW)], [("a", f"1 sha256:{OLD}", f"1 sha256:{NEW}")]),
        ([Pin("a", "1", OLD)], [Pin("a", "1", OLD), Pin("b", "3", NEW)], [("b", "", "3")]),
        ([Pin("a", "1", OLD)], [], [("a", "1", "")]),
    ],
)
def test_locks_are_compared_package_by_package(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: list[Pin],
    after: list[Pin],
    told: list[tuple[str, str, str]],
) -> None:
    shutil.copy(ROOT / "lockfiles" / "build-image.in", tmp_path / "x.in")
    (tmp_path / "x.txt").write_text(lock_text(*before))
    monkeypatch.setattr(update, "resolve", lambda *_: lock_text(*after))
    changes = update_locks(tmp_path, ["x"], CUTOFF).changes
    assert changes == tuple(Change(f"{tmp_path}/x.txt", *each) for each in told)


@pytest.fixture
def newer_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is resolved, a newer pip is all that an index has."""

    def resolve(folder: Path, name: str) -> str:
        intent = read_intent(folder, name)
        assert intent.cutoff == CUTOFF
        return format_lock(intent, (Pin("pip", "99.0", NEW),))

    monkeypatch.setattr(update, "resolve", resolve)


@pytest.mark.usefixtures("newer_pip")
def test_a_newer_lock_is_shown_and_written_only_when_asked(lockfiles: Path) -> None:
    before = snapshot(lockfiles.parent)
    command = ["update", "locks", "build-image", "--folder", str(lockfiles), "--cutoff", CUTOFF]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 1
    assert f"{lockfiles}/build-image.txt: pip: 26.0.1 -> 99.0\n1 change\n" in shown.output
    assert snapshot(lockfiles.parent) == before

    assert CliRunner().invoke(app, [*command, "--write"]).exit_code == 0
    changed = {file.name for file, data in snapshot(lockfiles.parent).items() if before[file] != data}
    assert changed == {"build-image.in", "build-image.txt", *(f"Dockerfile.{name}" for name in read_bases(lockfiles))}
    lock = read_lock(lockfiles, "build-image")
    assert (lock.cutoff, [str(pin) for pin in lock.pins]) == (CUTOFF, [f"pip==99.0 --hash=sha256:{NEW}"])
    asked = (lockfiles / "build-image.in").read_text()
    assert asked.replace(CUTOFF, "2026-04-24T00:00:00Z").encode() == before[lockfiles / "build-image.in"]
    for name in read_bases(lockfiles):
        assert (lockfiles.parent / f"Dockerfile.{name}").read_text() == dockerfile(lockfiles, name)
    assert CliRunner().invoke(app, command).exit_code == 0


@pytest.mark.parametrize(
    "cutoff", ["2026-06-01", "2026-6-1T0:0:0Z", "2026-06-31T00:00:00Z", "2026-06-01T00:00:00", "x"]
)
def test_a_cutoff_that_is_none(lockfiles: Path, cutoff: str, refuses: Refuses) -> None:
    with refuses(UsageError):
        update_locks(lockfiles, ["build-image"], cutoff)


def test_a_cutoff_that_lies_ahead(lockfiles: Path, refuses: Refuses) -> None:
    with refuses(UsageError):
        update_locks(lockfiles, ["build-image"], "2099-01-01T00:00:00Z")


DOCKER = """\
#!/usr/bin/env python3
import json, pathlib, sys
words = sys.argv[1:]
assert words[:5] == ["buildx", "imagetools", "inspect", "--format", "{{json .Manifest}}"], words
answers = json.loads(pathlib.Path(__file__).with_name("answers.json").read_text())
print(answers[words[5]] if words[5] in answers else sys.exit("no such host"))
"""


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A docker that answers from a table, for the tags as they are pinned; return the table."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "docker").write_text(DOCKER)
    (folder / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    machines = {name: "arm64" if name == "gb10" else "amd64" for name in read_bases(ROOT / "lockfiles")}
    answers: dict[str, dict[str, object]] = {}
    for name, base in read_bases(ROOT / "lockfiles").items():
        image = {"digest": base.digest, "platform": {"os": "linux", "architecture": machines[name]}}
        attestation = {"digest": f"sha256:{OLD}", "platform": {"os": "unknown", "architecture": "unknown"}}
        index = answers.setdefault(base.image, {"digest": base.index, "manifests": [attestation]})
        index["manifests"] = [image, *index["manifests"]]  # type: ignore[misc]
    # An architecture stands once for each tag.
    for index in answers.values():
        unique = {json.dumps(each, sort_keys=True): each for each in index["manifests"]}  # type: ignore[attr-defined]
        index["manifests"] = list(unique.values())
    table = folder / "answers.json"
    table.write_text(json.dumps({image: json.dumps(index) for image, index in answers.items()}))
    return table


def test_images_that_have_not_moved(lockfiles: Path, registry: Path) -> None:
    found = update_images(lockfiles)
    assert (found.changes, dict(found.texts)) == ((), {})


def test_an_image_that_has_moved_is_shown_and_written_only_when_asked(lockfiles: Path, registry: Path) -> None:
    old = read_bases(lockfiles)["gb10"]
    registry.write_text(registry.read_text().replace(old.digest, f"sha256:{NEW}"))
    before = snapshot(lockfiles.parent)
    shown = CliRunner().invoke(app, ["update", "images", "--folder", str(lockfiles)])
    assert shown.exit_code == 1
    moved = f"{lockfiles}/images.toml: gb10 {old.image} digest: {old.digest} -> sha256:{NEW}"
    assert shown.output.splitlines() == [moved, "1 change"]
    assert snapshot(lockfiles.parent) == before

    assert CliRunner().invoke(app, ["update", "images", "--folder", str(lockfiles), "--write"]).exit_code == 0
    bases = read_bases(lockfiles)
    assert bases["gb10"].digest == f"sha256:{NEW}"
    assert bases["gb10"].index == old.index
    assert {**bases, "gb10": old} == read_bases(ROOT / "lockfiles")
    changed = {file.name for file, data in snapshot(lockfiles.parent).items() if before[file] != data}
    assert changed == {"images.toml", "Dockerfile.gb10"}
    assert (lockfiles.parent / "Dockerfile.gb10").read_text() == dockerfile(lockfiles, "gb10")


HEADING = " ".join(line[2:] for line in (ROOT / "lockfiles" / "images.toml").read_text().splitlines()[:3])
ZEROS = f"sha256:{64 * '0'}"


def test_one_image_is_asked_for_by_name(lockfiles: Path, registry: Path) -> None:
    """The others keep their digests, and what the file says of where these are from; the registry may not know them."""
    file = lockfiles / "images.toml"
    bases, text = read_bases(lockfiles), file.read_text()
    text = text.replace("[cpu]", "# Why this one.\n[cpu]")
    # `current` has the same base, and is not asked for.
    file.write_text(text.replace(bases["cpu"].digest, ZEROS, 1).replace(bases["cpu"].index, ZEROS, 1))
    answers = json.loads(registry.read_text())
    registry.write_text(json.dumps({bases["cpu"].image: answers[bases["cpu"].image]}))
    before = snapshot(lockfiles.parent)
    shown = CliRunner().invoke(app, ["update", "images", "cpu", "--folder", str(lockfiles)])
    assert (shown.exit_code, len(shown.output.splitlines())) == (1, 3)
    assert snapshot(lockfiles.parent) == before

    assert CliRunner().invoke(app, ["update", "images", "cpu", "--folder", str(lockfiles), "--write"]).exit_code == 0
    assert read_bases(lockfiles) == bases
    assert file.read_text().startswith(text.partition("[cpu]")[0])
    changed = {path.name for path, data in snapshot(lockfiles.parent).items() if before[path] != data}
    assert changed == {"images.toml"}, "the Dockerfile is that of the same pins"
    pins = [pin for pin in find_pins(lockfiles.parent) if pin.file == "lockfiles/images.toml"]
    asked = {pin.by for pin in pins if "`requant update images cpu`" in pin.source}
    assert asked == {bases["cpu"].digest, bases["cpu"].index}
    assert {pin.source for pin in pins if pin.by not in asked} == {HEADING}

    # Asked again on another day it is said once.
    registry.write_text(registry.read_text().replace(bases["cpu"].digest, f"sha256:{NEW}"))
    assert CliRunner().invoke(app, ["update", "images", "cpu", "--folder", str(lockfiles), "--write"]).exit_code == 0
    assert read_bases(lockfiles) == bases | {"cpu": replace(bases["cpu"], digest=f"sha256:{NEW}")}
    assert file.read_text().count("`requant update images cpu`") == file.read_text().count("# Why this one.\n") == 1


def test_an_image_that_there_is_not(lockfiles: Path, monkeypatch: pytest.MonkeyPatch, refuses: Refuses) -> None:
    monkeypatch.setenv("PATH", "")
    with refuses(UsageError):
        update_images(lockfiles, ["cpu", "nope"])


@pytest.mark.usefixtures("newer_pip")
def test_an_image_that_is_not_pinned_yet_stops_no_other_update(lockfiles: Path, registry: Path) -> None:
    """Its Dockerfile cannot be written, and is not: the guide pins it as a step of its own."""
    file = lockfiles / "images.toml"
    file.write_text(file.read_text().replace(read_bases(lockfiles)["gb10"].digest, ZEROS))
    (lockfiles.parent / "Dockerfile.gb10").unlink()
    registry.write_text(registry.read_text().replace(read_bases(lockfiles)["cpu"].digest, f"sha256:{NEW}"))
    assert {path.name for path in update_images(lockfiles, ["cpu"]).texts} == {"images.toml", "Dockerfile.cpu"}
    assert {path.name for path in update_locks(lockfiles, ["build-image"], CUTOFF).texts} == {
        "build-image.in",
        "build-image.txt",
        *(f"Dockerfile.{name}" for name in read_bases(lockfiles) if name != "gb10"),
    }


def test_no_registry_answers(lockfiles: Path, registry: Path, refuses: Refuses) -> None:
    registry.write_text("{}")
    with refuses(NotAvailableError):
        update_images(lockfiles)


def test_no_docker(lockfiles: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refuses: Refuses) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with refuses(NotAvailableError):
        update_images(lockfiles)


@pytest.mark.parametrize("answer", ["", "null", "{}", '{"digest": "sha256:12"}', '{"digest": 5}', "Name: python"])
def test_an_answer_without_a_digest(lockfiles: Path, registry: Path, answer: str, refuses: Refuses) -> None:
    registry.write_text(json.dumps(dict.fromkeys(json.loads(registry.read_text()), answer)))
    with refuses(NotAvailableError):
        update_images(lockfiles)


def test_a_tag_that_names_nothing_for_the_platform(lockfiles: Path, registry: Path, refuses: Refuses) -> None:
    registry.write_text(registry.read_text().replace("arm64", "riscv64"))
    with refuses(LockError):
        update_images(lockfiles)
