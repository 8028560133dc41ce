"""What is asked of a checkpoint before it is published: `verify`, `inspect` and `check`, each of which can say no."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requant.check
import requant.inspect
from requant.build import RECORDED
from requant.build.inputs import LOCAL
from requant.build.workplace import scratch
from requant.check.checked import Checked
from requant.check.reader import Folder, open_reader
from requant.checkpoint.checkpoint import write_checkpoint
from requant.checkpoint.manifest import read_manifest
from requant.environment.install import cache
from requant.errors import UsageError
from requant.evidence.outcomes import Judged, identity, verified
from requant.inspect import Inspection
from requant.inspect.baseline import expected, read_baseline
from requant.inspect.headers import read_headers
from requant.model.target import tiny_model
from requant.progress import Tell, counted, silent
from requant.published.proofs import base_files, records_of
from requant.recipe import Recipe
from requant.verdict import Outcome, Verdict
from requant.verify import verify


@dataclass(frozen=True)
class Examined:
    """What three verbs say of a checkpoint, and what may be signed of it: the outcomes of `verify` and `check`.

    That of `check` only where the base is a folder: read over the network, it is not known by its digests. `unlike`
    are files of that folder that are not those of the base of which the checkpoint was built.
    """

    verdict: Verdict
    inspection: Inspection
    checked: Checked
    outcomes: tuple[Judged, ...]
    unlike: tuple[str, ...] = ()

    @property
    def refusals(self) -> tuple[str, ...]:
        """Why this is not to be published; nothing where it is."""
        found = [f"verify: {each}" for each in self.verdict.differences]
        found += [f"inspect: {each.rule}: {each.consequence}" for each in self.inspection.errors if not each.known]
        found += [f"check: {each}: not the base of which this was built" for each in self.unlike]
        return tuple(found + [f"check: {each.kind}: {each.tensor}" for each in self.checked.findings])

    def text(self) -> list[str]:
        """Return what a person reads."""
        return [
            f"verify: {self.verdict.outcome}",
            f"inspect: {self.inspection.outcome} for {', '.join(self.inspection.loaders)}",
            f"check: {self.checked.outcome}, {self.checked.read:,} of {self.checked.total:,} bytes",
        ]


def examine(
    checkpoint: Path, recipe: Recipe, tiny: str | None, base: str = "", *, sample: float = 1.0, tell: Tell = silent
) -> Examined:
    """Ask all three of a checkpoint; `base` is a folder or a repository, else the pinned one, or the tiny model.

    Raises UsageError where no base can be read, and what `verify`, `inspect` and `check` raise.
    """
    records = records_of(recipe, tiny, checkpoint)
    manifest = read_manifest(records[RECORDED[0]])
    total = sum(each.bytes for each in manifest.files.values())
    verdict = verify(checkpoint, manifest, counted(tell, "verify", total))
    inspection = requant.inspect.inspect(
        read_headers(checkpoint), look_at_values=True, known=expected(read_baseline(recipe))
    )
    outcomes = [verified(checkpoint, manifest, verdict)]
    files = {path: each.sha256 for path, each in manifest.files.items()}
    with _base(recipe, tiny, base) as name, open_reader(str(checkpoint)) as theirs, open_reader(name) as ours:
        checked = requant.check.check(
            theirs,
            ours,
            recipe=recipe,
            tiny=tiny is not None,
            sample=sample,
            threads=os.cpu_count() or 1,
            resume=cache() / "check",
            tell=tell,
        )
        unlike: list[str] = []
        if isinstance(ours.files, Folder):
            held, built = ours.files.digests(), base_files(recipe, tiny, records[RECORDED[2]])
            unlike = sorted({path for path, _ in held.items() ^ built.items()})
            if verdict.outcome is Outcome.IDENTICAL:
                against = {"base": identity(held), "recipe": recipe.digest}
                outcomes.append(checked.judged(files, against, {"tiny": tiny is not None, "sample": sample, "seed": 0}))
    return Examined(verdict, inspection, checked, tuple(outcomes), tuple(unlike))


@contextmanager
def _base(recipe: Recipe, tiny: str | None, base: str) -> Iterator[str]:
    """Give the name of the base that a checkpoint is held against."""
    if base:
        yield base
    elif tiny:
        with scratch(cache() / "published") as work:
            write_checkpoint(tiny_model(recipe, tiny), work / "base")
            yield str(work / "base")
    elif recipe.base.repository.startswith(LOCAL):
        raise UsageError(f"{recipe.path}: its base is on no hub", "Name the folder where it is with --base.")
    else:
        yield f"{recipe.base.repository}@{recipe.base.revision}"
