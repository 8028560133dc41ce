"""What must not be published: secrets, and this machine's places and names. Looked for in what is about to leave it.

Of what requant writes, statements, journals and the like, every text is held against everything; a card and a
configuration, which people write and which may speak of paths, against secrets and the places of people.
"""

import getpass
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from requant.digest import strict_json

PLACE = re.compile(r"(?<![\w:/.])(?:/|~/|[A-Za-z]:\\)[\w.-]+|file:/|\.\./")
"""A place in a file system; what stands in a checkpoint or in a URL has no slash at its start."""
SECRET = re.compile(
    r"PRIVATE KEY-----|\bhf_[A-Za-z0-9]{30,}|\bgh[opsu]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{30,}|\bglpat-[\w-]{20,}"
    r"|\bxox[abp]-[\w-]{16,}|\bsk-[\w-]{32,}|\bAKIA[0-9A-Z]{16}\b|\beyJ[\w-]{16,}\.eyJ"
)
"""Keys and tokens, by the forms that their issuers give them."""
ADDRESS = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b|[\w.+-]+@[\w-]+\.\w")
HOMES = re.compile(r"(?<![\w.])/(?:home|Users|root|mnt|media|scratch|tmp)/[\w.-]+|[A-Za-z]:\\Users\\")
"""Where people keep their files."""
SHOWN = 80
"""Characters of a finding that are shown; of a secret none."""


def in_record(data: bytes) -> list[str]:
    """Return each text of a JSON document, or of several, a line each, that says where or by whom it was made.

    Or has a secret. Keys too. Raises ValueError for anything else than JSON, or for such that no verb reads.
    """
    patterns = (PLACE, SECRET, ADDRESS, *_here())
    texts = dict.fromkeys(text for line in data.splitlines() for text in _texts(strict_json(line)))
    return [text for text in texts if any(pattern.search(text) for pattern in patterns)]


def in_text(data: bytes) -> list[str]:
    """Return each line of a text that has a secret, or a place of a person."""
    patterns = (SECRET, HOMES, re.compile(re.escape(f"{Path.home()}/")))
    lines = data.decode(errors="replace").splitlines()
    return [line for line in lines if any(pattern.search(line) for pattern in patterns)]


def told(found: str) -> str:
    """Return a finding as it can be shown: a secret is not repeated."""
    return "a key or a token" if SECRET.search(found) else found.strip()[:SHOWN]


def _here() -> tuple[re.Pattern[str], ...]:
    here = {getpass.getuser(), platform.node(), *filter(None, map(os.environ.get, ("LOGNAME", "HOSTNAME")))}
    names = re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, sorted(here)))})(?![\w-])")
    return names, re.compile(re.escape(str(Path.home())))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        value = [*value.values()]
    if isinstance(value, list):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, str):
        yield value
