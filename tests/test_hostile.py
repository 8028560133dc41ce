"""Strangers' text on a terminal: every verb, fed with files whose every string holds a trick; none of them works.

A terminal is forced, so rich's own styles are there; what a stranger wrote would stand beside them.
"""

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.color import ColorSystem
from rich.text import Text
from tests.cases.tiny_models import healthy
from tests.conftest import ROOT
from tests.tiny import write_tiny

from requant import cli
from requant.checkpoint.checkpoint import write_checkpoint
from requant.checkpoint.manifest import make_manifest
from requant.cli import terminal
from requant.cli.terminal import Terminal
from requant.digest import canonical_json
from requant.verdict import visible

TRICK = "\x1b[2J\x1b]0;t\x07\x9b31m\r\b\x7f\u202e\u200b\u2028\ufeff\u3164[bold red]OWNED[/][/x]\nFORGED\x1b[0m"
STYLE = re.compile(r"\x1b\[([0-9;]*m|\?25[lh]|2K|1A)|\r(?=\x1b\[2K)")
"""What rich writes itself: colours and weights, and how a bar of progress takes its line back."""


def harmless(shown: str) -> bool:
    """Whether an output has nothing unseen but rich's own styles, no markup of a stranger's, and no line of theirs."""
    plain = STYLE.sub("", shown)
    unseen = {letter for letter in plain.replace("\n", "") if visible(letter) != letter}
    assert unseen == set()
    assert plain.count("OWNED") == plain.count("[bold red]OWNED")
    return not any(line.strip() == "FORGED" for line in plain.splitlines())


@given(st.text())
def test_what_is_visible_is_printable_and_stays_itself(text: str) -> None:
    seen = visible(text)
    assert seen.isprintable() and visible(seen) == seen
    if text.isascii() and text.isprintable():
        assert seen == text


@pytest.mark.parametrize(
    "trick", ["\x1b", "\x00", "\x9b", "\x7f", "\u202e", "\u200b", "\u2066", "\u2028", "\n", "\r", "\t"]
)
@pytest.mark.parametrize("other", ["\xa0", "\xad", "\u115f", "\ufe0f", "\u034f", "\ud800", "\U000e0101", "\ufeff"])
def test_names_that_differ_in_what_is_unseen_do_not_look_the_same(trick: str, other: str) -> None:
    assert len({visible(f"a{each}b") for each in ("", trick, other)}) == 3


@pytest.mark.parametrize("shown", [str, Text, Text.from_ansi, lambda text: Text(text, style="bold")])
def test_no_console_prints_it_however_it_comes(shown: Callable[[str], Any]) -> None:
    stream = io.StringIO()
    Terminal(file=stream, force_terminal=True, emoji=False, markup=False).print(shown(f"{TRICK}\ud800"))
    assert harmless(stream.getvalue().replace("OWNED", "")) or shown is not str
    assert "OWNED" in stream.getvalue()


def test_what_is_too_long_to_read_is_cut() -> None:
    stream = io.StringIO()
    Terminal(file=stream).print("x" * 10_000_000)
    assert "10,000,000 characters" in stream.getvalue() and len(stream.getvalue()) < 6_000


def more_keys(value: Any) -> Any:
    """Return a document with one more key in each object."""
    if isinstance(value, dict):
        return {**{key: more_keys(each) for key, each in value.items()}, TRICK: TRICK}
    return [more_keys(each) for each in value] if isinstance(value, list) else value


def longer_values(value: Any) -> Any:
    """Return a document with every text longer, but for the few that decide what it is."""
    if isinstance(value, dict):
        kept = ("model_type", "data_type", "packing_format", "quant_method", "layer_types")
        return {key: each if key in kept else longer_values(each) for key, each in value.items()}
    if isinstance(value, list):
        return [longer_values(each) for each in value]
    return value + TRICK if isinstance(value, str) else value


def longer_keys(value: Any) -> Any:
    """Return a document with every key of its innermost objects longer."""
    if isinstance(value, dict):
        deep = any(isinstance(each, dict) for each in value.values())
        return {key if deep else key + TRICK: longer_keys(each) for key, each in value.items()}
    return value


def overridden(value: Any) -> Any:
    """Return a configuration with an exception for layers of a hostile name, and a hostile version."""
    declared = value.get("quantization_config", value)
    declared["extra_config"] = {**declared.get("extra_config", {}), f"{TRICK}.*": {"bits": 16}, TRICK: {"bits": TRICK}}
    declared["autoround_version"] = f"0.13.0{TRICK}"
    return value


