"""`verify CHECKPOINT MANIFEST`: are these the recorded bytes? Python's standard library alone.

`PYTHONPATH=src python3 -S -m requant.verify CHECKPOINT MANIFEST` needs no installed package. What there is to read:
this module, and manifest, files, safetensors, digest, verdict, crash and errors. README.md says how many lines that is.
"""

import io
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from requant import crash
from requant.checkpoint.files import folded, is_opaque, listing
from requant.checkpoint.manifest import Manifest, TensorRecord, read_file, read_manifest
from requant.digest import file_chunks, sha256_chunks
from requant.errors import CheckpointError, NotAvailableError, RequantError, UsageError
from requant.verdict import EXIT_STATUS, Difference, Outcome, Verdict, visible


def verify(folder: Path, manifest: Manifest, progress: Callable[[int], None] = lambda _: None) -> Verdict:
    """Compare a checkpoint with a manifest, and name every file and every tensor that is not as recorded.

    A file with the recorded digest is not looked into; another is read again, tensor by tensor. Several are read at
    a time, the largest first. `progress` hears of bytes read. Companions count where the manifest records them.
    Raises CheckpointError for an unreadable folder.
    """
    there = listing(folder)
    found = there.files | {name: path for name, path in there.companions.items() if name in manifest.files}
    recorded: dict[str, dict[str, TensorRecord]] = {name: {} for name in manifest.files}
    for key, tensor in manifest.tensors.items():
        recorded[tensor.file][key] = tensor

    def heard(path: Path) -> Iterator[bytes]:
        for chunk in file_chunks(path):
            progress(len(chunk))
            yield chunk

    def look(name: str) -> tuple[list[Difference], dict[str, TensorRecord]]:
        path, record = found[name], manifest.files.get(name)
        try:
            if record and path.stat().st_size == record.bytes and sha256_chunks(heard(path)) == record.sha256:
                return [], recorded[name]
            now, tensors = read_file(path, name, progress)
        except (CheckpointError, OSError) as error:
            return [Difference("unreadable file", name, name, record.sha256 if record else "", str(error))], {}
        if record is None:
            return [Difference("extra file", name, name, "", now.sha256)], tensors
        return [Difference("changed file", name, name, record.sha256, now.sha256)], tensors

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looks = list(pool.map(look, sorted(found, key=lambda name: -found[name].stat().st_size)))
    differences = [each for some, _ in looks for each in some]
    gone = manifest.files.keys() - found.keys()
    differences += [Difference("missing file", name, name, manifest.files[name].sha256) for name in gone]
    in_tensors = list(_tensors(manifest, [tensors for _, tensors in looks]))
    outcome = Outcome.IDENTICAL
    if in_tensors or any(map(_unseen, differences)):
        outcome = Outcome.DIFFERENT
    elif differences:
        outcome = Outcome.EQUIVALENT
    differences = sorted(differences + in_tensors, key=lambda each: (each.file, each.name, each.kind))
    return Verdict(outcome, tuple(differences), companions=folded(there.companions.keys() - found.keys()))


def _unseen(each: Difference) -> bool:
    """Say whether a difference can hide other weights: a file that cannot be read, or whose tensors are not listed."""
    return each.kind == "unreadable file" or is_opaque(each.name)


def _tensors(manifest: Manifest, found: list[dict[str, TensorRecord]]) -> Iterator[Difference]:
    def elsewhere(pair: tuple[str, TensorRecord]) -> bool:
        return pair[0] not in manifest.tensors or manifest.tensors[pair[0]].file != pair[1].file

    seen: set[str] = set()
    # A tensor in its recorded file comes first: of two of one name, the other is the extra one.
    for name, now in sorted((pair for tensors in found for pair in tensors.items()), key=elsewhere):
        then = manifest.tensors.get(name)
        if then is None or name in seen:
            yield Difference("extra tensor", name, now.file, "", _text(now))
        elif (now.dtype, now.shape, now.sha256) != (then.dtype, then.shape, then.sha256):
            yield Difference("changed tensor", name, now.file, _text(then), _text(now))
        seen.add(name)
    for name in manifest.tensors.keys() - seen:
        yield Difference("missing tensor", name, manifest.tensors[name].file, _text(manifest.tensors[name]))


def _text(record: TensorRecord) -> str:
    return f"{record.dtype} {list(record.shape)} {record.sha256}"


def main(arguments: list[str]) -> int:
    """Verify from the command line; return the exit status. Here, beside `terminal`, requant prints."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name may have letters that the terminal has not
    try:
        if len(arguments) != 2:
            raise UsageError("usage: python3 -S -m requant.verify CHECKPOINT MANIFEST")
        verdict = verify(Path(arguments[0]), read_manifest(Path(arguments[1])))
    except RequantError as error:
        sys.stderr.write(visible(f"requant: {error}. {error.advice}".rstrip(". ")) + ".\n")
        return error.exit_status
    lines = [*map(str, verdict.differences), *filter(None, [verdict.aside])]
    try:
        sys.stdout.write("".join(f"{visible(line)}\n" for line in (*lines, verdict.outcome)))
        sys.stdout.flush()
    except (AttributeError, OSError):  # closed, full, or a pipe that nobody reads
        os._exit(NotAvailableError.exit_status)
    return EXIT_STATUS[verdict.outcome]


if __name__ == "__main__":
    crash.run(lambda: main(sys.argv[1:]))
