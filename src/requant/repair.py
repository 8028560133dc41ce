"""`repair CHECKPOINT --base BASE`: the checkpoint that this one should have been, without touching a tuned byte.

The passes are the build's own. What a build refuses, a repair mends; and a result that `inspect` does not pass
is none. The input is only read; the output appears under its name when it is complete.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from requant.checkpoint.checkpoint import Checkpoint, Content, Tensor, open_checkpoint, write_checkpoint
from requant.digest import canonical_json, sha256, sha256_chunks
from requant.errors import BuildError, CheckpointError, UsageError
from requant.formats import PACKED
from requant.inspect import inspect
from requant.inspect.headers import SIDES, Headers
from requant.inspect.mending import CHOSEN, aim, one_copy
from requant.passes import apply


@dataclass(frozen=True)
class Repair:
    """What a repair does, or did: names of tensors and files, and the digest of all tuned bytes before and after.

    `replaced` tensors have other bytes or another type than before, `moved` stand in another file. `after` is
    None where nothing was written.
    """

    kept: int
    before: str
    after: str | None
    added: tuple[str, ...]
    replaced: tuple[str, ...]
    dropped: tuple[str, ...]
    moved: tuple[str, ...]
    files: tuple[str, ...]

    @property
    def needed(self) -> bool:
        """Whether anything is wrong with the checkpoint."""
        return bool(self.added or self.replaced or self.dropped or self.moved or self.files)

    def as_json(self) -> dict[str, Any]:
        """Return the repair as `--json` prints it."""
        return {**vars(self), "needed": self.needed}


def repair(
    folder: Path,
    base: Path,
    *,
    out: Path | None = None,
    policy: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Repair:
    """Say what mends the checkpoint in `folder`, and write that into the new folder `out` where one is named.

    `policy` is what becomes of MTP, `bf16` or `rtn`; without it, what it is. Raises UsageError where `out` exists
    or lies in the input, CheckpointError where tuned tensors are missing or broken, or base and checkpoint differ.
    """
    if out is not None:
        _check_place(folder, base, out)
    found, model = open_checkpoint(folder), open_checkpoint(base)
    weights = one_copy(found)
    target = aim(found, weights, model, policy)
    try:
        mended = apply(Checkpoint({CHOSEN: weights}, {}), target)
    except BuildError as error:
        raise CheckpointError(
            f"{folder}: cannot be repaired: {error}", "Tuned tensors come from a build only."
        ) from None
    own = {path: content for path, content in found.files.items() if path not in mended.files}
    mended = Checkpoint(mended.shards, {**mended.files, **own})
    _check_result(folder, mended)
    tuned = {name: tensor for name, tensor in weights.items() if name in target.target.main and _is_tuned(name)}
    before = _digest(tuned)
    if out is None:
        return _report(found, mended, len(tuned), before, None)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.resolve().parent) as name:
        write_checkpoint(mended, Path(name, "checkpoint"), progress)
        written = open_checkpoint(Path(name, "checkpoint")).tensors
        after = _digest({key: written[key] for key in tuned})
        if after != before:
            raise CheckpointError(f"{out}: tuned bytes came out other than they were read", "Look at the disk.")
        Path(name, "checkpoint").rename(out)
    return _report(found, mended, len(tuned), before, after)


def _is_tuned(name: str) -> bool:
    """Say whether tuning decides a tensor's bytes; zero points are a constant of the format."""
    return name.endswith(PACKED) and not name.endswith(".qzeros")


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Return one digest of many tensors: that of the canonical JSON of their names and digests."""
    return sha256(canonical_json({name: sha256_chunks(tensor.content.chunks()) for name, tensor in tensors.items()}))


def _check_place(folder: Path, base: Path, out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out}: already exists", "Name another folder with --out, or remove this one.")
    for source in (folder.resolve(), base.resolve()):
        if source == out.resolve() or source in out.resolve().parents:
            raise UsageError(f"{out}: lies in {source}, which a repair only reads", "Name a folder elsewhere.")


def _check_result(folder: Path, mended: Checkpoint) -> None:
    specs = {file: {name: tensor.spec for name, tensor in held.items()} for file, held in mended.shards.items()}
    total = sum(spec.nbytes for held in specs.values() for spec in held.values())
    sides = {path: mended.file(path) for path in SIDES if path in mended.files}
    errors = inspect(Headers(str(folder), specs, total, sides, tuple(mended.files))).errors
    if errors:
        found = "; ".join(f"{each.rule}: {each.subjects[0]}" for each in errors[:3])
        raise CheckpointError(f"{folder}: cannot be repaired, this would remain: {found}", "Build it again.")


def _report(found: Checkpoint, mended: Checkpoint, kept: int, before: str, after: str | None) -> Repair:
    was, now = found.tensors, mended.tensors
    places = {name: file for file in sorted(found.shards) for name in found.shards[file]}
    shared = [name for name in now if name in was]
    replaced = [name for name in shared if was[name] is not now[name] and not _same(was[name], now[name])]
    return Repair(
        kept=kept,
        before=before,
        after=after,
        added=tuple(name for name in now if name not in was),
        replaced=tuple(replaced),
        dropped=_dropped(found, mended),
        moved=tuple(name for file, held in mended.shards.items() for name in held if places.get(name, file) != file),
        files=tuple(path for path in mended.files if not _equal(found.files.get(path), mended.files[path])),
    )


def _dropped(found: Checkpoint, mended: Checkpoint) -> tuple[str, ...]:
    """Return what goes, as `file: name`: every tensor whose name goes, and every second copy of one that stays."""
    now = mended.tensors
    held = [(file, name) for file in sorted(found.shards) for name in found.shards[file]]
    last = {name: file for file, name in held}
    return tuple(f"{file}: {name}" for file, name in held if name not in now or last[name] != file)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.spec == other.spec and _equal(one.content, other.content)


def _equal(one: Content | None, other: Content) -> bool:
    return one is not None and sha256_chunks(one.chunks()) == sha256_chunks(other.chunks())
