"""The folder of wheels that an image is made of, without network."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path


def lay_out(files: Iterable[Path], folder: Path) -> None:
    """Put wheels into one folder, as links where its file system allows it."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        try:
            os.link(file, folder / file.name)
        except FileExistsError:
            continue  # two locks may hold the same wheel
        except OSError:
            shutil.copyfile(file, folder / file.name)
