"""`rebuild RECIPE --against FOLDER`: make it again, and hold manifest and journal against the recorded ones.

The manifests say whether the two builds gave the same bytes, the journals where they part ways. One verdict comes of
both: equal bytes with another journal are `equivalent`; other bytes from another recipe, environment or base, as the
journals' headers name them, are `inconclusive`, for these are not the same build.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from requant.build import Built, beside, build, compare, stem, words
from requant.checkpoint.manifest import read_manifest
from requant.diff.divergence import Divergence, divergence
from requant.digest import sha256_file
from requant.errors import UsageError
from requant.evidence.journal import read_journal
from requant.evidence.outcomes import NAMED, RESULTS, Judged, Result
from requant.evidence.statements import environment_of, hardware_of
from requant.model.rules import SIZES
from requant.progress import Tell, silent
from requant.recipe import Recipe
from requant.verdict import Outcome, Verdict


@dataclass(frozen=True)
class Rebuilt:
    """A build, the one that it was held against, the verdict on both, and where their journals part ways."""

    built: Built
    against: Path
    verdict: Verdict
    divergences: tuple[Divergence, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the outcome as `--json` prints it."""
        return {
            "folder": str(self.built.folder),
            "against": str(self.against),
            "taints": list(self.built.taints),
            "divergences": [vars(each) for each in self.divergences],
            **self.verdict.as_json(),
        }

    def judged(self, recipe: Recipe, tiny: str | None) -> Judged:
        """Return the outcome as what is signed: of the files of the build that this one was held against."""
        theirs, ours = (beside(each, "manifest.json") for each in (self.against, self.built.folder))
        journal, statement = (beside(self.built.folder, name) for name in ("journal.jsonl", "intoto.jsonl"))
        recorded = beside(self.against, "journal.jsonl")
        tests = {"bytes": not self.verdict.differences, "journal": not self.divergences}
        failing = RESULTS[self.verdict.outcome] is Result.FAILED
        astray = tuple(name for name, equal in tests.items() if not equal)
        return Judged(
            verb="rebuild",
            outcome=self.verdict.outcome,
            files={path: record.sha256 for path, record in read_manifest(theirs).files.items()},
            against={
                "recipe": recipe.digest,
                "manifest": sha256_file(theirs),
                "environment": environment_of(statement),
                **({"journal": sha256_file(recorded)} if recorded.exists() else {}),
            },
            passed=tuple(name for name, equal in tests.items() if equal),
            warned=() if failing else astray,
            failed=astray if failing else (),
            details={
                "tiny": tiny,
                "hardware": hardware_of(statement),
                "manifest": sha256_file(ours),
                "journal": sha256_file(journal),
                "divergences": [f"{each.block or 'header'}: {each.field}" for each in self.divergences[:NAMED]],
            },
        )


def rebuild(
    recipe: Recipe,
    against: Path,
    *,
    tiny: str | None,
    out: Path,
    replace_existing: bool = False,
    fresh: bool = False,
    sandbox: str = "venv",
    tell: Tell = silent,
) -> Rebuilt:
    """Build the recipe into `out`, and hold it against somebody's build of it.

    `against` is a folder with `<stem>.manifest.json`, `<stem>.journal.jsonl` and `<stem>.intoto.jsonl`, as `build
    --record` leaves them, or a checkpoint with these files beside it, as `build` does.

    Raises UsageError, before anything is built, where there is no manifest, where the journal is of a tiny model of
    another size, or `out` is what it would be compared with; else what `build` raises.
    """
    record = find(against, tiny)
    if record.resolve() == out.resolve():
        raise UsageError(f"{out}: the rebuild would replace what it is compared with", "Name another --out.")
    read_manifest(beside(record, "manifest.json"))  # what cannot be read is said before anything is tuned
    if beside(record, "journal.jsonl").exists():
        theirs = read_journal(beside(record, "journal.jsonl")).header.tiny
        if theirs != tiny:
            told = f"{record}: is a build of {_named(theirs)}, and no build of {_named(tiny)} can be compared with it"
            raise UsageError(told, f"Add{words(theirs)}." if theirs else "Leave --tiny out.")
    built = build(
        recipe,
        tiny=tiny,
        out=out,
        replace_existing=replace_existing,
        fresh=fresh,
        sandbox=sandbox,
        instead=f"Here, rebuild the tiny model instead, a small stand-in: requant rebuild {recipe.path.parent} --tiny",
        tell=tell,
    )
    verdict, divergences = judge(compare(recipe, tiny, built.folder, record), built.folder, record)
    return Rebuilt(built, record, verdict, divergences)


def find(against: Path, tiny: str | None, option: str = "--against") -> Path:
    """Return the path that the files of a build stand beside; raise UsageError where there is no manifest.

    `option` is how another folder is named.
    """
    places = (against / stem(tiny), against)
    for place in places:
        if place.name and beside(place, "manifest.json").is_file():
            return place
    sizes = [size for size in (None, *SIZES) if size != tiny]
    others = [size for size in sizes if beside(against / stem(size), "manifest.json").is_file()]
    advice = f"Name one with {option}, or record one first: requant build RECIPE --record."
    if others:
        there = ", ".join(
            f"{_named(size)} (add{words(size)})" if size else f"{_named(size)} (no --tiny)" for size in others
        )
        advice = f"There is a build of {there}.\n{advice}"
    looked = " nor ".join(str(beside(place, "manifest.json")) for place in places if place.name)
    raise UsageError(f"{against}: no records of a build: neither {looked}", advice)


def _named(tiny: str | None) -> str:
    return f"the tiny model {tiny}" if tiny else "the full model"


def judge(bytes_verdict: Verdict, folder: Path, record: Path) -> tuple[Verdict, tuple[Divergence, ...]]:
    """Return the verdict on bytes and journals together, and where the journals part ways.

    Raises CheckpointError for a journal that cannot be read.
    """
    theirs = beside(record, "journal.jsonl")
    if not theirs.exists():
        return _with(bytes_verdict, bytes_verdict.outcome, f"only bytes were compared: no {theirs}"), ()
    found = divergence(read_journal(beside(folder, "journal.jsonl")), read_journal(theirs))
    outcome = bytes_verdict.outcome
    if outcome is Outcome.IDENTICAL and found:
        outcome = Outcome.EQUIVALENT
    elif outcome is Outcome.DIFFERENT and any(not each.block for each in found):
        outcome = Outcome.INCONCLUSIVE
    reasons = [str(each) for each in found]
    if not found and outcome is not Outcome.IDENTICAL:
        reasons = ["the journals agree: the builds part ways after tuning"]
    return _with(bytes_verdict, outcome, *reasons), found


def _with(verdict: Verdict, outcome: Outcome, *reasons: str) -> Verdict:
    return replace(verdict, outcome=outcome, reasons=(*verdict.reasons, *reasons))
