"""All of a checkpoint that no tuning decides: it follows from base and recipe, so all of it is compared.

The passes are pure, and keep nothing of AutoRound's raw output but codes and scales of the tuned layers. So with
stand-ins for these they give every other tensor, the layout of the files and the side files as every honest build has
them, byte for byte: without a worker, on any machine. Whatever a checkpoint has beside that is found and named.
"""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from requant import passes
from requant.audit.challenge import MAX_TEXT
from requant.checkpoint.checkpoint import Checkpoint, Made, Tensor, header_of
from requant.checkpoint.manifest import Manifest
from requant.checkpoint.safetensors import Spec
from requant.diff.side_files import json_differences
from requant.digest import read_whole, sha256_chunks, side_limit
from requant.errors import CheckpointError
from requant.formats import TENSORS
from requant.formats.form import Form
from requant.passes.context import MAIN
from requant.verdict import Outcome

NAMED = 100
"""Deviations that are named at most; a statement is read in one piece."""
KINDS = (
    "changed file",
    "changed tensor",
    "extra file",
    "extra tensor",
    "missing file",
    "missing tensor",
    "moved tensor",
)


@dataclass(frozen=True)
class Deviation:
    """One file or tensor that is not what base and recipe give: `kind` is one of `KINDS`, `detail` says in what."""

    kind: str
    name: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}" + (f": {self.detail}" if self.detail else "")


@dataclass(frozen=True)
class Untuned:
    """How all that is not tuned compares: the first `NAMED` deviations, how many there are, and what stays open."""

    deviations: tuple[Deviation, ...] = ()
    count: int = 0
    open: str = ""

    @property
    def outcome(self) -> Outcome:
        """`different` where anything deviates, `inconclusive` where something could not be judged, else `identical`."""
        if self.count:
            return Outcome.DIFFERENT
        return Outcome.INCONCLUSIVE if self.open else Outcome.IDENTICAL

    def text(self) -> list[str]:
        """Return what a person reads: the outcome, then what deviates."""
        lines = [f"not tuned: {self.outcome}" + (f"; {self.open}" if self.open else "")]
        lines += [f"  {each}" for each in self.deviations]
        if self.count > len(self.deviations):
            lines.append(f"  and {self.count - len(self.deviations):,} more")
        return lines

    def as_json(self) -> dict[str, Any]:
        """Return it as it stands in an audit."""
        deviations = [vars(each) for each in self.deviations]
        return {"outcome": str(self.outcome), "count": self.count, "deviations": deviations, "open": self.open}


def derive(context: passes.Context) -> Checkpoint:
    """Return what base and recipe give; the tensors that `tuned` names are stand-ins of the right dtype and shape.

    Raises BuildError where the base is not what its config.json means.
    """
    main = {
        name: Tensor(spec, Made(partial(_stand_in, name, spec, context.target.form_at(name))))
        if name.endswith(TENSORS)
        else context.untuned(name)
        for name, spec in context.target.kept.items()
    }
    return passes.apply(Checkpoint({MAIN: main}, {}), context)


def tuned(context: passes.Context) -> AbstractSet[str]:
    """Return the names of the tensors that tuning decides."""

    def decided(name: str, spec: Spec) -> bool:
        return name.endswith(TENSORS) and context.target.form_at(name).fixed(name.rpartition(".")[2], spec) is None

    return {name for name, spec in context.target.kept.items() if decided(name, spec)}


def _stand_in(name: str, spec: Spec, form: Form) -> bytes:
    if (fixed := form.fixed(name.rpartition(".")[2], spec)) is not None:
        return fixed
    return np.ones(spec.size, "<f2").tobytes() if name.endswith(".scales") else bytes(spec.nbytes)


def compare(
    folder: Path, manifest: Manifest, derived: Checkpoint, tuned: AbstractSet[str], *, unsure: str = ""
) -> Untuned:
    """Hold a checkpoint, hashed as `manifest`, against what base and recipe give; `tuned` tensors by place and form.

    `unsure` says what of the derived files is not known; it stays open. Of the checkpoint, only headers and JSON files
    that deviate are read again. Raises CheckpointError where they cannot be.
    """
    found = [*_files(folder, manifest, derived), *_tensors(manifest, derived, tuned)]
    shown = tuple(Deviation(each.kind, short(each.name), short(each.detail)) for each in found[:NAMED])
    return Untuned(shown, len(found), unsure)


def _files(folder: Path, manifest: Manifest, derived: Checkpoint) -> Iterator[Deviation]:
    """Yield files that deviate. One that counts (`files.list_files`) and no pass has made is extra, whatever it is."""
    for name in sorted(manifest.files.keys() | derived.shards.keys() | derived.files.keys()):
        if name not in manifest.files:
            yield Deviation("missing file", name)
        elif name in derived.shards:
            if not _has_header(folder / name, name, manifest, derived):
                yield Deviation("changed file", name, "its header is in another order or form, or has other metadata")
        elif name not in derived.files:
            yield Deviation("extra file", name)
        elif sha256_chunks(derived.files[name].chunks()) != manifest.files[name].sha256:
            yield Deviation("changed file", name, _unlike(folder / name, derived.file(name)))


def _has_header(path: Path, name: str, manifest: Manifest, derived: Checkpoint) -> bool:
    """Whether a file begins as the passes write it; where it holds other tensors, these are named, and nothing else."""
    specs = {key: tensor.spec for key, tensor in derived.shards[name].items()}
    held = {key: Spec(each.dtype, each.shape) for key, each in manifest.tensors.items() if each.file == name}
    if held != specs:
        return True
    expected = header_of(specs)
    try:
        with path.open("rb") as file:
            return file.read(len(expected)) == expected
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None


def _tensors(manifest: Manifest, derived: Checkpoint, tuned: AbstractSet[str]) -> Iterator[Deviation]:
    placed = {name: (file, tensor) for file, tensors in derived.shards.items() for name, tensor in tensors.items()}
    for name in sorted(manifest.tensors.keys() | placed.keys()):
        if name not in placed:
            extra = manifest.tensors[name]
            yield Deviation("extra tensor", name, f"{extra.dtype} {list(extra.shape)} in {extra.file}")
            continue
        file, tensor = placed[name]
        spec = f"{tensor.spec.dtype} {list(tensor.spec.shape)}"
        if name not in manifest.tensors:
            yield Deviation("missing tensor", name, f"{spec}, expected in {file}")
            continue
        now = manifest.tensors[name]
        if now.file != file:
            yield Deviation("moved tensor", name, f"in {now.file}, expected in {file}")
        if Spec(now.dtype, now.shape) != tensor.spec:
            yield Deviation("changed tensor", name, f"{now.dtype} {list(now.shape)}, expected {spec}")
        elif name not in tuned and sha256_chunks(tensor.content.chunks()) != now.sha256:
            yield Deviation("changed tensor", name, "its bytes are not what base and recipe give")


def _unlike(path: Path, derived: bytes) -> str:
    try:
        if path.suffix == ".json":
            return "; ".join(json_differences(derived, read_whole(path, side_limit(path.name))))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except ValueError:
        pass  # no JSON for all its name: other bytes is all that can be said
    return "its bytes are not what base and recipe give"


def short(text: str) -> str:
    """Return a stranger's text as a statement can hold it: printable, and not too long."""
    shown = "".join(each if each.isprintable() else f"\\u{ord(each):04x}" for each in text[:MAX_TEXT])
    return shown if len(text) <= MAX_TEXT and len(shown) <= MAX_TEXT else f"{shown[: MAX_TEXT - 1]}…"