TOLD = ("inspect C --all", "identify C", "diff C H", "check C --base B", "repair C --base B", "verify C M")
SIDES = ("config.json", "quantization_config.json", "tokenizer_config.json", "model.safetensors.index.json")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A healthy checkpoint H, its base B, and its manifest M."""
    folder = tmp_path_factory.mktemp("hostile")
    write_checkpoint(healthy("ec"), folder / "H")
    write_tiny("mini", folder / "B")
    (folder / "M").write_bytes(make_manifest(folder / "H").to_json())
    return folder


@pytest.fixture
def said(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """What a command shows on a terminal, of files in a folder of its own."""
    shutil.copytree(folders / "H", tmp_path / "C")
    shutil.copytree(ROOT / "builds", tmp_path / "builds")
    shutil.copytree(ROOT / "lockfiles", tmp_path / "lockfiles")
    for path in ROOT.glob("Dockerfile.*"):
        shutil.copyfile(path, tmp_path / path.name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    stream = io.StringIO()
    for console in (terminal.out, terminal.err):
        monkeypatch.setattr(console, "_file", stream)
        monkeypatch.setattr(console, "_force_terminal", True)
        monkeypatch.setattr(console, "_color_system", ColorSystem.STANDARD)
        monkeypatch.setattr(console, "_width", 100_000)  # so that nothing is folded

    def run(command: str | list[str]) -> str:
        words = command.split() if isinstance(command, str) else command
        words = [str(folders / word) if word in ("B", "H", "M") else word for word in words]
        monkeypatch.setattr(sys, "argv", ["requant", *words])
        try:
            status = cli.main()
        except SystemExit as ended:
            status = ended.code  # type: ignore[assignment]
        assert status != 70
        return stream.getvalue() + "".join(capsys.readouterr())

    return run


@pytest.mark.parametrize(
    ("side", "spoil"),
    [
        *((side, spoil) for side in SIDES for spoil in (more_keys, longer_values, longer_keys)),
        *((side, overridden) for side in SIDES[:2]),
    ],
)
def test_side_files_of_a_checkpoint(said: Callable[[str], str], side: str, spoil: Callable[[Any], Any]) -> None:
    path = Path("C", side)
    path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    for command in TOLD:
        assert harmless(said(command)), command


@pytest.mark.parametrize(
    ("file", "spoil", "commands"),
    [
        ("builds/ec/mini.journal.jsonl", longer_values, ["show journal FILE", "coverage RECIPE --tiny --size mini"]),
        ("builds/ec/mini.journal.jsonl", longer_keys, ["show journal FILE"]),
        (
            "builds/ec/mini.intoto.jsonl",
            longer_values,
            [f"{each} RECIPE --tiny --size mini" for each in ("coverage", "card")],
        ),
        ("builds/ec/mini.manifest.json", longer_values, ["verify H FILE"]),
        ("builds/ec/mini.manifest.json", longer_keys, ["verify H FILE"]),
        ("builds/ec/mini.manifest.json", more_keys, ["verify H FILE"]),
        ("builds/bases/qwen3.6-35b-a3b.json", longer_values, ["plan RECIPE", "pins"]),
        ("builds/bases/qwen3.6-35b-a3b.json", longer_keys, ["plan RECIPE", "pins"]),
        ("builds/bases/qwen3.6-35b-a3b.config.json", longer_values, ["plan RECIPE"]),
        ("builds/bases/qwen3.6-35b-a3b.config.json", more_keys, ["plan RECIPE"]),
    ],
)
def test_records(said: Callable[[str], str], file: str, spoil: Callable[[Any], Any], commands: list[str]) -> None:
    lines = Path(file).read_text().splitlines(keepends=True) if file.endswith("l") else [Path(file).read_text()]
    Path(file).write_bytes(b"".join(canonical_json(spoil(json.loads(line))) + b"\n" for line in lines))
    for command in commands:
        assert harmless(said(command.replace("FILE", file).replace("RECIPE", "builds/ec"))), command


RECIPES = (
    "plan RECIPE",
    "render RECIPE",
    "coverage RECIPE",
    "card RECIPE --tiny --size wide",
    "pins",
    "inspect C --recipe RECIPE",
)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("recipe.toml", "group_size = 128", f"group_size = 128\n{json.dumps(TRICK)} = 4"),
        ("recipe.toml", "[scheme]", f"[{json.dumps(TRICK)}]\na = 1\n[scheme]"),
        ("recipe.toml", '"auto_round:auto_gptq"', json.dumps(TRICK)),
        ("recipe.toml", '"cu124"', json.dumps(TRICK)),
        ("recipe.toml", '"Qwen/Qwen3.6-35B-A3B"', json.dumps(TRICK)),
        ("recipe.toml", '"../bases/qwen3.6-35b-a3b.json"', json.dumps(TRICK)),
        ("recipe.toml", '["mtp.fc"]', f"[{json.dumps(TRICK)}]"),
        ("recipe.toml", '"NVIDIA H200"', json.dumps(TRICK)),
        ("recipe.toml", "# Qwen3.6", f"{TRICK}"),
        ("baseline.toml", "rule =", f"{json.dumps(TRICK)} ="),
    ],
)
def test_recipes(said: Callable[[str], str], file: str, old: str, new: str) -> None:
    path = Path("builds", "ec", file)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    for command in RECIPES:
        assert harmless(said(command.replace("RECIPE", "builds/ec"))), command


def test_cards(said: Callable[[str], str]) -> None:
    """A card of others', in prose, in what is compared, and in what a list, a table or a command names."""
    line = TRICK.replace("\n", " ")
    lines = (line, f"Seed: 42 ({line})", f"| Iters | {line} |", f"vllm serve {line} --x{line}", f"| {line} | 4 |")
    head = "| File | What |\n|---|---|\n"
    Path("CARD").write_text("\n".join((f"---\nbase_model: {line}\n---", *lines, f"{head}| {line} / config.json | x |")))
    assert harmless(said("card builds/ec --tiny --size mini --compare CARD"))
    assert harmless(said(["card", "builds/ec", "--tiny", "--size", "mini", "--repository", TRICK]))  # type: ignore[arg-type]


