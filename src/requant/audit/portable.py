"""Judges a block that was tuned again by hints, on hardware of any class: docs/portable.md."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from requant.audit.distance import Distance
from requant.audit.retuned import Judgement, Retuned
from requant.checkpoint.checkpoint import Tensor
from requant.digest import sha256, sha256_file
from requant.errors import CheckpointError, UsageError
from requant.evidence.journal import Block, Journal
from requant.formats import TENSORS
from requant.protocol import Hinted, label

MAX_HINTS = 1 << 29
"""Bytes of a block's hints: of 800 million parameters, 400 iterations write 62 MB. A worker reads them whole."""


def confirm(hints: Path, journal: Journal | None) -> None:
    """Raise unless a folder holds the hints of a journal: UsageError where that has none, else CheckpointError."""
    if not journal or not all(line.hints for line in journal.blocks):
        raise UsageError(
            "--portable: there is no journal of a build with hints",
            "A recipe asks for them: hints = true under [tuning]. Without, audit on the build's hardware class.",
        )
    for number, line in enumerate(journal.blocks):
        path = hints / label(number)
        try:
            if (size := path.stat().st_size) > MAX_HINTS:
                raise CheckpointError(f"{path}: {size:,} bytes, expected at most {MAX_HINTS:,}")
            found = sha256_file(path)
        except OSError as error:
            raise CheckpointError(
                f"{path}: {error.strerror}", "Name the folder that the build wrote beside the checkpoint: --hints."
            ) from None
        if found != line.hints:
            raise CheckpointError(f"{path}: not the hints of the journal: {found}, expected {line.hints}")


def unlike(line: Block, published: Mapping[str, Tensor]) -> str:
    """Return the first packed tensor of a block that is not the journal's; "" where all are."""
    for name in sorted(line.tensors):
        if not name.endswith(TENSORS):
            continue
        if name not in published or sha256(published[name].read()) != line.tensors[name]:
            return name
    return ""


def unlike_devices(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Say why equal decisions can give other codes on two devices, by their hardware classes; "" where they cannot.

    CUDA divides by a number that it knows by multiplying with its reciprocal (ATen/native/cuda/BinaryDivTrueKernel.cu).
    """
    alike = (theirs.get("accelerator") == "cpu") == (ours.get("accelerator") == "cpu")
    return "" if alike else "a CPU and a GPU do not divide alike"


def judge(block: str, index: int, hinted: Hinted, distance: Distance | None, *, unlike: str, doubt: str) -> Retuned:
    """Judge one block. `unlike` names a published tensor that is not the journal's; `doubt` why nobody is accused."""

    def judged(judgement: Judgement, reason: str) -> Retuned:
        return Retuned(block, index, judgement, reason, distance, hinted)

    def lost(reason: str) -> Retuned:
        return judged(Judgement.INCONCLUSIVE, f"{reason}; {doubt}" if doubt else reason)

    def accused(reason: str) -> Retuned:
        return lost(reason) if doubt else judged(Judgement.DIFFERENT, reason)

    if unlike:
        return judged(Judgement.DIFFERENT, f"{unlike} is not the journal's")
    if hinted.beyond:
        return accused(hinted.beyond)
    if hinted.inconclusive:
        return lost(hinted.inconclusive)
    if distance:
        return accused("the decisions that the journal states give other codes")
    return judged(Judgement.IDENTICAL, "")
