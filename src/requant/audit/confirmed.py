"""`--require N`, `--trust WHO`: have enough independent builders confirmed this very checkpoint? If not, that is a no.

A builder confirms what they reproduced: the blocks of their audits and all that is not tuned, or everything, by a
rebuild. So N builders have confirmed a checkpoint where each of its blocks, and the rest, were reproduced by N. Only
verified keys of the list count, each once, and never that of whoever built it: nobody confirms their own work. One
negative result of anybody on the list is a no, whoever else agrees. Of those whom the reader trusts blindly one word is
enough.
"""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from requant.audit.audits import same_party
from requant.audit.builders import Builder, builders_of
from requant.audit.coverage import UNTUNED, Coverage
from requant.build import stem, words
from requant.errors import UsageError
from requant.evidence.keys import read_public
from requant.evidence.summaries import Summary
from requant.model.rules import SIZES
from requant.recipe import FILE, Recipe, read_recipe
from requant.verdict import Outcome

SHOWN = 6
"""Rows that a person is shown; `--json` has them all."""


@dataclass(frozen=True)
class Confirmed:
    """Who has confirmed a checkpoint, against how many are required; None where only those who are trusted would do.

    `rows` says of each block and the rest who reproduced it, without the maker. `trusted` are those whose word is
    enough, and who have given it. `refused` says of each statement that does not count why, and `counted` are the
    others by SHA-256. `policy` is what was asked: how many, and of whom, by the ids of keys. `tiny` is the size of a
    tiny model, and `identical` whether the files at hand are those that the statements are about.
    """

    required: int | None
    rows: Mapping[str, tuple[str, ...]]
    maker: str
    trusted: tuple[str, ...]
    negatives: int
    refused: Mapping[str, str]
    counted: Mapping[str, str]
    policy: Mapping[str, Any]
    tiny: str | None
    identical: bool = True

    @property
    def short(self) -> tuple[str, ...]:
        """Rows that fewer have confirmed than are required."""
        return tuple(row for row, by in self.rows.items() if self.required is None or len(by) < self.required)

    @property
    def holds(self) -> bool:
        """Whether it is confirmed. Where nothing is recorded, nothing is."""
        return self.identical and not self.negatives and bool(self.trusted or (self.rows and not self.short))

    @property
    def exit_status(self) -> int:
        """0 confirmed, 1 where a builder of the list found it different, else 3."""
        if self.holds:
            return 0
        return 1 if self.negatives else 3

    def summary(self, files: Mapping[str, str]) -> Summary:
        """Return what is signed of it, for the files at hand."""
        level = "REQUANT_CONFIRMED_BY_TRUSTED" if self.trusted else f"REQUANT_CONFIRMED_BY_{self.required}"
        return Summary(files, self.policy, self.counted, level if self.holds else "")

    def as_json(self) -> dict[str, Any]:
        """Return it as `--json` prints it."""
        return {"holds": self.holds, **asdict(self)}

    def text(self) -> list[str]:
        """Return what a person reads: what was refused, who confirmed what, what would be next."""
        lines = [f"refused: {file}: {why}" for file, why in self.refused.items()]
        if not self.identical:
            return [*lines, "what others say is about the recorded files, and these are others"]
        if self.negatives:
            return [*lines, f"negative results of builders: {self.negatives}; requant coverage shows them"]
        if self.trusted:
            return [*lines, f"confirmed by {', '.join(self.trusted)}, whom you trust"]
        if self.required is None:
            return [*lines, "nobody whom you trust has confirmed it"]
        aside = f"; {self.maker} built it, and does not count" if self.maker else ""
        builders = ", ".join(sorted({name for by in self.rows.values() for name in by})) or "nobody"
        if self.holds:
            return [*lines, f"all of it is confirmed by at least {self.required}: {builders}{aside}"]
        names = self.short
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        blocks = ",".join(str(number) for number, row in enumerate(self.rows) if row in names and row != UNTUNED)
        return [
            *lines,
            f"all of it is confirmed by {min(map(len, self.rows.values()), default=0)} of {self.required}, "
            f"parts of it by {builders}{aside}",
            f"by fewer than {self.required}: {', '.join(names[:SHOWN])}{more}" if names else "nothing is recorded",
            "next: requant audit CHECKPOINT --recipe RECIPE "
            f"--blocks {blocks or '0'}{words(self.tiny)} --auditor NAME --record --sign KEY",
        ]


