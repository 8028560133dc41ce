"""What an audit is held against: the journal of the build, and the environment and hardware class of its statement."""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from requant.audit import portable
from requant.audit.pool import Setting
from requant.build import beside, recorded
from requant.evidence.journal import Journal, read_journal
from requant.evidence.statements import differing, environment_of, hardware_of
from requant.recipe import Recipe


@dataclass(frozen=True)
class Reference:
    """What is known of the build that is audited: its journal, and the hardware class of its statement."""

    journal: Path | None
    statement: Path | None

    @cached_property
    def lines(self) -> Journal | None:
        """The journal, chain confirmed."""
        return read_journal(self.journal) if self.journal else None

    @cached_property
    def stated(self) -> tuple[str, Mapping[str, Any]] | None:
        """The environment and the hardware class of the statement."""
        return (environment_of(self.statement), hardware_of(self.statement)) if self.statement else None

    def confirm(self) -> None:
        """Raise CheckpointError where one of them cannot be read: before hours of tuning, not after."""
        _ = self.lines, self.stated

    @property
    def environment(self) -> str | None:
        """The digest of the build's environment; None where nothing says."""
        if self.lines:
            return self.lines.header.environment
        return self.stated[0] if self.stated else None

    def doubt(self, setting: Setting, hardware: Mapping[str, Any]) -> str:
        """Say why other codes from the same decisions would prove nothing here; the empty text where they would."""
        if self.environment != setting.environment.digest:
            return "another environment than the build's"
        if self.stated is None:
            return "the build's hardware class is not known: it has no statement"
        return portable.unlike_devices(self.stated[1], hardware)

    def unlike(self, setting: Setting, hardware: Mapping[str, Any]) -> str:
        """Say why other bits would prove nothing here; the empty text where they would."""
        if self.environment not in (None, setting.environment.digest):
            return "another environment than the build's"
        theirs = self.stated[1] if self.stated else None
        if theirs is None:
            return "the build's hardware class is not known: it has no statement"
        for key in differing(theirs, hardware):
            return f"another hardware class than the build's: {reprlib.repr(key)} is {hardware.get(key)!r}"
        return ""


def known(
    recipe: Recipe, tiny: str | None, checkpoint: Path, named: Path | None = None, *, compared: bool = True
) -> Reference:
    """Return what is known of the build that a checkpoint is said to be, as `reference` does.

    What is recorded decides: what a publisher has put beside the checkpoint is looked at only where nothing is. With a
    `named` journal goes the statement beside it, or the recorded one where none is there.
    """
    journals = [named] if named else [recorded(recipe, tiny, "journal.jsonl"), beside(checkpoint, "journal.jsonl")]
    journal = next((path for path in journals if named or path.exists()), None)
    return reference(journal, otherwise=recorded(recipe, tiny, "intoto.jsonl"), compared=compared)


def reference(journal: Path | None, *, otherwise: Path | None = None, compared: bool = True) -> Reference:
    """Return what a journal and the statement beside it say: `x.journal.jsonl`, `x.intoto.jsonl`.

    `otherwise` is the statement where none stands beside it. Where the journal is not to be `compared`, the statement
    alone: it names environment and hardware class.
    """
    statements = [journal.with_name(journal.name.replace("journal.jsonl", "intoto.jsonl"))] if journal else []
    statements += [otherwise] if otherwise else []
    statement = next((path for path in statements if path.exists() and path != journal), None)
    return Reference(journal if compared else None, statement)
