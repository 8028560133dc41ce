"""What an interrupted check has done: a file with one line per finished window, removed when all are.

It belongs to exactly one question: its name is a digest of both sides, the bound and the sample. A line that was cut
off is dropped, and its window read again. Where nothing can be written, nothing is kept.
"""

import json
from errno import EACCES, EPERM, EROFS
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from requant.check.findings import Measured
from requant.errors import NotAvailableError


class Finished:
    """The finished windows of one check; without a path, none are kept."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file:
            self._file.close()

    def read(self) -> dict[int, Measured]:
        """Return the windows that an earlier run has finished."""
        found: dict[int, Measured] = {}
        if self._path and self._path.exists():
            with self._path.open(encoding="utf-8", errors="replace") as file:
                for line in file:
                    try:
                        value = json.loads(line)
                        found[int(value["window"])] = Measured.from_json(value["measured"])
                    except (AttributeError, KeyError, TypeError, ValueError):
                        continue
        return found

    def note(self, window: int, measured: Measured) -> None:
        """Write down a finished window."""
        if not self._path:
            return
        try:
            if not self._file:
                self._file = self._begun(self._path)
                if not self._file:
                    self._path = None
                    return
            self._file.write(json.dumps({"window": window, "measured": measured.as_json()}) + "\n")
            self._file.flush()
        except OSError as error:
            raise NotAvailableError(
                f"{self._path}: {error.strerror}", "Make room, or check without resuming."
            ) from None

    @staticmethod
    def _begun(path: Path) -> IO[str] | None:
        """Open the file; None where nothing can be written: a read-only cache keeps nobody from checking."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a", encoding="utf-8")
        except OSError as error:
            if error.errno in (EROFS, EACCES, EPERM):
                return None
            raise
        file.write("\n")  # ends a line that was cut off
        return file

    def finish(self) -> None:
        """Remove the file: the question is answered."""
        if self._path:
            self._path.unlink(missing_ok=True)
