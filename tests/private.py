"""What a statement must not have: this machine's places and names, and secrets."""

import getpass
import json
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PATH = re.compile(r"(?<![\w:/.])(?:/|~/|[A-Za-z]:\\)[\w.-]+|file:/|\.\./")
"""A place in a file system; what stands in a checkpoint or in a URL has no slash at its start."""
SECRET = re.compile(
    r"PRIVATE KEY|\b(?:hf|gh[opsu]|github_pat|glpat|xox[bp]|sk|AKIA)[-_]?[A-Za-z0-9_-]{16,}|eyJ[\w-]{16,}\."
)
ADDRESS = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b|[\w.+-]+@[\w-]+\.\w")


def found(data: bytes) -> list[str]:
    """Return each text of a document, keys too, that says where or by whom it was made, or has a secret."""
    here = {getpass.getuser(), platform.node(), *filter(None, map(os.environ.get, ("LOGNAME", "HOSTNAME")))}
    names = re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, sorted(here)))})(?![\w-])")
    patterns = (PATH, SECRET, ADDRESS, names, re.compile(re.escape(str(Path.home()))))
    return [text for text in _texts(json.loads(data)) if any(pattern.search(text) for pattern in patterns)]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        value = [*value.values()]
    if isinstance(value, list):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, str):
        yield value
