"""Every error that requant raises on purpose, one class per exit status.

An error says which file it concerns, what was found, what was expected and what to do next. It is raised
where that is known and caught once, in `cli`. A difference between two checkpoints is a verdict, never an
error.
"""


class RequantError(Exception):
    """What went wrong, and in `advice` what the reader can do about it."""

    exit_status = 70

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice


class UsageError(RequantError):
    """The command line asks for something that does not exist or does not go together."""

    exit_status = 2


class NotModelledError(RequantError):
    """A model or a format that this version does not model: nothing is said for or against the checkpoint."""

    exit_status = 3


class RecipeError(RequantError):
    """A recipe, or a file that it names, cannot be read as what it should be."""

    exit_status = 4


class LockError(RequantError):
    """A lock is absent, stale or not obeyed by what was installed."""

    exit_status = 5


class CheckpointError(RequantError):
    """A checkpoint, manifest or journal cannot be read."""

    exit_status = 6


class BuildError(RequantError):
    """A build stopped. This says nothing about whether the build is reproducible."""

    exit_status = 7


class NotAvailableError(RequantError):
    """Something outside requant is missing: a file on the network, a program, a device, disk space."""

    exit_status = 8
