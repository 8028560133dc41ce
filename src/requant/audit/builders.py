"""Known builders: `builders.toml`, in which whoever keeps a registry of builds says whose a key or an identity is.

It stands beside the folders of the builds. Each table has a name, a public key in PEM, and perhaps its last day:

    [[builder]]
    name = "Ada Lovelace"
    until = 2027-12-31
    key = '''
    -----BEGIN PUBLIC KEY-----
    ...
    -----END PUBLIC KEY-----
    '''

A signature by one of these keys counts as this builder's; the name is a label that the list gives to the key. Nothing
says when a signature was made, so after its last day, in UTC, all that a key has signed counts no more.

Whoever signs keyless has an identity instead, the subject exactly as in the certificate, and who vouches for it:

    identity = "https://github.com/ada/models/.github/workflows/publish.yml@refs/heads/main"
    issuer = "https://token.actions.githubusercontent.com"

Of another Sigstore than the public one, `trust_config`, above the tables, names the configuration, beside the list.
"""

import os
import reprlib
import tomllib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from requant.audit.audits import party, same_party
from requant.digest import MAX_TOML, read_whole
from requant.errors import CheckpointError, UsageError
from requant.evidence.keyless import Identity
from requant.evidence.keys import parse_public
from requant.evidence.signatures import Known
from requant.recipe import Recipe

FILE = "builders.toml"
TRUST = "trust_config"
ALPHABETS = {"LATIN", "GREEK", "CYRILLIC"}
"""Of whose letters some look like each other's: one word has letters of one of them, or it is there to deceive."""


@dataclass(frozen=True)
class Builder:
    """Whose a key or an identity is, by the list, and the last day on which it counts."""

    name: str
    key: Known
    until: date | None = None

    @property
    def expired(self) -> bool:
        """Whether its last day is over."""
        return self.until is not None and datetime.now(UTC).date() > self.until


def builders_of(recipe: Recipe, named: Path | None = None) -> Mapping[str, Builder]:
    """Return the builders of a list that is named, or of the one beside the recipe's folder; none where there is none.

    Raises what `read_builders` does.
    """
    beside = recipe.path.parent.parent / FILE
    return read_builders(named or beside) if named or os.path.lexists(beside) else {}


def read_builders(path: Path) -> Mapping[str, Builder]:
    """Return the builders of a list by the id of their key or identity.

    Raises CheckpointError for anything else than names and keys, and for two of one name or of one key.
    """
    try:
        value = tomllib.loads(read_whole(path, MAX_TOML).decode())
        named = value.pop(TRUST, None)
        if value.keys() - {"builder"} or not isinstance(value.get("builder", []), list):
            raise ValueError(f"found {reprlib.repr([*value])}, expected tables [[builder]] alone")
        if named is not None and (not isinstance(named, str) or Path(named).name != named):
            raise ValueError(f"{TRUST}: found {reprlib.repr(named)}, expected the name of a file beside the list")
        trust = path.parent / named if named else None
        builders = [_builder(each, trust) for each in value.get("builder", [])]
        for what, found in (
            ("name", [same_party(each.name) for each in builders]),
            ("key", [each.key.id for each in builders]),
        ):
            if twice := next((each for number, each in enumerate(found) if each in found[:number]), None):
                raise ValueError(f"the {what} {twice} stands twice")
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a list of builders: {str(error)[:200]}") from None
    return {each.key.id: each for each in builders}


def _builder(value: object, trust: Path | None) -> Builder:
    types = {"name": str, "key": str, "identity": str, "issuer": str, "until": date}
    if (
        not isinstance(value, dict)
        or value.keys() - {"until"} not in ({"name", "key"}, {"name", "identity", "issuer"})
        or any(type(each) is not types[key] for key, each in value.items())
    ):
        told = "expected a name and a key, or an identity and its issuer, and until when they hold"
        raise ValueError(f"found {reprlib.repr(value)}, {told}")
    try:
        name = party(value["name"])
    except UsageError:
        name = ""
    if not name or name != value["name"]:
        raise ValueError(f"name: found {reprlib.repr(value['name'])}, expected printable text with single spaces")
    for word in name.split():
        if len(mixed := ALPHABETS & {unicodedata.name(each, "").partition(" ")[0] for each in word}) > 1:
            raise ValueError(f"name: {word!a} mixes letters that look alike: {', '.join(sorted(mixed))}")
    if "identity" in value:
        return Builder(name, Identity(value["issuer"], value["identity"], trust), value.get("until"))
    try:
        return Builder(name, parse_public(value["key"].strip().encode()), value.get("until"))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
