"""Which files of a folder are a checkpoint's.

Files whose path has a part that begins with a dot are not part of a checkpoint: no loader reads them, and
download tools and git leave them behind. Symbolic links are refused: what is verified must be what is there.
"""

from collections.abc import Iterator
from pathlib import Path

from requant.errors import CheckpointError

SUFFIX = ".safetensors"


def list_files(folder: Path) -> dict[str, Path]:
    """Return the files of a checkpoint by POSIX path relative to `folder`, sorted.

    Raises CheckpointError for a folder that is not there or cannot be read, a symbolic link, or anything that is
    no regular file.
    """
    try:
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such folder", "Name the folder with the .safetensors files.")
        return dict(sorted((path.relative_to(folder).as_posix(), path) for path in _walk(folder)))
    except OSError as error:
        raise CheckpointError(f"{error.filename}: {error.strerror}") from None


def _walk(folder: Path) -> Iterator[Path]:
    folders = [folder]
    while folders:
        for path in folders.pop().iterdir():
            if path.name.startswith("."):
                continue
            if not path.name.isprintable():
                raise CheckpointError(f"{path.parent}: {path.name!r} is no name for a file of a checkpoint")
            if path.is_symlink() or not (path.is_file() or (path.is_dir() and path.suffix != SUFFIX)):
                raise CheckpointError(
                    f"{path}: not a regular file",
                    "Give a folder of real files: a download into a local folder, not a cache.",
                )
            if path.is_dir():
                folders.append(path)
            else:
                yield path
