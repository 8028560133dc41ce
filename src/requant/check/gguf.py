"""A model in GGUF files: its tensors under the names that the base has for them, each layer with a codec of its own.

A model may be spread over files named `…-00001-of-00003.gguf`. Tokenizer and hyperparameters are key-values of the
file: `key_values.py` holds them against the base's.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from requant.check.place import Place
from requant.checkpoint.gguf import Long, Tensor, Value, read_gguf
from requant.checkpoint.safetensors import MAX_TENSORS, Spec
from requant.errors import CheckpointError
from requant.formats.codec import FLOATS, Codec
from requant.formats.ggml import Ggml
from requant.model.gguf import Origin, origin

SUFFIX = ".gguf"
MAX_PARTS = 10_000
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True)
class Types:
    """What the files say of each layer."""

    codecs: Mapping[str, Ggml]

    def codec(self, layer: str) -> Codec | None:
        """Return how a layer is stored."""
        return self.codecs.get(layer)


@dataclass(frozen=True)
class Model:
    """The tensors by the base's names, those that two files hold, and those that no base is known to have, and why.

    `heads` says of layers in how many heads their rows are, where those of each head are in another order; `values` and
    `lists` are key-values of all files.
    """

    tensors: Mapping[str, Place]
    types: Types
    heads: Mapping[str, int]
    twice: tuple[tuple[str, str], ...]
    beyond: tuple[tuple[str, str], ...]
    values: Mapping[str, Value]
    lists: Mapping[str, Long]


def is_gguf(path: Path) -> bool:
    """Say whether a path is a GGUF file, or a folder in which such files are the only weights."""
    if path.suffix == SUFFIX and not path.is_dir():
        return path.is_file()
    return path.is_dir() and any(_inside(path)) and not any(path.glob("*.safetensors"))


def _inside(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.glob(f"*{SUFFIX}") if each.is_file())


def files_of(path: Path) -> list[str]:
    """Return the names of the files of one model, in order; CheckpointError where they are not all there, or several.

    `path` is a folder with one model, or one of its files.
    """
    folder, one = (path, False) if path.is_dir() else (path.parent, True)
    found = [path.name] if one else _inside(folder)
    if part := _PART.search(found[0]):
        stem, count = found[0][: part.start()], min(int(part[2]), MAX_PARTS)
        if not 0 < int(part[1]) <= int(part[2]):
            raise CheckpointError(f"{folder / found[0]}: no part {int(part[1])} of {int(part[2])}", "Rename it.")
        wanted = [f"{stem}-{number:05}-of-{part[2]}{SUFFIX}" for number in range(1, count + 1)]
        if lacking := [name for name in wanted if not (folder / name).is_file()]:
            raise CheckpointError(f"{folder / lacking[0]}: no such file", "All parts of a model are read together.")
        if one or found == wanted:
            return wanted
    if len(found) > 1:
        raise CheckpointError(f"{folder}: holds {len(found)} models", f"Name one of them, such as {folder / found[0]}.")
    return found


def read_model(folder: Path, names: list[str]) -> Model:
    """Read the headers of a model's files. Raises CheckpointError for what is no complete file, or no model of one."""
    read = {name: read_gguf(folder / name) for name in names}
    values = {key: value for each in read.values() for key, value in each.values.items()}
    tensors: dict[str, Place] = {}
    codecs: dict[str, Ggml] = {}
    heads: dict[str, int] = {}
    twice: list[tuple[str, str]] = []
    beyond: list[tuple[str, str]] = []
    for file, each in read.items():
        for name, tensor in each.tensors.items():
            try:
                source = origin(name, tensor.shape, values)
                if not tensor.shape or (source.heads and tensor.shape[0] % (2 * source.heads)):
                    raise ValueError(f"{list(tensor.shape)} are no {source.heads} heads of an even number of rows")
                if len(tensors) + len(source.tensors) > MAX_TENSORS:
                    raise CheckpointError(f"{folder / file}: stacks more than {MAX_TENSORS:,} tensors")
            except ValueError as error:
                beyond.append((name, str(error)))
                continue
            for target, place in _places(tensor, source, file):
                if target in tensors:
                    twice.append((target, file))
                    continue
                tensors[target] = place
                layer = target.removesuffix(".weight")
                if tensor.type not in FLOATS or source.heads:
                    codecs[layer] = Ggml(tensor.type)
                if source.heads:
                    heads[layer] = source.heads
    if not tensors:
        raise CheckpointError(f"{folder / names[0]}: has no tensors of a base", *(why for _, why in beyond[:1]))
    lists = {key: value for each in read.values() for key, value in each.lists.items()}
    return Model(tensors, Types(codecs), heads, tuple(twice), tuple(beyond), values, lists)


def _places(tensor: Tensor, source: Origin, file: str) -> list[tuple[str, Place]]:
    """Return what a tensor is of the base: itself, or one expert after the other."""
    count, start = len(source.tensors), tensor.stretch.start
    size = (tensor.stretch.stop - start) // count
    spec = Spec(tensor.spec.dtype, tensor.spec.shape[1:]) if count > 1 else tensor.spec
    places = ((target, start + number * size) for number, target in enumerate(source.tensors))
    return [(target, Place(spec, file, first, first + size)) for target, first in places]
