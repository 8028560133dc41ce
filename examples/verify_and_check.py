"""Verify a folder against a manifest, and hold it against its base: `verify_and_check.py FOLDER MANIFEST BASE`.

The exit status is 0 where both say yes, 1 where one says no or cannot tell, and requant's own for an error.
"""

import sys
from pathlib import Path

from requant import Outcome, RequantError, open_reader, read_manifest
from requant.check import check
from requant.verify import verify


def main(folder: str, manifest: str, base: str) -> int:
    """Print both outcomes, with what is behind them, and return the exit status."""
    verdict = verify(Path(folder), read_manifest(Path(manifest)))
    print(f"verify: {verdict.outcome}", *verdict.differences, sep="\n  ")
    with open_reader(folder) as theirs, open_reader(base) as ours:
        checked = check(theirs, ours)
    print(f"check: {checked.outcome}", *checked.text(10), sep="\n  ")
    return 0 if verdict.outcome == Outcome.IDENTICAL and checked.clean else 1


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except RequantError as error:
        print(f"{error}. {error.advice}", file=sys.stderr)
        sys.exit(error.exit_status)
