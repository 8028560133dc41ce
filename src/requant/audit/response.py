"""A response to a challenge of steps, in files: what a builder reveals of each drawn block.

    challenge.json                              what it answers
    00003/inputs/00002/ 00003/inputs/00003/     what the block before is given, and the block
    00003/revealed/00002.before.safetensors     which experts routers chose in the block before, by digest
    00003/revealed/decisions.safetensors        signs of the opened segments, experts of the opened steps, by digest
    00003/revealed/00008.safetensors            the state that an opened segment begins with, but for the first

It comes from strangers. Here every file is held against the form that it must have, and against the journal where that
has its digest; states and decisions are held against the hints by the worker.
"""

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from requant.checkpoint.safetensors import Spec, Stretch, read_header
from requant.digest import canonical_json, read_whole, sha256, sha256_chunks, strict_json
from requant.errors import CheckpointError
from requant.evidence.journal import Block, Journal
from requant.protocol import DECISIONS, INPUTS, REVEALED, SEGMENT, label
from requant.recipe import Effort

CHALLENGE = "challenge.json"
MAX_INPUTS = 1 << 20
"""Bytes of `inputs.json`: the state of Python's generator has 625 numbers."""
MAX_TENSORS = 1 << 16
"""Tensors of a file, at most: samples, decisions of a block, or parameters."""
ADVICE = "Ask the builder for a response to this challenge: requant respond."

_HEX = re.compile("[0-9a-f]{64}")


def assemble(out: Path, number: int, parts: Path, answer: Path, routes: Path) -> None:
    """Put a block's part of a response together; it appears when it is whole.

    `parts` has what each block is given, `answer` what was revealed of it, `routes` those of each block before one.
    """
    part = out / f".{label(number)}.part"
    shutil.rmtree(part, ignore_errors=True)
    (part / REVEALED).mkdir(parents=True)
    for each in answer.glob("*.safetensors"):
        shutil.copyfile(each, part / REVEALED / each.name)
    for block in range(max(number - 1, 0), number + 1):
        shutil.copytree(parts / label(block), part / INPUTS / label(block))
    if number:
        before = f"{label(number - 1)}.before.safetensors"
        shutil.copyfile(routes / before, part / REVEALED / before)
    part.rename(out / label(number))


def confirm(
    folder: Path, challenge: bytes, effort: Effort, journal: Journal, opened: Mapping[int, tuple[int, ...]]
) -> None:
    """Raise CheckpointError unless a folder holds a response to a challenge: these files, no other ones, in their form.

    `opened` are the iterations of each block. What stands in the journal by digest is confirmed.
    """
    if _read(folder / CHALLENGE, len(challenge)) != challenge:
        raise CheckpointError(f"{folder}: a response to another challenge", ADVICE)
    for number, iterations in opened.items():
        place = folder / label(number)
        expected = {*_expected(number, iterations)}
        if not place.is_dir() or place.is_symlink():
            raise CheckpointError(f"{place}: not there, or no folder", ADVICE)
        found = {str(each.relative_to(place)) for each in place.rglob("*") if each.is_symlink() or not each.is_dir()}
        for each in sorted(expected ^ found):
            raise CheckpointError(f"{place / each}: {'is not there' if each in expected else 'unexpected'}", ADVICE)
        for each in sorted(found):
            if (place / each).is_symlink() or not (place / each).is_file():
                raise CheckpointError(f"{place / each}: not a regular file", ADVICE)
        for block in range(max(number - 1, 0), number + 1):
            _confirm_inputs(place / INPUTS / label(block), journal.blocks[block], effort, streams(block))
        for path in sorted((place / REVEALED).iterdir()):
            if path.name.endswith((DECISIONS, ".before.safetensors")):
                _confirm_decisions(path)
            else:
                _confirm_state(path)


def streams(number: int) -> tuple[str, ...]:
    """Return the streams that a block is given: the first has one only."""
    return ("full", "quantized") if number else ("full",)


def _expected(number: int, iterations: tuple[int, ...]) -> Iterator[str]:
    for each in range(max(number - 1, 0), number + 1):
        yield f"{INPUTS}/{label(each)}/inputs.json"
        yield from (f"{INPUTS}/{label(each)}/{name}.safetensors" for name in streams(each))
    if number:
        yield f"{REVEALED}/{label(number - 1)}.before.safetensors"
    yield f"{REVEALED}/{DECISIONS}"
    starts = {each // SEGMENT * SEGMENT for each in iterations} - {0}
    yield from (f"{REVEALED}/{label(each)}.safetensors" for each in sorted(starts))


def _confirm_inputs(folder: Path, line: Block, effort: Effort, names: tuple[str, ...]) -> None:
    path = folder / "inputs.json"
    try:
        value = strict_json(_read(path, MAX_INPUTS))
        said = value["said"]
        if canonical_json({"said": said, "sha256": sha256(canonical_json(said))}) != canonical_json(value):
            raise ValueError("it does not hold its own digest")
        if said.keys() != {"random_state", "digests", "streams"} or said["streams"] != [*names]:
            raise ValueError(f"expected the streams {', '.join(names)}")
        if said["digests"] != {key: line.inputs.get(key) for key in ("full", "quantized")}:
            raise ValueError("its streams are not those of the journal")
        if sha256(canonical_json(said["random_state"])) != line.random_state:
            raise ValueError("its random state is not that of the journal")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not what {line.block} is given: {str(error)[:1000]}", ADVICE) from None
    dtype = {"bfloat16": "BF16", "float32": "F32"}[effort.precision]
    for name in names:
        found = _header(folder / f"{name}.safetensors")
        shapes = {spec.shape[:-1] for spec, _ in found.values()}
        forms = {(spec.dtype, spec.shape) for spec, _ in found.values()}
        expected = [f"{number:06d}" for number in range(effort.samples)]
        if sorted(found) != expected or len(forms) != 1 or shapes != {(1, effort.sequence_length)}:
            raise CheckpointError(f"{folder / name}.safetensors: not a stream of {effort.samples} samples", ADVICE)
        if {each for each, _ in forms} != {dtype}:
            raise CheckpointError(f"{folder / name}.safetensors: not a stream in {effort.precision}", ADVICE)
        if sha256_chunks(chunk for each in expected for chunk in found[each][1].chunks()) != line.inputs[name]:
            raise CheckpointError(
                f"{folder / name}.safetensors: not what the journal says {line.block} is given", ADVICE
            )


def _confirm_decisions(path: Path) -> None:
    for name, (spec, stretch) in _header(path).items():
        if not _HEX.fullmatch(name) or spec.dtype != "U8" or len(spec.shape) != 1:
            raise CheckpointError(f"{path}: {name[:100]!r} is {spec}, expected bytes by their SHA-256", ADVICE)
        if sha256_chunks(stretch.chunks()) != name:
            raise CheckpointError(f"{path}: {name} is not the SHA-256 of its bytes", ADVICE)


def _confirm_state(path: Path) -> None:
    for name, (spec, _) in _header(path).items():
        if spec.dtype != "F32":
            raise CheckpointError(f"{path}: {name[:100]!r} is {spec}, expected parameters in F32", ADVICE)


def _header(path: Path) -> Mapping[str, tuple[Spec, Stretch]]:
    found, _ = read_header(path)
    if len(found) > MAX_TENSORS:
        raise CheckpointError(f"{path}: {len(found):,} tensors, expected {MAX_TENSORS:,} at most", ADVICE)
    return found


def _read(path: Path, limit: int) -> bytes:
    try:
        return read_whole(path, limit)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}", ADVICE) from None
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}", ADVICE) from None