@pytest.mark.parametrize("file", ["lockfiles/cpu.in", "lockfiles/cpu.txt", "lockfiles/images.toml", "Dockerfile.cpu"])
def test_pins(said: Callable[[str], str], file: str) -> None:
    before = Path(file).read_text() if Path(file).exists() else "FROM debian:12\n"
    for text in (f"{TRICK}\n{before}", f"{before}FROM {TRICK}\na = {TRICK}\n", f"{before}{TRICK[-20:]} = 1\n"):
        Path(file).write_text(text)
        for command in ("pins", "dockerfiles", "render builds/qwen3-0.6b"):
            assert harmless(said(command)), command


def test_names_of_files_and_tensors(said: Callable[[str], str]) -> None:
    Path("C", TRICK.replace("/", "|")).write_text("x")
    shutil.copytree("C", "D")
    Path("D", TRICK.replace("/", "|")).unlink()
    Path("D", "x[bold red]OWNED[|].json").write_text("{}")
    shard = next(Path("D").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes().replace(b"layers.0.input", b"layers\\u001b.0.i", 1))
    for command in (*TOLD, "manifest C"):
        assert harmless(said(command)), command
        said(command.replace(" C", " D"))


@pytest.mark.parametrize(
    "words",
    [
        [TRICK],
        ["plan", TRICK],
        [f"--{TRICK}"],
        ["inspect", TRICK],
        ["inspect", "C", "--loader", TRICK],
        ["diff", TRICK, "C"],
    ],
)
def test_what_was_typed(said: Callable[[list[str]], str], words: list[str]) -> None:
    assert harmless(said(words))


def test_verify_on_the_standard_library(folders: Path, tmp_path: Path) -> None:
    recorded = json.loads((folders / "M").read_text())
    (tmp_path / "M").write_bytes(canonical_json({**recorded, TRICK: 1}) + b"\n")
    (tmp_path / "F").write_bytes((folders / "M").read_bytes())
    (tmp_path / "C").mkdir()
    (tmp_path / "C" / "model.safetensors").write_bytes(b"\x20" + b"\0" * 7 + b'{"\\u001b[2J\\u202e":{"dtype":"F4"}}')
    for name in ("M", "F", TRICK.replace("/", "|")):
        command = [sys.executable, "-S", "-m", "requant.verify", "C", name]
        environment = {"PYTHONPATH": str(ROOT / "src")}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert "Traceback" not in done.stderr and done.returncode not in (0, 70)
        assert harmless(done.stdout + done.stderr)
