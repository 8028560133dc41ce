"""Which files of a folder are a checkpoint's.

Every file counts, hidden ones included, except companions: names on a short fixed list, which hubs, git and
publishers leave beside a checkpoint and which no loader opens. A companion counts after all where an index names it,
and whatever looks like weights or code counts wherever it stands. Symbolic links are followed in a snapshot of the
Hub's cache only, to blobs of the same repository: what is verified must be what is there.
"""

import json
import posixpath
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from requant.digest import MAX_INDEX, read_whole
from requant.errors import CheckpointError

SUFFIX = ".safetensors"
INDEX = f"model{SUFFIX}.index.json"
MAX_INDEX_BRACKETS, MAX_INDEX_COMMAS = 1000, 1_000_000
"""Of an index: real ones have three or four objects, and a comma for each tensor."""
CODE = (".dll", ".dylib", ".py", ".pyc", ".pyd", ".so")
PICKLES = (".bin", ".ckpt", ".cloudpickle", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pt2", ".pth", ".pth.tar")
"""What unpickling opens can run anything."""
RUNNABLE: tuple[str, ...] = (*CODE, *PICKLES, ".ggml", ".gguf", ".h5", ".hdf5", ".keras", ".mlmodel", ".msgpack")
RUNNABLE += (".nemo", ".npy", ".npz", ".onnx", ".onnx_data", ".ot", ".pb", ".pdparams", ".tensors", ".tflite")
"""Ends of the names of code, pickles and weights in other formats, in lower case."""
COMPANIONS: tuple[str, ...] = (".ds_store", ".git", ".gitattributes", ".gitignore", ".gitkeep", "*.md", "readme")
COMPANIONS += ("notice", "notice.txt", "*.pdf", "*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.webp", "sha256sums")
COMPANIONS += ("*.sig", "*.sigstore.json", "*.manifest.json", "*.journal.jsonl", "*.intoto.jsonl")
"""Patterns of the last part of a path, `folded_case`: git's files, cards, figures, what signs, and what requant writes.

LICENSE is none of them, because the manifests of builds record it.
"""
COMPANION_FOLDERS = (".git/", ".cache/huggingface/", ".eval_results/", ".requant-fetch/", "requant/")
"""git's own, the record of a download into a local folder, a hub's scores, what `fetch` has in part, and proofs."""


@dataclass(frozen=True)
class Listing:
    """A folder's files by POSIX path, sorted: those that count, and the companions.

    Each path is that of a regular file; for a snapshot of the Hub's cache it is the blob's.
    """

    files: dict[str, Path]
    companions: dict[str, Path]


def list_files(folder: Path) -> dict[str, Path]:
    """Return the files that count as a checkpoint's, by POSIX path relative to `folder`, sorted.

    Raises CheckpointError for a folder that is not there or cannot be read, a symbolic link that leads elsewhere than
    to a blob of the same repository in the Hub's cache, or anything that is no regular file.
    """
    return listing(folder).files


def listing(folder: Path) -> Listing:
    """Return the files that count, as `list_files` does, and the companions beside them."""
    try:
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such folder", "Name the folder with the .safetensors files.")
        found = dict(sorted(_walk(folder)))
        companions = {name: path for name, path in found.items() if is_companion(name)}
        if companions:
            named = _named({name: path for name, path in found.items() if is_index(name)})
            companions = {name: path for name, path in companions.items() if named is not None and name not in named}
    except OSError as error:
        raise CheckpointError(f"{error.filename}: {error.strerror}") from None
    return Listing({name: path for name, path in found.items() if name not in companions}, companions)


def is_companion(name: str) -> bool:
    """Say whether no loader opens a file of this POSIX path, unless an index names it."""
    last = folded_case(name).rpartition("/")[2]
    if last.endswith(SUFFIX) or is_opaque(name) or is_index(name):
        return False
    return name.startswith(COMPANION_FOLDERS) or any(fnmatchcase(last, pattern) for pattern in COMPANIONS)


def is_index(name: str) -> bool:
    """Say whether a file is an index by its name, in any case; a variant's is `*.index.VARIANT.json`."""
    last = folded_case(name).rpartition("/")[2]
    return last.endswith(".json") and ".index." in last


def is_opaque(name: str) -> bool:
    """Say whether a file is weights or code by its name, and is not looked into: `.SafeTensors` is, on some systems."""
    folded = folded_case(name)
    return folded.endswith(RUNNABLE) or (folded.endswith(SUFFIX) and not name.endswith(SUFFIX))


def folded_case(name: str) -> str:
    """Return the one form of all names that some file system takes for this one: `conﬁg.JSON` is `config.json`."""
    return unicodedata.normalize("NFKC", name).casefold()


def folded(companions: Collection[str]) -> tuple[str, ...]:
    """Return companions as they are told: of a folder that is one, its name alone."""
    inside = {name: folder for name in companions for folder in COMPANION_FOLDERS if name.startswith(folder)}
    return tuple(sorted({inside.get(name, name) for name in companions}))


def weight_map(index: bytes) -> dict[str, str]:
    """Return the file that an index names for each tensor, as loaders parse it: of a key that stands twice, the last.

    Raises ValueError for what no loader follows, and for more than `MAX_INDEX` bytes.
    """
    brackets, commas = index.count(b"{") + index.count(b"["), index.count(b",")
    if len(index) > MAX_INDEX or brackets > MAX_INDEX_BRACKETS or commas > MAX_INDEX_COMMAS:
        raise ValueError("larger than any index that is known")
    try:
        found = json.loads(index.decode())["weight_map"]
    except (KeyError, RecursionError, TypeError):
        raise ValueError("it has no weight_map") from None
    if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
        raise ValueError("its weight_map is not an object of file names")
    return found


def _named(indices: dict[str, Path]) -> set[str] | None:
    """Return every file that an index names; None where one of them cannot be followed, and so may name anything."""
    named: set[str] = set()
    for name, path in indices.items():
        try:
            files = set(weight_map(read_whole(path, MAX_INDEX)).values())
        except ValueError:
            return None
        named |= {posixpath.normpath(posixpath.join(posixpath.dirname(name), file)) for file in files}
    return named


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    folders = [folder]
    while folders:
        for path in folders.pop().iterdir():
            if not path.name.isprintable():
                raise CheckpointError(f"{path.parent}: {path.name!r} is no name for a file of a checkpoint")
            name = path.relative_to(folder).as_posix()
            if path.is_symlink():
                blob = _blob(folder.resolve(), path)
            elif path.is_dir() and path.suffix != SUFFIX:
                folders.append(path)
                continue
            else:
                blob = path if path.is_file() else None
            if blob is None:
                raise CheckpointError(
                    f"{path}: not a regular file",
                    "Give a folder of real files, or a snapshot in the Hub's cache, models--OWNER--NAME/snapshots/REV.",
                )
            yield name, blob


def _blob(snapshot: Path, link: Path) -> Path | None:
    """Return the file that an entry of the Hub's cache stands for, None where the link leads anywhere else.

    Layout: `models--OWNER--NAME/snapshots/REVISION/FILE` is a link to `models--OWNER--NAME/blobs/ETAG`.
    """
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):  # nowhere, or to itself
        return None
    blobs = snapshot.parent.with_name("blobs")
    return target if snapshot.parent.name == "snapshots" and target.parent == blobs and target.is_file() else None
