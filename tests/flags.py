"""Writes src/requant/card/flags.json: which flags `vllm serve` has in each release that `inspect` models.

`nox -s flags`, or `python -m tests.flags`, fetches the releases' sources and reads them; nothing of them is run. A name
that may be no flag does no harm: a flag that is not listed is called wrong, one that is listed is not.
"""

import ast
import json
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT
from tests.releases import _download

from requant.card.serving import FLAGS
from requant.environment.install import cache
from requant.inspect.loaders.vllm import VLLM

WANTED = ("vllm/engine/arg_utils.py", "/cli_args.py", "vllm/entrypoints/cli/serve.py")
FILE = ROOT / "src" / "requant" / "card" / FLAGS


def sources(requirement: str) -> list[Path]:
    """Return the files of a release in which its arguments stand; kept in the cache."""
    folder = cache() / "releases" / f"{requirement}.arguments"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=cache()) as name:
            _download(requirement, Path(name))
            made = Path(name) / "files"
            made.mkdir()
            with tarfile.open(next(Path(name).glob("*.tar.gz"))) as source:
                inside = (each for each in source if each.isfile() and each.name.endswith(WANTED))
                for number, member in enumerate(inside):
                    if "/tests/" not in member.name and (file := source.extractfile(member)):
                        (made / f"{number}.py").write_bytes(file.read())
            made.rename(folder)
    return sorted(folder.glob("*.py"))


def flags(requirement: str) -> list[str]:
    """Return the long flags of `vllm serve` of a release, and the fields of its arguments' classes as flags, sorted."""
    return sorted({each for path in sources(requirement) for each in _flags(ast.parse(path.read_text()))})


def _flags(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
            words = (each.value for each in node.args if isinstance(each, ast.Constant))
            yield from (each for each in words if isinstance(each, str) and each.startswith("--"))
        elif isinstance(node, ast.ClassDef) and node.name.endswith("Args"):
            fields = (each.target.id for each in node.body if _is_field(each))  # type: ignore[attr-defined]
            yield from (f"--{each.replace('_', '-')}" for each in fields)


def _is_field(node: ast.stmt) -> bool:
    return isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)


def text() -> str:
    """Return the file: the flags that all releases have, and what each has beside them."""
    found = {loader.name: flags(loader.name) for loader in VLLM}
    common = sorted(set.intersection(*map(set, found.values())))
    more = {name: [each for each in some if each not in common] for name, some in found.items()}
    return json.dumps({"generator": "nox -s flags", "all": common, **more}, indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
