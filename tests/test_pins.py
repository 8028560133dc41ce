"""Every pin of this project is found where it stands; one that lacks something is named by file and line."""

import json
import re
import shutil
from pathlib import Path

import pytest
from tests.conftest import ROOT
from typer.testing import CliRunner

from requant.cli.options import app
from requant.errors import LockError, RecipeError, UsageError
from requant.pinning.hosted import HOST, UNHELD, installed
from requant.pins import GAPS, Pinned, find_pins

DATA = "builds/datasets/pile-10k.json"
NO_FILES = 'revision = "127bfedcd5047750df5ccf3a12979a47bfa0bafa"\nfiles = "none"'
UNKNOWN_SIZE = {f"{DATA}:8"}
"""What is known to be incomplete: nobody has published the size of this file (its provenance says so)."""


def incomplete(root: Path) -> dict[str, Pinned]:
    return {f"{pin.file}:{pin.line}": pin for pin in find_pins(root) if pin.fault and not pin.known}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The pins of this project in a folder of their own, with the one unknown size filled in."""
    for pattern in ("Dockerfile*", "lockfiles/*", "builds/*/recipe.toml", "builds/*/*.json", "pyproject.toml", ".ci/*"):
        for file in (*ROOT.glob(pattern), ROOT / "noxfile.py"):
            if "manifest" not in file.name:
                (tmp_path / file.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, tmp_path / file.relative_to(ROOT))
    edit(tmp_path, DATA, '"bytes": null', '"bytes": 33300000')
    return tmp_path


def edit(root: Path, name: str, old: str, new: str) -> int:
    """Replace a text that stands once, by an expression; return its line."""
    text = (root / name).read_text()
    assert len(re.findall(old, text)) == 1
    (root / name).write_text(re.sub(old, new, text))
    return text[: re.search(old, text).start()].count("\n") + 1  # type: ignore[union-attr]


def test_nothing_here_is_incomplete_but_what_is_known_to_be() -> None:
    assert not incomplete(ROOT)
    assert {f"{pin.file}:{pin.line}" for pin in find_pins(ROOT) if pin.known} == UNKNOWN_SIZE


def test_each_pin_stands_where_it_is_said_to() -> None:
    kinds = set()
    for pin in find_pins(ROOT):
        kinds.add(pin.kind)
        if pin.kind == UNHELD:
            continue  # it stands in no file
        line = (ROOT / pin.file).read_text().split("\n")[pin.line - 1]
        assert pin.by.removeprefix("sha256:") in line or (pin.by == "any version" and pin.name in line)
        assert pin.source or pin.kind == HOST
    assert kinds == {
        "base image",
        "dataset",
        "file of a dataset",
        "file of a model",
        "files in wheels",
        "git commit",
        HOST,
        UNHELD,
        "model",
        "wheel",
    }


def test_each_lock_line_is_a_pin() -> None:
    for file in (ROOT / "lockfiles").glob("*.txt"):
        lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
        pins = [pin for pin in find_pins(ROOT) if pin.file == f"lockfiles/{file.name}"]
        assert [f"{pin.name} --hash={pin.by}" for pin in pins] == lines


def test_a_pin_says_who_said_so() -> None:
    pins = {(pin.file, pin.name): pin.source for pin in find_pins(ROOT)}
    assert pins["lockfiles/cu124.txt", "torchvision==0.21.0"] == "the one that goes with torch 2.6.0"
    assert pins["lockfiles/cu124.txt", "yarl==1.23.0"] == "resolved from cu124.in"
    assert pins["lockfiles/cu124.in", "auto-round"].startswith("This commit was never released")
    assert pins["builds/ec/recipe.toml", "Qwen/Qwen3.6-35B-A3B"].startswith('Qwen3.6-35B-A3B INT4 AutoRound "EC"')


def test_all_complete_is_status_0(project: Path) -> None:
    assert not incomplete(project)
    shown = CliRunner().invoke(app, ["pins", str(project)])
    assert shown.exit_code == 0
    assert " 0 incomplete" in shown.output


@pytest.mark.parametrize(
    ("file", "old", "new", "fault"),
    [
        ("Dockerfile.cu124", r"(?<=bookworm)@sha256:\w{64}", "", "a tag without a digest"),
        ("Dockerfile.cu124", r":3\S+-bookworm@sha256:\w{64}", "", "neither a tag nor a digest"),
        ("Dockerfile.cu124", r"(?<=ARG BASE)=.*", "", "whoever builds chooses the image"),
        ("Dockerfile.cu124", r"(?<=auto-round.git)#\w{40}", "#main", "neither commit nor checksum"),
        ("lockfiles/images.toml", r"\[cpu\]\n(.*\n)digest = .*\n", '[cpu]\nimage = "python:3.12"\n', "no digest"),
        ("lockfiles/images.toml", r"(?<=4427763a1)\w+", "", "a tag without a digest"),
        ("lockfiles/cu124.txt", r"(?<=torch==2\.6\.0) --hash=.*", "", "found 0 hashes"),
        ("lockfiles/cu124.txt", r"(?<=torch==2\.6\.0) ", f" --hash=sha256:{'0' * 64} ", "found 2 hashes"),
        ("lockfiles/cu124.txt", r"(?<=^torch)==2\.6\.0|(?<=\ntorch)==2\.6\.0", ">=2.6.0", "expected `name==version"),
        ("lockfiles/cu124.txt", r"(?<=\n)torch==.*", "torch @ https://example.org/torch.whl", "found a URL"),
        ("lockfiles/cu124.txt", r"(?<=\n)torch==.*", "--pre", "found an option"),
        ("lockfiles/cu124.in", r"(?<=auto-round\.commit = )\w{40}", "main", "no commit"),
        ("builds/ec/recipe.toml", "995ad96eacd98c81ed38be0c5b274b04031597b0", "main", "no commit"),
        ("builds/ec/recipe.toml", "127bfedcd5047750df5ccf3a12979a47bfa0bafa", "0" * 40, "pile-10k.json pins"),
        ("builds/ec/recipe.toml", r'(?<=10k"\n)(.*\n)files = .*', NO_FILES, "its files are not pinned"),
        (DATA, '"bytes": 33300000', '"bytes": null', "no size"),
        (DATA, r'"sha256": "\w{64}"', '"sha256": null', "no SHA-256"),
        ("pyproject.toml", "numba>=0.61", "numba @ git+https://example.org/numba@main", "no commit"),
    ],
)
def test_a_pin_that_lacks_something_is_named(project: Path, file: str, old: str, new: str, fault: str) -> None:
    line = edit(project, file, old, new)
    found = incomplete(project)
    place = f"{file}:{line}"
    assert place in found
    assert fault in found[place].fault
    shown = CliRunner().invoke(app, ["pins", str(project)])
    assert shown.exit_code == 1
    assert place in shown.output
    assert fault in shown.output


def test_a_gap_that_is_known_is_no_failure_and_a_new_one_is(project: Path) -> None:
    edit(project, DATA, '"bytes": 33300000', '"bytes": null')
    assert CliRunner().invoke(app, ["pins", str(project)]).exit_code == 1
    shutil.copy(ROOT / GAPS, project / GAPS)
    shown = CliRunner().invoke(app, ["pins", str(project)])
    assert shown.exit_code == 0
    assert "known to be incomplete: no size; nobody has published it in bytes" in shown.output
    assert " 0 incomplete, 1 known to be incomplete (builds/gaps.toml)" in shown.output
    edit(project, DATA, r'"sha256": "\w{64}"', '"sha256": null')  # another gap of the same file
    assert "no SHA-256, no size" in CliRunner().invoke(app, ["pins", str(project)]).output
    assert CliRunner().invoke(app, ["pins", str(project)]).exit_code == 1


def test_a_pristine_clone_passes() -> None:
    assert CliRunner().invoke(app, ["pins", str(ROOT)]).exit_code == 0


def test_a_gap_that_was_closed_is_told(project: Path) -> None:
    shutil.copy(ROOT / GAPS, project / GAPS)
    (fault,) = incomplete(project).values()
    assert fault.fault == f"{GAPS} says that {DATA} has a gap (no size), and it has none: remove the entry"


@pytest.mark.parametrize(
    ("text", "said"), [("gap = 1", "expected tables"), ("[[gap]]\nfile = 'a'", "'name'"), ("[gap", "expected tables")]
)
def test_gaps_are_read_strictly(project: Path, text: str, said: str) -> None:
    (project / GAPS).write_text(text)
    with pytest.raises(LockError, match=said):
        find_pins(project)
    (project / GAPS).write_text('[[gap]]\nfile = "a"\nname = "b"\nlacks = "c"\nwhy = ""\n')
    with pytest.raises(LockError, match="say why"):
        find_pins(project)


def test_what_no_digest_holds_is_told() -> None:
    names = {pin.name for pin in find_pins(ROOT) if pin.kind == UNHELD}
    assert names == {"C library", "GPU driver", "Python", "container engine", "kernel", "processor"}
    shown = CliRunner().invoke(app, ["pins", str(ROOT)]).output
    assert "the host under the room: kernel, nothing; always the host's" in shown


def test_wheels_whose_files_nobody_listed_are_named(project: Path) -> None:
    (project / "lockfiles/gb10.files").unlink()
    fault = incomplete(project)["lockfiles/gb10.files:1"].fault
    assert "held only since it was installed" in fault
    assert "--files gb10" in fault


def test_a_lock_that_is_stale_or_absent_is_named(project: Path) -> None:
    edit(project, "lockfiles/gb10.in", "safetensors==0.7.0", "safetensors==0.7.1")
    assert "stale" in incomplete(project)["lockfiles/gb10.txt:1"].fault
    (project / "lockfiles/gb10.txt").unlink()
    assert "No such file" in incomplete(project)["lockfiles/gb10.txt:1"].fault
    (project / "lockfiles/gb10.in").unlink()
    assert not any(pin.name == "gb10" for pin in find_pins(project))


def test_a_file_of_pins_that_cannot_be_read_is_an_error(project: Path) -> None:
    edit(project, DATA, "127bfedcd5047750df5ccf3a12979a47bfa0bafa", "main")
    with pytest.raises(RecipeError, match=r"pile-10k\.json: revision: found 'main'"):
        find_pins(project)


def test_where_nothing_is_pinned_nothing_is_complete(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing is pinned there"):
        find_pins(tmp_path)


def test_ranges_of_the_host_are_listed_and_no_fault() -> None:
    host = {(pin.name, pin.by) for pin in find_pins(ROOT) if pin.kind == HOST}
    assert {("numpy", ">=2.1"), ("nox", ">=2025.2.9"), ("pipx", "any version"), ("hatchling", ">=1.27")} <= host


@pytest.mark.parametrize(
    ("line", "packages"),
    [
        ("apt-get install -y -qq --no-install-recommends pipx runc/bookworm >/dev/null", ["pipx", "runc"]),
        ("apt-get update -qq && apt-get install -y a=1.2 b; echo c", ["a", "b"]),
        ("apt-get install -y \\\n  a/trixie \\\n  b >/dev/null", ["a", "b"]),
        ("pipx run nox -s tests", ["nox"]),
        ("uvx --python 3.11 nox -s tests", ["nox"]),
        ("# apt-get install pipx", []),
        ("command -v pipx", []),
    ],
)
def test_what_a_script_installs_is_listed(line: str, packages: list[str]) -> None:
    assert [each.name for each in installed(f"\n{line}\n")] == packages


def test_what_a_script_installs_stands_in_its_line() -> None:
    found = installed("apt-get install -y \\\n  a/trixie \\\n  b >/dev/null\nc\npip install d\n")
    assert [(each.name, each.by, each.line) for each in found] == [
        ("a", "/trixie", 2),
        ("b", "any version", 3),
        ("d", "any version", 5),
    ]


def test_json_has_every_pin(project: Path) -> None:
    edit(project, DATA, '"bytes": 33300000', '"bytes": null')
    document = json.loads(CliRunner().invoke(app, ["pins", str(project), "--json"]).output)
    assert document["incomplete"] == 1
    assert len(document["pins"]) == len(find_pins(ROOT))
    (pin,) = (pin for pin in document["pins"] if pin["fault"])
    assert (pin["kind"], pin["file"], pin["line"], pin["fault"]) == ("file of a dataset", DATA, 8, "no size")
