"""The text of the experiment: docstrings of transformers' models, as a locked wheel of the environment `cpu` has them.

Nothing is downloaded or committed for it: whoever can build has it, the lock pins its every byte, and the licence is
Apache-2.0. A docstring counts once, by its SHA-256, which also says where it belongs: of 256 first bytes 26 are held
out, 26 calibrate, and the rest trains, so that no docstring stands in two parts. Docstrings of one kind resemble each
other all the same: held-out text is new to the model, and not strange to it.

`python texts.py FOLDER`, in that environment, writes each part to a file: JSON lines, with a `text` of `CHARACTERS` in
ASCII, each a token of the tiny models' tokenizer.
"""

import ast
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "transformers"
MODULES = "models"
PARTS = {"held-out": 26, "calibration": 52, "train": 256}
"""Each part, and the first byte of a digest that belongs to the next one."""
SHORTEST = 200
"""Characters of the shortest docstring that counts."""
CHARACTERS = 1024
BETWEEN = "\n\n\n"


def docstrings() -> dict[str, str]:
    """Return all docstrings that count, by digest and in its order. The package is read, not imported."""
    found = {}
    package = importlib.util.find_spec(PACKAGE)
    assert package
    assert package.origin
    for path in Path(package.origin).with_name(MODULES).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                if text.isascii() and len(text) >= SHORTEST and BETWEEN not in text:
                    found[hashlib.sha256(text.encode()).hexdigest()] = text
    return dict(sorted(found.items()))


def part_of(digest: str) -> str:
    """Return the part to which the docstring of this digest belongs."""
    return next(name for name, end in PARTS.items() if int(digest[:2], 16) < end)


def parts(found: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each part's name and its JSON lines; what is left over at the end of a part is dropped."""
    for name in PARTS:
        whole = BETWEEN.join(text for digest, text in found.items() if part_of(digest) == name)
        pieces = (whole[at : at + CHARACTERS] for at in range(0, len(whole) - CHARACTERS + 1, CHARACTERS))
        yield name, "".join(json.dumps({"text": each}) + "\n" for each in pieces)


if __name__ == "__main__":
    for name, lines in parts(docstrings()):
        Path(sys.argv[1], f"{name}.jsonl").write_text(lines)
