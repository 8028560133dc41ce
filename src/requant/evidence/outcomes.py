"""The outcome of `verify`, `check`, `audit` or `rebuild` as a statement: in-toto's test result, which can say FAILED.

Format: https://in-toto.io/attestation/test-result/v0.1 (in-toto/attestation, spec/predicates/test-result.md). Subjects
are the files that were judged, `configuration` what they were held against, tests what was judged one by one. What else
a verb found stands under `requant`: other readers pass over it. No time, path, user or host is in it, so that the same
outcome is the same bytes.
"""

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from requant.checkpoint.files import listing
from requant.checkpoint.manifest import Manifest
from requant.digest import canonical_json, sha256, sha256_file
from requant.errors import CheckpointError
from requant.evidence.statements import in_toto
from requant.verdict import Outcome, Verdict, visible

if TYPE_CHECKING:  # what signs is imported where something is signed
    from requant.evidence.signatures import Signed

TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
NAMED = 100
"""Tests that are named of each kind, and findings, at most; `counts` has how many there are."""
LONGEST = 200
"""Characters of a name, at most: a stranger chose it."""

Verb = Literal["verify", "check", "audit", "judge", "rebuild"]


class Result(StrEnum):
    """What a test result says in one word; WARNED is neither for nor against."""

    PASSED = "PASSED"
    WARNED = "WARNED"
    FAILED = "FAILED"


RESULTS: Mapping[str, Result] = {
    "identical": Result.PASSED,
    "clean": Result.PASSED,
    "equivalent": Result.WARNED,
    "inconclusive": Result.WARNED,
    "not modelled": Result.WARNED,
    "nothing to check": Result.WARNED,
    "different": Result.FAILED,
    "violations": Result.FAILED,
}
"""What the outcome of each verb is as a test result."""


@dataclass(frozen=True)
class Judged:
    """What a verb says of files, path to SHA-256, held against what `against` names by SHA-256.

    `outcome` is the verb's own word, one of `RESULTS`; tests are names. `details` is what the verb found beside.
    """

    verb: Verb
    outcome: str
    files: Mapping[str, str]
    against: Mapping[str, str]
    passed: tuple[str, ...] = ()
    warned: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    requant: str = field(default_factory=lambda: version("requant"))

    @property
    def result(self) -> Result:
        """What those read who know no word of requant's."""
        return RESULTS[self.outcome]

    def statement(self, _key: str = "") -> bytes:
        """Return the statement as one line of canonical JSON; whose key signs it does not stand in it."""
        predicate = {
            "result": self.result,
            "configuration": [
                {"name": name, "digest": {"sha256": digest}} for name, digest in sorted(self.against.items())
            ],
            "passedTests": _some(self.passed),
            "warnedTests": _some(self.warned),
            "failedTests": _some(self.failed),
            "requant": {
                "verb": self.verb,
                "outcome": self.outcome,
                "version": self.requant,
                "counts": {"passed": len(self.passed), "warned": len(self.warned), "failed": len(self.failed)},
                **self.details,
            },
        }
        return in_toto(self.files, TEST_RESULT, predicate)


@dataclass(frozen=True)
class Told:
    """What a signed test result of requant's tells: the verb, its outcome, what was held against what, and details."""

    verb: str
    outcome: str
    result: Result
    against: Mapping[str, str]
    details: Mapping[str, Any]

    def text(self) -> list[str]:
        """Return what a person reads."""
        held = [f"held against {name} {digest}" for name, digest in sorted(self.against.items())]
        return [f"{self.result}: requant {self.verb} says {self.outcome}", *held]


def told(signed: "Signed") -> Told | None:
    """Return what a signed statement tells where it is a test result of a verb of requant's; None where it is not.

    Raises ValueError for one that says so and was not written by `Judged.statement`.
    """
    if signed.predicate_type != TEST_RESULT or "requant" not in signed.predicate:
        return None
    try:
        ours, result = signed.predicate["requant"], Result(signed.predicate["result"])
        against = {str(each["name"]): str(each["digest"]["sha256"]) for each in signed.predicate["configuration"]}
        verb, outcome = str(ours["verb"]), str(ours["outcome"])
        for kind in ("passedTests", "warnedTests", "failedTests"):
            if not isinstance(signed.predicate[kind], list):
                raise TypeError(f"{kind} is no list")
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a test result as requant writes it: {error!r}") from None
    if verb not in get_args(Verb) or RESULTS.get(outcome) is not result:
        raise ValueError(f"a test result that contradicts itself: {reprlib.repr((verb, outcome, str(result)))}")
    return Told(verb, outcome, result, against, ours)


def verified(folder: Path, manifest: Manifest, verdict: Verdict) -> Judged:
    """Return the outcome of `verify` on a folder against a manifest.

    The verdict says what the files are that are not as recorded. One that could not be read as what it should be is
    hashed here, as it is; raises CheckpointError where that cannot be done either.
    """
    found = {name: record.sha256 for name, record in manifest.files.items()}
    for each in verdict.differences:
        if each.kind == "missing file":
            del found[each.name]
        elif each.kind in ("changed file", "extra file"):
            found[each.name] = each.found
        elif each.kind == "unreadable file":
            found[each.name] = _as_it_is(folder, each.name)
    astray = {each.file for each in verdict.differences}
    names = tuple(sorted(astray))
    return Judged(
        verb="verify",
        outcome=verdict.outcome,
        files=found,
        against={"manifest": sha256(manifest.to_json())},
        passed=tuple(sorted(manifest.files.keys() - astray)),
        warned=names if verdict.outcome is not Outcome.DIFFERENT else (),
        failed=names if verdict.outcome is Outcome.DIFFERENT else (),
        details={
            "differences": [f"{each.kind}: {short(each.name)}" for each in verdict.differences[:NAMED]],
            "differing": len(verdict.differences),
        },
    )


def _as_it_is(folder: Path, name: str) -> str:
    there = listing(folder)
    path = (there.files | there.companions)[name]
    try:
        return sha256_file(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}", "What cannot be read cannot be signed for.") from None


def identity(files: Mapping[str, str]) -> str:
    """Return what many files are held against by: the SHA-256 of canonical JSON of them, path to SHA-256."""
    return sha256(canonical_json(files))


def short(name: str) -> str:
    """Return a stranger's name as a statement can hold it: printable, and not too long."""
    shown = visible(name[:LONGEST])
    return shown if len(name) <= LONGEST and len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}…"


def _some(names: Iterable[str]) -> list[str]:
    return [short(name) for name, _ in zip(names, range(NAMED), strict=False)]
