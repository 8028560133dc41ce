"""The command as a person meets it: statuses, streams, no traceback."""

import json
import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import pytest
from tests.checkpoints import SMALL, write
from tests.conftest import ROOT, Worded
from tests.processes import requant
from typer.main import get_command
from typer.testing import CliRunner

from requant.checkpoint.checkpoint import write_file
from requant.cli import main
from requant.cli.inspect import findings_table
from requant.cli.options import SandboxName, SizeName, app
from requant.cli.terminal import fail, print_json
from requant.inspect import Inspection
from requant.model.rules import SIZES
from requant.model.target import target_of
from requant.recipe import read_recipe
from requant.sandbox.choice import SANDBOXES


def test_help_lists_the_verbs() -> None:
    done = subprocess.run([sys.executable, "-m", "requant", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    for verb in ("build", "rebuild", "coverage", "show", "verify", "manifest", "tiny", "lock"):
        assert verb in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),  # in words that are partly typer's
    [
        (("frobnicate",), "frobnicate"),
        (("build",), "RECIPE"),
        (("build", "builds/ec", "--tiny", "--size", "huge"), "'mini', 'demo', 'wide'"),
        (("build", "builds/ec", "--tiny", "--sandbox", "cloud"), "venv"),
        (("buidl",), "'build'"),
        (("build", "builds/ec", "--twn"), "--tiny"),
        (("build", "builds/ec", "--nope"), "requant build --help"),
        (("audit", "out", "--recipe", "builds/ec"), "requant audit --help"),
        (("show", "jornal"), "requant show --help"),
        (("trial", "builds/ec", "--rehearsal", "--iterations", "1"), "--iterations"),
        (("audit", "out", "--recipe", "builds/ec", "--engine", "moon"), "'here', 'ray'"),
    ],
)
def test_errors_of_usage_are_short(arguments: tuple[str, ...], says: str) -> None:
    done = requant(*arguments)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) < 8


WRONG = {
    "build builds/none --tiny": 4,
    "verify builds README.md": 6,
    "verify nowhere builds/ec/mini.manifest.json": 6,
    "verify builds nowhere.json": 6,
    "manifest nowhere": 6,
    "show journal nowhere": 6,
    "show bundle nowhere --key nowhere": 2,
    "sign builds/ec/mini.intoto.jsonl --key nowhere": 2,
    "keys show nowhere": 2,
    "keys new a --kind rsa": 2,
    "inspect out/nope": 2,
    "identify out/nope": 2,
    "check out/nope --base builds": 2,
    "evaluate out/nope": 2,
    "evaluate out/nope --base builds": 2,
    "evaluate nowhere.json": 6,
    "evaluate out --base builds --out README.md": 2,
    "evaluate out --base builds --environment none": 5,
    "evaluate out --base builds --text nowhere": 6,
    "lock --check none": 5,
    "build builds/ec --size mini": 2,
    "rebuild builds/ec --size demo": 2,
    "plan builds/ec --size mini": 2,
    "coverage builds/ec --size mini": 2,
    "card builds/ec --size mini": 2,
    "card builds/none": 4,
    "card builds/ec --compare nowhere.md": 6,
    "card builds/ec --compare README.md --out docs/x.md": 2,
    "card builds/ec --out README.md": 2,
    "card builds/ec --build docs": 2,
    "audit out --recipe builds/ec --all --size mini": 2,
    "audit out --recipe builds/ec --all --record": 2,
    "audit out --recipe builds/ec --address localhost:6379": 2,
    "tiny builds/ec --out docs": 2,
    "image nope": 2,
    "image cpu --base 'a b'": 2,
    "image cpu --base ''": 2,
    "image cpu --base python:3.11 --record": 2,
    "image cpu --source docs": 2,
    "image cu124 --source nowhere": 2,
    "update images nope": 2,
    "update locks cpu nope --cutoff 2026-06-01T00:00:00Z": 5,
    "lock cpu nope": 5,
    "lock --files cpu nope": 5,
    "inspect a/b@c --loader x": 2,
    "inspect a/b@c --recipe nowhere": 4,
    "check a/b@c --base x": 2,
    "check a/b@c --base a/b@c --sample 7": 2,
    "audit docs --recipe builds/ec --tiny --blocks 8": 2,
    "audit docs --recipe builds/ec --blocks 40": 2,
    "audit docs --recipe builds/ec --tiny --sample 9 --seed x": 2,
    "audit nowhere --recipe builds/ec --tiny --all": 6,
    "audit docs --recipe builds/ec --tiny --all": 6,
    "audit docs --recipe builds/ec --tiny --all --engine ray --address x": 2,
}