def build_of(manifest: Path) -> tuple[Recipe, str | None]:
    """Return recipe and size of the build that a manifest records, by its place: `builds/<name>/<stem>.manifest.json`.

    Raises UsageError for one that stands elsewhere: what confirms it is looked for beside it.
    """
    for size in (None, *SIZES):
        if manifest.name == f"{stem(size)}.manifest.json" and (manifest.parent / FILE).is_file():
            return read_recipe(manifest.parent), size
    names = ", ".join(f"{stem(size)}.manifest.json" for size in (None, *SIZES))
    raise UsageError(
        f"{manifest}: not the record of a build, and what confirms it stands beside that",
        f"--require and --trust need a folder with {FILE} and its manifest: {names}.",
    )


def builders(recipe: Recipe, listed: Path | None, trust: Sequence[str]) -> tuple[Mapping[str, Builder], frozenset[str]]:
    """Return all builders whose word counts, by the id of their key, and the ids of those who are trusted blindly.

    Who is trusted is named as in the list, or by the file of a public key, which need not be in the list. Raises
    UsageError for anybody else.
    """
    return trusted_of(builders_of(recipe, listed), trust)


def trusted_of(listed: Mapping[str, Builder], trust: Sequence[str]) -> tuple[Mapping[str, Builder], frozenset[str]]:
    """Return the builders of a list and those who are trusted besides, and the ids of these, as `builders` does."""
    known = dict(listed)
    names = {same_party(each.name): each.key.id for each in known.values()}
    trusted: set[str] = set()
    for who in trust:
        if same_party(who) in names:
            trusted.add(names[same_party(who)])
        elif Path(who).is_file():
            key = read_public(Path(who))
            known.setdefault(key.id, Builder(Path(who).stem, key))
            trusted.add(key.id)
        else:
            told = f"--trust {reprlib.repr(who)}: neither a builder of the list nor the file of a key"
            raise UsageError(told, f"The list names {', '.join(each.name for each in known.values()) or 'nobody'}.")
    return known, frozenset(trusted)


def confirmed(
    covered: Coverage, known: Mapping[str, Builder], required: int | None, trusted: frozenset[str]
) -> Confirmed:
    """Hold what was covered, by those `known`, against what a reader requires: by how many, or whose word is enough."""
    maker = covered.maker
    own = maker.name if maker else ""

    def independent(row: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
        return tuple(sorted({name for by in row.values() for name in by} - {own}))

    agreeing = {each.party for each in covered.counted.values() if each.outcome is Outcome.IDENTICAL}
    vouching = {each.name for each in (*agreeing, *((maker,) if maker else ())) if each.key in trusted}
    unsigned = {file: each.party.why for file, each in covered.counted.items() if not each.party.key}
    return Confirmed(
        required=required,
        rows={each.block: independent(each.identical) for each in (*covered.blocks, covered.untuned) if covered.own},
        maker=own,
        trusted=tuple(sorted(vouching)),
        negatives=sum(len(each.different) for each in covered.rows),
        refused={**covered.stale, **unsigned},
        counted={file: digest for file, digest in covered.digests.items() if covered.counted[file].party.key}
        | ({"build": covered.statement} if maker else {}),
        policy={
            "require": required,
            "trusted": sorted(trusted),
            "builders": sorted(known),
        },
        tiny=covered.tiny,
    )
