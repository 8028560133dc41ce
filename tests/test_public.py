"""What scripts import: names that clash with no module, and the example that uses nothing else."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cases.tiny_models import healthy
from tests.conftest import ROOT, Refuses
from tests.tiny import write_tiny

import requant
from requant.checkpoint.checkpoint import write_checkpoint
from requant.checkpoint.manifest import make_manifest
from requant.checkpoint.safetensors import read_header

VERBS = ("audit", "build", "check", "diff", "identify", "inspect", "verify")
EXAMPLE = ROOT / "examples" / "verify_and_check.py"


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)


def test_every_public_name_is_there_and_none_is_a_module(refuses: Refuses) -> None:
    assert requant.__all__ == sorted(requant.__all__)
    assert {name for names in requant._HOMES.values() for name in names} == set(requant.__all__)
    assert set(requant.__all__) <= set(dir(requant))
    modules = {each.name for each in pkgutil.iter_modules(requant.__path__)}
    assert not modules & set(requant.__all__)
    for module, names in requant._HOMES.items():
        for name in names:
            assert getattr(requant, name) is getattr(importlib.import_module(f"requant.{module}"), name)
    with refuses(AttributeError):
        _ = requant.unheard


def test_types_and_homes_are_the_same() -> None:
    (block,) = (each for each in ast.parse(Path(requant.__file__).read_text()).body if isinstance(each, ast.If))
    imports = [each for each in block.body if isinstance(each, ast.ImportFrom)]
    told = {str(each.module): {name.name for name in each.names} for each in imports}
    assert told == {f"requant.{module}": set(names) for module, names in requant._HOMES.items()}


def test_verbs_are_in_modules_of_their_names() -> None:
    for verb in VERBS:
        assert callable(getattr(importlib.import_module(f"requant.{verb}"), verb))
        assert f"`{verb}`" in str(requant.__doc__) or f"import {verb}`" in str(requant.__doc__)


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    """-S: there is no numpy, and what needs the standard library alone is public all the same."""
    here = f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r}); import requant"
    done = python("-S", "-s", "-c", f"{here}; print(*(name for name in sys.modules if name.startswith('requant')))")
    assert done.stdout.split() == ["requant"]
    done = python(
        "-S", "-s", "-c", f"{here}; print(requant.Manifest, requant.read_manifest, requant.Outcome.DIFFERENT)"
    )
    assert done.stdout.endswith("different\n"), done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a healthy tiny model, its manifest and its base."""
    folder = tmp_path_factory.mktemp("made")
    write_tiny("mini", folder / "base")
    write_checkpoint(healthy("ec"), folder / "checkpoint")
    (folder / "manifest.json").write_bytes(make_manifest(folder / "checkpoint").to_json())
    return folder


@pytest.fixture
def example(made: Path) -> Callable[[], subprocess.CompletedProcess[str]]:
    places = (made / "checkpoint", made / "manifest.json", made / "base")
    return lambda: python(str(EXAMPLE), *map(str, places))


def test_the_example_is_short_and_uses_the_public_names_only() -> None:
    text = EXAMPLE.read_text()
    assert len(text.splitlines()) < 40
    for each in ast.walk(ast.parse(text)):
        names = [name.name for name in each.names] if isinstance(each, ast.Import | ast.ImportFrom) else []
        if isinstance(each, ast.Import):
            assert not any(name.startswith("requant") for name in names)
        elif isinstance(each, ast.ImportFrom) and each.module == "requant":
            assert set(names) <= set(requant.__all__)
        elif isinstance(each, ast.ImportFrom) and str(each.module).startswith("requant"):
            assert names == [str(each.module).removeprefix("requant.")]
            assert names[0] in VERBS


def test_the_example_says_yes_to_a_healthy_model_and_no_to_a_flipped_byte(
    made: Path, example: Callable[[], subprocess.CompletedProcess[str]]
) -> None:
    done = example()
    assert (done.returncode, done.stderr) == (0, "")
    assert "verify: identical\n" in done.stdout
    assert "check: clean\n" in done.stdout
    shard = min((made / "checkpoint").glob("*.safetensors"))
    entries, _ = read_header(shard)
    name = next(name for name in entries if name.endswith("norm.weight"))
    with shard.open("r+b") as file:
        file.seek(entries[name][1].start)
        (byte,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    done = example()
    assert (done.returncode, done.stderr) == (1, "")
    assert "verify: different\n" in done.stdout
    assert f"changed tensor: {name}" in done.stdout
    assert "check: violations\n" in done.stdout


def test_the_example_ends_with_the_status_of_an_error(tmp_path: Path) -> None:
    done = python(str(EXAMPLE), str(tmp_path), str(tmp_path / "none.json"), str(tmp_path))
    assert done.returncode == 6
    assert "none.json: No such file" in done.stderr