@pytest.mark.parametrize(("arguments", "status"), WRONG.items(), ids=WRONG)
def test_arguments_are_looked_at_before_the_world(arguments: str, status: int, tmp_path: Path, worded: Worded) -> None:
    """No engine is asked, no worker is made, nothing is fetched or installed: a program that is run leaves a trace."""
    for program in ("docker", "podman", "uv", "nvidia-smi"):
        (tmp_path / program).write_text(f'#!/bin/sh\necho "$0" "$@" >> {tmp_path}/run\nexit 9\n')
        (tmp_path / program).chmod(0o755)
    given = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HF_ENDPOINT": "http://[::1]:9",
    }
    done = requant(*shlex.split(arguments), env=given)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    worded(done.stderr)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache").exists()


def test_a_debian_base_of_another_python_is_refused_before_an_engine_is_asked(tmp_path: Path) -> None:
    (tmp_path / "apt-cache").write_text("#!/bin/sh\necho 'E: No packages found' >&2\nexit 100\n")
    (tmp_path / "apt-cache").chmod(0o755)
    command = [sys.executable, "-m", "requant", "image", "cu124", "--base", "debian"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 8
    assert done.stderr.startswith("error apt does not know python3.12")


def test_an_audit_without_its_tiny_model_is_told_which_it_is(tmp_path: Path) -> None:
    """A checkpoint says by its form what it is a build of."""
    specs = target_of(read_recipe(ROOT / "builds" / "ec"), "mini").main
    write_file(tmp_path / "model.safetensors", {name: (spec, [bytes(spec.nbytes)]) for name, spec in specs.items()})
    for size in ((), ("--tiny",)):
        done = requant("audit", str(tmp_path), "--recipe", "builds/ec", "--all", *size)
        assert done.returncode == 6
        assert "It has the form of the recipe's tiny model mini: add --tiny --size mini." in done.stderr
        assert done.stderr.startswith("error")


def test_the_version_is_told() -> None:
    done = requant("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"requant {version('requant')}\n", "")


@pytest.mark.parametrize("group", [(), ("show",), ("update",)])
def test_a_group_without_a_verb_is_its_help(group: tuple[str, ...]) -> None:
    done = requant(*group)
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.strip() == requant(*group, "-h").stdout.strip()
    assert " ".join(("requant", *group)) in done.stdout


def verbs(group: Any, words: str = "requant") -> Iterator[tuple[str, Any]]:
    """Every command that can be typed, by its words."""
    for name, each in group.commands.items():
        if hasattr(each, "commands"):
            yield from verbs(each, f"{words} {name}")
        else:
            yield f"{words} {name}", each


def test_every_verb_and_every_option_has_a_help() -> None:
    for words, verb in verbs(get_command(app)):
        assert verb.help, words
        for each in verb.params:
            assert each.help, f"{words}: {each.name}"
            assert each.help.endswith("."), f"{words}: {each.name}"


def test_no_flag_looks_as_if_it_took_a_value() -> None:
    for words in ((), ("build",), ("show", "journal"), ("update",), ("update", "locks")):
        assert "bool" not in requant(*words, "-h").stdout


def test_sizes_and_sandboxes_are_those_that_exist() -> None:
    assert get_args(SizeName) == tuple(SIZES)
    assert get_args(SandboxName) == SANDBOXES


def completed(*words: str, cwd: Path = ROOT) -> list[str]:
    env = {"COMP_WORDS": " ".join(("requant", *words)), "COMP_CWORD": str(len(words))}
    return requant(cwd=cwd, env={**env, "_REQUANT_COMPLETE": "complete_bash"}).stdout.split()


def test_a_shell_completes_verbs_recipes_and_choices(tmp_path: Path) -> None:
    assert {*completed("re")} == {"repair", "rebuild", "render", "report", "respond"}
    assert completed("build", "builds/e") == ["builds/ec", "builds/ec-mtp"]
    recipes = sorted(path.parent.name for path in ROOT.glob("builds/*/recipe.toml"))
    assert completed("build", "b") == [f"builds/{name}" for name in recipes]
    assert completed("build", "b", cwd=tmp_path) == []
    assert completed("audit", "out", "--recipe", "builds/g") == ["builds/gb10"]
    assert completed("build", "builds/ec", "--size", "m") == ["mini"]
    assert completed("image", "cu1") == ["cu124", "cu130"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_usual_shell_has_its_completion(shell: str) -> None:
    done = requant(env={"_REQUANT_COMPLETE": f"source_{shell}"})
    assert done.returncode == 0, done.stderr
    assert f"complete_{shell}" in done.stdout


def test_the_completion_of_the_running_shell_is_shown() -> None:
    command = f"{sys.executable} -m requant --show-completion; exit $?"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "complete_bash" in done.stdout


def test_an_error_is_a_document_too() -> None:
    for arguments, status, kind in (
        (("verify", "builds", "nowhere.json", "--json"), 6, "CheckpointError"),
        (("build", "builds/none", "--json"), 4, "RecipeError"),
        (("plan", "builds/ec", "--size", "mini", "--json"), 2, "UsageError"),
        (("build", "--json"), 2, "UsageError"),
        (("frobnicate", "--json"), 2, "UsageError"),
    ):
        done = requant(*arguments)
        document = json.loads(done.stdout)
        assert done.returncode == document["exit_status"] == status
        assert (document["schema"], document["error"]) == ("requant.error/1", kind)
        assert document["message"] in done.stderr
        assert document["advice"] in done.stderr


def test_a_mistake_of_requant_is_a_document_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["requant", "plan", "builds/ec", "--json"])
    monkeypatch.setattr("requant.cli.terminal._answered", False)
    monkeypatch.setattr("requant.cli.signal.signal", lambda *_: None)

    def mistaken(*_: object) -> None:
        raise KeyError("gone")

    monkeypatch.setattr("requant.cli.plan.summarize", mistaken)
    with pytest.raises(KeyError):  # which ends the program elsewhere
        main()
    document = json.loads(capsys.readouterr().out)
    assert (document["error"], document["exit_status"]) == ("InternalError", 70)
    assert "KeyError" in document["message"]


def test_a_run_prints_one_document_even_where_it_fails_behind_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["requant", "verify", "a", "b", "--json"])
    print_json("requant.verify/1", {"outcome": "identical"})
    with pytest.raises(SystemExit):
        fail("the disk is full", "", 8)
    assert json.loads(capsys.readouterr().out)["schema"] == "requant.verify/1"


def test_a_verdict_names_a_file_once_and_counts_what_is_identical(tmp_path: Path) -> None:
    write(tmp_path / "c", SMALL)
    (tmp_path / "manifest.json").write_text(requant("manifest", str(tmp_path / "c")).stdout)
    size = sum(map(len, SMALL.values()))
    done = requant("verify", str(tmp_path / "c"), str(tmp_path / "manifest.json"))
    assert done.stdout == f"identical, compared with {tmp_path}/manifest.json: 3 files, 3 tensors, {size} bytes\n"
    (tmp_path / "c" / "config.json").write_text("{}")
    for program in (("requant",), ("requant.verify",)):
        verb = ("verify",) if program == ("requant",) else ()
        command = [sys.executable, "-m", *program, *verb, str(tmp_path / "c"), str(tmp_path / "manifest.json")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert "changed file: config.json\n" in done.stdout


def test_a_tiny_model_is_written_and_its_manifest_verifies_it(tmp_path: Path) -> None:
    assert requant("tiny", "builds/ec", "--size", "mini", "--out", str(tmp_path / "tiny")).returncode == 0
    done = requant("manifest", str(tmp_path / "tiny"))
    (tmp_path / "manifest.json").write_text(done.stdout)
    done = requant("verify", str(tmp_path / "tiny"), str(tmp_path / "manifest.json"))
    beside, verdict = done.stdout.splitlines()
    assert (done.returncode, verdict.split(",")[0]) == (0, "identical")
    assert "README.md" in beside
    (tmp_path / "tiny" / "vocab.json").unlink()
    done = requant("verify", str(tmp_path / "tiny"), str(tmp_path / "manifest.json"), "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["outcome"] == "equivalent"
    assert requant("verify", str(tmp_path / "tiny"), str(tmp_path / "manifest.json"), "--tensors").returncode == 0
    assert requant("tiny", "builds/ec", "--size", "mini", "--out", str(tmp_path / "tiny")).returncode == 2


def test_a_closed_pipe_is_no_traceback(tmp_path: Path) -> None:
    requant("tiny", "builds/ec", "--size", "mini", "--out", str(tmp_path / "tiny"))
    command = f"{sys.executable} -m requant manifest {tmp_path / 'tiny'} | head -c 10"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_a_pipe_that_nobody_reads_is_not_a_verdict(tmp_path: Path) -> None:
    requant("tiny", "builds/ec", "--size", "mini", "--out", str(tmp_path / "tiny"))
    (tmp_path / "manifest.json").write_text(requant("manifest", str(tmp_path / "tiny")).stdout)
    for module in ("requant verify", "requant.verify"):
        words = f"{tmp_path / 'tiny'} {tmp_path / 'manifest.json'}"
        command = f"{sys.executable} -m {module} {words} | true; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode in (0, 8, 141), "0 where the pipe took all of it"
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("key", "value"), [("iterations", "0x" + "f" * 5000), ("hours", "0x" + "f" * 5000)])
def test_numbers_too_large_to_print(tmp_path: Path, key: str, value: str) -> None:
    lines = (ROOT / "builds" / "ec" / "recipe.toml").read_text().splitlines()
    recipe = [f"{key} = {value}" if line.startswith(f"{key} = ") else line for line in lines]
    (tmp_path / "recipe.toml").write_text("\n".join(recipe))
    done = requant("build", str(tmp_path), "--tiny")
    assert done.returncode == 4
    assert f"{key}: found a number of more than 63 bits" in done.stderr


INTERRUPTING = """
import requant
from requant.cli import load, main
load()
def interrupt(*_, **__):
    raise KeyboardInterrupt
requant.build.build = requant.build.trial.trial = requant.verify.verify = interrupt
main()
"""


@pytest.mark.parametrize(
    ("words", "resumes"),
    [
        (("build", "builds/ec", "--tiny"), True),
        (("trial", "builds/ec", "--work", "nowhere"), False),  # its folder has to be empty, or is removed
        (("verify", "builds", "builds/ec/mini.manifest.json"), False),
    ],
)
def test_only_a_build_is_said_to_resume(words: tuple[str, ...], resumes: bool) -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTING, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 130 and "interrupted" in done.stderr
    assert ("resumes" in done.stderr) == resumes


def test_a_tiny_model_that_was_interrupted_is_written_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["tiny", str(ROOT / "builds" / "ec"), "--size", "mini", "--out", str(tmp_path / "new" / "tiny")]

    def half(_made: object, folder: Path, _tell: object) -> None:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("requant.cli.tiny.write_checkpoint", half)
        assert CliRunner().invoke(app, words).exit_code == 130
    assert list((tmp_path / "new").iterdir()) == []
    assert CliRunner().invoke(app, words).exit_code == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["tiny"]
    assert stat.S_IMODE((tmp_path / "new" / "tiny").stat().st_mode) == stat.S_IMODE((tmp_path / "new").stat().st_mode)


def test_one_is_no_plural(tmp_path: Path) -> None:
    write(tmp_path / "c", {name: data for name, data in SMALL.items() if "00002-of" in name})
    (tmp_path / "manifest.json").write_text(requant("manifest", str(tmp_path / "c")).stdout)
    assert ": 1 file, 1 tensor, " in requant("verify", str(tmp_path / "c"), str(tmp_path / "manifest.json")).stdout
    found = Inspection("x", 1, 1, 0, ("vllm==0.33.0",), (1,), True, ())
    assert next(iter(findings_table(found))) == "x: 1 tensor in 1 file"
    found = Inspection("x", 1_049, 2, 0, ("vllm==0.33.0",), (1,), True, ())
    assert next(iter(findings_table(found))) == "x: 1,049 tensors in 2 files"
